"""From a list of SAEs to tidy tables: every score beside its nulls, interval and gate."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from husai.consistency.analyses.truth import (
    PHASE_CHANCE,
    axis_gt_mcc,
    orthonormal_planes,
    plane_measures,
    plane_recovery,
)
from husai.consistency.config import ConsistencyConfig
from husai.consistency.inference.intervals import mean_interval, seed_difference, seed_interval
from husai.consistency.inference.seeds import Matches, align_seeds, reproducibility_by_firing_rate
from husai.consistency.scores.decoder import PAIR_SCORES
from husai.consistency.scores.subspace import DataSpan, data_span
from husai.consistency.study.groups import (
    NullCache,
    adjust_groups,
    by_score,
    compare_groups,
    group_head,
    group_scores,
    score_matrix,
    seeds_together,
)
from husai.consistency.study.pairs import (
    LiveCodes,
    Row,
    ScoredPair,
    group_members,
    live_codes,
    score_inits,
    score_pair,
)
from husai.consistency.study.record import (
    LiveSAE,
    SAERecord,
    check_records,
    live_latents,
    live_sae,
    with_firing_rates,
)
from husai.errors import InputError
from husai.threads import worker_pool

SCHEMA_NAME = "husai.consistency"
SCHEMA_VERSION = "2.0"


@dataclass(frozen=True)
class ConsistencyReport:
    """Tidy tables and a summary.

    Attributes
    ----------
    saes
        A row per SAE: settings, gate, live latents, share of its decoder inside the data's span.
    pairs
        A row per pair of SAEs, space, score and sign, with the score's own chance level where it
        has a closed form.
    groups
        A row per group, space, score and sign: mean, interval over seeds, and for each null its
        mean, sd, corrected score, p-value, adjusted p-value and z.
    comparisons
        A row per pair of groups, space, score and sign: difference over seeds.
    seeds
        A row per group and space: path, tree, cycle consistency.
    retention
        A row per group, space and number of hops.
    features
        A row per SAE, space and latent: in how many other seeds it came back, and how well.
    strata
        Features summed up by how often they fire; empty when firing rates are not known.
    planes
        A row per SAE and plane; empty when no planes were given.
    truth
        A row per group and measure of plane recovery, with interval and nulls; empty likewise.
    summary
        Nested plain values with ``schema_version``; no NaN.
    """

    saes: pd.DataFrame
    pairs: pd.DataFrame
    groups: pd.DataFrame
    comparisons: pd.DataFrame
    seeds: pd.DataFrame
    retention: pd.DataFrame
    features: pd.DataFrame
    strata: pd.DataFrame
    planes: pd.DataFrame
    truth: pd.DataFrame
    summary: dict[str, Any]

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return the tables by name, those that are empty left out."""
        return {
            name: value
            for name, value in vars(self).items()
            if isinstance(value, pd.DataFrame) and len(value)
        }


def consistency_report(
    records: Sequence[SAERecord],
    config: ConsistencyConfig | None = None,
    *,
    covariance: ArrayLike | None = None,
    planes: ArrayLike | None = None,
    untrained: Sequence[SAERecord] = (),
) -> ConsistencyReport:
    """Compare all SAEs of each group, against every null, over seeds.

    Parameters
    ----------
    records
        The SAEs; those of one group (architecture, width, sparsity setting) differ in seed only.
    config
        How to compare; defaults when None.
    covariance
        ``[d, d]`` covariance of the activations: adds the data-aware null and the scores within
        the data's subspace.
    planes
        ``[n_planes, 2, d]`` ground-truth planes at this hook: adds plane recovery.
    untrained
        SAEs of the same settings trained on an untrained model's activations: adds the
        ``untrained`` null to the groups of the same name, in the full space.

    Raises
    ------
    InputError
        When the records do not fit together.
    """
    config = config or ConsistencyConfig()
    check_records(records)
    d = records[0].W_dec.shape[1]
    records = with_firing_rates(records)
    spaces: dict[str, DataSpan | None] = {"full": None}
    if covariance is not None:
        if np.shape(covariance) != (d, d):
            raise InputError(
                f"covariance: shape {np.shape(covariance)}, decoders of {d} dimensions"
            )
        spaces["data"] = data_span(covariance, variance=config.data_variance)
    members = group_members(records)
    nulls = NullCache(config, covariance, spaces)
    gathered = _Gathered()
    with worker_pool(config.workers) as pool:
        codes = _all_codes(members, config, pool)
        for space, span in spaces.items():
            live = {
                name: [live_sae(record, config.dead, span) for record in group]
                for name, group in members.items()
            }
            for name, group in live.items():
                scored = _score_within(group, space, config, pool, codes)
                inits = _score_inits(group, space, config, pool)
                gathered.add_group(name, group, space, scored, inits, nulls, config, codes)
            if config.across_groups:
                gathered.pairs += _score_across(live, space, config, pool)
        groups = pd.DataFrame(gathered.groups)
        if untrained:
            groups = _add_untrained(groups, gathered.pairs, untrained, config, pool)
    for column in ("mean", "low", "high"):
        if column not in groups:  # one seed everywhere: not defined, and said so
            groups[column] = np.nan
    groups = adjust_groups(groups)
    full = {
        name: [live_sae(record, config.dead) for record in group] for name, group in members.items()
    }
    pairs = pd.DataFrame(gathered.pairs)
    features = pd.concat(gathered.features, ignore_index=True)
    saes = _sae_table(records, spaces.get("data"), config)
    plane_table, truth = _truth_tables(full, planes, nulls, config)
    if len(plane_table):
        saes = saes.merge(_plane_columns(full, planes, config), on="id", how="left")
    if planes is not None:
        features = features.merge(
            _feature_planes(full, planes, config), on=["id", "latent"], how="left"
        )
    strata = pd.DataFrame()
    if "firing_rate" in features and (features["n_other_seeds"] > 0).any():
        strata = reproducibility_by_firing_rate(features, by=["group", "space"])
        gates = groups.drop_duplicates("group").set_index("group")["converged"]
        strata["converged"] = strata["group"].map(gates).astype("boolean")
    return ConsistencyReport(
        saes=saes,
        pairs=pairs,
        groups=groups,
        comparisons=compare_groups(pairs, full, config),
        seeds=pd.DataFrame(gathered.seeds),
        retention=pd.DataFrame(gathered.retention),
        features=features,
        strata=strata,
        planes=plane_table,
        truth=truth,
        summary=_summary(saes, groups, truth, spaces, config),
    )


_Codes = Mapping[str, LiveCodes | None]


def _all_codes(
    members: Mapping[str, Sequence[SAERecord]],
    config: ConsistencyConfig,
    pool: ThreadPoolExecutor,
) -> _Codes:
    live = [live_sae(record, config.dead) for group in members.values() for record in group]
    made = pool.map(lambda one: live_codes(one, config), live)
    return {one.record.id: codes for one, codes in zip(live, made, strict=True)}


class _Gathered:
    """Rows of the tables while the groups are worked through."""

    def __init__(self) -> None:
        self.pairs: list[Row] = []
        self.groups: list[Row] = []
        self.seeds: list[Row] = []
        self.retention: list[Row] = []
        self.features: list[pd.DataFrame] = []

    def add_group(
        self,
        name: str,
        live: Sequence[LiveSAE],
        space: str,
        scored: Mapping[tuple[int, int], ScoredPair],
        inits: Sequence[Row],
        nulls: NullCache,
        config: ConsistencyConfig,
        codes: _Codes,
    ) -> None:
        rows = [row for pair in scored.values() for row in pair.rows]
        matches = {key: pair.match for key, pair in scored.items() if pair.match is not None}
        self.pairs += rows
        group_codes = [codes[one.record.id] for one in live]
        self.groups += group_scores(name, live, space, rows, inits, nulls, config, group_codes)
        seeds, retention = seeds_together(name, live, space, matches, nulls, config)
        self.seeds.append(seeds)
        self.retention += retention
        self.features.append(feature_table(name, live, space, matches, config))


def _score_within(
    live: Sequence[LiveSAE],
    space: str,
    config: ConsistencyConfig,
    pool: ThreadPoolExecutor,
    codes: _Codes,
) -> dict[tuple[int, int], ScoredPair]:
    keys = list(combinations(range(len(live)), 2))

    def one(key: tuple[int, int]) -> ScoredPair:
        a, b = live[key[0]], live[key[1]]
        return score_pair(a, b, space, config, (codes[a.record.id], codes[b.record.id]))

    return dict(zip(keys, pool.map(one, keys), strict=True))


def _score_inits(
    live: Sequence[LiveSAE], space: str, config: ConsistencyConfig, pool: ThreadPoolExecutor
) -> list[Row]:
    """Score initialisations of neighbouring seeds, round in a ring: as many pairs as seeds.

    They are draws of one generator, or one shared start; either way a ring shows it, and all
    pairs would cost as much as all pairs of trained SAEs.
    """
    n = len(live)
    ring = [(i, (i + 1) % n) for i in range(n if n > 2 else n - 1)]
    made = pool.map(lambda key: score_inits(live[key[0]], live[key[1]], space, config), ring)
    return [row for rows in made for row in rows]


def _score_across(
    live: Mapping[str, Sequence[LiveSAE]],
    space: str,
    config: ConsistencyConfig,
    pool: ThreadPoolExecutor,
) -> list[Row]:
    keys = [(a, b) for one, other in combinations(live, 2) for a in live[one] for b in live[other]]
    made = pool.map(lambda key: score_pair(key[0], key[1], space, config), keys)
    return [row for scored in made for row in scored.rows]


def _add_untrained(
    groups: pd.DataFrame,
    pairs: Sequence[Row],
    untrained: Sequence[SAERecord],
    config: ConsistencyConfig,
    pool: ThreadPoolExecutor,
) -> pd.DataFrame:
    """Add columns ``untrained_*``: the same scores of SAEs trained on an untrained model.

    ``untrained_difference`` is trained minus untrained, with an interval over the seeds of both,
    Hedges' g and a t-test's p-value. SAEs that never fire have learnt nothing to agree on: where
    there are such, the null is not defined, and ``untrained_reason`` says so.
    """
    check_records(untrained)
    extra: dict[int, Row] = {}
    for name, members in group_members(with_firing_rates(untrained)).items():
        if name not in set(groups["group"]):
            raise InputError(
                f"untrained: no trained group {name!r}; train both with the same settings"
            )
        silent = sum(r.firing_rate is not None and not np.any(r.firing_rate) for r in members)
        if silent:
            reason = f"{silent} of {len(members)} SAEs of the untrained model never fire"
            for index in groups.index[(groups["group"] == name) & (groups["space"] == "full")]:
                extra[int(str(index))] = {"untrained_mean": None, "untrained_reason": reason}
            continue
        live = [live_sae(record, config.dead) for record in members]
        codes = _all_codes({name: members}, config, pool)
        scored = _score_within(live, "full", config, pool, codes)
        found = by_score([row for pair in scored.values() for row in pair.rows])
        trained = by_score([r for r in pairs if r["group"] == name and r["space"] == "full"])
        chosen = groups[(groups["group"] == name) & (groups["space"] == "full")]
        for index, line in chosen.iterrows():
            key = (str(line["score"]), bool(line["signed"]))
            if key in found and key in trained:
                extra[int(str(index))] = _untrained_columns(
                    key[0], trained[key], found[key], config
                )
    columns = pd.DataFrame.from_dict(extra, orient="index")
    return groups.join(columns)


def _untrained_columns(
    score: str, trained: Sequence[Row], untrained: Sequence[Row], config: ConsistencyConfig
) -> Row:
    ids = [
        list(dict.fromkeys([row[side] for row in rows for side in ("id_a", "id_b")]))
        for rows in (trained, untrained)
    ]
    matrices = [score_matrix(rows, i) for rows, i in zip((trained, untrained), ids, strict=True)]
    if any(np.isnan(W).any() for W in matrices):
        return {"untrained_reason": "a pair score is not defined"}
    mean = seed_interval(matrices[1]).mean
    got = seed_difference(matrices[0], matrices[1], level=config.level)
    row: Row = {
        "untrained_mean": mean,
        "untrained_difference": got.difference,
        "untrained_low": got.low,
        "untrained_high": got.high,
        "untrained_effect": got.effect,
        "untrained_p": got.p_value,
        "untrained_reason": got.reason,
    }
    perfect = PAIR_SCORES[score].perfect if score in PAIR_SCORES else 1.0
    if mean is not None and got.difference is not None and abs(perfect - mean) > 1e-12:
        row["untrained_corrected"] = got.difference / (perfect - mean)
    return row


def feature_table(
    name: str, live: Sequence[LiveSAE], space: str, matches: Matches, config: ConsistencyConfig
) -> pd.DataFrame:
    """A row per SAE and live latent: how it came back in the other seeds of its group."""
    aligned = None
    if len(live) > 1 and len(matches) == len(live) * (len(live) - 1) // 2:
        aligned = align_seeds(matches, threshold=config.shared_threshold).features
    tables = []
    for position, one in enumerate(live):
        record = one.record
        table = pd.DataFrame(
            {
                "group": name,
                "id": record.id,
                "latent": one.index,
                "space": space,
                "n_other_seeds": 0,
            }
        )
        if aligned is not None:
            own = aligned[aligned["seed"] == position].drop(columns=["seed", "feature"])
            table = table.drop(columns="n_other_seeds").join(own.reset_index(drop=True))
        if record.firing_rate is not None:
            table["firing_rate"] = np.asarray(record.firing_rate, dtype=np.float64)[one.index]
        if one.init is not None:
            table["cosine_to_init"] = row_cosines(one.decoder, one.init)
        if one.encoder is not None:
            table["cosine_to_encoder"] = row_cosines(one.decoder, one.encoder)
        table["converged"] = pd.array([record.converged] * len(table), dtype="boolean")
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def row_cosines(A: NDArray[np.float64], B: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosine ``[n]`` of each row of A with the same row of B."""
    scale = np.linalg.norm(A, axis=1) * np.linalg.norm(B, axis=1)
    return np.asarray((A * B).sum(axis=1) / np.maximum(scale, 1e-300))


def _sae_table(
    records: Sequence[SAERecord], span: DataSpan | None, config: ConsistencyConfig
) -> pd.DataFrame:
    rows = []
    for record in records:
        live = live_latents(record, config.dead)
        inside = None
        if span is not None and len(live):
            inside = float(span.inside(record.W_dec[live]).mean())
        dead = None
        if record.firing_rate is not None:
            dead = int((np.asarray(record.firing_rate) <= 0).sum())
        rows.append(
            {
                "group": record.group_name,
                "id": record.id,
                "architecture": record.architecture,
                "d_sae": record.d_sae,
                "k": record.k,
                "l1_coefficient": record.l1_coefficient,
                "seed": record.seed,
                "n_live": len(live),
                "n_dead": dead,
                "l0": record.l0,
                "fvu": record.fvu,
                "converged": record.converged,
                "cosine_to_init": record.cosine_to_init,
                "share_in_data_span": inside,
            }
        )
    table = pd.DataFrame(rows)
    table["converged"] = table["converged"].astype("boolean")
    return table


_MEASURES = ("recall", "covered", "mean_purity", "in_plane", "mean_rho", "mean_energy", "gt_mcc")


def _plane_columns(
    live: Mapping[str, Sequence[LiveSAE]], planes: ArrayLike | None, config: ConsistencyConfig
) -> pd.DataFrame:
    """Plane measures and the one-dimensional score of each SAE, for the table of SAEs."""
    axes = orthonormal_planes(planes if planes is not None else [])
    rows: list[Row] = []
    for group in live.values():
        for one in group:
            if not len(one.index):
                continue
            measures = plane_measures(one.decoder, axes, config.plane_threshold)
            phase = axis_gt_mcc(one.decoder, axes, seed=config.seed)
            rows.append(
                {
                    "id": one.record.id,
                    **{f"plane_{name}": measures[name] for name in _MEASURES},
                    "gt_mcc_phase_mean": phase.phase_mean,
                    "gt_mcc_phase_min": phase.phase_min,
                    "gt_mcc_phase_max": phase.phase_max,
                    "gt_mcc_phase_chance": PHASE_CHANCE,
                }
            )
    return pd.DataFrame(rows)


def _feature_planes(
    live: Mapping[str, Sequence[LiveSAE]], planes: ArrayLike, config: ConsistencyConfig
) -> pd.DataFrame:
    """Best plane, and how much of a feature lies in it, of every live latent."""
    axes = orthonormal_planes(planes)
    tables = []
    for one in (one for group in live.values() for one in group if len(one.index)):
        got = plane_recovery(one.decoder, axes, threshold=config.plane_threshold).features
        found = got[["plane", "rho", "purity", "energy", "angle", "in_plane"]].assign(
            id=one.record.id, latent=one.index[got["feature"]]
        )
        tables.append(found)
    columns = ["id", "latent", "plane", "rho", "purity", "energy", "angle", "in_plane"]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def _truth_tables(
    live: Mapping[str, Sequence[LiveSAE]],
    planes: ArrayLike | None,
    nulls: NullCache,
    config: ConsistencyConfig,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A row per SAE and plane; and a row per group and measure with interval and nulls."""
    if planes is None:
        return pd.DataFrame(), pd.DataFrame()
    axes = orthonormal_planes(planes)
    tables, rows = [], []
    for name, group in live.items():
        head = group_head(name, group, "full")
        values: list[dict[str, float]] = []
        for one in group:
            if not len(one.index):
                continue
            got = plane_recovery(one.decoder, axes, threshold=config.plane_threshold)
            table = got.planes.copy()
            table.insert(0, "id", one.record.id)
            table.insert(0, "group", name)
            table["converged"] = pd.array([one.record.converged] * len(table), dtype="boolean")
            tables.append(table)
            values.append(plane_measures(one.decoder, axes, config.plane_threshold))
        for measure in _MEASURES:
            line: Row = {**head, "measure": measure}
            if not values:
                rows.append({**line, "reason": "no SAE has a live latent"})
                continue
            interval = mean_interval([v[measure] for v in values], level=config.level)
            line |= {
                "mean": interval.mean,
                "low": None if interval.low is None else max(0.0, interval.low),
                "high": None if interval.high is None else min(1.0, interval.high),
                "reason": interval.reason,
            }
            for kind in nulls.kinds:
                null = nulls.planes(kind, max(1, head["n_live"]), axes)
                line |= {
                    f"{kind}_mean": null.mean(measure),
                    f"{kind}_sd": null.sd(measure),
                    f"{kind}_p": null.p_value(measure, float(interval.mean or 0.0)),
                }
            rows.append(line)
    joined = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    return joined, pd.DataFrame(rows)


def plane_truth(
    records: Sequence[SAERecord],
    planes: ArrayLike,
    config: ConsistencyConfig | None = None,
    *,
    covariance: ArrayLike | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Hold SAEs against true planes, without comparing their seeds.

    Parameters
    ----------
    records
        The SAEs.
    planes
        ``[n_planes, 2, d]``.
    config
        Threshold, null draws, level; defaults when None.
    covariance
        ``[d, d]`` of the activations: adds the data-aware null.

    Returns
    -------
    planes, truth
        As the tables of :class:`ConsistencyReport`.

    Raises
    ------
    InputError
        When the records do not fit together or the planes do not fit them.
    """
    config = config or ConsistencyConfig()
    check_records(records)
    nulls = NullCache(config, covariance, {"full": None})
    live = {
        name: [live_sae(record, config.dead) for record in group]
        for name, group in group_members(records).items()
    }
    return _truth_tables(live, planes, nulls, config)


def join_reports(reports: Mapping[str, ConsistencyReport]) -> ConsistencyReport:
    """Join the reports of several hooks: every table gets a column ``hook``.

    Features of different hooks live in different spaces, so each has a report of its own; group
    names must differ between them.

    Parameters
    ----------
    reports
        Hook to its report; the first is the study's own.

    Raises
    ------
    InputError
        When there is none, or a group's name occurs at two hooks.
    """
    if not reports:
        raise InputError("reports: none to join")
    seen: dict[str, str] = {}
    for hook, report in reports.items():
        for name in dict.fromkeys(report.saes["group"]):
            if name in seen:
                raise InputError(
                    f"group {name!r} occurs at {seen[name]} and at {hook}; name them apart"
                )
            seen[name] = hook
    tables = {
        name: pd.concat(
            [getattr(report, name).assign(hook=hook) for hook, report in reports.items()],
            ignore_index=True,
        )
        for name, value in vars(next(iter(reports.values()))).items()
        if isinstance(value, pd.DataFrame)
    }
    first = next(iter(reports.values())).summary
    summary = {
        **first,
        **{
            key: sum(report.summary[key] for report in reports.values())
            for key in ("n_saes", "n_groups", "n_converged", "n_convergence_unknown")
        },
        "data_subspaces": [
            {"hook": hook, **report.summary["data_subspaces"][0]}
            for hook, report in reports.items()
            if report.summary["data_subspaces"]
        ],
        "groups": plain_rows(tables["groups"]),
        "truth": plain_rows(tables["truth"]),
    }
    return ConsistencyReport(**tables, summary=summary)


def summary_schema() -> dict[str, Any]:
    """Give the JSON schema of the study's ``summary.json``."""
    text = (
        resources.files("husai.consistency.study")
        .joinpath("summary_schema.json")
        .read_text("utf-8")
    )
    data: dict[str, Any] = json.loads(text)
    return data


def _summary(
    saes: pd.DataFrame,
    groups: pd.DataFrame,
    truth: pd.DataFrame,
    spaces: Mapping[str, DataSpan | None],
    config: ConsistencyConfig,
) -> dict[str, Any]:
    data = spaces.get("data")
    return {
        "schema": SCHEMA_NAME,
        "schema_version": SCHEMA_VERSION,
        "config": config.model_dump(),
        "n_saes": len(saes),
        "n_groups": int(saes["group"].nunique()),
        "n_converged": int(saes["converged"].fillna(False).sum()),
        "n_convergence_unknown": int(saes["converged"].isna().sum()),
        "data_subspaces": []
        if data is None
        else [{"dimensions": data.rank, "variance": data.variance}],
        "groups": plain_rows(groups),
        "truth": plain_rows(truth),
    }


def plain_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a table's rows as plain values, with None for what is missing (JSON has no NaN)."""
    return [
        {str(key): _plain(value) for key, value in row.items()} for row in table.to_dict("records")
    ]


def _plain(value: Any) -> Any:
    if value is None or value is pd.NA:
        return None
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
