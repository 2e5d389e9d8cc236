"""Groups of seeds: mean scores with interval and nulls, comparisons, and many seeds together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from husai.consistency.analyses.truth import PlaneNull, plane_null
from husai.consistency.config import ConsistencyConfig
from husai.consistency.inference.intervals import (
    adjust_p,
    seed_difference,
    seed_interval,
    seed_permutation_test,
)
from husai.consistency.inference.nulls import (
    NullDistribution,
    NullKind,
    null_scores_of_both_signs,
    random_dictionary,
)
from husai.consistency.inference.seeds import (
    Matches,
    cycle_consistency,
    match_all,
    path_retention,
    seed_path,
    spanning_tree,
)
from husai.consistency.scores.codes import match_activations, shuffle_rows
from husai.consistency.scores.decoder import PAIR_SCORES
from husai.consistency.scores.subspace import DataSpan
from husai.consistency.study.pairs import OTHER_SCORES, LiveCodes, Row
from husai.consistency.study.record import LiveSAE, all_converged
from husai.threads import worker_pool

# Scores that have no null of their own borrow one. The decoder's half of the shared fraction
# bounds the whole from above, and the best match of the encoders bounds the cosine of encoders
# that were matched elsewhere.
_NULL_OF = {
    "shared_fraction": "matched_fraction",
    "pw_mcc_encoder": "pw_mcc",
    "encoder_cosine": "pw_mcc",
}
# An encoder's rows are read-out directions: the covariance of the data says nothing about them.
_WITHOUT_NULL = {("pw_mcc_encoder", "data_aware"), ("encoder_cosine", "data_aware")}


class NullCache:
    """Nulls by shape, so that groups of one shape share them.

    Parameters
    ----------
    config
        Draws, seed, threads.
    covariance
        ``[d, d]`` of the activations, or None: then there is no data-aware null.
    spaces
        The spaces in which scores are given: None for the full one.
    """

    def __init__(
        self,
        config: ConsistencyConfig,
        covariance: ArrayLike | None,
        spaces: Mapping[str, DataSpan | None],
    ) -> None:
        self._config, self._spaces = config, spaces
        self._covariance = None if covariance is None else np.asarray(covariance, dtype=np.float64)
        self._known: dict[tuple[Any, ...], dict[bool, dict[str, NullDistribution]]] = {}
        self._planes: dict[tuple[str, int], PlaneNull] = {}
        self._cycles: dict[tuple[int, int, int], float] = {}
        self.kinds: list[NullKind] = ["isotropic"]
        if covariance is not None:
            self.kinds.append("data_aware")

    def pair(
        self, kind: NullKind, n: int, d: int, space: str, signed: bool
    ) -> dict[str, NullDistribution]:
        """Null scores of two random dictionaries of ``n`` features in ``d`` dimensions."""
        key = (kind, n, d, space if kind == "data_aware" else "")
        if key not in self._known:
            span, covariance = self._spaces[space], self._covariance
            if kind == "data_aware" and span is not None and covariance is not None:
                covariance = span.basis @ covariance @ span.basis.T
            self._known[key] = null_scores_of_both_signs(
                n,
                n,
                d,
                kind=kind,
                scores=list(PAIR_SCORES),
                covariance=covariance if kind == "data_aware" else None,
                n_draws=self._config.null_draws,
                seed=self._config.seed,
                workers=self._config.workers,
                rank=self._config.subspace_rank,
            )
        return self._known[key][signed]

    def planes(self, kind: NullKind, n: int, axes: NDArray[np.float64]) -> PlaneNull:
        """Plane recovery of random dictionaries of ``n`` features."""
        if (kind, n) not in self._planes:
            self._planes[kind, n] = plane_null(
                n,
                axes,
                threshold=self._config.plane_threshold,
                covariance=self._covariance if kind == "data_aware" else None,
                n_draws=self._config.null_draws,
                seed=self._config.seed,
            )
        return self._planes[kind, n]

    def cycle(self, n: int, d: int, n_seeds: int) -> float:
        """Cycle consistency of isotropic random dictionaries, one draw."""
        if (n, d, n_seeds) not in self._cycles:
            rng = np.random.default_rng([self._config.seed, n, d])
            drawn = [random_dictionary(n, d, rng) for _ in range(min(3, n_seeds))]
            self._cycles[n, d, n_seeds] = cycle_consistency(match_all(drawn)).fraction
        return self._cycles[n, d, n_seeds]


def group_head(name: str, live: Sequence[LiveSAE], space: str) -> Row:
    """What is said of a group on every row: settings, sizes, gate."""
    first = live[0].record
    flags = [one.record.converged for one in live]
    l0 = [one.record.l0 for one in live if one.record.l0 is not None]
    return {
        "group": name,
        "architecture": first.architecture,
        "d_sae": first.d_sae,
        "k": first.k,
        "l1_coefficient": first.l1_coefficient,
        "l0": float(np.mean(l0)) if l0 else None,
        "space": space,
        "dimensions": live[0].decoder.shape[1],
        "n_live": round(float(np.mean([len(one.index) for one in live]))),
        "n_seeds": len(live),
        "converged": all_converged(flags),
        "n_converged": sum(flag is True for flag in flags),
    }


def by_score(rows: Sequence[Row]) -> dict[tuple[str, bool], list[Row]]:
    """Gather rows by score and sign, in the order in which they came."""
    found: dict[tuple[str, bool], list[Row]] = defaultdict(list)
    for row in rows:
        found[row["score"], row["signed"]].append(row)
    return found


def score_matrix(rows: Sequence[Row], ids: Sequence[str]) -> NDArray[np.float64]:
    """Symmetric matrix of one score over SAEs; NaN where a pair is missing."""
    position = {name: i for i, name in enumerate(ids)}
    W = np.full((len(ids), len(ids)), np.nan)
    np.fill_diagonal(W, 0.0)
    for row in rows:
        i, j = position[row["id_a"]], position[row["id_b"]]
        W[i, j] = W[j, i] = row["value"]
    return W


def group_scores(
    name: str,
    live: Sequence[LiveSAE],
    space: str,
    rows: Sequence[Row],
    init_rows: Sequence[Row],
    nulls: NullCache,
    config: ConsistencyConfig,
    codes: Sequence[LiveCodes | None] = (),
) -> list[Row]:
    """One row per score and sign of a group: mean, interval, nulls, gate."""
    head = group_head(name, live, space)
    if len(live) < 2:
        reason = "one seed: no pair to compare"
        return [
            {**head, "score": score, "signed": signed, "reason": reason}
            for score in PAIR_SCORES
            for signed in (False, True)
        ]
    ids = [one.record.id for one in live]
    inits = by_score(init_rows)
    result = []
    for (score, signed), values in by_score(rows).items():
        kind_of = PAIR_SCORES.get(score) or OTHER_SCORES[score]
        if not kind_of.symmetric:
            continue  # a direction has no meaning among seeds of one group
        line = {**head, "score": score, "signed": signed}
        W = score_matrix(values, ids)
        if np.isnan(W).any():
            reasons = [row["reason"] for row in rows if np.isnan(row["value"])]
            own = [row["reason"] for row in values if np.isnan(row["value"])]
            result.append({**line, "reason": [*own, *reasons, "not defined for every pair"][0]})
            continue
        interval = seed_interval(W, level=config.level, bounds=kind_of.bounds(signed))
        line |= {
            "mean": interval.mean,
            "low": interval.low,
            "high": interval.high,
            "se": interval.se,
            "n_pairs": interval.n_pairs,
            "interval": interval.method,
            "reason": interval.reason,
        }
        if interval.mean is not None:
            null_name = _NULL_OF.get(score, score)
            found = _nulls_of(null_name, score, signed, head, nulls)
            started = [row["value"] for row in inits.get((null_name, signed), [])]
            if started and not np.isnan(started).any():
                perfect = PAIR_SCORES[null_name].perfect
                found["init"] = NullDistribution(
                    "init", score, signed, np.array(started), False, perfect
                )
            if score == "activation_mcc":
                found |= _shuffled(codes, config)
            for kind, null in found.items():
                line |= null_columns(kind, null, interval.mean)
            chance = [row["chance"] for row in values]
            if not np.isnan(chance).any():
                at = float(np.mean(chance))
                line |= {
                    "chance_mean": at,
                    "chance_corrected": (interval.mean - at) / (1 - at) if at < 1 else None,
                }
        result.append(line)
    return result


def _nulls_of(
    null_name: str, score: str, signed: bool, head: Row, nulls: NullCache
) -> dict[str, NullDistribution]:
    found: dict[str, NullDistribution] = {}
    if null_name not in PAIR_SCORES:
        return found
    for kind in nulls.kinds:
        if (score, kind) in _WITHOUT_NULL:
            continue
        drawn = nulls.pair(kind, head["n_live"], head["dimensions"], head["space"], signed)
        if null_name in drawn:
            found[kind] = drawn[null_name]
    return found


def _shuffled(
    codes: Sequence[LiveCodes | None], config: ConsistencyConfig
) -> dict[str, NullDistribution]:
    """Matched activations of the first two SAEs when the rows of one are shuffled."""
    if len(codes) < 2 or codes[0] is None or codes[1] is None:
        return {}
    one, other = codes[0].codes, codes[1].codes

    def draw(t: int) -> float | None:
        rng = np.random.default_rng([config.seed, t])
        return match_activations(one, shuffle_rows(other, rng)).mean

    with worker_pool(config.workers) as pool:
        values = list(pool.map(draw, range(config.code_null_draws)))
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return {}
    return {"shuffled": NullDistribution("shuffled", "activation_mcc", True, np.array(known))}


def null_columns(kind: str, null: NullDistribution, score: float) -> dict[str, float | None]:
    """Columns that say what a null makes of a score."""
    return {
        f"{kind}_mean": null.mean,
        f"{kind}_sd": null.sd,
        f"{kind}_corrected": null.corrected(score) if null.informative else None,
        f"{kind}_p": null.p_value(score),
        f"{kind}_z": null.z(score),
    }


def adjust_groups(groups: pd.DataFrame) -> pd.DataFrame:
    """Add ``<null>_p_adjusted``: each null's p-values corrected over groups (Benjamini-Hochberg).

    The family is all groups with the same score, sign and space: that many chances to find one.
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

    Returns
    -------
    pandas.DataFrame
        ``group_a``, ``group_b``, ``space``, ``score``, ``signed``, ``difference`` with interval,
        ``effect`` (Hedges' g on the seeds' pseudo-values), ``p`` (t over seeds), ``p_adjusted``
        (Holm over the table's rows of one space, score and sign), ``permutation_p`` and
        ``least_p`` (labels of SAEs permuted; where pairs across the groups were scored), ``l0_a``,
        ``l0_b``, ``matched_l0`` (within a tenth; None when unknown), ``converged``, ``reason``.
    """
    rows: list[Row] = []
    if not len(pairs):
        return pd.DataFrame(rows)
    chosen = pairs[pairs["score"].isin(_COMPARED)]
    for (space, score, signed), part in chosen.groupby(["space", "score", "signed"], sort=False):
        records = cast("list[Row]", part.to_dict("records"))
        for one, other in combinations(members, 2):
            sides = [members[one], members[other]]
            ids = [[live.record.id for live in side] for side in sides]
            both = score_matrix(
                [r for r in records if {r["id_a"], r["id_b"]} <= {*ids[0], *ids[1]}],
                [*ids[0], *ids[1]],
            )
            n = len(ids[0])
            rows.append(
                {
                    "group_a": one,
                    "group_b": other,
                    "space": space,
                    "score": score,
                    "signed": signed,
                    **_difference(both, n, config),
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


def _difference(both: NDArray[np.float64], n: int, config: ConsistencyConfig) -> Row:
    empty = dict.fromkeys(
        ("difference", "low", "high", "se", "effect", "p", "permutation_p", "least_p")
    )
    if np.isnan(both[:n, :n]).any() or np.isnan(both[n:, n:]).any():
        return {**empty, "reason": "a pair score is not defined"}
    got = seed_difference(both[:n, :n], both[n:, n:], level=config.level)
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
    means: list[float | None] = []
    for side in sides:
        known = [live.record.l0 for live in side if live.record.l0 is not None]
        means.append(float(np.mean(known)) if known else None)
    a, b = means
    matched = None if a is None or b is None else abs(a - b) <= 0.1 * max(a, b)
    return {"l0_a": a, "l0_b": b, "matched_l0": matched}


def seeds_together(
    name: str,
    live: Sequence[LiveSAE],
    space: str,
    matches: Matches,
    nulls: NullCache,
    config: ConsistencyConfig,
) -> tuple[Row, list[Row]]:
    """Path, tree, cycles and retention of a group: one row, and one row per number of hops."""
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
        "cycle_isotropic": nulls.cycle(head["n_live"], head["dimensions"], n),
    }
    retention = path_retention(matches, seed=config.seed)
    keep = {key: head[key] for key in ("group", "architecture", "d_sae", "k", "space", "converged")}
    return row, [
        {**keep, **{str(k): v for k, v in line.items()}} for line in retention.to_dict("records")
    ]
