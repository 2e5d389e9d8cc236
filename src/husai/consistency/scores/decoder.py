"""Scores of two dictionaries, each under its published name and after its published definition.

Rows of a dictionary are features; ``A`` is ``[n_a, d]``, ``B`` is ``[n_b, d]`` and ``C`` the
cosines of their rows. Whether a score uses ``|C|`` or ``C`` is a named argument (``signed``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from husai.consistency.scores.pair import dictionary_pair, nearest_features
from husai.errors import InputError
from husai.matching.match import match_features, matched_mean
from husai.matching.result import Match

# The cosine above which Paulo & Belrose call two features the same.
SHARED_THRESHOLD = 0.7


class MMCS(NamedTuple):
    """Mean max cosine similarity in both directions, and the mean of the two."""

    a_to_b: float
    b_to_a: float
    mean: float


def mmcs(A: ArrayLike, B: ArrayLike, *, signed: bool = False) -> MMCS:
    """Mean max cosine similarity ``mean_i max_j s(C_ij)``, both directions and their mean.

    Several features may have the same nearest partner, so between dictionaries of one size it is
    never lower than PW-MCC, and must not be compared with it (Sharkey et al. 2022, "Taking
    features out of superposition").

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
    a_to_b, b_to_a = float(nearest.a_similarity.mean()), float(nearest.b_similarity.mean())
    return MMCS(a_to_b, b_to_a, (a_to_b + b_to_a) / 2)


def uniqueness(A: ArrayLike, B: ArrayLike, *, signed: bool = False) -> float:
    """Number of distinct nearest features of B, divided by the number of features of A.

    1 when no two features of A have the same nearest feature. It is computed from the argmax; in
    a one-to-one match it would be 1 by construction (SynthSAEBench, arXiv 2602.14687).

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
    return distinct_share(nearest.a_index)


def distinct_share(index: NDArray[np.int64]) -> float:
    """Number of distinct entries divided by the number of entries."""
    return len(np.unique(index)) / len(index)


def pw_mcc(A: ArrayLike, B: ArrayLike, *, signed: bool = False) -> float:
    """Pairwise dictionary mean correlation coefficient: the mean similarity of the best match.

    ``max over one-to-one matchings M of mean_{(i,j) in M} s(C_ij)`` over ``min(n_a, n_b)`` pairs
    (Song et al., arXiv 2505.20254). The paper takes the absolute value, the code released with it
    does not; Fel et al. (arXiv 2502.12892) call the signed score "stability".

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
    return matched_mean(A, B, signed=signed)


def gt_mcc(A: ArrayLike, truth: ArrayLike, *, signed: bool = False) -> float:
    """PW-MCC of a dictionary against the ground-truth dictionary (GT is for ground truth).

    Song et al., arXiv 2505.20254. The mean is over ``min(n_a, n_truth)`` features, so that a
    dictionary narrower than the truth can still reach 1. Where a true feature is a plane and not
    a direction, this score has no meaning: see :func:`husai.consistency.plane_recovery`.

    Parameters
    ----------
    A, truth
        ``[n_a, d]`` and ``[n_truth, d]``; rows are features, normalised here.
    signed
        Use the cosine itself instead of its absolute value.

    Raises
    ------
    InputError
        When an input is not a finite matrix or the dimensions differ.
    """
    return pw_mcc(A, truth, signed=signed)


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
        Match by the cosine itself, and change no sign.

    Raises
    ------
    InputError
        When p is another number, an input is not a finite matrix, or the dimensions differ.
    """
    if p not in (1, 2, np.inf):
        raise InputError(f"p: {p}; give 1, 2 or inf")
    return dictionary_pair(A, B, (signed,)).distance(signed, p)


class Orderedness(NamedTuple):
    """Spearman correlation of the matched order, with its sd under chance and its p-value."""

    rho: float
    null_sd: float
    p_value: float


def orderedness(match: Match) -> Orderedness | None:
    """Spearman correlation of feature order under the match (OSAE, arXiv 2512.02194).

    ``1..K`` in A against the matched order in B: 1 when matched features have the same order in
    both. Under a random order its mean is 0 and its standard deviation ``1/sqrt(K-1)``; the
    p-value is two-sided. None for fewer than three pairs.
    """
    k = len(match.a_index)
    if k < 3:
        return None
    result = stats.spearmanr(match.a_index, match.b_index)
    return Orderedness(float(result.statistic), float(1 / np.sqrt(k - 1)), float(result.pvalue))


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
        ``[n_a, d]`` and ``[n_b, d]`` decoders, one feature per row.
    W_enc_a, W_enc_b
        ``[n_a, d]`` and ``[n_b, d]`` encoders, **one feature per row** (``W_enc.T`` of an SAE).
    signed
        Use the cosine itself (the paper) instead of its absolute value.
    threshold
        Least similarity of a shared feature.
    decoder_match, encoder_match
        The matches, if they are known already; made with the same ``signed``.

    Raises
    ------
    InputError
        When shapes do not fit, or a match was made with the other ``signed``.
    """
    for name, decoder, encoder in (("a", W_dec_a, W_enc_a), ("b", W_dec_b, W_enc_b)):
        if np.shape(decoder) != np.shape(encoder):
            raise InputError(
                f"W_enc_{name} has shape {np.shape(encoder)} and W_dec_{name} "
                f"{np.shape(decoder)}: give both with one feature per row (W_enc.T)"
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
    """``[m]``: which pairs of the decoders' match are shared.

    A pair is shared when the encoders' match has it too and both similarities reach the threshold
    (Paulo & Belrose, arXiv 2501.16615). :func:`shared_fraction` makes the two matches as well.
    """
    partner, similarity = partner_of(encoder)
    return np.asarray(
        (partner[decoder.a_index] == decoder.b_index)
        & (decoder.similarity >= threshold)
        & (similarity[decoder.a_index] >= threshold)
    )


def partner_of(match: Match) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Partner and similarity of each row of A, ``[n_a]``; -1 and 0 for a row without a partner."""
    partner = np.full(match.n_a, -1, dtype=np.int64)
    similarity = np.zeros(match.n_a)
    partner[match.a_index] = match.b_index
    similarity[match.a_index] = match.similarity
    return partner, similarity
