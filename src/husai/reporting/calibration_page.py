"""The page of the planted-truth study, written from the tables of the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from husai.calibration.config import PlantedTruthConfig
from husai.calibration.scores import SCORES
from husai.calibration.verdicts import ALL_LENGTHS, LONGEST, TRUTHS, WITHIN_RUNS
from husai.campaign.plan import records
from husai.consistency import mean_interval
from husai.reporting.render import made_by, render
from husai.sae.config import SAEConfig

DEFAULT = str(SAEConfig.model_fields["architecture"].default)
SLICES = ("regime", "architecture", "l0_regime")
PLANE_COLUMNS = (
    "line_recovery",
    "axis_recovery",
    "axis_recovery_chance",
    "plane_recall",
    "plane_recall_null",
    "plane_covered",
    "reproducibility_in_plane",
    "reproducibility_on_lines",
)
RECOVERY = next(truth for truth in TRUTHS if truth.startswith("frr_"))
ARCHITECTURE_COLUMNS = (
    "gt_mcc",
    RECOVERY,
    "truth_uniqueness",
    "precision",
    "recall",
    "f1",
    "pw_mcc",
    "explained_variance",
    "dead_fraction",
    "converged",
)


def calibration_page(
    settings: pd.DataFrame,
    calibration: pd.DataFrame,
    detectors: pd.DataFrame,
    gate: pd.DataFrame,
    planes: pd.DataFrame,
    summary: Mapping[str, Any],
) -> str:
    """Write the page about how far scores, gate and trainers can be trusted.

    Parameters
    ----------
    settings, planes
        Tables of :class:`husai.calibration.scores.StudyTables`.
    calibration, detectors, gate, summary
        Tables and summary of :class:`husai.calibration.verdicts.StudyVerdicts`; the summary has a
        ``provenance`` whose ``config`` has the study's parameters.
    """
    longest = settings[settings["steps"] == settings["steps"].max()]
    lines = longest[longest["n_planes"] == 0]
    config = summary["provenance"]["config"]
    return render(
        "planted_truth.md.j2",
        made_by=made_by(summary["provenance"]),
        summary=summary,
        config=config,
        level=config.get("level", PlantedTruthConfig.model_fields["level"].default),
        frr_threshold=RECOVERY.removeprefix("frr_"),
        n_worlds=settings["world"].nunique(),
        correlations=_correlations(calibration),
        slices=_slices(calibration),
        detectors=records(detectors),
        gate=records(gate),
        planes=_planes(planes),
        default=DEFAULT,
        truths=TRUTHS,
        beside_default=_beside_default(lines, config),
        architectures=_architectures(lines),
    )


def _score_rows(cells: Mapping[tuple[Any, ...], Any], columns: list[Any]) -> list[Any]:
    """Make a row for each score, with its cell in each column; an empty cell where unknown."""
    return [
        (score, [cells.get((score, *column), {"rank_correlation": None}) for column in columns])
        for score in SCORES
    ]


def _correlations(calibration: pd.DataFrame) -> dict[str, Any]:
    overall = calibration[calibration["slice"] == "all"]
    columns = [(LONGEST, truth) for truth in TRUTHS]
    columns += [(ALL_LENGTHS, "gt_mcc"), (WITHIN_RUNS, "gt_mcc")]
    cells = {(row["score"], row["settings"], row["truth"]): row for row in records(overall)}
    return {"columns": columns, "rows": _score_rows(cells, columns)}


def _slices(calibration: pd.DataFrame) -> dict[str, Any]:
    part = calibration[
        (calibration["settings"] == LONGEST)
        & (calibration["truth"] == "gt_mcc")
        & calibration["slice"].isin(SLICES)
    ]
    columns = list(dict.fromkeys(zip(part["slice"], part["value"], strict=True)))
    cells = {(row["score"], row["slice"], row["value"]): row for row in records(part)}
    titles = [f"{value} L0" if name == "l0_regime" else value for name, value in columns]
    return {"columns": titles, "rows": _score_rows(cells, columns)}


def _planes(planes: pd.DataFrame) -> dict[str, Any]:
    if planes.empty:
        return {"columns": PLANE_COLUMNS, "rows": []}
    last = planes[planes["steps"] == planes["steps"].max()]
    means = last.groupby(["architecture", "sparsity"], sort=False)[list(PLANE_COLUMNS)].mean()
    return {"columns": PLANE_COLUMNS, "rows": records(means.reset_index())}


def _beside_default(lines: pd.DataFrame, config: Mapping[str, Any]) -> dict[str, list[Any]]:
    """For each other architecture, how much higher the default scores, with the interval."""
    if DEFAULT not in set(lines["architecture"]):
        return {}
    level = config.get("level", PlantedTruthConfig.model_fields["level"].default)
    others = [name for name in dict.fromkeys(lines["architecture"]) if name != DEFAULT]
    cells: dict[str, list[Any]] = {name: [] for name in others}
    for truth in TRUTHS:
        means = lines.groupby(["cluster", "d_sae", "architecture"])[truth].mean().unstack()
        by_draw = means.groupby("cluster").mean()
        for name in others:
            found = mean_interval((by_draw[DEFAULT] - by_draw[name]).dropna(), level=level)
            cells[name].append({"mean": found.mean, "low": found.low, "high": found.high})
    return cells


def _architectures(lines: pd.DataFrame) -> dict[str, Any]:
    matched = set(lines.loc[lines["regime"] == "matched", "world"])
    chosen = lines[(lines["regime"] == "matched") | ~lines["world"].isin(matched)]
    columns = list(ARCHITECTURE_COLUMNS)
    means = chosen.groupby(["world", "architecture"], sort=False)[columns].mean().reset_index()
    return {"columns": columns, "rows": records(means)}
