"""The results of the planted-truth study: how reliable scores, gate and reproducibility are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from husai.calibration.config import PlantedTruthConfig
from husai.calibration.detectors import reproducibility_as_detector
from husai.calibration.gate import gate_calibration
from husai.calibration.ranking import calibrate_scores, within_run_correlation
from husai.calibration.scores import SCORES, StudyTables
from husai.consistency.config import LEAST_CHANGE, LEAST_MOTION

TRUTHS = ("gt_mcc", "frr_0.9", "f1")
"""Measures of true recovery that scores are compared with."""

SLICES = ("world", "architecture", "regime", "l0_regime")
"""Columns by which settings are sliced."""

LONGEST, ALL_LENGTHS, WITHIN_RUNS = "longest", "all lengths", "within runs"

GATE_SLOPES = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Thresholds at which the former gate, by the final slope of the loss, is tested."""

GATE_MOTIONS = (0.001, 0.003, 0.01, 0.03, 0.1)
"""Thresholds at which the gate by motion is tested, with and without the plateau of the score."""

SLOPE, MOTION, WITH_PLATEAU = "loss slope", "motion", "motion and plateau"


@dataclass(frozen=True)
class StudyVerdicts:
    """The results of the study.

    Attributes
    ----------
    calibration
        Rank correlation of every score with every measure of :data:`TRUTHS`, over all settings
        and within slices; ``settings`` says of which lengths. Intervals are over draws of worlds.
    detectors
        Reproducibility as a test for truth at the longest length, a row per world and regime and
        one over all worlds without planes; ``stable_but_wrong`` is the share of the reproduced
        latents that are not true. ``cluster`` says what the intervals are over. In a world with
        planes, a latent inside a plane but between its axes counts as not true.
    gate
        A row per gate and threshold: its errors over all SAEs except those of the longest length,
        with which they are compared. ``in_use`` marks the gate that studies use.
    summary
        The main numbers as plain values, for JSON.
    """

    calibration: pd.DataFrame
    detectors: pd.DataFrame
    gate: pd.DataFrame
    summary: dict[str, Any]


def calibrate_study(tables: StudyTables, config: PlantedTruthConfig) -> StudyVerdicts:
    """Measure how far each score, the gate and reproducibility can be trusted.

    Worlds with planes are left out of the rank correlations and the gate: their directions cannot
    be identified, since the phase within a plane is free; the table ``planes`` shows this.

    Parameters
    ----------
    tables
        From :func:`~husai.calibration.scores.score_study`.
    config
        Parameters of the study.
    """
    calibration = _calibration(tables.settings, config)
    detectors = _detectors(tables.features, config)
    gate = gate_table(gate_outcomes(tables.runs, config), config)
    return StudyVerdicts(
        calibration, detectors, gate, _summary(tables, calibration, detectors, gate, config)
    )


def _calibration(settings: pd.DataFrame, config: PlantedTruthConfig) -> pd.DataFrame:
    lines = settings[settings["n_planes"] == 0]
    longest = lines[lines["steps"] == config.lengths[-1]]
    n = config.n_resamples
    parts = []
    for truth in TRUTHS if len(lines) else ():
        for part, kind, within in (
            (longest, LONGEST, SLICES),
            (lines, ALL_LENGTHS, (*SLICES, "steps")),
        ):
            found = calibrate_scores(
                part, tuple(SCORES), truth=truth, within=within, level=config.level, n_resamples=n
            )
            parts.append(found.assign(settings=kind))
        found = within_run_correlation(
            lines, tuple(SCORES), run="run", truth=truth, level=config.level, n_resamples=n
        )
        parts.append(found.assign(settings=WITHIN_RUNS))
    columns = ["score", "truth", "settings", "slice", "value", "rank_correlation"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def _detectors(features: pd.DataFrame, config: PlantedTruthConfig) -> pd.DataFrame:
    longest = features[features["steps"] == config.lengths[-1]]
    lines = longest[longest["n_planes"] == 0]
    parts: list[tuple[str, str, str, pd.DataFrame]] = []
    if len(lines):
        parts.append(("all", "all", "cluster", lines))
        parts += [("all", str(r), "cluster", p) for r, p in lines.groupby("regime", sort=False)]
    # a world has few draws, so within a world groups of seeds are resampled: these intervals hold
    # for the present draws only
    parts += [
        (str(world), str(regime), "group", part)
        for (world, regime), part in longest.groupby(["world", "regime"], sort=False)
    ]
    rows = []
    for world, regime, cluster, part in parts:
        found: dict[str, Any] = reproducibility_as_detector(
            part,
            reproducible=config.threshold,
            true=config.threshold,
            cluster=cluster,
            level=config.level,
            n_resamples=config.n_resamples,
        )
        wrong = {
            f"stable_but_wrong{end}": _complement(found[f"precision{of}"])
            for end, of in (("", ""), ("_low", "_high"), ("_high", "_low"))
        }
        over = "world draw" if cluster == "cluster" else "group"
        rows.append({"world": world, "regime": regime, "cluster": over, **found, **wrong})
    return pd.DataFrame(rows)


def gate_outcomes(runs: pd.DataFrame, config: PlantedTruthConfig) -> pd.DataFrame:
    """Join every SAE of a shorter length with the same SAE at the longest.

    Returns
    -------
    pandas.DataFrame
        Rows of ``runs`` with ``final_gt_mcc``, the GT-MCC at the longest length; without SAEs of
        the longest length, of worlds with planes, and without those that failed at either length.
    """
    lines = runs[(runs["n_planes"] == 0) & (runs["failure"] == "")]
    end = lines[lines["steps"] == config.lengths[-1]].set_index(["run", "seed"])["gt_mcc"]
    earlier = lines[lines["steps"] < config.lengths[-1]]
    held = earlier.join(end.rename("final_gt_mcc"), on=["run", "seed"], validate="many_to_one")
    return held[held["final_gt_mcc"].notna()].reset_index(drop=True)


def gate_table(outcomes: pd.DataFrame, config: PlantedTruthConfig) -> pd.DataFrame:
    """Make the table of the errors of every gate and threshold.

    Parameters
    ----------
    outcomes
        From :func:`gate_outcomes`.
    config
        Tolerance and level.

    Returns
    -------
    pandas.DataFrame
        The table ``gate`` of :class:`StudyVerdicts`.
    """
    flat = outcomes["plateau"] < LEAST_CHANGE
    gates = [
        *((SLOPE, slope, outcomes["loss_slope"].abs() < slope) for slope in GATE_SLOPES),
        *((MOTION, motion, outcomes["motion"] < motion) for motion in GATE_MOTIONS),
        *((WITH_PLATEAU, motion, (outcomes["motion"] < motion) & flat) for motion in GATE_MOTIONS),
    ]
    rows = []
    for gate, threshold, passed in gates:
        found = gate_calibration(
            passed,
            outcomes["gt_mcc"],
            outcomes["final_gt_mcc"],
            outcomes["cluster"].tolist(),
            tolerance=config.gate_tolerance,
            level=config.level,
        )
        in_use = gate == WITH_PLATEAU and threshold == LEAST_MOTION
        row: dict[str, Any] = {"gate": gate, "threshold": threshold, "in_use": in_use, "n": found.n}
        for name, share in (("false_pass", found.false_pass), ("false_hold", found.false_hold)):
            row |= {name: share.value, f"{name}_low": share.low, f"{name}_high": share.high}
            row |= {f"{name}_n": share.n, f"{name}_clusters": share.n_clusters}
        rows.append(row)
    return pd.DataFrame(rows)


def _summary(
    tables: StudyTables,
    calibration: pd.DataFrame,
    detectors: pd.DataFrame,
    gate: pd.DataFrame,
    config: PlantedTruthConfig,
) -> dict[str, Any]:
    settings, runs = tables.settings, tables.runs
    longest = settings[settings["steps"] == config.lengths[-1]]
    overall = calibration[calibration["slice"] == "all"]
    correlations = {
        f"{kind} {truth}": {
            str(row.score): _plain(row.rank_correlation) for row in part.itertuples(index=False)
        }
        for (kind, truth), part in overall.groupby(["settings", "truth"], sort=False)
    }
    summary: dict[str, Any] = {
        "n_saes": len(runs),
        "n_failed": int((runs["failure"] != "").sum()),
        "n_groups": len(settings),
        "device_seconds": _plain(runs["device_seconds"].sum()),
        "n_draws": int(settings["cluster"].nunique()),
        "converged_share": _plain(longest["converged"].mean()) if len(longest) else None,
        "rank_correlation": correlations,
        "verdicts": {str(n): int(c) for n, c in longest["verdict"].value_counts().items()},
        "stable_but_wrong": {
            f"{row['world']} {row['regime']}": {
                name: _plain(row[f"stable_but_wrong{end}"])
                for name, end in (("value", ""), ("low", "_low"), ("high", "_high"))
            }
            for row in detectors.to_dict("records")
        },
        "gate": {
            f"{row['gate']} {row['threshold']:g}": {
                str(name): _plain(value)
                for name, value in row.items()
                if name not in ("gate", "threshold", "in_use")
            }
            for row in gate.to_dict("records")
        },
        "gate_in_use": f"{WITH_PLATEAU} {LEAST_MOTION:g}",
    }
    planes = tables.planes
    if len(planes):
        columns = [
            "axis_recovery",
            "axis_recovery_chance",
            "line_recovery",
            "plane_recall",
            "plane_recall_null",
            "plane_covered",
        ]
        last = planes[planes["steps"] == config.lengths[-1]]
        means = last[columns].astype(float).mean()
        summary["planes"] = {str(name): _plain(value) for name, value in means.items()}
    return summary


def _complement(share: float | None) -> float | None:
    return None if share is None else 1 - share


def _plain(value: Any) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)
