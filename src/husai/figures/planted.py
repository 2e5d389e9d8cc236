"""The figure of planted truth: how well consistency scores agree with known features."""

from __future__ import annotations

from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from husai.calibration.scores import SCORES
from husai.consistency.analyses.gate import MOTION_STEPS
from husai.errors import InputError
from husai.figures.style import COLOURS, FONT, GREY, MARKERS


def calibration_figure(
    settings: pd.DataFrame,
    calibration: pd.DataFrame,
    detectors: pd.DataFrame,
    gate: pd.DataFrame,
    planes: pd.DataFrame,
) -> Figure:
    """Draw what a user can measure against what is true, over planted worlds.

    Parameters
    ----------
    settings, planes
        Of :func:`husai.calibration.scores.score_study`.
    calibration, detectors, gate
        Of :func:`husai.calibration.verdicts.calibrate_study`.

    Returns
    -------
    matplotlib.figure.Figure
        Six panels: consistency against truth at the longest length and over lengths, rank
        correlations, reproducibility as a test for truth, the convergence gate, planes. Markers
        are hollow where not every seed passes the convergence gate.

    Raises
    ------
    InputError
        When there is no setting.
    """
    if settings.empty:
        raise InputError("settings: no row; a figure needs at least one")
    figure = Figure(figsize=(11.0, 9.0), layout="constrained")
    axes = figure.subplots(2, 3)
    lines = settings[settings["n_planes"] == 0]
    worlds = list(dict.fromkeys(settings["world"]))
    look = {
        # when all colours are used, they start again with the next marker
        world: (COLOURS[i % len(COLOURS)], MARKERS[(i + i // len(COLOURS)) % len(MARKERS)])
        for i, world in enumerate(worlds)
    }
    _truth_scatter(axes[0, 0], lines[lines["steps"] == settings["steps"].max()], look)
    _truth_paths(axes[0, 1], lines, look)
    _rank_bars(axes[0, 2], calibration)
    _detector_bars(axes[1, 0], detectors)
    _gate_lines(axes[1, 1], gate)
    _plane_panel(axes[1, 2], planes)
    for panel, letter in zip(axes.flat, "abcdef", strict=True):
        title = panel.get_title()
        panel.set_title("")
        panel.set_title(f"({letter}) {title}", fontsize=FONT + 1, loc="left")
        panel.tick_params(labelsize=FONT)
        panel.xaxis.label.set_size(FONT)
        panel.yaxis.label.set_size(FONT)
    return figure


def _corrected(table: pd.DataFrame) -> pd.Series:
    return (table["gt_mcc"] - table["gt_mcc_null"]) / (1 - table["gt_mcc_null"])


def _points(
    panel: Axes, table: pd.DataFrame, look: dict[str, tuple[str, str]], size: float
) -> None:
    """Draw a point per setting, hollow if not every seed passes the gate."""
    truth = _corrected(table)
    for world, (colour, marker) in look.items():
        for converged, face in ((True, colour), (False, "none")):
            here = (table["world"] == world) & ((table["converged"] == 1) == converged)
            if here.any():
                panel.scatter(
                    table["pw_mcc_corrected"][here],
                    truth[here],
                    s=size,
                    facecolors=face,
                    edgecolors=colour,
                    marker=marker,
                    alpha=0.8,
                    linewidths=0.6,
                )


def _truth_scatter(panel: Axes, longest: pd.DataFrame, look: dict[str, tuple[str, str]]) -> None:
    truth = _corrected(longest)
    _points(panel, longest, look, 16)
    wrong = longest["verdict"] == "stable but wrong"
    if wrong.any():
        panel.scatter(
            longest["pw_mcc_corrected"][wrong],
            truth[wrong],
            s=60,
            facecolors="none",
            edgecolors=GREY,
            linewidths=0.8,
            label="stable but wrong",
        )
    for world in dict.fromkeys(longest["world"]):
        colour, marker = look[world]
        panel.plot([], [], marker, c=colour, ms=4, label=world)
    panel.plot([], [], "o", mfc="none", mec=GREY, ms=4, label="not all seeds converged")
    _diagonal(panel)
    panel.set(
        title="Consistency and truth at the end",
        xlabel="PW-MCC over seeds, corrected for chance",
        ylabel="GT-MCC, corrected for chance",
    )
    _legend_below(panel, 3)


def _truth_paths(panel: Axes, lines: pd.DataFrame, look: dict[str, tuple[str, str]]) -> None:
    for _, path in lines.sort_values("steps").groupby("run", sort=False):
        colour, _ = look[str(path["world"].iloc[0])]
        panel.plot(path["pw_mcc_corrected"], _corrected(path), "-", c=colour, lw=0.5, alpha=0.5)
    _points(panel, lines[lines["steps"] == lines["steps"].max()], look, 7)
    _diagonal(panel)
    panel.set(
        title="From short to long training",
        xlabel="PW-MCC over seeds, corrected for chance",
        ylabel="GT-MCC, corrected for chance",
    )


def _diagonal(panel: Axes) -> None:
    panel.plot([-0.1, 1], [-0.1, 1], "--", c=GREY, lw=0.8, zorder=0)
    panel.set(xlim=(-0.1, 1.03), ylim=(-0.1, 1.03))


def _rank_bars(panel: Axes, calibration: pd.DataFrame) -> None:
    panel.set(
        title="Rank correlation with GT-MCC", xlabel="Spearman's ρ, interval over draws of worlds"
    )
    if calibration.empty:
        panel.text(0.5, 0.5, "no world without planes", ha="center", transform=panel.transAxes)
        return
    part = calibration[(calibration["slice"] == "all") & (calibration["truth"] == "gt_mcc")]
    scores = [score for score in SCORES if (part["score"] == score).any()]
    at = np.arange(len(scores), dtype=np.float64)
    kinds = list(dict.fromkeys(part["settings"]))
    for i, kind in enumerate(kinds):
        here = part[part["settings"] == kind].set_index("score").reindex(scores)
        _interval_points(
            panel,
            here,
            ("rank_correlation", "low", "high"),
            at + 0.25 * (i - (len(kinds) - 1) / 2),
            i,
            kind,
        )
    panel.axvline(0, c=GREY, lw=0.6)
    panel.set_yticks(at, [fill(SCORES[score], 22) for score in scores])
    panel.invert_yaxis()
    panel.set_xlim(-1.05, 1.05)
    _legend_below(panel, 3)


def _interval_points(
    panel: Axes,
    table: pd.DataFrame,
    columns: tuple[str, str, str],
    at: NDArray[np.float64],
    look: int,
    label: str,
) -> None:
    """Draw values with their intervals, or without a bar if there is no interval."""
    value, low, high = (table[name].to_numpy(dtype=float) for name in columns)
    spread = np.nan_to_num(np.stack([value - low, high - value]).clip(min=0))
    panel.errorbar(
        value,
        at,
        xerr=spread,
        fmt=MARKERS[look],
        c=COLOURS[look],
        ms=3.5,
        lw=0.8,
        capsize=1.5,
        label=label,
    )


def _legend_below(panel: Axes, columns: int = 2) -> None:
    """Put the legend below the axis, because points fill the panel."""
    panel.legend(
        fontsize=FONT - 1,
        frameon=False,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.19),
        ncols=columns,
        columnspacing=1.0,
        handletextpad=0.3,
    )


def _detector_bars(panel: Axes, detectors: pd.DataFrame) -> None:
    at = np.arange(len(detectors), dtype=np.float64)
    for i, (column, label) in enumerate(
        (
            ("precision", "share of reproduced latents that are true\n(rest: stable but wrong)"),
            ("recall", "share of true latents that are reproduced"),
            ("auc", "AUC"),
        )
    ):
        columns = (column, f"{column}_low", f"{column}_high")
        _interval_points(panel, detectors, columns, at + 0.2 * (i - 1), i, label)
    names = [f"{w}, {r}" for w, r in zip(detectors["world"], detectors["regime"], strict=True)]
    panel.set_yticks(at, names)
    panel.invert_yaxis()
    panel.set(
        title="Are reproduced features true?",
        xlabel="share of latents, interval over draws (all)\nor over groups of seeds (one world)",
        xlim=(-0.03, 1.03),
    )
    panel.grid(axis="y", lw=0.3)
    _legend_below(panel)


def _gate_lines(panel: Axes, gate: pd.DataFrame) -> None:
    table = gate[gate["gate"] == gate.loc[gate["in_use"], "gate"].iloc[0]].sort_values("threshold")
    for i, (column, fmt, label) in enumerate(
        (
            ("false_hold", "s--", "settled but held back"),
            ("false_pass", "o-", "passed but not settled"),
        )
    ):
        known = table[table[column].notna()]
        value, low, high = (
            known[name].to_numpy(dtype=float)
            for name in (column, f"{column}_low", f"{column}_high")
        )
        panel.errorbar(
            known["threshold"],
            value,
            yerr=np.stack([value - low, high - value]).clip(min=0),
            fmt=fmt,
            c=COLOURS[i],
            ms=4,
            lw=1,
            capsize=2,
            label=label,
        )
    for motion in table.loc[table["in_use"], "threshold"]:
        panel.axvline(motion, c=GREY, lw=0.8, ls=":", label="threshold in use")
    panel.set(
        title="Errors of the convergence gate",
        xlabel=f"largest motion that passes\n(1 − |cosine| per {MOTION_STEPS} steps)",
        ylabel="share of SAEs, interval over draws",
        xscale="log",
        xlim=(table["threshold"].min() / 1.5, table["threshold"].max() * 1.5),
        ylim=(-0.03, 1.03),
    )
    _legend_below(panel, 1)


def _plane_panel(panel: Axes, planes: pd.DataFrame) -> None:
    panel.set_title("Planes: one-dimensional scores beside planes")
    if planes.empty:
        panel.text(0.5, 0.5, "no world with planes", ha="center", transform=panel.transAxes)
        return
    longest = planes[planes["steps"] == planes["steps"].max()]
    table = longest.groupby(["architecture", "d_sae", "sparsity"], sort=False).mean(
        numeric_only=True
    )
    at = np.arange(len(table))
    for i, (column, label) in enumerate(
        (
            ("line_recovery", "lines recovered"),
            ("axis_recovery", "axes of planes recovered"),
            ("axis_recovery_chance", "axes recovered by chance"),
            ("plane_recall", "planes recalled"),
            ("plane_covered", "circles covered"),
            ("plane_recall_null", "planes recalled by chance"),
        )
    ):
        panel.plot(
            table[column].astype(float),
            at,
            MARKERS[i],
            c=GREY if column.endswith(("chance", "null")) else COLOURS[i],
            ms=4,
            label=label,
        )
    names = [f"{a.replace('_', ' ')} {d}, {s}" for a, d, s in table.index]
    panel.set_yticks(at, names)
    panel.tick_params(axis="y", labelsize=FONT - 3)
    for tick in panel.get_yticklabels():
        tick.set_fontsize(FONT - 2)
    panel.invert_yaxis()
    panel.set(xlabel="share with |cosine| or projection ≥ threshold", xlim=(-0.03, 1.03))
    panel.grid(axis="y", lw=0.3)
    _legend_below(panel)
