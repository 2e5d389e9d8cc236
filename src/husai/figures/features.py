"""Figures of single features: how two dictionaries match, and which features come back."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from numpy.typing import ArrayLike

from husai.errors import InputError
from husai.figures.style import (
    COLOURS,
    DIVERGING,
    FONT,
    GREY,
    SEQUENTIAL,
    dagger_note,
    plain_log,
    require,
    tidy,
    unconverged_gate,
)
from husai.matching.match import unit_rows
from husai.matching.result import Match


def similarity_figure(
    A: ArrayLike,
    B: ArrayLike,
    match: Match,
    *,
    names: tuple[str, str] = ("A", "B"),
    max_features: int = 512,
    unconverged: bool = False,
) -> Figure:
    """Similarity of two dictionaries, ordered by the match, best pairs first.

    A bright diagonal that fades says how many features come back; bright blocks off it say that
    features come in families.

    Parameters
    ----------
    A, B
        ``[n_a, d]`` and ``[n_b, d]`` dictionaries.
    match
        Their match.
    names
        Of the two SAEs.
    max_features
        Show so many matched pairs, evenly spaced from best to worst, when there are more.
    unconverged
        Whether one of the two is not converged.
    """
    order = np.argsort(-match.similarity, kind="stable")
    if len(order) > max_features:
        order = order[np.linspace(0, len(order) - 1, max_features).round().astype(int)]
    rows, columns = match.a_index[order], match.b_index[order]
    cosine = unit_rows(A, "A")[rows] @ unit_rows(B, "B")[columns].T
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    shown = left.imshow(
        cosine if match.signed else np.abs(cosine),
        cmap=DIVERGING if match.signed else SEQUENTIAL,
        vmin=-1 if match.signed else 0,
        vmax=1,
        interpolation="nearest",
    )
    kind = "cosine" if match.signed else "|cosine|"
    bar = figure.colorbar(shown, ax=left, shrink=0.85)
    bar.set_label(kind, size=FONT)
    bar.ax.tick_params(labelsize=FONT)
    mark = " †" if unconverged else ""
    left.set(
        xlabel=f"features of {names[1]}, matched",
        ylabel=f"features of {names[0]}, best matched first",
        title=f"{len(order)} of {len(match.similarity)} pairs{mark}",
    )
    off = np.abs(cosine) if not match.signed else cosine.copy()
    np.fill_diagonal(off, -np.inf)
    at = np.arange(len(order))
    right.plot(at, match.similarity[order], color=COLOURS[0], label="matched")
    if len(order) > 1:
        right.plot(
            at, off.max(axis=1), ".", ms=2.5, color=COLOURS[1], label="best other (of those shown)"
        )
    right.axhline(match.mean, color=GREY, ls="--", lw=0.9, label=f"mean {match.mean:.3f}")
    right.set(
        xlabel="pair, best matched first",
        ylabel=kind,
        ylim=(min(0, off[np.isfinite(off)].min(initial=0)), 1.02),
    )
    right.legend(fontsize=FONT - 1, frameon=False)
    for axis in (left, right):
        tidy(axis)
    if unconverged:
        dagger_note(figure)
    return figure


def reproducibility_figure(
    features: pd.DataFrame, *, space: str = "full", threshold: float = 0.7, max_points: int = 4000
) -> Figure:
    """How well each feature comes back in other seeds, against how often it fires.

    Parameters
    ----------
    features
        ``features`` of a report, with ``firing_rate``.
    space
        Which space.
    threshold
        Drawn as a line: above it a feature counts as found.
    max_points
        Points drawn a group; the strata use all of them.
    """
    require(features, ["group", "space", "firing_rate", "reproducibility"], "features")
    chosen = features[(features["space"] == space) & features["reproducibility"].notna()]
    if chosen.empty:
        raise InputError(f"features: none in space {space!r} was compared with another seed")
    names = list(dict.fromkeys(chosen["group"]))
    columns = min(3 if len(names) <= 9 else 5, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(2.2 * columns + 0.6, 2.0 * lines + 0.7), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True, sharex=True)
    rate = chosen["firing_rate"].to_numpy(dtype=np.float64)
    floor = rate[rate > 0].min(initial=1.0) / 3
    any_open = False
    for axis, name in zip(axes.ravel(), names, strict=False):
        part = chosen[chosen["group"] == name]
        hollow = "converged" in part and any(unconverged_gate(v) for v in part["converged"])
        any_open |= hollow
        drawn = part.sample(min(len(part), max_points), random_state=0)
        x = np.maximum(drawn["firing_rate"].to_numpy(dtype=np.float64), floor)
        axis.plot(
            x, drawn["reproducibility"], ".", ms=2, alpha=0.35, color=COLOURS[5], rasterized=True
        )
        _strata(axis, part, floor)
        axis.axhline(threshold, color=GREY, lw=0.8, ls="--")
        axis.set(xscale="log", title=name + (" †" if hollow else ""), ylim=(0, 1.03))
        tidy(axis)
        axis.title.set_fontsize(FONT)
    for axis in axes.ravel()[len(names) :]:
        axis.set_visible(False)
    if (rate <= 0).any():
        # silent features stand in a column of their own, which says so
        axes[0, 0].set_xticks([floor, *_decades(floor, rate.max())])
        axes[0, 0].set_xticklabels(["never", *(f"{x:g}" for x in _decades(floor, rate.max()))])
    else:
        plain_log(axes[0, 0])
    axes[0, 0].xaxis.set_minor_locator(NullLocator())
    figure.supxlabel(
        "firing rate (share of rows)" + ("\n† SAEs not converged" if any_open else ""),
        size=FONT,
    )
    figure.supylabel("reproducibility: mean similarity to partners in other seeds", size=FONT)
    figure.legend(
        handles=[
            Line2D(
                [],
                [],
                color=COLOURS[0],
                marker="o",
                ms=3,
                lw=1.6,
                label="median and quartiles (bins of a third of a decade)",
            ),
            Line2D([], [], color=GREY, ls="--", label=f"{threshold:g}: counted as found"),
        ],
        loc="outside upper center",
        ncols=2,
        fontsize=FONT - 1,
        frameon=False,
    )
    return figure


def _decades(floor: float, highest: float) -> list[float]:
    """Powers of ten above the column of what never fires."""
    first = int(np.ceil(np.log10(8 * floor)))
    return [10.0**n for n in range(first, int(np.ceil(np.log10(highest))) + 1)]


def _strata(axis: Axes, part: pd.DataFrame, floor: float) -> None:
    """Median and quartiles of each third of a decade of firing rate; silence apart."""
    rate = np.maximum(part["firing_rate"].to_numpy(dtype=np.float64), floor)
    y = part["reproducibility"].to_numpy(dtype=np.float64)
    stratum = np.where(rate > floor, np.floor(3 * np.log10(rate)), -np.inf)
    for one in np.unique(stratum):
        own = stratum == one
        if own.sum() < 3:
            continue
        low, middle, high = np.quantile(y[own], [0.25, 0.5, 0.75])
        x = float(np.exp(np.log(rate[own]).mean()))
        axis.plot([x, x], [low, high], color=COLOURS[0], lw=1.6)
        axis.plot(x, middle, "o", ms=4, color=COLOURS[0], mec="white", mew=0.5)


def reliability_figure(table: pd.DataFrame) -> Figure:
    """Draw how often features came back against the predicted probability: a reliability diagram.

    Parameters
    ----------
    table
        From :func:`husai.features.reliability`.

    Raises
    ------
    InputError
        When it is empty: fewer than four SAEs.
    """
    if table.empty:
        raise InputError("reliability: it takes four SAEs to leave one out and learn from the rest")
    require(table, ["predicted", "happened", "n", "brier", "brier_of_base_rate"], "reliability")
    figure = Figure(figsize=(3.8, 3.6), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls="--", label="calibrated")
    size = 10 + 150 * table["n"] / table["n"].max()
    axis.plot(table["predicted"], table["happened"], color=COLOURS[0], lw=0.8)
    axis.scatter(table["predicted"], table["happened"], s=size, color=COLOURS[0], alpha=0.7)
    axis.set_xlim(-0.03, 1.03)
    axis.set_ylim(-0.03, 1.03)
    axis.set_xlabel("predicted probability that a new seed has the feature")
    axis.set_ylabel("share of features that it has")
    first = table.iloc[0]
    axis.set_title(
        f"Brier score {first['brier']:.3f} (base rate {first['brier_of_base_rate']:.3f}); "
        "areas: features",
        fontsize=FONT,
    )
    axis.legend(fontsize=FONT, frameon=False, loc="upper left")
    tidy(axis)
    return figure
