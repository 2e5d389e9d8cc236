"""Scores between two dictionaries: what each published definition says, under its own name.

Rows of a dictionary are features; ``A`` is ``[n_a, d]``, ``B`` is ``[n_b, d]`` and ``C`` the
cosines of their rows. Whether a score uses ``|C|`` or ``C`` is a named argument (``signed``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from husai.consistency.matching import Match, match_features, unit_rows
from husai.errors import InputError

# Numbers of a block of cosines: 64 MB of float64, so that the [n_a, n_b] matrix is never held.
_BLOCK_NUMBERS = 8_000_000


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
    nearest = nearest_features(A, B, signed=signed)
    a_to_b = float(nearest.a_similarity.mean())
    b_to_a = float(nearest.b_similarity.mean())
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
    return len(np.unique(nearest.a_index)) / len(nearest.a_index)


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
    threshold: float = 0.7,
    decoder_match: Match | None = None,
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
    decoder_match
        The decoder's match with the same ``signed``, when it is already known.

    Raises
    ------
    InputError
        When shapes do not fit, or ``decoder_match`` was made with the other ``signed``.
    """
    for name, decoder, encoder in (("a", W_dec_a, W_enc_a), ("b", W_dec_b, W_enc_b)):
        if np.shape(decoder) != np.shape(encoder):
            raise InputError(
                f"W_enc_{name} has shape {np.shape(encoder)} and W_dec_{name} "
                f"{np.shape(decoder)}: give both with one feature a row (W_enc.T)"
            )
    if decoder_match is None:
        decoder_match = match_features(W_dec_a, W_dec_b, signed=signed)
    elif decoder_match.signed != signed:
        raise InputError(f"decoder_match: made with signed={decoder_match.signed}, not {signed}")
    encoder_match = match_features(W_enc_a, W_enc_b, signed=signed)
    partner, similarity = partner_of(encoder_match)
    shared = (
        (partner[decoder_match.a_index] == decoder_match.b_index)
        & (decoder_match.similarity >= threshold)
        & (similarity[decoder_match.a_index] >= threshold)
    )
    fraction = float(shared.sum() / min(decoder_match.n_a, decoder_match.n_b))
    return SharedFeatures(fraction, shared, decoder_match, encoder_match, threshold)


def partner_of(match: Match) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Spread a match over all rows of A: ``[n_a]`` partner (-1 for none) and similarity (0)."""
    partner = np.full(match.n_a, -1, dtype=np.int64)
    similarity = np.zeros(match.n_a)
    partner[match.a_index] = match.b_index
    similarity[match.a_index] = match.similarity
    return partner, similarity
