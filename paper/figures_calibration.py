"""Figures of the paper: what nulls, intervals, the gate and scores are worth on known truth."""

from __future__ import annotations

import json

import pandas as pd
from drawing import (
    BENCHMARKS,
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RESULTS,
    WIDTH,
    letter,
    new,
)
from matplotlib.figure import Figure


def gate() -> Figure:
    """What each gate lets through and holds back, at every threshold."""
    table = pd.read_csv(BENCHMARKS / "gate_calibration.csv")
    table = table[(table["runs"] == "all") & table["false_pass"].notna()]
    figure, axis = new(4.2, 2.9)
    looks = {
        "loss slope": (ORANGE, "s", ":"),
        "motion": (GREEN, "^", "--"),
        "motion and plateau": (BLUE, "o", "-"),
    }
    for name, (colour, marker, line) in looks.items():
        some = table[table["gate"] == name].sort_values("threshold")
        axis.plot(
            some["false_hold"], some["false_pass"], line, marker=marker, color=colour, label=name
        )
        for _, row in some.iterrows():
            axis.plot(
                [row["false_hold"]] * 2,
                [row["false_pass_low"], row["false_pass_high"]],
                color=colour,
                lw=0.7,
                alpha=0.6,
            )
            if name != "motion and plateau":
                axis.annotate(
                    f"{row['threshold']:g}",
                    (row["false_hold"], row["false_pass"]),
                    xytext=(4, 4),
                    textcoords="offset points",
                    size=6,
                    color=colour,
                )
        used = some[some["in_use"]]
        axis.plot(used["false_hold"], used["false_pass"], "o", ms=11, mfc="none", mec=BLACK)
    axis.set(
        xlabel="settled SAEs that are held back",
        ylabel="not settled, of those that pass",
        xlim=(-0.03, 1.05),
        ylim=(-0.03, 1.05),
    )
    axis.legend(loc="lower left")
    return figure


def nulls() -> Figure:
    """How far each null is off where chance is known, and how often intervals hold the truth."""
    data = json.loads((BENCHMARKS / "null_calibration.json").read_text())
    table = pd.DataFrame(data["nulls"])
    figure, (left, right) = new(WIDTH, 3.0, 1, 2, width_ratios=[1.6, 1])
    figure.get_layout_engine().set(w_pad=0.12)
    worlds = list(dict.fromkeys(table["world"]))
    looks = {
        "isotropic": ("isotropic", GREY, "D"),
        "data_aware": ("data-aware", ORANGE, "s"),
        "permuted": ("permuted", BLUE, "o"),
    }
    for null, (name, colour, marker) in looks.items():
        some = table[table["null"] == null].set_index("world")
        at = [worlds.index(world) for world in some.index]
        left.plot(some["error"], at, marker, color=colour, label=name, ms=5, mec=BLACK, mew=0.4)
    left.axvline(0, color=BLACK, lw=0.8)
    left.set(
        yticks=range(len(worlds)),
        yticklabels=[world.replace(", six seeds pooled", ", pooled") for world in worlds],
        ylim=(len(worlds) - 0.5, -0.5),
        xlabel="null less the score of independent dictionaries",
    )
    left.tick_params(axis="y", labelsize=6.5)
    left.grid(axis="y", color="#EEEEEE")
    left.legend(loc="lower right")
    letter(left, "a")
    coverage = json.loads((BENCHMARKS / "consistency_coverage.json").read_text())
    rows = pd.DataFrame(coverage["rows"])
    rows = rows[rows["world"] == "dictionaries, PW-MCC"]
    for method, colour, marker in (
        ("jackknife", BLUE, "o"),
        ("bootstrap", GREEN, "^"),
        ("pairs as independent", ORANGE, "s"),
    ):
        some = rows[rows["method"] == method]
        right.plot(
            some["n_seeds"], some["coverage"], "-", marker=marker, color=colour, label=method
        )
    right.axhline(coverage["nominal"], color=BLACK, lw=0.8, ls="--")
    right.set(
        xlabel="seeds",
        ylabel="intervals that hold the truth",
        xticks=sorted(rows["n_seeds"].unique()),
        ylim=(0, 1.02),
    )
    right.legend(loc="lower left")
    letter(right, "b")
    return figure


def planted() -> Figure:
    """What a user sees beside what is true, where features are planted."""
    settings = pd.read_csv(RESULTS / "planted_truth" / "settings.csv")
    longest = settings[settings["steps"] == settings["steps"].max()]
    ranks = pd.read_csv(RESULTS / "planted_truth" / "calibration.csv")
    ranks = ranks[
        (ranks["truth"] == "gt_mcc")
        & (ranks["slice"] == "regime")
        & (ranks["settings"] == "longest")
    ]
    wrong = pd.read_csv(RESULTS / "planted_truth" / "detectors.csv")
    looks = {
        "compressive": ("narrower than the truth", ORANGE, "s"),
        "matched": ("as wide", BLUE, "o"),
        "redundant": ("wider", GREEN, "^"),
    }
    figure, (left, middle, right) = new(WIDTH, 2.9, 1, 3, width_ratios=[1.1, 1, 0.75])
    for regime, (name, colour, marker) in looks.items():
        some = longest[(longest["regime"] == regime) & (longest["world"] != "circles")]
        left.plot(
            some["pw_mcc"], some["gt_mcc"], marker, color=colour, ms=3, mew=0, alpha=0.6, label=name
        )
    left.plot([0.3, 1], [0.3, 1], "--", color=GREY, lw=0.8)
    left.set(xlabel="PW-MCC: agreement of seeds", ylabel="GT-MCC: agreement with the truth")
    left.legend(loc="lower right", fontsize=6.5)
    letter(left, "a")
    names = {
        "pw_mcc": "PW-MCC",
        "mmcs": "MMCS",
        "shared_fraction": "shared fraction",
        "activation_correlation": "activations",
        "code_jaccard": "code Jaccard",
    }
    for shift, (regime, (_, colour, marker)) in zip((-0.22, 0, 0.22), looks.items(), strict=True):
        some = ranks[ranks["value"] == regime].set_index("score")
        for at, score in enumerate(names):
            row = some.loc[score]
            middle.plot([row["low"], row["high"]], [at + shift] * 2, color=colour, lw=1)
            middle.plot(row["rank_correlation"], at + shift, marker, color=colour, ms=4)
    middle.axvline(0, color="#BBBBBB", lw=0.6)
    middle.set(
        yticks=range(len(names)),
        yticklabels=list(names.values()),
        ylim=(len(names) - 0.5, -0.5),
        xlabel="rank correlation with GT-MCC",
    )
    letter(middle, "b")
    overall = wrong[(wrong["world"] == "all") & (wrong["regime"] != "all")].set_index("regime")
    for at, (regime, (_, colour, marker)) in enumerate(looks.items()):
        row = overall.loc[regime]
        right.plot(
            [at] * 2, [row["stable_but_wrong_low"], row["stable_but_wrong_high"]], color=colour
        )
        right.plot(at, row["stable_but_wrong"], marker, color=colour, ms=5)
    right.set(
        xticks=range(3),
        xticklabels=["narrower", "as wide", "wider"],
        ylim=(0, 0.8),
        xlim=(-0.5, 2.5),
        ylabel="reproduced and not true",
    )
    right.tick_params(axis="x", labelsize=6.5)
    letter(right, "c")
    return figure
