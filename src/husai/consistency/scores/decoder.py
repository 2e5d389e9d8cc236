"""Scores between two dictionaries: what each published definition says, under its own name.

Rows of a dictionary are features; ``A`` is ``[n_a, d]``, ``B`` is ``[n_b, d]`` and ``C`` the
cosines of their rows. Whether a score uses ``|C|`` or ``C`` is a named argument (``signed``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import linalg, stats

from husai.errors import InputError
from husai.matching.match import (
    Match,
    match_features,
    match_signed_and_absolute,
    unit_rows,
)

# Numbers of a block of cosines: 64 MB of float64, so that the [n_a, n_b] matrix is never held.
_BLOCK_NUMBERS = 8_000_000

# Most principal directions that SVCCA compares.
SVCCA_DIRECTIONS = 512

# The cosine above which Paulo & Belrose call two features the same.
SHARED_THRESHOLD = 0.7


def unit_pair(A: ArrayLike, B: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both dictionaries with unit rows, in float64.

    Raises
    ------
    InputError
        When one is not a finite matrix, or they live in spaces of different dimension.
    """
    rows_a, rows_b = unit_rows(A, "A"), unit_rows(B, "B")
    if rows_a.shape[1] != rows_b.shape[1]:
        raise InputError(
            f"A has rows of {rows_a.shape[1]} numbers and B of {rows_b.shape[1]}: "
            "dictionaries can be compared only in one space"
        )
    return rows_a, rows_b


@dataclass(frozen=True)
class Nearest:
    """The best partner of every feature, many to one.

    Attributes
    ----------
    a_index, a_similarity
        ``[n_a]``: for each row of A the nearest row of B and its similarity.
    b_index, b_similarity
        ``[n_b]``: for each row of B the nearest row of A and its similarity.
    signed
        Whether the similarity is the cosine (True) or its absolute value (False).
    """

    a_index: NDArray[np.int64]
    a_similarity: NDArray[np.float64]
    b_index: NDArray[np.int64]
    b_similarity: NDArray[np.float64]
    signed: bool


def nearest_features(A: ArrayLike, B: ArrayLike, *, signed: bool = False) -> Nearest:
    """Find each feature's nearest feature in the other dictionary, in blocks of the product.

    Parameters
    ----------
    A, B
        ``[n_a, d]`` and ``[n_b, d]``; rows are features, normalised here.
    signed
        Use the cosine itself instead of its absolute value.

    Raises
    ------
    InputError
        When an input is not a finite matrix or the dimensions differ.
    """
    rows_a, rows_b = unit_pair(A, B)
    n_a, n_b = len(rows_a), len(rows_b)
    a_index = np.empty(n_a, dtype=np.int64)
    a_best = np.empty(n_a)
    b_index = np.zeros(n_b, dtype=np.int64)
    b_best = np.full(n_b, -np.inf)
    step = max(1, _BLOCK_NUMBERS // n_b)
    for start in range(0, n_a, step):
        block = rows_a[start : start + step] @ rows_b.T
        if not signed:
            np.abs(block, out=block)
        here = slice(start, start + len(block))
        a_index[here] = block.argmax(axis=1)
        a_best[here] = np.take_along_axis(block, a_index[here, None], axis=1)[:, 0]
        column = block.argmax(axis=0)
        value = block[column, np.arange(n_b)]
        better = value > b_best
        b_best[better] = value[better]
        b_index[better] = column[better] + start
    return Nearest(a_index, a_best, b_index, b_best, signed)


class MMCS(NamedTuple):
    """Mean max cosine similarity in both directions, and the mean of the two."""

    a_to_b: float
    b_to_a: float
    mean: float


def mmcs(A: ArrayLike, B: ArrayLike, *, signed: bool = False) -> MMCS:
    """Mean max cosine similarity ``mean_i max_j s(C_ij)``, both directions and their mean.

    Many to one: several features may share one partner, so it is at least PW-MCC and must not be
    compared with it (Sharkey et al. 2022, "Taking features out of superposition").

    Parameters
    ----------
    A, B
        ``[n_a, d]`` and ``[n_b, d]``; rows are features, normalised here.
    signed
        Use the cosine itself instead of its absolute value.

    Raises
    ------
    InputError
        When an input is not a finite matrix or the dimensions differ.
    """
    pair = DictionaryPair(A, B, signed=signed)
    a_to_b, b_to_a = _mmcs_ab(pair), _mmcs_ba(pair)
    return MMCS(a_to_b, b_to_a, (a_to_b + b_to_a) / 2)


def uniqueness(A: ArrayLike, B: ArrayLike, *, signed: bool = False) -> float:
    """Share of A's features whose nearest feature of B no other has: distinct argmax / n_a.

    From the argmax, never from the one-to-one match, where it is 1 by construction
    (SynthSAEBench, arXiv 2602.14687).

    Raises
    ------
    InputError
        When an input is not a finite matrix or the dimensions differ.
    """
    nearest = nearest_features(A, B, signed=signed)
    return _distinct(nearest.a_index)


def _distinct(index: NDArray[np.int64]) -> float:
    return len(np.unique(index)) / len(index)


def pw_mcc(A: ArrayLike, B: ArrayLike, *, signed: bool = False) -> float:
    """Pairwise dictionary mean correlation coefficient: the mean similarity of the best match.

    ``max over one-to-one matchings M of mean_{(i,j) in M} s(C_ij)`` over ``min(n_a, n_b)`` pairs
    (Song et al., arXiv 2505.20254). The paper takes the absolute value; the code it released
    does not, and Fel et al. (arXiv 2502.12892) call the signed one "stability".

    Parameters
    ----------
    A, B
        ``[n_a, d]`` and ``[n_b, d]``; rows are features, normalised here.
    signed
        Use the cosine itself instead of its absolute value.

    Raises
    ------
    InputError
        When an input is not a finite matrix or the dimensions differ.
    """
    return match_features(A, B, signed=signed).mean


def gt_mcc(A: ArrayLike, truth: ArrayLike, *, signed: bool = False) -> float:
    """PW-MCC of a dictionary against the ground-truth dictionary (GT is for ground truth).

    Song et al., arXiv 2505.20254. The mean is over ``min(n_a, n_truth)`` features: a dictionary
    narrower than the truth is scored on what it can hold. Where a true feature is a plane rather
    than a direction this score is ill-posed: see :func:`husai.consistency.plane_recovery`.

    Raises
    ------
    InputError
        When an input is not a finite matrix or the dimensions differ.
    """
    return pw_mcc(A, truth, signed=signed)


class DictionaryPair:
    """Two dictionaries with the match and the nearest features that all their scores share.

    Parameters
    ----------
    A, B
        ``[n_a, d]`` and ``[n_b, d]``; rows are features, normalised here.
    signed
        Use the cosine itself instead of its absolute value.
    rank
        Dimensions of the subspaces that are compared; half of what both dictionaries can span
        when None.
    match
        Their match with this ``signed``, when it is already known.

    Raises
    ------
    InputError
        When an input is not a finite matrix, the dimensions differ, or the match does not fit.
    """

    def __init__(
        self,
        A: ArrayLike,
        B: ArrayLike,
        *,
        signed: bool = False,
        rank: int | None = None,
        match: Match | None = None,
    ) -> None:
        self.A, self.B = unit_pair(A, B)
        self.signed = signed
        if match is not None:
            if match.signed != signed:
                raise InputError(f"match: made with signed={match.signed}, not {signed}")
            self.match = match
        limit = min(len(self.A) - 1, len(self.B) - 1, self.A.shape[1])
        self.rank = max(1, limit // 2) if rank is None else min(rank, limit)

    @cached_property
    def match(self) -> Match:
        """The one-to-one match on which every axis is read."""
        return match_features(self.A, self.B, signed=self.signed)

    @cached_property
    def nearest(self) -> Nearest:
        """The nearest features, many to one: the match knows them where there is one."""
        if "match" in self.__dict__:
            found = self.match
            return Nearest(
                found.a_nearest,
                found.a_nearest_similarity,
                found.b_nearest,
                found.b_nearest_similarity,
                self.signed,
            )
        return nearest_features(self.A, self.B, signed=self.signed)

    @property
    def matched_A(self) -> NDArray[np.float64]:
        """``[m, d]`` matched rows of A."""
        return self.A[self.match.a_index]

    @property
    def matched_B(self) -> NDArray[np.float64]:
        """``[m, d]`` their partners in B, turned to the same side unless ``signed``."""
        rows = self.B[self.match.b_index]
        if self.signed:
            return rows
        return rows * np.where(self.match.cosine < 0, -1.0, 1.0)[:, None]


def signed_and_absolute(
    A: ArrayLike, B: ArrayLike, *, rank: int | None = None
) -> tuple[DictionaryPair, DictionaryPair]:
    """Both conventions of one pair, their two matches from one pass of products.

    Returns the signed pair and the absolute one.

    Raises
    ------
    InputError
        When an input is not a finite matrix or the dimensions differ.
    """
    signed, absolute = match_signed_and_absolute(A, B)
    return (
        DictionaryPair(A, B, signed=True, rank=rank, match=signed),
        DictionaryPair(A, B, signed=False, rank=rank, match=absolute),
    )


def _mmcs_ab(pair: DictionaryPair) -> float:
    return float(pair.nearest.a_similarity.mean())


def _mmcs_ba(pair: DictionaryPair) -> float:
    return float(pair.nearest.b_similarity.mean())


def lp_distance(A: ArrayLike, B: ArrayLike, p: float, *, signed: bool = False) -> float:
    """Mean matched distance ``mean ||a_i - σ b_j||_p`` of unit features.

    ``σ`` is the sign of the pair's cosine, or 1 when ``signed``; the match is PW-MCC's.

    Parameters
    ----------
    A, B
        ``[n_a, d]`` and ``[n_b, d]``; rows are features, normalised here.
    p
        1, 2 or ``np.inf``.
    signed
        Match on the cosine itself and turn nothing round.

    Raises
    ------
    InputError
        When p is another number, an input is not a finite matrix, or the dimensions differ.
    """
    if p not in (1, 2, np.inf):
        raise InputError(f"p: {p}; give 1, 2 or inf")
    pair = DictionaryPair(A, B, signed=signed)
    return _lp(pair, p)


def _lp(pair: DictionaryPair, p: float) -> float:
    return float(np.linalg.norm(pair.matched_A - pair.matched_B, ord=p, axis=1).mean())


def dictionary_directions(dictionary: ArrayLike, rank: int) -> NDArray[np.float64]:
    """Top right singular directions ``[rank, d]`` of a dictionary's centred unit rows.

    Raises
    ------
    InputError
        When the rank is below 1 or above what the centred rows span.
    """
    rows = unit_rows(dictionary)
    rows = rows - rows.mean(axis=0)
    limit = min(len(rows) - 1, rows.shape[1])
    if not 1 <= rank <= limit:
        raise InputError(
            f"rank: {rank}; {len(rows)} centred rows of {rows.shape[1]} numbers have at most "
            f"{limit} directions"
        )
    # the d × d product: a dictionary has many more rows than dimensions
    _, directions = np.linalg.eigh(rows.T @ rows)
    return np.asarray(directions[:, ::-1][:, :rank].T)


def subspace_overlap(A: ArrayLike, B: ArrayLike, rank: int) -> float:
    """Overlap ``||U_A U_Bᵀ||_F² / r`` of the top-r subspaces of two centred dictionaries.

    1 when they agree, ``r / d`` by chance: always print the two together (arXiv 2606.12138).

    Parameters
    ----------
    A, B
        ``[n_a, d]`` and ``[n_b, d]``; rows are features, normalised and centred here.
    rank
        Dimensions ``r`` of the subspaces.

    Raises
    ------
    InputError
        When the rank does not fit, an input is not a finite matrix, or the dimensions differ.
    """
    rows_a, rows_b = unit_pair(A, B)
    product = dictionary_directions(rows_a, rank) @ dictionary_directions(rows_b, rank).T
    return float(np.square(product).sum() / rank)


def decoder_cka(pair: DictionaryPair) -> float | None:
    """Linear CKA of the matched decoders, the pairs as samples (Kornblith et al. 2019).

    None when fewer than two pairs, or one side's matched rows are all alike.
    """
    x = pair.matched_A - pair.matched_A.mean(axis=0)
    y = pair.matched_B - pair.matched_B.mean(axis=0)
    return cka_from_products(x.T @ y, x.T @ x, y.T @ y)


def decoder_svcca(pair: DictionaryPair, variance: float = 0.99) -> float | None:
    """SVCCA of the matched decoders, the pairs as samples (Raghu et al. 2017).

    None when the pairs do not outnumber the directions kept on the two sides: CCA then finds a
    perfect correlation in anything.
    """
    x = pair.matched_A - pair.matched_A.mean(axis=0)
    y = pair.matched_B - pair.matched_B.mean(axis=0)
    return svcca_from_products(x.T @ y, x.T @ x, y.T @ y, n_rows=len(x), variance=variance)


def cka_from_products(
    xy: NDArray[np.float64], xx: NDArray[np.float64], yy: NDArray[np.float64]
) -> float | None:
    """Linear CKA ``||XᵀY||_F² / (||XᵀX||_F ||YᵀY||_F)`` from centred products.

    Kornblith et al. 2019, arXiv 1905.00414, eq. 5. None when one side does not vary.
    """
    scale = float(np.linalg.norm(xx) * np.linalg.norm(yy))
    return float(np.square(xy).sum() / scale) if scale > 0 else None


def svcca_from_products(
    xy: NDArray[np.float64],
    xx: NDArray[np.float64],
    yy: NDArray[np.float64],
    *,
    n_rows: int,
    variance: float = 0.99,
) -> float | None:
    """Mean canonical correlation between the top principal components of two sides.

    Each side keeps the components that hold ``variance`` of its variance, at most
    ``SVCCA_DIRECTIONS`` (512) of them; the mean is over ``min(r_x, r_y)`` canonical correlations
    (Raghu et al. 2017, arXiv 1706.05806).

    Parameters
    ----------
    xy, xx, yy
        Centred products ``XᵀY [n_x, n_y]``, ``XᵀX`` and ``YᵀY``.
    n_rows
        Samples behind them.
    variance
        Share of variance to keep, in (0, 1].

    Returns
    -------
    float or None
        None when one side does not vary, or ``n_rows <= r_x + r_y``.
    """
    return svcca_from_whitening(xy, whitening(xx, variance), whitening(yy, variance), n_rows)


def svcca_from_whitening(
    xy: NDArray[np.float64],
    whiten_x: NDArray[np.float64] | None,
    whiten_y: NDArray[np.float64] | None,
    n_rows: int,
) -> float | None:
    """Do :func:`svcca_from_products` with whitenings that are known: made once a side."""
    if whiten_x is None or whiten_y is None or n_rows <= len(whiten_x) + len(whiten_y):
        return None
    product = whiten_x @ xy @ whiten_y.T
    if len(product) > product.shape[1]:
        product = product.T
    # eigenvalues of the smaller square: several times faster than singular values, and what the
    # squaring loses (1e-8 of a correlation) is far below what a mean correlation can mean
    squared = np.linalg.eigvalsh(product @ product.T)
    return float(np.sqrt(np.clip(squared, 0.0, 1.0)).mean())


def whitening(
    product: NDArray[np.float64], variance: float, max_directions: int = SVCCA_DIRECTIONS
) -> NDArray[np.float64] | None:
    """Whitening ``[r, n]`` of the top components of ``XᵀX [n, n]``; None when it is zero.

    They hold ``variance`` of the variance, or are ``max_directions`` if that is fewer.
    """
    if not 0 < variance <= 1:
        raise InputError(f"variance: {variance}; give a share above 0 and at most 1")
    n = len(product)
    total = float(np.trace(product))
    if total <= 0:
        return None
    # the top components only: a wide SAE's whole spectrum takes three times as long
    first = max(0, n - max_directions)
    values, vectors = linalg.eigh(product, subset_by_index=(first, n - 1))
    values, vectors = np.clip(values[::-1], 0.0, None), vectors[:, ::-1]
    rank = min(int(np.searchsorted(np.cumsum(values) / total, variance - 1e-12)) + 1, len(values))
    # below this a component is rounding, and whitening would blow it up to a correlation
    rank = max(1, min(rank, int((values > 1e-10 * values[0]).sum())))
    return np.asarray(vectors[:, :rank].T / np.sqrt(values[:rank])[:, None])


class Orderedness(NamedTuple):
    """Spearman correlation of the matched order, with its chance spread and p-value."""

    rho: float
    null_sd: float
    p_value: float


def orderedness(match: Match) -> Orderedness | None:
    """Spearman correlation of feature order under the match (OSAE, arXiv 2512.02194).

    ``1..K`` in A against the matched order in B: 1 when features come back in the same place.
    Under a random order it is 0 with standard deviation ``1/sqrt(K-1)``; the p-value is
    two-sided. None below three pairs.
    """
    k = len(match.a_index)
    if k < 3:
        return None
    result = stats.spearmanr(match.a_index, match.b_index)
    return Orderedness(float(result.statistic), float(1 / np.sqrt(k - 1)), float(result.pvalue))


@dataclass(frozen=True)
class PairScore:
    """A score that two dictionaries have by their directions alone, so chance has one too.

    Attributes
    ----------
    compute
        From the pair; None where the score is not defined for these sizes.
    perfect
        Score of a dictionary against itself: 1 for a similarity, 0 for a distance.
    symmetric
        Whether A to B is B to A.
    centred
        Whether it runs from -1 whatever the sign convention.
    unbounded
        Whether it falls without limit.
    """

    compute: Callable[[DictionaryPair], float | None]
    perfect: float = 1.0
    symmetric: bool = True
    centred: bool = False
    unbounded: bool = False

    def bounds(self, signed: bool) -> tuple[float, float]:
        """What the score can be at all."""
        if self.perfect == 0:
            return (0.0, float("inf"))
        if self.unbounded:
            return (-float("inf"), 1.0)
        return (-1.0 if signed or self.centred else 0.0, 1.0)


def _overlap(pair: DictionaryPair) -> float | None:
    return subspace_overlap(pair.A, pair.B, pair.rank) if pair.rank >= 1 else None


def _shared_decoder(pair: DictionaryPair) -> float:
    return float((pair.match.similarity >= SHARED_THRESHOLD).sum() / min(len(pair.A), len(pair.B)))


# Names that nulls and reports use. ``matched_fraction`` is the decoder's half of the shared
# fraction: on random dictionaries it bounds the whole from above.
PAIR_SCORES: dict[str, PairScore] = {
    "pw_mcc": PairScore(lambda pair: pair.match.mean),
    "mmcs": PairScore(lambda pair: (_mmcs_ab(pair) + _mmcs_ba(pair)) / 2),
    "mmcs_a_to_b": PairScore(lambda pair: _mmcs_ab(pair), symmetric=False),
    "mmcs_b_to_a": PairScore(lambda pair: _mmcs_ba(pair), symmetric=False),
    "uniqueness": PairScore(
        lambda pair: (_distinct(pair.nearest.a_index) + _distinct(pair.nearest.b_index)) / 2
    ),
    "matched_fraction": PairScore(_shared_decoder),
    "distance_l1": PairScore(lambda pair: _lp(pair, 1), perfect=0.0),
    "distance_l2": PairScore(lambda pair: _lp(pair, 2), perfect=0.0),
    "distance_linf": PairScore(lambda pair: _lp(pair, np.inf), perfect=0.0),
    "subspace_overlap": PairScore(_overlap),
    "decoder_cka": PairScore(decoder_cka),
    "decoder_svcca": PairScore(decoder_svcca),
    "orderedness": PairScore(
        lambda pair: None if (got := orderedness(pair.match)) is None else got.rho, centred=True
    ),
}


@dataclass(frozen=True)
class SharedFeatures:
    """Which features two SAEs share, after Paulo & Belrose (arXiv 2501.16615).

    Attributes
    ----------
    fraction
        Shared features over ``min(n_a, n_b)``.
    shared
        ``[m]`` bool, one for each pair of the decoder's match.
    decoder, encoder
        The two matches.
    threshold
        Cosine that both must reach.
    """

    fraction: float
    shared: NDArray[np.bool_]
    decoder: Match
    encoder: Match
    threshold: float


def shared_fraction(
    W_dec_a: ArrayLike,
    W_enc_a: ArrayLike,
    W_dec_b: ArrayLike,
    W_enc_b: ArrayLike,
    *,
    signed: bool = True,
    threshold: float = SHARED_THRESHOLD,
    decoder_match: Match | None = None,
    encoder_match: Match | None = None,
) -> SharedFeatures:
    """Fraction of features that two SAEs share.

    Two assignments, on the decoder's rows and on the encoder's; feature i is shared when both
    give the same partner and both similarities reach the threshold (Paulo & Belrose, arXiv
    2501.16615, signed cosines, .7).

    Parameters
    ----------
    W_dec_a, W_dec_b
        ``[n_a, d]`` and ``[n_b, d]`` decoders, a feature a row.
    W_enc_a, W_enc_b
        ``[n_a, d]`` and ``[n_b, d]`` encoders, **a feature a row** (``W_enc.T`` of an SAE).
    signed
        Use the cosine itself (the paper) instead of its absolute value.
    threshold
        Least similarity of a shared feature.
    decoder_match, encoder_match
        The matches with the same ``signed``, where they are already known.

    Raises
    ------
    InputError
        When shapes do not fit, or a match was made with the other ``signed``.
    """
    for name, decoder, encoder in (("a", W_dec_a, W_enc_a), ("b", W_dec_b, W_enc_b)):
        if np.shape(decoder) != np.shape(encoder):
            raise InputError(
                f"W_enc_{name} has shape {np.shape(encoder)} and W_dec_{name} "
                f"{np.shape(decoder)}: give both with one feature a row (W_enc.T)"
            )
    for name, match in (("decoder_match", decoder_match), ("encoder_match", encoder_match)):
        if match is not None and match.signed != signed:
            raise InputError(f"{name}: made with signed={match.signed}, not {signed}")
    if decoder_match is None:
        decoder_match = match_features(W_dec_a, W_dec_b, signed=signed)
    if encoder_match is None:
        encoder_match = match_features(W_enc_a, W_enc_b, signed=signed)
    shared = shared_pairs(decoder_match, encoder_match, threshold)
    fraction = float(shared.sum() / min(decoder_match.n_a, decoder_match.n_b))
    return SharedFeatures(fraction, shared, decoder_match, encoder_match, threshold)


def shared_pairs(decoder: Match, encoder: Match, threshold: float) -> NDArray[np.bool_]:
    """``[m]``: pairs of the decoder's match that the encoder's match has too, both close.

    Paulo & Belrose, arXiv 2501.16615; :func:`shared_fraction` makes the matches as well.
    """
    partner, similarity = partner_of(encoder)
    return np.asarray(
        (partner[decoder.a_index] == decoder.b_index)
        & (decoder.similarity >= threshold)
        & (similarity[decoder.a_index] >= threshold)
    )


def partner_of(match: Match) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Spread a match over all rows of A: ``[n_a]`` partner (-1 for none) and similarity (0)."""
    partner = np.full(match.n_a, -1, dtype=np.int64)
    similarity = np.zeros(match.n_a)
    partner[match.a_index] = match.b_index
    similarity[match.a_index] = match.similarity
    return partner, similarity
