"""Every score of a pair of SAEs, on one matching."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from husai.consistency.config import ConsistencyConfig
from husai.consistency.scores.codes import (
    CodeGram,
    code_blocks,
    code_consistency,
    code_gram,
    code_similarity,
    cross_moments,
    match_activations,
)
from husai.consistency.scores.decoder import (
    PAIR_SCORES,
    DictionaryPair,
    PairScore,
    shared_fraction,
    signed_and_absolute,
)
from husai.consistency.study.record import LiveSAE, SAERecord, all_converged
from husai.matching.match import Match, match_signed_and_absolute

Row = dict[str, Any]


@dataclass(frozen=True)
class LiveCodes:
    """Codes of the live latents, in units of unit-norm decoder rows.

    Attributes
    ----------
    codes
        ``[rows, n]`` sparse: what fires, and nothing else.
    gram
        Centred product with itself; None when the SAE is too wide for it.
    """

    codes: sparse.csc_array
    gram: CodeGram | None


def live_codes(live: LiveSAE, config: ConsistencyConfig) -> LiveCodes | None:
    """Gather one SAE's codes; None when they are not given or no latent is live."""
    record = live.record
    if record.codes is None or not len(live.index):
        return None
    norms = np.linalg.norm(np.asarray(record.W_dec, dtype=np.float64), axis=1)[live.index]
    scale = sparse.dia_array((norms[None, :], [0]), shape=(len(norms), len(norms)))
    blocks = [
        sparse.csr_array(block[:, live.index] @ scale)
        for block in code_blocks(record.codes, record.id)
    ]
    codes = sparse.csc_array(sparse.vstack(blocks, format="csc"))
    wide = codes.shape[1] > config.max_similarity_width
    return LiveCodes(codes, None if wide else code_gram(codes))


# Scores that need more than two decoders, and how they are bounded.
OTHER_SCORES: dict[str, PairScore] = {
    name: PairScore(lambda pair: None, centred=centred)
    for name, centred in {
        "shared_fraction": False,
        "pw_mcc_encoder": False,
        "encoder_cosine": False,
        "activation_mcc": True,
        "code_jaccard": False,
        "code_correlation": True,
        "code_cka": False,
        "code_svcca": False,
    }.items()
}
# R² falls without limit when codes do not fit.
OTHER_SCORES["code_r2"] = PairScore(lambda pair: None, unbounded=True)


@dataclass(frozen=True)
class ScoredPair:
    """The scores of one pair.

    Attributes
    ----------
    rows
        One per score and sign, for the table of pairs.
    match
        The absolute match on which all axes were read; None when a side has no live latent.
    """

    rows: list[Row]
    match: Match | None


def score_pair(
    a: LiveSAE,
    b: LiveSAE,
    space: str,
    config: ConsistencyConfig,
    codes: tuple[LiveCodes | None, LiveCodes | None] = (None, None),
) -> ScoredPair:
    """Compute every score of two SAEs in one space."""
    head = _head(a, b, space)
    if not len(a.index) or not len(b.index):
        empty = a.record.id if not len(a.index) else b.record.id
        reason = f"{empty} has no live latent"
        rows = [_row(head, s, g, None, reason) for s in PAIR_SCORES for g in (False, True)]
        return ScoredPair(rows, None)
    pairs = signed_and_absolute(a.decoder, b.decoder, rank=config.subspace_rank)
    rows = [row for pair in pairs for row in _decoder_rows(head, pair)]
    if a.encoder is not None and b.encoder is not None:
        encoders = match_signed_and_absolute(a.encoder, b.encoder)
        for pair, encoder in zip(pairs, encoders, strict=True):
            rows += _encoder_rows(head, a.encoder, b.encoder, pair, encoder, config)
    absolute = pairs[1].match
    if codes[0] is not None and codes[1] is not None and space == "full":
        rows += _code_rows(head, codes[0], codes[1], absolute)
    return ScoredPair(rows, absolute)


def score_inits(a: LiveSAE, b: LiveSAE, space: str, config: ConsistencyConfig) -> list[Row]:
    """Score the two initialisations as the trained decoders are; nothing where not known."""
    if a.init is None or b.init is None:
        return []
    pairs = signed_and_absolute(a.init, b.init, rank=config.subspace_rank)
    return [row for pair in pairs for row in _decoder_rows(_head(a, b, space), pair)]


def _head(a: LiveSAE, b: LiveSAE, space: str) -> Row:
    names = a.record.group_name, b.record.group_name
    return {
        "group": names[0] if names[0] == names[1] else " | ".join(names),
        "within": names[0] == names[1],
        "id_a": a.record.id,
        "id_b": b.record.id,
        "seed_a": a.record.seed,
        "seed_b": b.record.seed,
        "space": space,
        "n_a": len(a.index),
        "n_b": len(b.index),
        "converged": all_converged([a.record.converged, b.record.converged]),
    }


def _row(
    head: Row,
    score: str,
    signed: bool,
    value: float | None,
    reason: str = "",
    chance: float | None = None,
) -> Row:
    if value is None and not reason:
        reason = "not defined for these sizes"
    return {
        **head,
        "score": score,
        "signed": signed,
        "value": np.nan if value is None else value,
        "chance": np.nan if chance is None else chance,
        "reason": reason,
    }


def _decoder_rows(head: Row, pair: DictionaryPair) -> list[Row]:
    return [
        _row(head, name, pair.signed, score.compute(pair)) for name, score in PAIR_SCORES.items()
    ]


def _encoder_rows(
    head: Row,
    encoder_a: NDArray[np.float64],
    encoder_b: NDArray[np.float64],
    pair: DictionaryPair,
    match: Match,
    config: ConsistencyConfig,
) -> list[Row]:
    shared = shared_fraction(
        pair.A,
        encoder_a,
        pair.B,
        encoder_b,
        signed=pair.signed,
        threshold=config.shared_threshold,
        decoder_match=pair.match,
        encoder_match=match,
    )
    norms = [np.maximum(np.linalg.norm(e, axis=1), 1e-300) for e in (encoder_a, encoder_b)]
    i, j = pair.match.a_index, pair.match.b_index
    cosine = (encoder_a[i] * encoder_b[j]).sum(axis=1) / norms[0][i] / norms[1][j]
    if not pair.signed:
        # the side on which the decoders meet decides the sign, not the encoders themselves
        cosine = cosine * np.where(pair.match.cosine < 0, -1.0, 1.0)
    return [
        _row(head, "shared_fraction", pair.signed, shared.fraction),
        _row(head, "pw_mcc_encoder", pair.signed, shared.encoder.mean),
        _row(head, "encoder_cosine", pair.signed, float(cosine.mean())),
    ]


def _code_rows(head: Row, a: LiveCodes, b: LiveCodes, match: Match) -> list[Row]:
    agree = code_consistency(a.codes, b.codes, match)
    cross = cross_moments(a.codes, b.codes)
    active = match_activations(cross)
    rows = [
        _row(head, "code_jaccard", False, agree.jaccard, agree.reason, agree.jaccard_chance),
        _row(head, "code_correlation", False, agree.correlation, agree.reason, 0.0),
        _row(head, "code_r2", False, agree.r2, agree.reason),
        _row(head, "activation_mcc", True, active.mean, active.reason),
    ]
    if a.gram is None or b.gram is None:
        reason = "wider than max_similarity_width"
        return rows + [_row(head, s, False, None, reason) for s in ("code_cka", "code_svcca")]
    whole = code_similarity(cross, a.gram, b.gram)
    reason = whole.reason if whole.cka is None else ""
    return [
        *rows,
        _row(
            head,
            "code_cka",
            False,
            whole.cka,
            whole.reason if whole.cka is None else "",
            whole.cka_chance,
        ),
        _row(head, "code_svcca", False, whole.svcca, whole.reason),
    ]


def group_members(records: Sequence[SAERecord]) -> dict[str, list[SAERecord]]:
    """Gather SAEs that differ in their seed only, by the group's name."""
    groups: dict[str, list[SAERecord]] = {}
    for record in records:
        groups.setdefault(record.group_name, []).append(record)
    return dict(sorted(groups.items()))
