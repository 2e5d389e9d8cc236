"""Figures of planted truth: what a consistency score is worth."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from husai.errors import InputError

# Okabe and Ito's palette: told apart with any colour vision; markers carry it in grey print
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_GREY = "#666666"
_FONT = 8.0

SCORE_NAMES = {
    "pw_mcc": "PW-MCC",
    "pw_mcc_signed": "PW-MCC, signed",
    "pw_mcc_corrected": "PW-MCC, corrected\nfor chance",
    "mmcs": "MMCS",
    "reproducible_share": "share of features\nreproduced",
    "cycle_consistency": "cycle consistency",
    "moved_from_init": "distance from init",
    "explained_variance": "explained variance",
}


def calibration_figure(
    settings: pd.DataFrame,
    calibration: pd.DataFrame,
    detectors: pd.DataFrame,
    gate: pd.DataFrame,
    planes: pd.DataFrame,
) -> Figure:
    """What a user sees beside what is true, over planted worlds.

    Parameters
    ----------
    settings, planes
        Of :func:`husai.pipelines.planted_truth.study.score_study`.
    calibration, detectors, gate
        Of :func:`husai.pipelines.planted_truth.study.calibrate_study`.

    Returns
    -------
    matplotlib.figure.Figure
        Six panels: consistency against truth at the end and over training, rank correlations,
        reproducibility as a test for truth, the convergence gate, planes.
    """
    if settings.empty or calibration.empty:
        raise InputError("settings and calibration need at least one row each")
    figure = Figure(figsize=(10.0, 7.2), layout="constrained")
    axes = figure.subplots(2, 3)
    lines = settings[settings["planes"] == 0]
    worlds = list(dict.fromkeys(settings["world"]))
    look = {
        world: (_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)])
        for i, world in enumerate(worlds)
    }
    _truth_scatter(axes[0, 0], lines[lines["final"]], look)
    _truth_paths(axes[0, 1], lines, look)
    _rank_bars(axes[0, 2], calibration)
    _detector_bars(axes[1, 0], detectors)
    _gate_lines(axes[1, 1], gate)
    _plane_panel(axes[1, 2], planes)
    for panel, letter in zip(axes.flat, "abcdef", strict=True):
        title = panel.get_title()
        panel.set_title("")
        panel.set_title(f"({letter}) {title}", fontsize=_FONT + 1, loc="left")
        panel.tick_params(labelsize=_FONT)
        panel.xaxis.label.set_size(_FONT)
        panel.yaxis.label.set_size(_FONT)
    return figure


def _corrected(table: pd.DataFrame) -> pd.Series:
    return (table["gt_mcc"] - table["gt_mcc_null"]) / (1 - table["gt_mcc_null"])


def _truth_scatter(panel: Axes, final: pd.DataFrame, look: dict[str, tuple[str, str]]) -> None:
    truth = _corrected(final)
    for world, (colour, marker) in look.items():
        here = final["world"] == world
        if here.any():
            panel.scatter(
                final["pw_mcc_corrected"][here],
                truth[here],
                s=16,
                c=colour,
                marker=marker,
                alpha=0.8,
                linewidths=0,
                label=world,
            )
    wrong = final["verdict"] == "stable but wrong"
    if wrong.any():
        panel.scatter(
            final["pw_mcc_corrected"][wrong],
            truth[wrong],
            s=60,
            facecolors="none",
            edgecolors=_GREY,
            linewidths=0.8,
            label="stable but wrong",
        )
    _diagonal(panel)
    panel.legend(fontsize=_FONT - 2, frameon=False, loc="upper left", handletextpad=0.2)
    panel.set(
        title="Consistency and truth, trained",
        xlabel="PW-MCC over seeds, corrected for chance",
        ylabel="GT-MCC, corrected for chance",
    )


def _truth_paths(panel: Axes, lines: pd.DataFrame, look: dict[str, tuple[str, str]]) -> None:
    for _, path in lines.sort_values("step").groupby("group", sort=False):
        colour, marker = look[str(path["world"].iloc[0])]
        panel.plot(path["pw_mcc_corrected"], _corrected(path), "-", c=colour, lw=0.6, alpha=0.6)
        panel.plot(
            path["pw_mcc_corrected"].iloc[-1:], _corrected(path).iloc[-1:], marker, c=colour, ms=3
        )
    _diagonal(panel)
    panel.set(
        title="Over training",
        xlabel="PW-MCC over seeds, corrected for chance",
        ylabel="GT-MCC, corrected for chance",
    )


def _diagonal(panel: Axes) -> None:
    panel.plot([-0.1, 1], [-0.1, 1], "--", c=_GREY, lw=0.8, zorder=0)
    panel.set(xlim=(-0.1, 1.03), ylim=(-0.1, 1.03))


def _rank_bars(panel: Axes, calibration: pd.DataFrame) -> None:
    part = calibration[calibration["slice"] == "all"]
    scores = [score for score in SCORE_NAMES if (part["score"] == score).any()]
    at = np.arange(len(scores))
    kinds = [kind for kind in ("trained", "all steps") if (part["settings"] == kind).any()]
    for i, kind in enumerate(kinds):
        here = part[part["settings"] == kind].set_index("score").reindex(scores)
        value = here["rank_correlation"].to_numpy(dtype=float)
        low, high = here["low"].to_numpy(dtype=float), here["high"].to_numpy(dtype=float)
        spread = np.nan_to_num(np.stack([value - low, high - value]).clip(min=0))
        panel.errorbar(
            value,
            at + 0.15 - 0.3 * i,
            xerr=spread,
            fmt=_MARKERS[i],
            c=_COLOURS[i],
            ms=4,
            lw=1,
            capsize=2,
            label=kind,
        )
    panel.axvline(0, c=_GREY, lw=0.6)
    panel.set_yticks(at, [SCORE_NAMES[score] for score in scores])
    panel.invert_yaxis()
    panel.set(title="Rank correlation with GT-MCC", xlabel="Spearman's ρ, 95 % over runs")
    panel.set_xlim(-1.05, 1.05)
    panel.legend(fontsize=_FONT - 1, frameon=False)


def _legend_below(panel: Axes, columns: int = 2) -> None:
    """Points fill these panels: their keys stand under the axis."""
    panel.legend(
        fontsize=_FONT - 1,
        frameon=False,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.13),
        ncols=columns,
        columnspacing=1.0,
        handletextpad=0.3,
    )


def _detector_bars(panel: Axes, detectors: pd.DataFrame) -> None:
    at = np.arange(len(detectors))
    for i, (column, label) in enumerate(
        (
            ("precision", "true, of the reproduced\n(rest: stable but wrong)"),
            ("recall", "reproduced, of the true"),
            ("auc", "AUC"),
        )
    ):
        panel.plot(
            detectors[column].astype(float), at, _MARKERS[i], c=_COLOURS[i], ms=5, label=label
        )
    panel.set_yticks(at, detectors["world"])
    panel.invert_yaxis()
    panel.set(
        title="Reproduced features: are they true?", xlabel="share of latents", xlim=(-0.03, 1.03)
    )
    panel.grid(axis="y", lw=0.3)
    _legend_below(panel)


def _gate_lines(panel: Axes, gate: pd.DataFrame) -> None:
    table = gate.sort_values("slope")
    known = table[table["false_pass"].notna()]
    value = known["false_pass"].to_numpy(dtype=float)
    low, high = known["low"].to_numpy(dtype=float), known["high"].to_numpy(dtype=float)
    panel.errorbar(
        known["slope"],
        value,
        yerr=np.stack([value - low, high - value]).clip(min=0),
        fmt="o-",
        c=_COLOURS[1],
        ms=4,
        lw=1,
        capsize=2,
        label="passed, recovery still to change",
    )
    panel.plot(
        table["slope"],
        table["false_hold"].astype(float),
        "s--",
        c=_COLOURS[0],
        ms=4,
        lw=1,
        label="held back, though settled",
    )
    panel.set(
        title="Convergence gate's errors",
        xlabel="largest slope that passes (loss share / 1,000 steps)",
        ylabel="share of checkpoints",
        xscale="log",
        ylim=(-0.03, 1.03),
    )
    _legend_below(panel, 1)


def _plane_panel(panel: Axes, planes: pd.DataFrame) -> None:
    panel.set_title("Planes: what one dimension misses")
    if planes.empty:
        panel.text(0.5, 0.5, "no world with planes", ha="center", transform=panel.transAxes)
        return
    table = planes.groupby(["architecture", "d_sae", "sparsity"], sort=False).mean(
        numeric_only=True
    )
    at = np.arange(len(table))
    for i, (column, label) in enumerate(
        (
            ("line_recovery", "lines recovered"),
            ("axis_recovery", "planes' axes recovered"),
            ("plane_recall", "planes recovered"),
            ("plane_covered", "circles covered"),
            ("plane_recall_null", "planes, by chance"),
        )
    ):
        panel.plot(
            table[column].astype(float),
            at,
            _MARKERS[i],
            c=_COLOURS[i] if i < 4 else _GREY,
            ms=4,
            label=label,
        )
    names = [f"{a.replace('_', ' ')} {d}, {s}" for a, d, s in table.index]
    panel.set_yticks(at, names)
    panel.tick_params(axis="y", labelsize=_FONT - 3)
    for tick in panel.get_yticklabels():
        tick.set_fontsize(_FONT - 2)
    panel.invert_yaxis()
    panel.set(xlabel="share at |cos| or projection ≥ threshold", xlim=(-0.03, 1.03))
    panel.grid(axis="y", lw=0.3)
    _legend_below(panel)
