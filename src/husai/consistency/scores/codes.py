"""Scores on codes: what latents do on the same rows, rather than where they point.

Codes are ``[rows, d_sae]``: an array, a scipy sparse matrix, or a function that returns an
iterable of row blocks (each an array or sparse), so that nothing needs ``[rows, d_sae]`` of all
SAEs at once. Two SAEs' codes must be of the same rows in the same order and the same blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import linear_sum_assignment

from husai.consistency.scores.similarity import (
    cka_from_products,
    svcca_from_whitening,
    whitening,
)
from husai.errors import InputError
from husai.matching.match import Match, match_features

Block: TypeAlias = "NDArray[Any] | sparse.csr_array | sparse.csc_array | sparse.coo_array"
Codes: TypeAlias = "Block | Callable[[], Iterable[Block]]"

_BLOCK_ROWS = 4096

# Widths up to which all pairs of latents are correlated at once ([n_a, n_b] float64 in memory).
_CORRELATION_PAIRS = 4096**2
# Beyond, latents are matched as rows of [latents, rows]; this many numbers are 2 GB.
_CORRELATION_NUMBERS = 5e8


def code_blocks(codes: Codes, name: str = "codes") -> Iterator[sparse.csr_array]:
    """Yield the rows in blocks, sparse and in float64.

    Sums of squares over 1e5 and more rows are differences of large numbers when they become
    variances: float32 would lose the rare latents, so all of it streams in float64.

    Raises
    ------
    InputError
        When a block is not a finite matrix, or widths change.
    """
    width = None
    if callable(codes):
        blocks: Iterable[Block] = codes()
    else:
        given: Any = codes
        whole: Any = sparse.csr_array(given) if hasattr(given, "tocsr") else np.asarray(given)
        if whole.ndim != 2:
            raise InputError(f"{name}: shape {whole.shape}; give [rows, d_sae]")
        blocks = (whole[i : i + _BLOCK_ROWS] for i in range(0, whole.shape[0], _BLOCK_ROWS))
    for block in blocks:
        if len(block.shape) != 2:
            raise InputError(f"{name}: a block of shape {block.shape}; give [rows, d_sae]")
        matrix = sparse.csr_array(block).astype(np.float64)
        if width is not None and matrix.shape[1] != width:
            raise InputError(f"{name}: blocks of {width} and {matrix.shape[1]} latents")
        width = matrix.shape[1]
        if not np.isfinite(matrix.data).all():
            raise InputError(f"{name}: NaN or infinity among the codes")
        yield matrix


def _paired_blocks(a: Codes, b: Codes) -> Iterator[tuple[sparse.csr_array, sparse.csr_array]]:
    for one, other in zip_longest(code_blocks(a, "codes of A"), code_blocks(b, "codes of B")):
        if one is None or other is None or one.shape[0] != other.shape[0]:
            rows = [0 if block is None else block.shape[0] for block in (one, other)]
            raise InputError(
                f"codes: a block of {rows[0]} rows of A meets one of {rows[1]} rows of B; "
                "encode the same activation rows, in the same order and blocks"
            )
        yield one, other


def sparse_codes(blocks: Iterable[NDArray[Any]]) -> sparse.csr_array:
    """Stack dense row blocks into one sparse float32 matrix, so that only what fires is held."""
    parts = [sparse.csr_array(np.asarray(block, dtype=np.float32)) for block in blocks]
    if not parts:
        raise InputError("codes: no rows; give at least one block")
    return sparse.csr_array(sparse.vstack(parts, format="csr"))


@dataclass(frozen=True)
class CodeMoments:
    """Sums over rows of one SAE's codes, in float64.

    Attributes
    ----------
    n_rows
        Rows.
    total, squares
        ``[n]`` sum and sum of squares.
    fires
        ``[n]`` rows on which the latent is not zero.
    """

    n_rows: int
    total: NDArray[np.float64]
    squares: NDArray[np.float64]
    fires: NDArray[np.int64]

    @property
    def firing_rate(self) -> NDArray[np.float64]:
        """``[n]`` share of rows on which the latent is not zero."""
        return self.fires / self.n_rows

    @property
    def l0(self) -> float:
        """Mean number of latents that fire on a row."""
        return float(self.fires.sum() / self.n_rows)

    @property
    def scatter(self) -> NDArray[np.float64]:
        """``[n]`` centred sum of squares; exactly 0 for a latent that does not vary."""
        value = self.squares - self.total**2 / self.n_rows
        return np.where(value > 1e-12 * self.squares, value, 0.0)


class _Adder:
    """Accumulate :class:`CodeMoments`."""

    def __init__(self) -> None:
        self.rows = 0
        self.sums: list[NDArray[Any]] | None = None

    def add(self, block: sparse.csr_array) -> None:
        self.rows += block.shape[0]
        fires = sparse.csr_array((block.data != 0, block.indices, block.indptr), block.shape)
        sums = [
            np.asarray(block.sum(axis=0)).ravel(),
            np.asarray(block.power(2).sum(axis=0)).ravel(),
            np.asarray(fires.sum(axis=0, dtype=np.int64)).ravel(),
        ]
        self.sums = (
            sums if self.sums is None else [x + y for x, y in zip(self.sums, sums, strict=True)]
        )

    def moments(self, name: str) -> CodeMoments:
        if self.sums is None or not self.rows:
            raise InputError(f"{name}: no rows; encode at least one activation row")
        return CodeMoments(self.rows, *self.sums)


def code_moments(codes: Codes) -> CodeMoments:
    """Sum one SAE's codes over rows.

    Raises
    ------
    InputError
        When there is no row or a block is not a finite matrix.
    """
    adder = _Adder()
    for block in code_blocks(codes):
        adder.add(block)
    return adder.moments("codes")


@dataclass(frozen=True)
class CrossMoments:
    """Moments of two SAEs' codes and their product ``Σ_rows a bᵀ`` ``[n_a, n_b]``."""

    a: CodeMoments
    b: CodeMoments
    product: NDArray[np.float64]

    @property
    def covariance(self) -> NDArray[np.float64]:
        """``[n_a, n_b]`` centred product, not divided by the rows."""
        return self.product - np.outer(self.a.total, self.b.total) / self.a.n_rows

    @property
    def correlation(self) -> NDArray[np.float64]:
        """``[n_a, n_b]`` Pearson correlation; 0 where a latent does not vary."""
        scale = np.sqrt(np.outer(self.a.scatter, self.b.scatter))
        result = np.zeros_like(scale)
        np.divide(self.covariance, scale, out=result, where=scale > 0)
        return np.clip(result, -1.0, 1.0)


def cross_moments(a: Codes, b: Codes) -> CrossMoments:
    """Sum two SAEs' codes and their product over the same rows.

    Parameters
    ----------
    a, b
        Codes ``[rows, n_a]`` and ``[rows, n_b]`` of the same rows.

    Raises
    ------
    InputError
        When rows or blocks do not correspond.
    """
    adder_a, adder_b = _Adder(), _Adder()
    product = None
    for one, other in _paired_blocks(a, b):
        adder_a.add(one)
        adder_b.add(other)
        block = (one.T @ other).toarray()
        product = block if product is None else product + block
    moments = adder_a.moments("codes of A"), adder_b.moments("codes of B")
    assert product is not None
    return CrossMoments(*moments, product)


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

    Blind to the scale of the encoders, and to directions altogether (Lan et al., arXiv
    2410.06981).

    Parameters
    ----------
    a, b
        Codes of the same rows; or their :class:`CrossMoments` alone.

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
    rows, columns = linear_sum_assignment(correlation, maximize=True)
    matched = correlation[rows, columns]
    return ActivationMatch(float(matched.mean()), live_a[rows], live_b[columns], matched, *dead, "")


def activation_mean(
    a: sparse.csc_array, b: sparse.csc_array, cross: Callable[[], CrossMoments] | None = None
) -> tuple[float | None, str]:
    """Mean of :func:`match_activations` at any width, or None and why.

    Parameters
    ----------
    a, b
        Codes ``[rows, n_a]`` and ``[rows, n_b]`` of the same rows.
    cross
        Gives their :func:`cross_moments`, where those are used elsewhere too.
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
    """How well codes agree under a match made on the decoders.

    Attributes
    ----------
    jaccard, correlation, r2
        Means over the pairs that define them (r2 is pooled); None when there is no such pair.
    jaccard_chance
        Mean Jaccard of supports that are independent with the same firing rates.
    pair_jaccard, pair_correlation
        ``[m]`` one per matched pair, masked where not defined.
    n_jaccard, n_correlation
        Pairs in which a latent fires, and in which both vary.
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
    """Agreement of the codes on the same rows, pair by pair of a match (iSAE, arXiv 2605.31245).

    Only the matched columns meet, so nothing of size ``n_a × n_b`` is made.

    - Support Jaccard: rows on which both fire over rows on which one does.
    - Correlation: Pearson over rows, of ``a`` with ``σ b``; ``σ`` is the sign of the pair's
      cosine, as a latent that points the other way adds the other way (1 for a signed match).
    - R²: ``1 - ΣΣ(a - σ b)² / ΣΣ(a - mean a)²``, pooled over pairs and meaned over both
      directions, without any refit: scale counts, so give codes in units of unit-norm decoders.

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
    adder_a, adder_b = _Adder(), _Adder()
    m = len(match.a_index)
    product, both = np.zeros(m), np.zeros(m, dtype=np.int64)
    for one, other in _paired_blocks(a, b):
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
    """One SAE's codes against themselves, for CKA and SVCCA.

    Attributes
    ----------
    n_rows
        Rows.
    product
        ``[n, n]`` centred ``Σ_rows c cᵀ``.
    whitening
        ``[r, n]`` whitening of its top components, for SVCCA; None when the codes do not vary.
    """

    n_rows: int
    product: NDArray[np.float64]
    whitening: NDArray[np.float64] | None


def code_gram(codes: Codes, *, variance: float = 0.99) -> CodeGram:
    """Prepare one SAE's codes for CKA and SVCCA, once an SAE and not once a pair.

    Parameters
    ----------
    codes
        Codes ``[rows, n]``; the tables take n² numbers.
    variance
        Variance that SVCCA keeps, in at most ``SVCCA_DIRECTIONS`` directions.

    Raises
    ------
    InputError
        When there is no row or a block is not a finite matrix.
    """
    adder = _Adder()
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
        ``[rows, n]`` sparse float64: what fires, and nothing else.
    """

    codes: sparse.csc_array

    @cached_property
    def gram(self) -> CodeGram:
        """The codes against themselves, once an SAE and not once a pair (memory: n²)."""
        return code_gram(self.codes)


@dataclass(frozen=True)
class RepresentationSimilarity:
    """CKA and SVCCA of two SAEs' codes as whole representations.

    Attributes
    ----------
    cka, svcca
        None when a side does not vary, or (SVCCA) the rows do not outnumber the directions kept.
    cka_chance
        Mean CKA when the rows of one side are permuted, exactly:
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

    Both are blind to how features are paired: they compare what the codes span.

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


def whole_codes(codes: Codes) -> sparse.csr_array:
    """All rows in one sparse matrix."""
    return sparse.csr_array(sparse.vstack(list(code_blocks(codes)), format="csr"))


def shuffle_rows(codes: Codes, rng: np.random.Generator) -> sparse.csr_array:
    """Permute the rows: the null in which two SAEs see unrelated inputs."""
    whole = whole_codes(codes)
    return sparse.csr_array(whole[rng.permutation(whole.shape[0])])
