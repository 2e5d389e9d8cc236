"""The tables of groups of seeds: mean scores with intervals and nulls, comparisons, alignments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import combinations
from typing import Literal, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from husai.consistency.config import ComparisonConfig, ConsistencyConfig
from husai.consistency.inference.intervals import (
    SeedInterval,
    seed_difference,
    seed_interval,
)
from husai.consistency.inference.null_cache import NullCache, given_nulls, shuffled_nulls
from husai.consistency.inference.nulls import NullDistribution, Nulls, random_dictionary
from husai.consistency.inference.paths import seed_path, spanning_tree
from husai.consistency.inference.seeds import (
    Matches,
    cycle_consistency,
    match_all,
    partner_similarity,
    path_retention,
)
from husai.consistency.inference.significance import adjust_p, seed_permutation_test
from husai.consistency.scores.pair import Side
from husai.consistency.scores.registry import SCORES, Score
from husai.consistency.study.pairs import Row, ScoredPair, Values, available_scores
from husai.consistency.study.record import LiveSAE, all_converged

ScoredPairs = Mapping[tuple[int, int], ScoredPair]
"""Scored pairs of one group by the positions of their SAEs, ``s < t``."""


def group_head(name: str, live: Sequence[LiveSAE], space: str) -> Row:
    """Return the columns that every row of a group has: settings, sizes, gate."""
    first = live[0].record
    flags = [one.record.converged for one in live]
    return {
        "group": name,
        "architecture": first.architecture,
        "d_sae": first.d_sae,
        "k": first.k,
        "l1_coefficient": first.l1_coefficient,
        "l0": _mean([one.record.l0 for one in live]),
        "fvu": _mean([one.record.fvu for one in live]),
        "space": space,
        "dimensions": live[0].decoder.shape[1],
        "n_live": round(float(np.mean([len(one.index) for one in live]))),
        "n_seeds": len(live),
        "converged": all_converged(flags),
        "n_converged": sum(flag is True for flag in flags),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are known; None if none is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def found_everywhere(live: Sequence[LiveSAE], pairs: ScoredPairs, threshold: float) -> float | None:
    """Number of latents found in every other seed, at the threshold; mean over SAEs.

    By the absolute match. None if an SAE has no live latent, or there is no other seed.
    """
    if len(live) < 2 or any(not pair.matches for pair in pairs.values()):
        return None
    own = partner_similarity(
        {at: pair.matches[False] for at, pair in pairs.items()}, [len(one.index) for one in live]
    )
    return float(np.mean([(each >= threshold).all(axis=1).sum() for each in own]))


def score_matrix(values: Mapping[tuple[int, int], float | None], n: int) -> NDArray[np.float64]:
    """Symmetric matrix ``[n, n]`` of one score over SAEs; NaN where a pair is not defined."""
    W = np.full((n, n), np.nan)
    np.fill_diagonal(W, 0.0)
    for (i, j), value in values.items():
        W[i, j] = W[j, i] = np.nan if value is None else value
    return W


def values_of(pairs: ScoredPairs, score: str, signed: bool) -> dict[tuple[int, int], float | None]:
    """Return one score of every pair that has it."""
    return {
        at: pair.values[score, signed].value
        for at, pair in pairs.items()
        if (score, signed) in pair.values
    }


def mean_score(
    pairs: ScoredPairs, n: int, score: Score, signed: bool, level: float
) -> SeedInterval | None:
    """Mean of one score over all pairs of ``n`` SAEs with its interval; None if a pair lacks it."""
    W = score_matrix(values_of(pairs, score.name, signed), n)
    if np.isnan(W).any():
        return None
    return seed_interval(W, level=level, bounds=score.bounds_of(signed))


def group_scores(
    name: str,
    live: Sequence[LiveSAE],
    space: str,
    pairs: ScoredPairs,
    inits: Sequence[Values],
    nulls: NullCache,
    config: ConsistencyConfig,
) -> list[Row]:
    """Make the rows of one group in the table ``groups``: one per score and sign.

    Parameters
    ----------
    name, live, space
        Name of the group, its SAEs as they are in the space, and the name of the space.
    pairs
        The scored pairs of the group.
    inits
        Scores of pairs of initialisations.
    nulls
        The drawn nulls.
    config
        Level, threshold, seed.
    """
    head = {
        **group_head(name, live, space),
        "n_everywhere": found_everywhere(live, pairs, config.shared_threshold),
    }
    metric = "raw" if nulls.covariance is None else config.encoder_metric
    if len(live) < 2:
        reason = "one seed: no pair to compare"
        return [
            {
                **head,
                "score": score.name,
                "signed": signed,
                "encoder_metric": None,
                "reason": reason,
            }
            for score in SCORES.values()
            if score.needs == {"decoder"}
            for signed in score.signs
        ]
    if any(not pair.matches for pair in pairs.values()):
        found: Nulls = {}
    else:
        found = group_nulls(name, live, space, inits, nulls, config)
    result = []
    for score in available_scores(live, space):
        if not score.symmetric:
            continue  # which of two seeds is A and which is B means nothing in a group
        for signed in score.signs:
            line = {**head, "score": score.name, "signed": signed}
            line["encoder_metric"] = metric if "encoder" in score.needs else None
            own = [pair.values[score.name, signed] for pair in pairs.values()]
            interval = mean_score(pairs, len(live), score, signed, config.level)
            if interval is None or interval.mean is None:
                reasons = [value.reason for value in own if value.value is None]
                result.append({**line, "reason": [*reasons, "not defined for every pair"][0]})
                continue
            line |= {
                "mean": interval.mean,
                "low": interval.low,
                "high": interval.high,
                "se": interval.se,
                "n_pairs": interval.n_pairs,
                "interval": interval.method,
                "reason": interval.reason,
            }
            for kind, null in found.get((score.name, signed), {}).items():
                line |= null_columns(kind, null, interval.mean)
            claimed = found.get((score.name, signed), {}).get("permuted")
            if claimed is not None:
                line["against_permuted"] = chance_verdict(interval, claimed, config.level)
            chance = [value.chance for value in own if value.chance is not None]
            if len(chance) == len(own):
                at = float(np.mean(chance))
                line |= {
                    "chance_mean": at,
                    "chance_corrected": (interval.mean - at) / (1 - at) if at < 1 else None,
                }
            result.append(line)
    return result


def group_nulls(
    name: str,
    live: Sequence[LiveSAE],
    space: str,
    inits: Sequence[Values],
    nulls: NullCache,
    config: ComparisonConfig,
) -> Nulls:
    """Return all nulls of a group's scores: drawn ones, initialisations, shuffled codes."""
    # nulls are drawn for one shape: if dead latents are left out, the mean width of the group
    n = round(float(np.mean([len(one.index) for one in live])))
    one, other = (_of_width(live[at].side, n) for at in (0, 1))
    sides = tuple(each.side for each in live)
    found = nulls.pair(one, other, space=space, group=name, own=sides)
    started = [values for values in inits if values]
    given = {
        key: [values[key].value for values in started] for key in (started[0] if started else ())
    }
    made = [given_nulls("init", given)]
    if space == "full":
        made.append(shuffled_nulls(sides[0], sides[1], config))
    for some in made:
        for key, null in some.items():
            found.setdefault(key, {}).update(null)
    return found


def _of_width(side: Side, n: int) -> Side:
    """Return a side with ``n`` features; if this side has not, one of zeros for its shape."""
    if len(side.decoder) == n:
        return side
    decoder = np.zeros((n, side.decoder.shape[1]))
    return Side(decoder, None if side.encoder is None else decoder)


def null_columns(kind: str, null: NullDistribution, score: float) -> dict[str, float | None]:
    """Return the columns that compare a score with a null."""
    return {
        f"{kind}_mean": null.mean,
        f"{kind}_sd": null.sd,
        f"{kind}_corrected": null.corrected(score) if null.informative else None,
        f"{kind}_p": null.p_value(score),
        f"{kind}_z": null.z(score),
    }


Verdict = Literal["above", "below", "unclear"]
"""How a mean over seeds compares with a null."""


def chance_verdict(interval: SeedInterval, null: NullDistribution, level: float) -> Verdict:
    """Say whether a score is above or below a null, by its interval and its p-value.

    The interval says what other seeds would give, the p-value what chance would give. A score is
    called above the null, or below it, only if both agree. A score for which smaller is better (a
    distance) is above the null if it is smaller.

    Parameters
    ----------
    interval, null
        Interval and null of the score.
    level
        Confidence level of the interval; the p-value must be at most one minus this.

    Returns
    -------
    str
        ``"unclear"`` if the two disagree, or one of them is missing.
    """
    p = None if interval.mean is None else null.p_value(interval.mean)
    if interval.low is None or interval.high is None or p is None:
        return "unclear"
    more = null.perfect > null.mean
    worst, best = (interval.low, interval.high) if more else (interval.high, interval.low)
    sign = 1.0 if more else -1.0
    if sign * (worst - null.mean) > 0 and p <= 1 - level:
        return "above"
    if sign * (best - null.mean) < 0 and p >= level:
        return "below"
    return "unclear"


def adjust_groups(groups: pd.DataFrame) -> pd.DataFrame:
    """Add ``<null>_p_adjusted``: each null's p-values corrected over groups (Benjamini-Hochberg).

    Corrected together are all groups with the same score, sign and space.
    """
    result = groups.copy()
    for column in [c for c in groups.columns if c.endswith("_p")]:
        adjusted: list[float | None] = [None] * len(groups)
        for _, family in groups.groupby(["space", "score", "signed"], sort=False):
            where = [int(i) for i in groups.index.get_indexer(family.index)]
            values = adjust_p(family[column].astype(float).tolist())
            for position, value in zip(where, values, strict=True):
                adjusted[position] = value
        result[f"{column}_adjusted"] = pd.array(adjusted, dtype="Float64")
    return result


_COMPARED = ("pw_mcc", "mmcs", "shared_fraction")


def compare_groups(
    pairs: pd.DataFrame,
    members: Mapping[str, Sequence[LiveSAE]],
    config: ConsistencyConfig,
) -> pd.DataFrame:
    """Compare groups two by two, over seeds.

    Parameters
    ----------
    pairs
        The table of pairs.
    members
        SAEs by name of their group.
    config
        Confidence level.

    Returns
    -------
    pandas.DataFrame
        The table ``comparisons`` of :mod:`husai.consistency.study.schema`: ``p`` is a t-test over
        seeds, ``p_adjusted`` is Holm's over the rows of one space, score and sign,
        ``permutation_p`` permutes labels of SAEs where pairs across the groups were scored.
    """
    rows: list[Row] = []
    if not len(pairs):
        return pd.DataFrame(rows)
    chosen = pairs[pairs["score"].isin(_COMPARED)]
    for (space, score, signed), part in chosen.groupby(["space", "score", "signed"], sort=False):
        records = cast("list[Row]", part.to_dict("records"))
        for one, other in combinations(members, 2):
            sides = [members[one], members[other]]
            at = {live.record.id: i for i, live in enumerate([*sides[0], *sides[1]])}
            both = score_matrix(
                {
                    (at[r["id_a"]], at[r["id_b"]]): r["value"]
                    for r in records
                    if r["id_a"] in at and r["id_b"] in at
                },
                len(at),
            )
            bounds = SCORES[str(score)].difference_bounds(bool(signed))
            rows.append(
                {
                    "group_a": one,
                    "group_b": other,
                    "space": space,
                    "score": score,
                    "signed": signed,
                    **_difference(both, len(sides[0]), bounds, config),
                    **_matched_l0(sides),
                    "converged": all_converged(
                        [live.record.converged for side in sides for live in side]
                    ),
                }
            )
    table = pd.DataFrame(rows)
    if len(table):
        table["p_adjusted"] = None
        for _, family in table.groupby(["space", "score", "signed"], sort=False):
            values = adjust_p(family["p"].astype(float).tolist(), method="holm")
            table.loc[family.index, "p_adjusted"] = pd.Series(values, family.index, dtype=object)
        table["p_adjusted"] = table["p_adjusted"].astype("Float64")
    return table


def _difference(
    both: NDArray[np.float64], n: int, bounds: tuple[float, float], config: ConsistencyConfig
) -> Row:
    empty = dict.fromkeys(
        ("difference", "low", "high", "se", "effect", "p", "permutation_p", "least_p")
    )
    if np.isnan(both[:n, :n]).any() or np.isnan(both[n:, n:]).any():
        return {**empty, "reason": "a pair score is not defined"}
    got = seed_difference(both[:n, :n], both[n:, n:], level=config.level, bounds=bounds)
    row: Row = {
        **empty,
        "difference": got.difference,
        "low": got.low,
        "high": got.high,
        "se": got.se,
        "effect": got.effect,
        "p": got.p_value,
        "reason": got.reason,
    }
    if not np.isnan(both).any() and min(n, len(both) - n) >= 2:
        test = seed_permutation_test(both, [0] * n + [1] * (len(both) - n))
        row |= {"permutation_p": test.p_value, "least_p": test.least_p}
    return row


def _matched_l0(sides: Sequence[Sequence[LiveSAE]]) -> Row:
    a, b = (_mean([live.record.l0 for live in side]) for side in sides)
    matched = None if a is None or b is None else abs(a - b) <= 0.1 * max(a, b)
    return {"l0_a": a, "l0_b": b, "matched_l0": matched}


def seeds_together(
    name: str,
    live: Sequence[LiveSAE],
    space: str,
    matches: Matches,
    config: ConsistencyConfig,
) -> tuple[Row, list[Row]]:
    """Seed path, spanning tree, cycles and retention of one group.

    Returns
    -------
    row
        The row of the group in the table ``seeds``.
    retention
        Its rows in the table ``retention``, one per number of hops.
    """
    head = group_head(name, live, space)
    n = len(live)
    if n < 2 or len(matches) < n * (n - 1) // 2:
        reason = "one seed" if n < 2 else "an SAE has no live latent"
        return {**head, "reason": reason}, []
    W = np.zeros((n, n))
    for (s, t), match in matches.items():
        W[s, t] = W[t, s] = match.mean
    path = seed_path(W, seed=config.seed)
    ids = [one.record.id for one in live]
    row: Row = {
        **head,
        "path": " > ".join(ids[s] for s in path.order),
        "path_mean": path.mean,
        "path_method": path.method,
        "path_gap": path.gap,
        "pair_mean": path.pair_mean,
        "selected_mean": path.selected_mean,
        "selected_sd": path.selected_sd,
        "path_p": path.p_value,
        "tree": ", ".join(f"{ids[s]} - {ids[t]}" for s, t, _ in spanning_tree(W)),
        "tree_mean": float(np.mean([w for *_, w in spanning_tree(W)])),
        "reason": "",
    }
    if n < 3:
        return {**row, "reason": "two seeds make no cycle"}, []
    cycle = cycle_consistency(matches)
    row |= {
        "cycle_fraction": cycle.fraction,
        "cycle_complete": cycle.complete,
        "cycle_chance": cycle.chance,
        "cycle_isotropic": _cycle_by_chance(head["n_live"], head["dimensions"], n, config.seed),
    }
    retention = path_retention(matches, seed=config.seed)
    keep = {key: head[key] for key in ("group", "architecture", "d_sae", "k", "space", "converged")}
    return row, [
        {**keep, **{str(k): v for k, v in line.items()}} for line in retention.to_dict("records")
    ]


@cache
def _cycle_by_chance(n: int, d: int, n_seeds: int, seed: int) -> float:
    """Cycle consistency of isotropic random dictionaries, one draw."""
    rng = np.random.default_rng([seed, n, d])
    drawn = [random_dictionary(n, d, rng) for _ in range(min(3, n_seeds))]
    return cycle_consistency(match_all(drawn)).fraction
