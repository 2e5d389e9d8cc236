"""Draw the figures of the slides and the poster from committed results.

    python paper/figures_talk.py       # build/paper/figures/talk_*.svg

Large type, one message each, in the size in which a slide shows them. Every number drawn is read
from ``docs/results`` or ``benchmarks/results``. Text becomes outlines.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from husai.figures.style import COLOURS, MARKERS

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "build" / "paper" / "figures"
HOME = ROOT / "docs" / "results" / "home"
MAPS = ROOT / "docs" / "results" / "maps"
TRANSFORMERS = ROOT / "docs" / "results" / "transformers"
PLANTED = ROOT / "docs" / "results" / "planted_truth"
BENCHMARKS = ROOT / "benchmarks" / "results"

BLUE, ORANGE, GREEN, PINK, YELLOW, SKY, _ = COLOURS
INK, SOFT, PALE = "#1b1f24", "#57606a", "#d0d7de"
FONT = 17
MAIN = "topk d256 k4"
NAMES = {"topk": "TopK", "batch_topk": "BatchTopK", "relu": "ReLU"}


def canvas(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure with large type and only the axes that are read."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(1, columns)))
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(SOFT)
        axis.tick_params(labelsize=FONT - 2, colors=SOFT, length=4)
        axis.xaxis.label.set_size(FONT)
        axis.yaxis.label.set_size(FONT)
    return figure, axes


def setting(group: str) -> str:
    """A group's name in words, in two lines: ``TopK`` and its width."""
    kind, width, *rest = group.split()
    tail = "\nuntrained" if "untrained" in rest else ""
    return f"{NAMES[kind]}\n{width.removeprefix('d')} latents{tail}"


def published() -> Figure:
    """What papers print: one question, answers from a third to nine tenths."""
    table = pd.read_csv(HOME / "published.csv")
    theirs = table[(table["source"] != "this study") & table["d_sae"].gt(1000)]
    loose = table[(table["source"] != "this study") & table["architecture"].eq("relu")]
    theirs = pd.concat([theirs, loose]).drop_duplicates(["source", "architecture", "d_sae"])
    theirs = theirs.sort_values("value")
    figure, (axis,) = canvas(11.6, 4.9)
    for y, row in enumerate(theirs.itertuples()):
        colour = BLUE if row.score == "pw_mcc" else ORANGE
        axis.plot([0, row.value], [y, y], color=PALE, lw=2, zorder=0)
        axis.plot(row.value, y, "o", ms=13, color=colour)
        name = {"jumprelu": "JumpReLU", "gated": "Gated", **NAMES}[row.architecture]
        width = "" if pd.isna(row.d_sae) else f", {int(row.d_sae):,} latents"
        axis.text(row.value + 0.02, y, f"{row.value:.2f}", va="center", fontsize=FONT, color=INK)
        axis.text(-0.015, y, f"{name}{width}", va="center", ha="right", fontsize=FONT - 1)
    axis.plot([], [], "o", ms=11, color=BLUE, label="PW-MCC (Song et al.)")
    axis.plot([], [], "o", ms=11, color=ORANGE, label="shared fraction (Paulo & Belrose)")
    axis.legend(fontsize=FONT - 1, frameon=False, loc="lower right")
    axis.set(xlim=(0, 1.08), yticks=[], xlabel="how much two seeds agree, as printed")
    axis.spines["left"].set_visible(False)
    return figure


def kinds() -> Figure:
    """Every feature's reproducibility: those of answers, and the others."""
    points = pd.read_csv(MAPS / "points.csv")
    table = pd.read_csv(HOME / "kinds.csv")
    groups = ["topk d64 k4", "topk d128 k4", MAIN, "relu d128 l1_4 relu"]
    figure, (axis,) = canvas(11.6, 5.0)
    rng = np.random.default_rng(0)
    for x, group in enumerate(groups):
        own, null = points[points["group"] == group], table[table["group"] == group].iloc[0]
        band = null["null_q05"], null["null_q95"]
        axis.fill_between([x - 0.46, x + 0.46], *band, color=PALE, lw=0, zorder=0)
        for at, colour, part in (
            (x - 0.21, BLUE, own["kind"] == "answer"),
            (x + 0.21, ORANGE, own["kind"] != "answer"),
        ):
            values = own.loc[part, "reproducibility"].to_numpy()
            spread = rng.uniform(-0.17, 0.17, len(values))
            axis.plot(at + spread, values, ".", ms=4, alpha=0.45, color=colour, rasterized=True)
            mean = values.mean()
            axis.plot([at - 0.18, at + 0.18], [mean, mean], color=INK, lw=3)
            style = {"fontsize": FONT, "fontweight": "bold", "ha": "center", "color": colour}
            axis.text(at, 1.03, f"{mean:.2f}", **style)
    axis.set_xticks(range(len(groups)), [setting(group) for group in groups], color=INK)
    axis.set(ylim=(0.2, 1.12), xlim=(-0.55, len(groups) - 0.45), yticks=np.linspace(0.2, 1, 5))
    axis.set_ylabel("similarity to its partners\nin the other seeds")
    handles = [
        axis.plot([], [], "o", ms=9, color=BLUE, label="stands for one answer")[0],
        axis.plot([], [], "o", ms=9, color=ORANGE, label="all others")[0],
        axis.fill_between([], [], [], color=PALE, label="90 % of permuted features"),
    ]
    axis.legend(handles=handles, fontsize=FONT - 2, frameon=False, loc="lower right", ncols=3)
    return figure


def rulers() -> Figure:
    """Four measures of the same dictionary, each with its chance and what perfection scores."""
    groups = pd.read_csv(HOME / "groups.csv")
    chosen = (groups["group"] == MAIN) & (groups["space"] == "full")
    score = groups[chosen & (groups["score"] == "pw_mcc") & ~groups["signed"].astype(bool)].iloc[0]
    covered = pd.read_csv(HOME / "coverage.csv").query("group == @MAIN and family == 'answer'")
    answers = covered.iloc[0]
    truth = pd.read_csv(HOME / "truth.csv").query("group == @MAIN and measure == 'mean_purity'")
    purity = truth.iloc[0]
    perfect = json.loads((MAPS / "maps.json").read_text())["perfect_answer"]["purity"]
    n = answers["n_classes"]
    rows = [
        ("agreement of seeds\n(PW-MCC)", score["permuted_mean"], score["mean"], 1.0),
        ("answers with a feature", answers["chance"] / n, answers["mean"] / n, 1.0),
        ("agreement with the\nmeans of answers", answers["permuted_mean"], answers["gt_mcc"], 1.0),
        ("purity in one\nfrequency's plane", purity["data_aware_mean"], purity["mean"], perfect),
    ]
    figure, (axis,) = canvas(11.6, 4.7)
    for y, (name, chance, found, best) in enumerate(reversed(rows)):
        wrong = best < chance
        axis.plot([chance, best], [y, y], color=ORANGE if wrong else PALE, lw=9, zorder=0)
        axis.plot(chance, y, "|", ms=34, mew=5, color=SOFT)
        axis.plot(best, y, "*", ms=26, color=YELLOW, mec=INK)
        axis.plot(found, y, "o", ms=15, color=BLUE, zorder=3)
        axis.text(-0.03, y, name, ha="right", va="center", fontsize=FONT)
        for value, shift in ((chance, 0.27), (found, -0.36), (best, 0.27)):
            style = {"ha": "center", "fontsize": FONT - 3, "color": SOFT}
            axis.text(value, y + shift, f"{value:.2f}", **style)
    axis.plot([], [], "|", ms=18, mew=4, color=SOFT, label="chance")
    axis.plot([], [], "o", ms=12, color=BLUE, label="what the SAEs score")
    axis.plot([], [], "*", ms=17, color=YELLOW, mec=INK, label="what perfect answers score")
    axis.legend(
        fontsize=FONT - 1, frameon=False, loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=3
    )
    axis.set(xlim=(-0.02, 1.05), ylim=(-0.6, 3.6), yticks=[])
    axis.spines["left"].set_visible(False)
    return figure


def nulls() -> Figure:
    """Planted dictionaries that share half, and what each null calls chance."""
    table = pd.DataFrame(json.loads((BENCHMARKS / "null_calibration.json").read_text())["nulls"])
    worlds = {
        "random, d 64, n 256": "random\nfeatures",
        "correlated in fours, d 64, n 128": "correlated\nfeatures",
        "steep spectrum, d 64, n 256": "steep\nspectrum",
        "circles of 16, d 64, n 128": "features\non circles",
    }
    figure, (axis,) = canvas(11.6, 4.9)
    shown = {"isotropic": (SKY, "isotropic"), "permuted": (BLUE, "permuted")}
    shown["data_aware"] = (ORANGE, "data-aware")
    for x, world in enumerate(worlds):
        own = table[table["world"] == world].set_index("null")
        first = own.iloc[0]
        independent, half = first["independent_score"], first["half_shared_score"]
        axis.fill_between([x - 0.42, x + 0.42], independent, half, color="#eef1f4", zorder=0)
        axis.plot([x - 0.42, x + 0.42], [independent] * 2, color=SOFT, lw=3)
        axis.plot([x - 0.42, x + 0.42], [half] * 2, color=INK, lw=3)
        for shift, (null, (colour, _)) in zip((-0.24, 0, 0.24), shown.items(), strict=True):
            marker = MARKERS[list(shown).index(null)]
            axis.plot(x + shift, own.loc[null, "null_mean"], marker, ms=15, color=colour)
    axis.plot([], [], color=INK, lw=3, label="half of the features shared")
    axis.plot([], [], color=SOFT, lw=3, label="nothing shared: the true chance")
    for null, (colour, name) in shown.items():
        marker = MARKERS[list(shown).index(null)]
        axis.plot([], [], marker, ms=11, color=colour, label=f"{name} null")
    axis.legend(
        fontsize=FONT - 2, frameon=False, ncols=1, loc="center left", bbox_to_anchor=(1, 0.5)
    )
    axis.set_xticks(range(len(worlds)), list(worlds.values()), color=INK)
    axis.set(ylim=(0.15, 0.95), ylabel="PW-MCC")
    return figure


def widths() -> Figure:
    """Answers with a feature by width: one transformer, and the others of its stage."""
    table = pd.read_csv(TRANSFORMERS / "groups.csv")
    early = table[table["stop"] == "early_stop"]
    figure, axes = canvas(11.6, 4.8, columns=2)
    shown = (("topk", BLUE), ("relu", ORANGE))
    for axis, (architecture, colour) in zip(axes, shown, strict=True):
        part = early[early["architecture"] == architecture].sort_values("d_sae")
        n = part["n_answers"].iloc[0]
        axis.axhline(n, color=SOFT, lw=1.5, ls="--")
        for name, own in part.groupby("transformer"):
            first = name == "seed0"
            drawn = {"color": colour if first else "#9aa4ae", "lw": 4 if first else 2}
            axis.plot(own["d_sae"], own["answers"], "-o", ms=9 if first else 5, **drawn)
        axis.set_xscale("log", base=2)
        ticks = sorted(set(part["d_sae"]) - {n})
        axis.set_xticks(ticks, [str(t) for t in ticks], minor=False)
        axis.set_xticks([], minor=True)
        axis.set(ylim=(-4, n + 10), xlabel="latents", title=NAMES[architecture])
        axis.title.set(fontsize=FONT + 2, fontweight="bold", color=colour)
    axes[0].set_ylabel("answers with a feature")
    axes[0].text(16, n + 2, f"all {n}", fontsize=FONT - 2, color=SOFT)
    axes[1].text(20, n / 2, "colour: seed 0\ngrey: five others", fontsize=FONT - 1, color=SOFT)
    return figure


def transformers() -> Figure:
    """Twelve transformers: answers against frequencies, agreement against its chance."""
    table = pd.read_csv(TRANSFORMERS / "groups.csv")
    wide = table[table["d_sae"] == 256]
    figure, (left, right) = canvas(11.6, 4.9, columns=2)
    for architecture, colour in (("topk", BLUE), ("relu", ORANGE)):
        own = wide[wide["architecture"] == architecture]
        for stop, marker in (("early_stop", "o"), ("cleaned_up", "s")):
            part = own[own["stop"] == stop]
            filled = {"color": colour, "mfc": colour if stop == "early_stop" else "white", "mew": 2}
            x = part["effective_frequencies"]
            left.plot(x, part["answers"], marker, ms=12, **filled)
            right.plot(part["pw_mcc_permuted"], part["pw_mcc"], marker, ms=12, **filled)
        left.plot([], [], "o", ms=10, color=colour, label=NAMES[architecture])
    left.axhline(wide["n_answers"].iloc[0], color=SOFT, lw=1.5, ls="--")
    left.set(xlabel="key frequencies in effect", ylabel="answers with a feature", ylim=(-4, 122))
    left.legend(fontsize=FONT - 2, frameon=False, loc="center left", bbox_to_anchor=(0, 0.6))
    right.plot([0.55, 1], [0.55, 1], color=SOFT, lw=1.5, ls="--")
    right.set(xlim=(0.55, 1), ylim=(0.55, 1), xlabel="permuted null", ylabel="PW-MCC of seeds")
    right.plot([], [], "o", ms=10, color=SOFT, label="early stop")
    right.plot([], [], "s", ms=10, color=SOFT, mfc="white", mew=2, label="cleaned up")
    right.legend(fontsize=FONT - 2, frameon=False, loc="lower right")
    return figure


def page_rows(path: Path, first: str) -> pd.DataFrame:
    """The table of a page whose header row begins with a word."""
    lines = path.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return pd.DataFrame(rows[2:], columns=rows[0])


def against_topk() -> Figure:
    """ReLU less TopK where both are alike."""
    page = ROOT / "docs" / "results" / "architectures" / "README.md"
    table = page_rows(page, "score")
    numbers = table["ReLU less TopK"].str.extract(r"(\S+) \[(\S+), (\S+)\]").astype(float)
    numbers.columns = ["mean", "low", "high"]
    table = table.join(numbers)
    figure, axes = canvas(11.6, 4.8, columns=2)
    scores = ("PW-MCC (absolute)", "shared fraction")
    for axis, score in zip(axes, scores, strict=True):
        axis.axvline(0, color=INK, lw=2)
        y = 0.0
        ticks = {}
        for matched, colour in (("live latents", GREEN), ("FVU", ORANGE), ("L0", BLUE)):
            own = table[(table["score"] == score) & (table["matched on"] == matched)]
            ticks[matched] = y + (len(own) - 1) / 2
            for row in own.itertuples():
                axis.plot([row.low, row.high], [y, y], color=colour, lw=3)
                axis.plot(row.mean, y, "o", ms=10, color=colour)
                y += 1
            y += 1
        axis.set_yticks(list(ticks.values()), [f"equal\n{name}" for name in ticks], color=INK)
        axis.set_xlabel("ReLU less TopK")
        axis.set_title(score.replace(" (absolute)", ""), fontsize=FONT + 2, fontweight="bold")
    axes[1].set_yticks([])
    return figure


def function() -> Figure:
    """Does a partner do the same? By kind, beside a near miss and a random feature."""
    table = pd.read_csv(HOME / "function.csv").query("by == 'kind'").set_index("stratum")
    names = {"answer": "answers", "operand": "operands", "other": "no label"}
    figure, (axis,) = canvas(11.6, 4.7)
    columns = {
        "function": (BLUE, "its partner in another seed"),
        "function_negative": (ORANGE, "the nearest that is not its partner"),
        "function_random": (SOFT, "one that fires as often"),
    }
    for x, kind in enumerate(names):
        for shift, (column, (colour, _)) in zip((-0.25, 0, 0.25), columns.items(), strict=True):
            row = table.loc[kind]
            value, low, high = row[column], row[f"{column}_low"], row[f"{column}_high"]
            axis.bar(x + shift, value, width=0.22, color=colour)
            axis.plot([x + shift] * 2, [low, high], color=INK, lw=2.5)
            above = max(value, high) + 0.03
            axis.text(x + shift, above, f"{value:.2f}", ha="center", fontsize=FONT - 1)
    for colour, name in columns.values():
        axis.bar(0, 0, color=colour, label=name)
    axis.legend(fontsize=FONT - 1, frameon=False, loc="upper right")
    axis.set_xticks(range(len(names)), [f"features of\n{n}" for n in names.values()], color=INK)
    axis.set(ylim=(0, 1.12), ylabel="correlation of what\ntheir ablations do")
    return figure


def reliability() -> Figure:
    """Predicted probability that a new seed has a feature, and how often it had."""
    table = pd.read_csv(HOME / "reliability.csv")
    figure, (axis,) = canvas(6.4, 5.2)
    axis.plot([0, 1], [0, 1], color=SOFT, lw=1.5, ls="--")
    size = 40 + 560 * table["n"] / table["n"].max()
    axis.plot(table["predicted"], table["happened"], color=BLUE, lw=2)
    axis.scatter(table["predicted"], table["happened"], s=size, color=BLUE, zorder=3)
    axis.set(xlim=(0, 1.04), ylim=(0, 1.06), aspect="equal")
    axis.set(xlabel="predicted", ylabel="seen in a seed\nthat was left out")
    return figure


def stable_but_wrong() -> Figure:
    """Latents that come back in every seed and are not true, by world."""
    table = pd.read_csv(PLANTED / "detectors.csv")
    pooled = (
        table[table["world"] == "all"]
        .set_index("regime")
        .loc[["redundant", "matched", "compressive"]]
    )
    figure, (axis,) = canvas(11.6, 4.3)
    names = {
        "redundant": "more latents\nthan features",
        "matched": "as many",
        "compressive": "fewer latents\nthan features",
    }
    for y, (regime, row) in enumerate(reversed(list(pooled.iterrows()))):
        share = row["stable_but_wrong"]
        axis.barh(y, 1 - share, color=BLUE, height=0.6)
        axis.barh(y, share, left=1 - share, color=ORANGE, height=0.6)
        wrong = {"va": "center", "color": ORANGE, "fontsize": FONT + 2, "fontweight": "bold"}
        axis.text(1.015, y, f"{share * 100:.0f} % wrong", **wrong)
        n = int(row["n_passing"])
        said = f"{n:,} latents that come back".replace(",", "\u202f")
        axis.text(0.015, y, said, va="center", color="white", fontsize=FONT - 1)
        axis.text(-0.015, y, names[regime], va="center", ha="right", fontsize=FONT)
    axis.set(xlim=(0, 1.19), yticks=[], xticks=[])
    axis.spines[["left", "bottom"]].set_visible(False)
    return figure


FIGURES: tuple[Callable[[], Figure], ...] = (
    published,
    kinds,
    rulers,
    nulls,
    widths,
    transformers,
    against_topk,
    function,
    reliability,
    stable_but_wrong,
)


def main() -> None:
    """Draw every figure."""
    OUT.mkdir(parents=True, exist_ok=True)
    mpl.rcParams["svg.fonttype"] = "path"
    mpl.rcParams["svg.hashsalt"] = "husai"
    for draw in FIGURES:
        path = OUT / f"talk_{draw.__name__}.svg"
        draw().savefig(path, dpi=200, metadata={"Date": None}, transparent=True)


if __name__ == "__main__":
    main()
