"""Scores of two SAEs' codes: matching by activations, agreement of matched pairs, CKA and SVCCA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from husai.consistency.scores.codes import (
    Codes,
    CrossMoments,
    MomentSums,
    code_blocks,
    cross_moments,
    paired_blocks,
)
from husai.consistency.scores.similarity import (
    cka_from_products,
    svcca_from_whitening,
    whitening,
)
from husai.errors import InputError
from husai.matching.dense_assignment import assign
from husai.matching.match import match_features
from husai.matching.result import Match

# Up to so many pairs of latents, all are correlated at once ([n_a, n_b] float64 in memory).
_CORRELATION_PAIRS = 4096**2
# Above that, latents are matched as rows of [latents, rows]; this many numbers are 2 GB.
_CORRELATION_NUMBERS = 5e8


@dataclass(frozen=True)
class ActivationMatch:
    """Latents matched by the correlation of their activations.

    Attributes
    ----------
    mean
        Mean correlation over ``min(live_a, live_b)`` matched latents; None when not defined.
    a_index, b_index, correlation
        The matched latents and their Pearson correlation.
    n_dead_a, n_dead_b
        Latents that do not vary over these rows: they have no correlation and are left out.
    reason
        Why ``mean`` is None.
    """

    mean: float | None
    a_index: NDArray[np.int64]
    b_index: NDArray[np.int64]
    correlation: NDArray[np.float64]
    n_dead_a: int
    n_dead_b: int
    reason: str


def match_activations(a: Codes | CrossMoments, b: Codes | None = None) -> ActivationMatch:
    """Match latents by the Pearson correlation of their activations over the same rows.

    It does not depend on the scale of the encoders, nor on the decoder directions (Lan et al.,
    arXiv 2410.06981).

    Parameters
    ----------
    a, b
        Codes ``[rows, n_a]`` and ``[rows, n_b]`` of the same rows; or only ``a``, their
        :class:`CrossMoments`.

    Raises
    ------
    InputError
        When rows or blocks do not correspond.
    """
    moments = a if isinstance(a, CrossMoments) else cross_moments(a, _given(b))
    live_a, live_b = (np.flatnonzero(m.scatter > 0) for m in (moments.a, moments.b))
    dead = len(moments.a.total) - len(live_a), len(moments.b.total) - len(live_b)
    if not len(live_a) or not len(live_b):
        which = "A" if not len(live_a) else "B"
        empty = np.zeros(0, dtype=np.int64)
        return ActivationMatch(
            None, empty, empty, np.zeros(0), *dead, f"no latent of {which} varies over these rows"
        )
    correlation = moments.correlation[np.ix_(live_a, live_b)]
    rows, columns = assign(correlation)
    matched = correlation[rows, columns]
    return ActivationMatch(float(matched.mean()), live_a[rows], live_b[columns], matched, *dead, "")


def activation_mean(
    a: sparse.csc_array, b: sparse.csc_array, cross: Callable[[], CrossMoments] | None = None
) -> tuple[float | None, str]:
    """Mean of :func:`match_activations` at any width, or None and the reason.

    Parameters
    ----------
    a, b
        Codes ``[rows, n_a]`` and ``[rows, n_b]`` of the same rows.
    cross
        Returns their :func:`cross_moments`, if the caller has them; computed here otherwise.
    """
    n_a, n_b = a.shape[1], b.shape[1]
    if n_a * n_b <= _CORRELATION_PAIRS:
        found = match_activations(cross() if cross is not None else cross_moments(a, b))
        return found.mean, found.reason
    if a.shape[0] * max(n_a, n_b) > _CORRELATION_NUMBERS:
        most = int(_CORRELATION_NUMBERS / max(n_a, n_b))
        return None, f"too many numbers to correlate at this width; give at most {most} rows"
    # a correlation over rows is the cosine of the centred columns: the same exact matching
    centred = []
    for part in (a, b):
        columns = part.toarray().T
        columns -= columns.mean(axis=1, keepdims=True)
        varies = np.square(columns).sum(axis=1) > 0
        if not varies.any():
            return None, "no latent varies over these rows"
        centred.append(columns[varies])
    return match_features(*centred, signed=True).mean, ""


def _given(codes: Codes | None) -> Codes:
    if codes is None:
        raise InputError("b: give the second SAE's codes")
    return codes


@dataclass(frozen=True)
class CodeConsistency:
    """How well codes agree when latents are matched by their decoder rows.

    Attributes
    ----------
    jaccard, correlation, r2
        Means over the pairs for which they are defined (r2 is pooled); None without such a pair.
    jaccard_chance
        Mean Jaccard that independent latents with the same firing rates would have.
    pair_jaccard, pair_correlation
        ``[m]`` one per matched pair, masked where not defined.
    n_jaccard, n_correlation
        Number of pairs in which a latent fires, and in which both vary.
    reason
        Why something is None.
    """

    jaccard: float | None
    correlation: float | None
    r2: float | None
    jaccard_chance: float | None
    pair_jaccard: np.ma.MaskedArray[Any, np.dtype[np.float64]]
    pair_correlation: np.ma.MaskedArray[Any, np.dtype[np.float64]]
    n_jaccard: int
    n_correlation: int
    reason: str


def code_consistency(a: Codes, b: Codes, match: Match) -> CodeConsistency:
    """Agreement of the codes of matched latents on the same rows (iSAE, arXiv 2605.31245).

    Only the matched columns are compared, so nothing of size ``n_a × n_b`` is made.

    - Support Jaccard: rows on which both fire over rows on which at least one does.
    - Correlation: Pearson over rows, of ``a`` with ``σ b``; ``σ`` is the sign of the pair's
      cosine, since a latent with the opposite direction has the opposite effect (1 for a signed
      match).
    - R²: ``1 - ΣΣ(a - σ b)² / ΣΣ(a - mean a)²``, pooled over pairs, mean of both directions. No
      scale is fitted, so give codes in units of unit-norm decoder rows.

    Parameters
    ----------
    a, b
        Codes ``[rows, n_a]`` and ``[rows, n_b]`` of the same rows.
    match
        Match of the two decoders.

    Raises
    ------
    InputError
        When rows, blocks or widths do not correspond.
    """
    sign = np.where(match.cosine < 0, -1.0, 1.0) if not match.signed else np.ones(len(match.cosine))
    adder_a, adder_b = MomentSums(), MomentSums()
    m = len(match.a_index)
    product, both = np.zeros(m), np.zeros(m, dtype=np.int64)
    for one, other in paired_blocks(a, b):
        if (one.shape[1], other.shape[1]) != (match.n_a, match.n_b):
            raise InputError(
                f"codes of {one.shape[1]} and {other.shape[1]} latents; the match is of "
                f"{match.n_a} and {match.n_b}"
            )
        left, right = one[:, match.a_index], other[:, match.b_index]
        adder_a.add(left)
        adder_b.add(right)
        together = left.multiply(right)
        product += np.asarray(together.sum(axis=0)).ravel()
        both += np.asarray((together != 0).sum(axis=0)).ravel()
    x, y = adder_a.moments("codes of A"), adder_b.moments("codes of B")
    n = x.n_rows
    either = x.fires + y.fires - both
    fires = either > 0
    jaccard = np.ma.masked_array(both / np.maximum(either, 1), mask=~fires)
    together_by_chance = x.fires * y.fires / n
    chance = together_by_chance / np.maximum(x.fires + y.fires - together_by_chance, 1e-300)
    scale = np.sqrt(x.scatter * y.scatter)
    varies = scale > 0
    covariance = sign * (product - x.total * y.total / n)
    correlation = np.ma.masked_array(
        np.clip(covariance / np.where(varies, scale, 1.0), -1.0, 1.0), mask=~varies
    )
    error = float((x.squares + y.squares - 2 * sign * product).sum())
    sides = [float(side.scatter.sum()) for side in (x, y)]
    r2 = float(np.mean([1 - error / side for side in sides])) if min(sides) > 0 else None
    reason = ""
    if not fires.any():
        reason = "no matched latent fires on these rows"
    elif not varies.any():
        reason = "in no matched pair do both latents vary over these rows"
    return CodeConsistency(
        jaccard=float(jaccard.mean()) if fires.any() else None,
        correlation=float(correlation.mean()) if varies.any() else None,
        r2=r2,
        jaccard_chance=float(chance[fires].mean()) if fires.any() else None,
        pair_jaccard=jaccard,
        pair_correlation=correlation,
        n_jaccard=int(fires.sum()),
        n_correlation=int(varies.sum()),
        reason=reason,
    )


@dataclass(frozen=True)
class CodeGram:
    """Products of one SAE's codes with themselves, for CKA and SVCCA.

    Attributes
    ----------
    n_rows
        Number of rows.
    product
        ``[n, n]`` centred ``Σ_rows c cᵀ``.
    whitening
        ``[r, n]`` whitening of its top components, for SVCCA; None when the codes do not vary.
    """

    n_rows: int
    product: NDArray[np.float64]
    whitening: NDArray[np.float64] | None


def code_gram(codes: Codes, *, variance: float = 0.99) -> CodeGram:
    """Prepare one SAE's codes for CKA and SVCCA; one result serves all pairs of this SAE.

    Parameters
    ----------
    codes
        Codes ``[rows, n]``; the result takes memory for n² numbers.
    variance
        Share of variance that SVCCA keeps, in at most ``SVCCA_DIRECTIONS`` directions.

    Raises
    ------
    InputError
        When there is no row or a block is not a finite matrix.
    """
    adder = MomentSums()
    product = None
    for block in code_blocks(codes):
        adder.add(block)
        own = (block.T @ block).toarray()
        product = own if product is None else product + own
    moments = adder.moments("codes")
    assert product is not None
    centred = product - np.outer(moments.total, moments.total) / moments.n_rows
    return CodeGram(moments.n_rows, centred, whitening(centred, variance))


@dataclass(frozen=True)
class UnitCodes:
    """Codes of one SAE's features, in units of unit-norm decoder rows.

    Attributes
    ----------
    codes
        ``[rows, n]`` sparse float64: only non-zero activations are stored.
    """

    codes: sparse.csc_array

    @cached_property
    def gram(self) -> CodeGram:
        """Their :func:`code_gram`, computed once for all pairs of this SAE (memory: n²)."""
        return code_gram(self.codes)

    def release(self) -> None:
        """Free the memory of :attr:`gram`; its next use computes it again."""
        vars(self).pop("gram", None)


@dataclass(frozen=True)
class RepresentationSimilarity:
    """CKA and SVCCA of two SAEs' codes as whole representations.

    Attributes
    ----------
    cka, svcca
        None when a side does not vary, or (SVCCA) the rows do not outnumber the directions kept.
    cka_chance
        Mean CKA over all permutations of the rows of one side, in closed form:
        ``tr K tr L / ((n-1) ||K|| ||L||)``.
    reason
        Why something is None.
    """

    cka: float | None
    svcca: float | None
    cka_chance: float | None
    reason: str


def code_similarity(
    cross: CrossMoments, gram_a: CodeGram, gram_b: CodeGram
) -> RepresentationSimilarity:
    """Linear CKA (arXiv 1905.00414) and SVCCA (arXiv 1706.05806) of two SAEs' codes.

    Neither depends on how features are paired: both compare the spaces that the codes span.

    Parameters
    ----------
    cross
        From :func:`cross_moments`.
    gram_a, gram_b
        From :func:`code_gram`, of the same rows.

    Raises
    ------
    InputError
        When the numbers of rows differ.
    """
    n = cross.a.n_rows
    if not n == cross.b.n_rows == gram_a.n_rows == gram_b.n_rows:
        raise InputError(f"codes: {n}, {gram_a.n_rows} and {gram_b.n_rows} rows do not correspond")
    covariance = cross.covariance
    cka = cka_from_products(covariance, gram_a.product, gram_b.product)
    if cka is None:
        which = "A" if not gram_a.product.any() else "B"
        return RepresentationSimilarity(None, None, None, f"the codes of {which} do not vary")
    norms = float(np.linalg.norm(gram_a.product) * np.linalg.norm(gram_b.product))
    chance = float(np.trace(gram_a.product) * np.trace(gram_b.product) / ((n - 1) * norms))
    svcca = svcca_from_whitening(covariance, gram_a.whitening, gram_b.whitening, n)
    reason = "" if svcca is not None else f"SVCCA: {n} rows do not outnumber the directions kept"
    return RepresentationSimilarity(cka, svcca, chance, reason)
