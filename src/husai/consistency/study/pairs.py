"""Every score of a pair of SAEs, computed from one match, and the rows of the table of pairs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from husai.consistency.config import ComparisonConfig
from husai.consistency.scores.decoder import shared_pairs
from husai.consistency.scores.pair import BOTH_SIGNS, MatchRun, PreparedPair, Side
from husai.consistency.scores.registry import Score, Value, of_pairs
from husai.consistency.study.record import LiveSAE, all_converged
from husai.matching.result import Match
from husai.threads import worker_pool

Row = dict[str, Any]
Values = dict[tuple[str, bool], Value]


@dataclass(frozen=True)
class ScoredPair:
    """The scores of one pair.

    Attributes
    ----------
    values
        Values by name of the score and sign.
    matches
        The decoders' match by sign, from which all scores are computed; empty when a side has no
        live latent.
    shared
        ``[m]`` bool, one for each pair of the signed match: whether the encoders' match has it
        too, both at the threshold; None without encoders.
    """

    values: Values
    matches: Mapping[bool, Match]
    shared: NDArray[np.bool_] | None = None


def missing_need(score: Score, sides: Sequence[LiveSAE], space: str = "full") -> str:
    """Say what these SAEs lack for a score; empty when they lack nothing."""
    if "encoder" in score.needs:
        without = [one.record.id for one in sides if one.encoder is None]
        if without:
            return f"no encoder in {' and '.join(without)}"
    if "codes" in score.needs:
        if space != "full":
            return "codes are the same in every space"
        without = [one.record.id for one in sides if one.codes is None]
        if without:
            return f"no codes of {' and '.join(without)}"
    return ""


def available_scores(sides: Sequence[LiveSAE], space: str = "full") -> list[Score]:
    """Return the scores that these SAEs have everything for."""
    return [score for score in of_pairs() if not missing_need(score, sides, space)]


def score_pair(
    a: LiveSAE,
    b: LiveSAE,
    config: ComparisonConfig,
    *,
    space: str = "full",
    scores: Iterable[Score] | None = None,
    run: MatchRun | None = None,
    name: str = "",
) -> ScoredPair:
    """Compute the scores of two SAEs in one space, on one match.

    Parameters
    ----------
    a, b
        The SAEs.
    config
        How to compare.
    space
        Name of the space that their rows are in.
    scores
        The scores to compute; when None, all that these two SAEs have everything for.
    run, name
        Options of long matches, and the name of the pair in their progress bars.
    """
    chosen = list(available_scores([a, b], space) if scores is None else scores)
    if not len(a.index) or not len(b.index):
        reason = f"{(b if len(a.index) else a).record.id} has no live latent"
        empty = Value(None, reason=reason)
        return ScoredPair({(s.name, sign): empty for s in chosen for sign in s.signs}, {})
    pair = PreparedPair(a.side, b.side, config, run=run, name=name)
    values = {
        (score.name, sign): score.of(pair, sign)
        for sign in BOTH_SIGNS
        for score in chosen
        if sign in score.signs
    }
    shared = None
    if pair.has_encoders:
        shared = shared_pairs(
            pair.matches[True], pair.encoder_matches[True], config.shared_threshold
        )
    return ScoredPair(values, pair.matches, shared)


def score_within(
    live: Sequence[LiveSAE], space: str, config: ComparisonConfig
) -> dict[tuple[int, int], ScoredPair]:
    """Score all pairs of one group; keys are the positions of the two SAEs in the group."""
    keys = list(combinations(range(len(live)), 2))
    with worker_pool(config.workers) as pool:
        made = pool.map(
            lambda key: score_pair(live[key[0]], live[key[1]], config, space=space), keys
        )
        return dict(zip(keys, made, strict=True))


def score_inits(a: LiveSAE, b: LiveSAE, config: ComparisonConfig) -> Values:
    """Score the initial decoders of two SAEs; empty where these are not known."""
    if a.init is None or b.init is None:
        return {}
    pair = PreparedPair(Side(a.init), Side(b.init), config)
    return {
        (score.name, sign): score.of(pair, sign)
        for sign in BOTH_SIGNS
        for score in of_pairs()
        if "init" in score.nulls and sign in score.signs
    }


def pair_rows(a: LiveSAE, b: LiveSAE, space: str, scored: ScoredPair) -> list[Row]:
    """Make the rows of one pair in the table ``pairs``: one per score and sign."""
    names = a.record.group_name, b.record.group_name
    head = {
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
    return [
        {
            **head,
            "score": score,
            "signed": signed,
            "value": np.nan if found.value is None else found.value,
            "chance": np.nan if found.chance is None else found.chance,
            "reason": found.reason,
        }
        for (score, signed), found in scored.values.items()
    ]
