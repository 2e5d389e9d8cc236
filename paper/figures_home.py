"""Figures of the paper: SAEs on one transformer and on twelve."""

from __future__ import annotations

import base64
import io
import json
import re
from typing import Any

import numpy as np
import pandas as pd
from drawing import (
    ARCHITECTURES,
    BLACK,
    BLUE,
    GREY,
    KINDS,
    ORANGE,
    RESULTS,
    WIDTH,
    estimate,
    letter,
    new,
    page_table,
    short_group,
)
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.lines import Line2D


def kinds() -> Figure:
    """How well features come back, by what they stand for, in every setting."""
    table = pd.read_csv(RESULTS / "home" / "kinds.csv")
    table = table[table["n_features"] >= 1]
    order = sorted(
        table["group"].unique(),
        key=lambda g: (
            "untrained" in g,
            not g.startswith("topk"),
            g.split()[0],
            -int(g.split()[1][1:]),
        ),
    )
    rows = [
        (group, kind)
        for group in order
        for kind in KINDS
        if ((table["group"] == group) & (table["kind"] == kind)).any()
    ]
    points = pd.read_csv(RESULTS / "maps" / "points.csv")
    scatter = np.random.default_rng(0)
    figure, axis = new(WIDTH, 0.21 * len(rows) + 0.7)
    ticks = []
    for y, (group, kind) in enumerate(rows):
        row = table[(table["group"] == group) & (table["kind"] == kind)].iloc[0]
        name, colour, marker = KINDS[kind]
        axis.fill_betweenx(
            [y - 0.5, y + 0.5], row["null_q05"], row["null_q95"], color="#DDDDDD", lw=0
        )
        axis.plot([row["null_mean"]] * 2, [y - 0.5, y + 0.5], color=GREY, lw=0.8)
        dots = points[(points["group"] == group) & (points["kind"] == kind)]["reproducibility"]
        axis.plot(
            dots,
            y + scatter.uniform(-0.32, 0.32, len(dots)),
            ".",
            color=colour,
            ms=1.6,
            mew=0,
            alpha=0.5,
            zorder=1.5,
            rasterized=True,
        )
        axis.plot([row["q10"], row["q90"]], [y, y], color=colour, lw=2.4, alpha=0.6)
        axis.plot([row["low"], row["high"]], [y, y], color=BLACK, lw=1)
        axis.plot(row["reproducibility"], y, marker, color=colour, ms=5, mec=BLACK, mew=0.5)
        axis.text(1.012, y, f"{row['n_features']:.0f}", va="center", size=7)
        ticks.append(name)
    starts = [i for i, (g, _) in enumerate(rows) if i == 0 or rows[i - 1][0] != g]
    for start in starts[1:]:
        axis.axhline(start - 0.5, color="#BBBBBB", lw=0.6)
    for start in starts:
        axis.text(0.305, start, short_group(rows[start][0]), va="center", weight="bold", size=7.5)
    axis.text(1.012, -1.0, "features", va="center", size=7, color=GREY)
    axis.set(
        yticks=range(len(rows)),
        yticklabels=ticks,
        ylim=(len(rows) - 0.5, -0.5),
        xlim=(0.3, 1.005),
        xlabel="reproducibility: mean |cosine| with the partners in the other seeds",
    )
    return figure


def feature_page() -> dict[str, Any]:
    """Read the data of the committed page of features."""
    text = (RESULTS / "features.html").read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    if not found:
        raise ValueError("docs/results/features.html holds no data")
    page: dict[str, Any] = json.loads(found[1])
    return page


def page_features(page: dict[str, Any]) -> pd.DataFrame:
    """Put the features of the page in a table, one a row, in the page's order."""
    names = ["sae", "latent", *(column["name"] for column in page["columns"])]
    return pd.DataFrame([dict(zip(names, row, strict=False)) for row in page["features"]])


def typical(table: pd.DataFrame, kind: str) -> int:
    """Choose the feature of the first SAE that comes back as the middle one of its kind."""
    of_kind = table[(table["sae"] == 0) & (table["kind"] == kind)].sort_values("reproducibility")
    return int(of_kind.index[len(of_kind) // 2])


def grey(picture: Any) -> Any:
    """Turn a map's picture into ink on white: its colours run from dark to light."""
    light = np.asarray(picture)[..., :3] @ (0.2126, 0.7152, 0.0722)
    return (light - light.min()) / (light.max() - light.min())


def maps() -> Figure:
    """Three features of one seed beside their partners, over (a, b).

    One for an answer that every seed has, one for an answer that a seed has not learned, and the
    middle one, by reproducibility, of the first seed's features that no label explains.
    """
    chosen = json.loads((RESULTS / "maps" / "maps.json").read_text(encoding="utf-8"))
    rows = []
    for name in ("kept", "lost"):
        own = chosen[name]
        shown = sorted(own["features"], key=lambda one: (one["seed"] != own["seed"], one["seed"]))
        rows.append(
            [
                (imread(RESULTS / "maps" / one["file"]), one["seed"], own["label"], one)
                for one in shown
            ]
        )
    page = feature_page()
    table = page_features(page)
    index = typical(table, "other")
    pictures = [imread(io.BytesIO(base64.b64decode(text))) for text in page["maps"]]
    rows.append([(pictures[index], 0, "no label", {"cosine": None})])
    for seed, _, other, cosine, function, *_ in page["partners"][index]:
        rows[-1].append((pictures[other], seed, "", {"cosine": cosine, "function": function}))
    side = chosen["modulus"]
    figure, axes = new(WIDTH, 4.0, 3, len(rows[0]), squeeze=False)
    for line, shown_row in zip(axes, rows, strict=True):
        for axis, (picture, seed, label, one) in zip(line, shown_row, strict=True):
            axis.imshow(
                grey(picture),
                cmap="Greys",
                interpolation="nearest",
                extent=(-0.5, side - 0.5, side - 0.5, -0.5),
            )
            axis.set(xticks=[0, side - 1], yticks=[0, side - 1])
            axis.tick_params(labelsize=6, length=2, pad=1)
            axis.spines[["top", "right"]].set_visible(True)
            if one["cosine"] is None:
                axis.set_title(f"seed {seed}\n{label}\n", size=7, weight="bold")
            else:
                numbers = f"cosine {one['cosine']:.2f}\nfunction {one['function']:.2f}"
                axis.set_title(f"seed {seed}\n{numbers}", size=7)
            if axis is line[0]:
                axis.set_ylabel("a", size=7, labelpad=-4)
            else:
                axis.set_yticklabels([])
            if line is axes[-1]:
                axis.set_xlabel("b", size=7, labelpad=-4)
            else:
                axis.set_xticklabels([])
    return figure


def function() -> Figure:
    """What features do beside how they point: single features, and means by kind."""
    page = feature_page()
    table = page_features(page)
    pairs = pd.DataFrame(
        [
            (row["kind"], partner[3], partner[4])
            for row, found in zip(table.to_dict("records"), page["partners"], strict=True)
            for partner in found
        ],
        columns=["kind", "cosine", "function"],
    ).dropna()
    figure, (left, right) = new(WIDTH, 2.7, 1, 2, width_ratios=[1.15, 1])
    for kind in ("other", "operand", "answer"):
        name, colour, marker = KINDS[kind]
        some = pairs[pairs["kind"] == kind]
        left.plot(
            some["cosine"],
            some["function"],
            marker,
            color=colour,
            ms=2,
            mew=0,
            alpha=0.35,
            label=name,
            rasterized=True,
        )
    left.set(
        xlabel="|cosine| with the partner",
        ylabel="correlation of what ablation does",
        xlim=(0.2, 1.02),
        ylim=(-0.06, 1.04),
    )
    handles, labels = left.get_legend_handles_labels()
    legend = left.legend(handles[::-1], labels[::-1], loc="upper left", markerscale=3)
    for handle in legend.legend_handles:
        handle.set_alpha(1)
    letter(left, "a")
    means = pd.read_csv(RESULTS / "home" / "function.csv")
    means = means[means["by"] == "kind"].set_index("stratum")
    shown = [("", "its partner", BLUE, "o"), ("_negative", "nearest other", ORANGE, "s")]
    shown.append(("_random", "random, fires as often", GREY, "D"))
    for shift, (column, name, colour, marker) in zip((-0.2, 0, 0.2), shown, strict=True):
        for at, kind in enumerate(("answer", "operand", "other")):
            row = means.loc[kind]
            value = row[f"function{column}"]
            low, high = row[f"function{column}_low"], row[f"function{column}_high"]
            right.plot([at + shift] * 2, [low, high], color=BLACK, lw=1)
            right.plot(
                at + shift,
                value,
                marker,
                color=colour,
                ms=5,
                mec=BLACK,
                mew=0.5,
                label=name if at == 0 else None,
            )
    right.axhline(0, color="#BBBBBB", lw=0.6, zorder=0)
    right.set(
        xticks=range(3),
        xticklabels=[KINDS[kind][0] for kind in ("answer", "operand", "other")],
        ylim=(-0.05, 1.04),
        ylabel="mean correlation",
    )
    right.legend(loc="upper right")
    letter(right, "b")
    return figure


def reliability() -> Figure:
    """Predicted probability that a new seed has a feature, beside how often it had."""
    table = pd.read_csv(RESULTS / "home" / "reliability.csv")
    figure, axis = new(3.0, 2.6)
    axis.plot([0, 1], [0, 1], "--", color=GREY, lw=0.8)
    sizes = 12 + 160 * table["n"] / table["n"].max()
    axis.scatter(table["predicted"], table["happened"], s=sizes, color=BLUE, ec=BLACK, lw=0.5)
    axis.set(
        xlabel="predicted probability",
        ylabel="share of left-out seeds that had it",
        xlim=(0, 1.04),
        ylim=(0, 1.04),
    )
    return figure


def transformers() -> Figure:
    """Answers with a feature, and agreement, over twelve transformers."""
    table = pd.read_csv(RESULTS / "transformers" / "groups.csv")
    figure, (left, middle, right) = new(WIDTH, 2.75, 1, 3)
    classes = table["n_answers"].max()
    width = 256
    stops = {"early_stop": ("early stop", "full"), "cleaned_up": ("cleaned up", "none")}
    topk = table[table["architecture"] == "topk"]
    for (_, stop), lines in topk.groupby(["transformer", "stop"]):
        lines = lines.sort_values("d_sae")
        balanced = lines["effective_frequencies"].iloc[0] > 3
        left.plot(
            lines["d_sae"],
            lines["answers"],
            "-" if stop == "early_stop" else "--",
            marker="o",
            ms=2.5,
            lw=1.1,
            color=BLUE if balanced else "#999999",
            zorder=3 if balanced else 2,
        )
    left.axhline(classes, color=GREY, lw=0.7, ls=":")
    left.set_xscale("log", base=2)
    widths = sorted(topk["d_sae"].unique())
    left.set_xticks(widths, [str(w) if w != 113 else "" for w in widths])
    left.minorticks_off()
    left.set(xlabel="latents (TopK)", ylabel=f"answers of {classes:.0f} with a feature")
    left.legend(
        handles=[
            Line2D([], [], color=BLUE, label="over 3 in effect"),
            Line2D([], [], color="#999999", label="fewer"),
            Line2D([], [], color=BLACK, ls="-", label="early stop"),
            Line2D([], [], color=BLACK, ls="--", label="cleaned up"),
        ],
        loc="upper left",
        bbox_to_anchor=(0, 0.93),
        fontsize=6.5,
    )
    letter(left, "a")
    for architecture in ("topk", "relu"):
        _, colour, marker = ARCHITECTURES[architecture]
        for stop, (_, fill) in stops.items():
            some = table[
                (table["architecture"] == architecture)
                & (table["stop"] == stop)
                & (table["d_sae"] == width)
            ]
            style = {"color": colour, "marker": marker, "ms": 4.5, "ls": "", "fillstyle": fill}
            x = some["effective_frequencies"] * (0.985 if architecture == "topk" else 1.015)
            middle.vlines(x, some["answers_low"], some["answers_high"], color=colour, lw=0.8)
            middle.plot(x, some["answers"], **style)
            right.vlines(x, some["pw_mcc_low"], some["pw_mcc_high"], color=colour, lw=0.8)
            right.plot(x, some["pw_mcc"], **style)
            right.plot(x, some["pw_mcc_permuted"], "_", color=colour, ms=7)
    middle.axhline(classes, color=GREY, lw=0.7, ls=":")
    middle.set(xlabel="key frequencies in effect", ylabel=f"answers, {width} latents")
    right.set(xlabel="key frequencies in effect", ylabel=f"PW-MCC, {width} latents")
    middle.legend(
        handles=[
            *(
                Line2D([], [], color=c, marker=m, ls="", label=n, ms=4.5)
                for n, c, m in (ARCHITECTURES["topk"], ARCHITECTURES["relu"])
            ),
            Line2D([], [], color=BLACK, marker="o", ls="", fillstyle="none", label="cleaned up"),
            Line2D([], [], color=BLACK, marker="_", ls="", label="permuted null (c)"),
        ],
        loc="upper left",
        fontsize=6.5,
    )
    letter(middle, "b")
    letter(right, "c")
    return figure


def architectures() -> Figure:
    """ReLU and TopK along their curves of sparsity: agreement, and its chance."""
    table = page_table(RESULTS / "architectures" / "README.md", "group", "L0", "FVU")
    figure, axes = new(WIDTH, 2.6, 1, 2, sharey=True)
    for axis, by, label in zip(axes, ("L0", "FVU"), ("L0", "variance not explained"), strict=True):
        for architecture in ("topk", "relu"):
            name, colour, marker = ARCHITECTURES[architecture]
            some = table[table["group"].str.startswith(architecture)]
            x = some[by].astype(float).to_numpy()
            order = np.argsort(x)
            score = np.array([estimate(cell) for cell in some["PW-MCC"]])[order]
            settled = (some["settled"] == "5 of 5").to_numpy()[order]
            x = x[order]
            axis.plot(x, score[:, 0], color=colour, lw=1, label=name)
            axis.vlines(x, score[:, 1], score[:, 2], color=colour, lw=1)
            for done, fill in ((True, "full"), (False, "none")):
                axis.plot(
                    x[settled == done],
                    score[settled == done, 0],
                    marker,
                    color=colour,
                    fillstyle=fill,
                    ms=5,
                )
            chance = some["permuted"].astype(float).to_numpy()[order]
            axis.plot(x, chance, ":", color=colour, lw=1)
        axis.set_xscale("log")
        ticks = (2, 4, 8, 16) if by == "L0" else (0.02, 0.05, 0.1, 0.2, 0.5)
        axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axis.minorticks_off()
        axis.set_xlabel(label)
    axes[0].set_ylabel("PW-MCC, 128 latents")
    axes[0].legend(
        handles=[
            Line2D([], [], color=BLUE, marker="o", label="TopK"),
            Line2D([], [], color=ORANGE, marker="s", label="ReLU"),
            Line2D([], [], color=BLACK, marker="o", ls="", fillstyle="none", label="not settled"),
            Line2D([], [], color=BLACK, ls=":", label="permuted null"),
        ],
        loc="lower left",
        ncols=2,
    )
    letter(axes[0], "a")
    letter(axes[1], "b")
    return figure
