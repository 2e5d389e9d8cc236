"""The calibration study on one page of Markdown, every number from the run's own tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from husai.calibration.scores import SCORES
from husai.calibration.verdicts import ALL_LENGTHS, LONGEST, TRUTHS, WITHIN_RUNS
from husai.campaign.plan import records
from husai.consistency import mean_interval
from husai.reporting.page import made_by, markdown_table, number
from husai.sae.config import SAEConfig

DEFAULT = str(SAEConfig.model_fields["architecture"].default)


def study_page(
    settings: pd.DataFrame,
    calibration: pd.DataFrame,
    detectors: pd.DataFrame,
    gate: pd.DataFrame,
    planes: pd.DataFrame,
    summary: Mapping[str, Any],
) -> str:
    """Write what the scores, the gate and the trainers are worth on known features.

    Parameters
    ----------
    settings, planes
        Of :class:`husai.calibration.scores.StudyTables`.
    calibration, detectors, gate, summary
        Of :class:`husai.calibration.verdicts.Worth`; the summary with its ``provenance``.
    """
    longest = settings[settings["steps"] == settings["steps"].max()]
    parts = [
        "# Planted truth",
        "Made by `kedro run --pipelines=planted_truth` and copied here by `make planted-results`; "
        f"every number comes from the run's own tables. {made_by(summary['provenance'])}",
        f"{summary['n_saes']} SAEs ({summary['n_failed']} failed) on {summary['n_draws']} draws of "
        f"{settings['world'].nunique()} worlds, {summary['device_seconds'] / 3600:.2f} "
        "device-hours. A draw of a world is what is independent: everything that was trained on it "
        "shares its features and rows, and intervals (95 %) are over draws.",
        "![What a user sees beside what is true](calibration.png)",
        "## Does a score rank dictionaries as truth does?",
        "Spearman's ρ with GT-MCC, with the share of features recovered at |cos| ≥ 0.9, and with "
        "F1 as detectors; over settings trained for the longest, over all lengths, and within "
        "each setting over its lengths.",
        _correlations(calibration),
        "The same with GT-MCC by slices of the longest trained: where a score can be relied on.",
        _slices(calibration),
        "## Reproduced, and true?",
        "Latents that come back in the other seeds at the threshold, taken as a test for being a "
        "true feature. Stable but wrong: share of those that come back and are not true.",
        _detectors(detectors),
        "## Does the convergence gate let through what is not settled?",
        "A SAE passes whose loss changes by less than the slope per 1,000 steps; it is settled "
        "when the same one, trained for the longest, has the same GT-MCC within "
        f"{summary['provenance']['config']['gate_tolerance']:g}. In bold the threshold in use. Of "
        f"the SAEs trained for the longest, {number(summary['converged_share'], 2)} pass it.",
        _gate(gate),
    ]
    if len(planes):
        parts += [
            "## Planes",
            "What one-dimensional scores say of two-dimensional features. Chance of an axis: as "
            "many latents in each plane as were found there, at random angles.",
            _planes(planes),
        ]
    parts += [
        "## Architectures",
        f"The default, {DEFAULT}, less each other one on the same draws and widths, trained for "
        "the longest and averaged over sparsities: above 0 the default recovers more.",
        _beside_default(longest),
        "Means over draws, sparsities and seeds at the matched width, or at the only one.",
        _architectures(longest),
    ]
    return "\n\n".join(parts) + "\n"


def _interval(row: Mapping[str, Any], value: str, low: str, high: str, digits: int = 2) -> str:
    if pd.isna(row[value]):
        return "–"
    if pd.isna(row[low]):
        return number(row[value], digits)
    ends = f"[{number(row[low], digits)}, {number(row[high], digits)}]"
    return f"{number(row[value], digits)} {ends}"


def _rank(row: Mapping[str, Any]) -> str:
    return _interval(row, "rank_correlation", "low", "high")


def _correlations(calibration: pd.DataFrame) -> str:
    overall = calibration[calibration["slice"] == "all"]
    columns = [(LONGEST, truth) for truth in TRUTHS]
    columns += [(ALL_LENGTHS, "gt_mcc"), (WITHIN_RUNS, "gt_mcc")]
    cells = {(row["score"], row["settings"], row["truth"]): _rank(row) for row in records(overall)}
    return markdown_table(
        ["score", *(f"{kind}, {truth}" for kind, truth in columns)],
        [[score, *(cells.get((score, *column), "–") for column in columns)] for score in SCORES],
    )


def _slices(calibration: pd.DataFrame) -> str:
    part = calibration[
        (calibration["settings"] == LONGEST)
        & (calibration["truth"] == "gt_mcc")
        & calibration["slice"].isin(["regime", "architecture", "l0_regime"])
    ]
    columns = list(dict.fromkeys(zip(part["slice"], part["value"], strict=True)))
    cells = {(row["score"], row["slice"], row["value"]): _rank(row) for row in records(part)}
    return markdown_table(
        ["score", *(f"{value} L0" if name == "l0_regime" else value for name, value in columns)],
        [[score, *(cells.get((score, *column), "–") for column in columns)] for score in SCORES],
    )


def _detectors(detectors: pd.DataFrame) -> str:
    return markdown_table(
        ["world", "regime", "latents", "come back", "stable but wrong", "recall", "AUC", "over"],
        (
            [
                row["world"],
                row["regime"],
                str(row["n"]),
                str(row["n_passing"]),
                _interval(row, "stable_but_wrong", "stable_but_wrong_low", "stable_but_wrong_high"),
                _interval(row, "recall", "recall_low", "recall_high"),
                _interval(row, "auc", "auc_low", "auc_high"),
                f"{row['cluster']}s",
            ]
            for row in records(detectors)
        ),
    )


def _gate(gate: pd.DataFrame) -> str:
    rows = []
    for row in records(gate):
        slope = f"{row['slope']:g}"
        rows.append(
            [
                f"**{slope}**" if row["in_use"] else slope,
                f"{row['false_pass_n']:.0f} of {row['n']:.0f}",
                _interval(row, "false_pass", "false_pass_low", "false_pass_high"),
                _interval(row, "false_hold", "false_hold_low", "false_hold_high"),
            ]
        )
    return markdown_table(["slope", "pass", "of those not settled", "settled, held back"], rows)


def _planes(planes: pd.DataFrame) -> str:
    columns = [
        "line_recovery",
        "axis_recovery",
        "axis_recovery_chance",
        "plane_recall",
        "plane_recall_null",
        "plane_covered",
        "reproducibility_in_plane",
        "reproducibility_on_lines",
    ]
    last = planes[planes["steps"] == planes["steps"].max()]
    means = last.groupby(["architecture", "sparsity"], sort=False)[columns].mean().reset_index()
    return markdown_table(
        ["architecture", "sparsity", *(name.replace("_", " ") for name in columns)],
        (
            [row["architecture"], row["sparsity"], *(number(row[name], 2) for name in columns)]
            for row in records(means)
        ),
    )


def _beside_default(longest: pd.DataFrame) -> str:
    lines = longest[longest["n_planes"] == 0]
    if DEFAULT not in set(lines["architecture"]):
        return f"{DEFAULT} was not trained."
    others = [name for name in dict.fromkeys(lines["architecture"]) if name != DEFAULT]
    cells: dict[str, list[str]] = {name: [name] for name in others}
    for truth in TRUTHS:
        means = lines.groupby(["cluster", "d_sae", "architecture"])[truth].mean().unstack()
        by_draw = means.groupby("cluster").mean()
        for name in others:
            found = mean_interval((by_draw[DEFAULT] - by_draw[name]).dropna())
            row = {"mean": found.mean, "low": found.low, "high": found.high}
            cells[name].append(_interval(row, "mean", "low", "high", digits=3))
    return markdown_table(["less", *TRUTHS], cells.values())


def _architectures(longest: pd.DataFrame) -> str:
    columns = ["gt_mcc", "frr_0.9", "uniqueness", "precision", "recall", "f1"]
    columns += ["pw_mcc", "explained_variance", "dead_fraction", "converged"]
    lines = longest[longest["n_planes"] == 0]
    chosen = lines[
        (lines["regime"] == "matched")
        | ~lines["world"].isin(set(lines.loc[lines["regime"] == "matched", "world"]))
    ]
    means = chosen.groupby(["world", "architecture"], sort=False)[columns].mean().reset_index()
    return markdown_table(
        ["world", "architecture", *(name.replace("_", " ") for name in columns)],
        (
            [row["world"], row["architecture"], *(number(row[name], 2) for name in columns)]
            for row in records(means)
        ),
    )
