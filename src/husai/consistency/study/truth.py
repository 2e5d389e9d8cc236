"""The tables of plane recovery: SAEs compared with true planes, beside random dictionaries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from numpy.typing import ArrayLike

from husai.consistency.analyses.truth import (
    PHASE_CHANCE,
    PlaneNull,
    axis_gt_mcc,
    orthonormal_planes,
    plane_measures,
    plane_null,
    plane_recovery,
)
from husai.consistency.config import ConsistencyConfig
from husai.consistency.inference.intervals import mean_interval
from husai.consistency.study.groups import group_head
from husai.consistency.study.pairs import Row
from husai.consistency.study.record import (
    LiveSAE,
    SAERecord,
    check_records,
    group_members,
    live_sae,
)

Groups = Mapping[str, Sequence[LiveSAE]]

MEASURES = ("recall", "covered", "mean_purity", "in_plane", "mean_rho", "mean_energy", "gt_mcc")
"""Measures from :func:`husai.consistency.analyses.truth.plane_measures`; all lie in [0, 1]."""

# Draws for the nulls of planes where their number is not given.
_PLANE_DRAWS = 40


def plane_columns(live: Groups, planes: ArrayLike, config: ConsistencyConfig) -> pd.DataFrame:
    """Make the columns of the table of SAEs about planes: measures and one-dimensional score."""
    axes = orthonormal_planes(planes)
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
                    **{f"plane_{name}": measures[name] for name in MEASURES},
                    "gt_mcc_phase_mean": phase.phase_mean,
                    "gt_mcc_phase_min": phase.phase_min,
                    "gt_mcc_phase_max": phase.phase_max,
                    "gt_mcc_phase_chance": PHASE_CHANCE,
                }
            )
    return pd.DataFrame(rows)


def feature_planes(live: Groups, planes: ArrayLike, config: ConsistencyConfig) -> pd.DataFrame:
    """Make the columns of the table of features about planes: the best plane of every latent."""
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


def truth_tables(
    live: Groups,
    planes: ArrayLike | None,
    config: ConsistencyConfig,
    covariance: ArrayLike | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Make the tables ``planes`` (a row per SAE and plane) and ``truth`` (per group and measure).

    Parameters
    ----------
    live
        SAEs by name of their group.
    planes
        ``[n_planes, 2, d]`` true planes; with None both tables are empty.
    config
        Threshold, null draws, level.
    covariance
        ``[d, d]`` covariance of the activations, for the data-aware null.
    """
    if planes is None:
        return pd.DataFrame(), pd.DataFrame()
    axes = orthonormal_planes(planes)
    n_draws = _PLANE_DRAWS if config.null_draws is None else config.null_draws
    kinds: dict[str, ArrayLike | None] = {"isotropic": None} if n_draws else {}
    if covariance is not None and n_draws:
        kinds["data_aware"] = covariance
    known: dict[tuple[str, int], PlaneNull] = {}

    def null_of(kind: str, n: int) -> PlaneNull:
        if (kind, n) not in known:
            known[kind, n] = plane_null(
                n,
                axes,
                threshold=config.plane_threshold,
                covariance=kinds[kind],
                n_draws=n_draws,
                seed=config.seed,
            )
        return known[kind, n]

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
        for measure in MEASURES:
            line: Row = {**head, "measure": measure}
            if not values:
                rows.append({**line, "reason": "no SAE has a live latent"})
                continue
            interval = mean_interval(
                [v[measure] for v in values], level=config.level, bounds=(0.0, 1.0)
            )
            line |= {
                "mean": interval.mean,
                "low": interval.low,
                "high": interval.high,
                "reason": interval.reason,
            }
            for kind in kinds:
                null = null_of(kind, max(1, head["n_live"]))
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
    """Compare SAEs with true planes, without comparing their seeds.

    Parameters
    ----------
    records
        The SAEs.
    planes
        ``[n_planes, 2, d]``.
    config
        Threshold, null draws, level; defaults when None.
    covariance
        ``[d, d]`` covariance of the activations, for the data-aware null.

    Returns
    -------
    planes, truth
        These tables of :class:`~husai.consistency.study.report.ConsistencyReport`.

    Raises
    ------
    InputError
        When the records do not fit together or the planes do not fit them.
    """
    config = config or ConsistencyConfig()
    check_records(records)
    live = {
        name: [live_sae(record, config.dead) for record in group]
        for name, group in group_members(records).items()
    }
    return truth_tables(live, planes, config, covariance)
