"""Trained SAEs beside those of the same settings trained on an untrained model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from husai.consistency.config import ConsistencyConfig
from husai.consistency.inference.intervals import seed_difference
from husai.consistency.scores.registry import SCORES
from husai.consistency.study.groups import ScoredPairs, score_matrix, values_of
from husai.consistency.study.pairs import Row, ScoredPair, score_pair
from husai.consistency.study.record import (
    LiveSAE,
    SAERecord,
    check_records,
    group_members,
    live_codes,
    live_sae,
    with_firing_rates,
)
from husai.errors import InputError
from husai.threads import worker_pool


def score_within(
    live: Sequence[LiveSAE], space: str, config: ConsistencyConfig
) -> dict[tuple[int, int], ScoredPair]:
    """Score all pairs of one group, by the positions of their SAEs."""
    keys = list(combinations(range(len(live)), 2))
    with worker_pool(config.workers) as pool:
        made = pool.map(
            lambda key: score_pair(live[key[0]], live[key[1]], config, space=space), keys
        )
        return dict(zip(keys, made, strict=True))


def live_group(records: Sequence[SAERecord], config: ConsistencyConfig) -> list[LiveSAE]:
    """Take the live latents of one group's SAEs in the full space, with their codes."""
    with worker_pool(config.workers) as pool:
        codes = pool.map(lambda record: live_codes(record, config), records)
        return [
            live_sae(record, config.dead, codes=own)
            for record, own in zip(records, codes, strict=True)
        ]


def untrained_columns(
    groups: pd.DataFrame,
    trained: Mapping[str, ScoredPairs],
    untrained: Sequence[SAERecord],
    config: ConsistencyConfig,
) -> pd.DataFrame:
    """Add columns ``untrained_*``: the same scores of SAEs trained on an untrained model.

    ``untrained_difference`` is trained minus untrained, with an interval over the seeds of both,
    Hedges' g and a t-test's p-value. SAEs that never fire have learnt nothing to agree on: where
    there are such, the null is not defined, and ``untrained_reason`` says so.

    Parameters
    ----------
    groups
        Table of the groups.
    trained
        Scored pairs of each of them, in the full space.
    untrained
        The SAEs of the untrained model, in groups of the same names.
    config
        How to compare.

    Raises
    ------
    InputError
        When a group has no trained one of its name.
    """
    check_records(untrained)
    extra: dict[int, Row] = {}
    for name, members in group_members(with_firing_rates(untrained)).items():
        if name not in trained:
            raise InputError(
                f"untrained: no trained group {name!r}; train both with the same settings"
            )
        chosen = groups[(groups["group"] == name) & (groups["space"] == "full")]
        silent = sum(r.firing_rate is not None and not np.any(r.firing_rate) for r in members)
        if silent:
            reason = f"{silent} of {len(members)} SAEs of the untrained model never fire"
            for index in chosen.index:
                extra[int(str(index))] = {"untrained_mean": None, "untrained_reason": reason}
            continue
        scored = score_within(live_group(members, config), "full", config)
        for index, line in chosen.iterrows():
            found = _difference(trained[name], scored, line["score"], line["signed"], config)
            if found:
                extra[int(str(index))] = found
    return groups.join(pd.DataFrame.from_dict(extra, orient="index"))


def _difference(
    trained: ScoredPairs,
    untrained: ScoredPairs,
    name: str,
    signed: bool,
    config: ConsistencyConfig,
) -> Row:
    sides = [values_of(pairs, name, signed) for pairs in (trained, untrained)]
    if not all(sides):
        return {}
    counts = [1 + max(t for _, t in pairs) for pairs in (trained, untrained)]
    matrices = [score_matrix(side, n) for side, n in zip(sides, counts, strict=True)]
    if any(np.isnan(W).any() for W in matrices):
        return {"untrained_reason": "a pair score is not defined"}
    score = SCORES[name]
    got = seed_difference(*matrices, level=config.level, bounds=score.difference_bounds(signed))
    n = counts[1]
    mean = float(matrices[1].sum() / (n * (n - 1)))
    row: Row = {
        "untrained_mean": mean,
        "untrained_difference": got.difference,
        "untrained_low": got.low,
        "untrained_high": got.high,
        "untrained_effect": got.effect,
        "untrained_p": got.p_value,
        "untrained_reason": got.reason,
    }
    if got.difference is not None and abs(score.perfect - mean) > 1e-12:
        row["untrained_corrected"] = got.difference / (score.perfect - mean)
    return row
