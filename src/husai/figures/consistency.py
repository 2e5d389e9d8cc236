"""Figures of consistency: what comes back, beside what chance would bring back.

Unconverged SAEs are drawn hollow and named with a dagger (†) in every figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import ArrayLike, NDArray

from husai.errors import InputError
from husai.matching.match import Match, unit_rows

# Okabe and Ito's palette: told apart with any colour vision; markers carry it in grey print
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":")
GREY = "#666666"
FONT = 8.0
# One hue from light to dark: it keeps its order in grey print and for every colour vision.
SEQUENTIAL = "cividis"
DIVERGING = "PuOr_r"

_NULLS = {
    "isotropic": ("isotropic null", "_", "#000000"),
    "data_aware": ("data-aware null", "x", "#CC79A7"),
    "init": ("own initialisation", "1", "#666666"),
    "untrained": ("untrained transformer", "+", "#E69F00"),
}
SCORE_NAMES = {
    "pw_mcc": "PW-MCC",
    "mmcs": "MMCS",
    "shared_fraction": "shared fraction",
    "matched_fraction": "share matched at .7",
    "activation_mcc": "matched activation correlation",
    "code_jaccard": "support Jaccard of matched codes",
    "code_correlation": "correlation of matched codes",
    "subspace_overlap": "subspace overlap",
    "decoder_cka": "CKA of matched decoders",
    "uniqueness": "uniqueness",
}


def score_name(score: str, signed: bool) -> str:
    """Name a score for an axis, with its sign convention."""
    return (
        f"{SCORE_NAMES.get(score, score.replace('_', ' '))} ({'signed' if signed else 'absolute'})"
    )


def styles(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Give each name a colour and a marker of its own."""
    return {
        name: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)])
        for i, name in enumerate(dict.fromkeys(names))
    }


def _unconverged(value: Any) -> bool:
    """Whether a gate says no; unknown is not no."""
    return value is not None and not pd.isna(value) and not bool(value)


def tidy(axis: Axes) -> None:
    """Take away what carries nothing."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=FONT)
    axis.xaxis.label.set_fontsize(FONT)
    axis.yaxis.label.set_fontsize(FONT)
    axis.title.set_fontsize(FONT + 1)


def plain_log(axis: Axes) -> None:
    """Give a logarithmic x axis plain numbers, few enough to read."""
    axis.set_xscale("log")
    low, high = axis.get_xlim()
    steps = (1, 2, 5) if high / low < 200 else (1,)
    axis.xaxis.set_major_locator(LogLocator(10, subs=steps))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))


def _need(table: pd.DataFrame, columns: Sequence[str], name: str) -> None:
    missing = [column for column in columns if column not in table.columns]
    if missing or table.empty:
        raise InputError(f"{name}: {f'columns {missing} are missing' if missing else 'no row'}")


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
        _dagger(figure)
    return figure


def _dagger(figure: Figure) -> None:
    figure.supxlabel(
        "† SAEs not converged: what is shown may be unfinished training", size=FONT - 1
    )


def scores_figure(groups: pd.DataFrame, *, score: str = "pw_mcc", signed: bool = False) -> Figure:
    """Score, interval over seeds and nulls of every group, by architecture and width.

    Parameters
    ----------
    groups
        ``groups`` of a report.
    score, signed
        Which score.
    """
    _need(groups, ["architecture", "d_sae", "space", "score", "signed", "group"], "groups")
    chosen = groups[(groups["score"] == score) & (groups["signed"] == signed)]
    if chosen.empty or "mean" not in chosen or chosen["mean"].isna().all():
        raise InputError(f"groups: no defined {score} (signed={signed}) to show")
    chosen = chosen.sort_values(["d_sae", "k", "architecture"], kind="stable")
    chosen = chosen.assign(sparsity=[_sparsity(row) for row in chosen.to_dict("records")])
    chosen = chosen.assign(sparsity=chosen["sparsity"] + _variants(chosen))
    spaces = list(dict.fromkeys(chosen["space"]))
    look = styles(sorted(set(chosen["architecture"])))
    settings = list(dict.fromkeys(zip(chosen["d_sae"], chosen["sparsity"], strict=True)))
    place = {setting: i for i, setting in enumerate(settings)}
    width = max(3.6, 0.55 * len(settings) + 1.6)
    figure = Figure(figsize=(min(10.0, width * len(spaces)), 3.7), layout="constrained")
    axes = figure.subplots(1, len(spaces), sharey=True, squeeze=False)[0]
    for axis, space in zip(axes, spaces, strict=True):
        part = chosen[chosen["space"] == space]
        _score_panel(axis, part, look, place)
        dims = sorted(set(part["dimensions"].dropna().astype(int))) if "dimensions" in part else []
        where = "full space" if space == "full" else "within the data's subspace"
        axis.set(
            title=f"{where} ({', '.join(map(str, dims))} dims)" if dims else where,
            xlabel="d_sae, sparsity",
            xticks=range(len(settings)),
        )
        if len(settings) <= 6:
            axis.set_xticklabels([f"{int(w)}\n{label}" for w, label in settings])
        else:
            axis.set_xticklabels([f"{int(w)}, {label}" for w, label in settings], rotation=90)
        tidy(axis)
    axes[0].set_ylabel(score_name(score, signed), size=FONT)
    handles = [
        Line2D([], [], color=c, marker=m, ls="", label=name) for name, (c, m) in look.items()
    ]
    handles += [
        Line2D([], [], color=c, marker=m, ls="", ms=8, label=label)
        for kind, (label, m, c) in _NULLS.items()
        if f"{kind}_mean" in chosen and chosen[f"{kind}_mean"].notna().any()
    ]
    if any(_unconverged(v) for v in chosen["converged"]):
        handles.append(
            Line2D([], [], color=GREY, marker="o", mfc="white", ls="", label="† not converged")
        )
    figure.legend(
        handles=handles, loc="outside lower center", ncols=4, fontsize=FONT - 1, frameon=False
    )
    return figure


def _sparsity(row: Mapping[Any, Any]) -> str:
    """A group's sparsity setting in few characters."""
    for column, symbol in (("k", "k"), ("l1_coefficient", "λ")):
        value = row.get(column)
        if value is not None and not pd.isna(value):
            return f"{symbol}={value:g}"
    return ""


def _variants(chosen: pd.DataFrame) -> list[str]:
    """What tells groups of one architecture, width and sparsity apart: the ends of their names."""
    keys = ["architecture", "d_sae", "sparsity"]
    plain = chosen.groupby(keys)["group"].transform(lambda names: min(names, key=len))
    return [
        "" if name == base else f", {str(name).removeprefix(str(base)).strip()}"
        for name, base in zip(chosen["group"], plain, strict=True)
    ]


def _score_panel(
    axis: Axes,
    part: pd.DataFrame,
    look: Mapping[str, tuple[str, str]],
    place: Mapping[tuple[Any, Any], int],
) -> None:
    # architectures that share a setting stand side by side
    shift: dict[tuple[Any, Any, Any], float] = {}
    for (width, sparsity), own in part.groupby(["d_sae", "sparsity"], sort=False):
        names = [name for name in look if name in set(own["architecture"])]
        for at, name in enumerate(names):
            shift[width, sparsity, name] = 0.22 * (at - (len(names) - 1) / 2)
    for row in part.to_dict("records"):
        if pd.isna(row["mean"]):
            continue
        colour, marker = look[row["architecture"]]
        setting = row["d_sae"], row["sparsity"]
        x = place[setting] + shift[*setting, row["architecture"]]
        hollow = _unconverged(row["converged"])
        low, high = row.get("low"), row.get("high")
        if low is not None and not pd.isna(low):
            axis.plot([x, x], [low, high], color=colour, lw=1.4)
        axis.plot(
            x, row["mean"], marker, ms=5, color=colour, mfc="white" if hollow else colour, zorder=3
        )
        if hollow:
            axis.annotate(
                "†", (x, row["mean"]), (4, 2), textcoords="offset points", fontsize=FONT - 1
            )
        for kind, (_, mark, tone) in _NULLS.items():
            value = row.get(f"{kind}_mean")
            if value is not None and not pd.isna(value):
                axis.plot(x, value, mark, ms=8, color=tone, mew=1.3)
    axis.set_xlim(-0.6, len(place) - 0.4)


def seed_matrix_figure(
    pairs: pd.DataFrame,
    *,
    score: str = "pw_mcc",
    signed: bool = False,
    space: str = "full",
    orders: Mapping[str, Sequence[str]] | None = None,
) -> Figure:
    """Score of every pair of seeds, a heat map for each group, on one scale.

    Parameters
    ----------
    pairs
        ``pairs`` of a report.
    score, signed, space
        Which score.
    orders
        Ids of each group in the order to show, for example the seed path.
    """
    _need(pairs, ["group", "id_a", "id_b", "space", "score", "signed", "value"], "pairs")
    chosen = pairs[
        (pairs["score"] == score) & (pairs["signed"] == signed) & (pairs["space"] == space)
    ]
    if "within" in chosen:
        chosen = chosen[chosen["within"]]
    if chosen.empty:
        raise InputError(f"pairs: no {score} (signed={signed}) in space {space!r}")
    names = list(dict.fromkeys(chosen["group"]))
    columns = min(4 if len(names) <= 12 else 5, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(2.35 * columns + 0.6, 2.3 * lines + 0.5), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    low, high = float(chosen["value"].min()), float(chosen["value"].max())
    if high - low < 0.02:
        low, high = low - 0.01, high + 0.01
    shown = None
    any_open = False
    for axis, name in zip(axes.ravel(), names, strict=False):
        part = chosen[chosen["group"] == name]
        seeds = {
            **dict(zip(part["id_a"], part["seed_a"], strict=True)),
            **dict(zip(part["id_b"], part["seed_b"], strict=True)),
        }
        ids = list((orders or {}).get(name, sorted(seeds, key=lambda i: (seeds[i], i))))
        at = {one: i for i, one in enumerate(ids)}
        W = np.full((len(ids), len(ids)), np.nan)
        for row in part.to_dict("records"):
            i, j = at[row["id_a"]], at[row["id_b"]]
            W[i, j] = W[j, i] = row["value"]
        shown = axis.imshow(np.ma.masked_invalid(W), cmap=SEQUENTIAL, vmin=low, vmax=high)
        if len(ids) <= 6:
            _annotate(axis, W, (low + high) / 2)
        hollow = any(_unconverged(v) for v in part.get("converged", ()))
        any_open |= hollow
        axis.set(xticks=range(len(ids)), yticks=range(len(ids)))
        axis.set_xticklabels([seeds[i] for i in ids])
        axis.set_yticklabels([seeds[i] for i in ids])
        axis.set_title(name + (" †" if hollow else ""))
        tidy(axis)
        axis.title.set_fontsize(FONT)
    for axis in axes.ravel()[len(names) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("seed", size=FONT)
    if shown is not None:
        bar = figure.colorbar(shown, ax=axes, shrink=0.8)
        bar.set_label(score_name(score, signed), size=FONT)
        bar.ax.tick_params(labelsize=FONT)
    if any_open:
        _dagger(figure)
    return figure


def _annotate(axis: Axes, W: NDArray[np.float64], middle: float) -> None:
    for i, j in np.argwhere(~np.isnan(W)):
        axis.text(
            j,
            i,
            f"{W[i, j]:.2f}".replace("0.", "."),
            ha="center",
            va="center",
            fontsize=FONT - 1.5,
            color="white" if W[i, j] < middle else "black",
        )


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
    _need(features, ["group", "space", "firing_rate", "reproducibility"], "features")
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
        hollow = "converged" in part and any(_unconverged(v) for v in part["converged"])
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
    figure.supxlabel(
        "firing rate (share of rows; the leftmost column never fires)"
        + ("\n† SAEs not converged" if any_open else ""),
        size=FONT,
    )
    figure.supylabel("mean similarity to its match in other seeds", size=FONT)
    figure.legend(
        handles=[
            Line2D(
                [],
                [],
                color=COLOURS[0],
                marker="o",
                ms=3,
                lw=1.6,
                label="median and quartiles of a third of a decade",
            ),
            Line2D([], [], color=GREY, ls="--", label=f"{threshold:g}: counted as found"),
        ],
        loc="outside upper center",
        ncols=2,
        fontsize=FONT - 1,
        frameon=False,
    )
    return figure


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


def settings_figure(
    settings: pd.DataFrame, *, score: str = "pw_mcc", signed: bool = False, space: str = "full"
) -> Figure:
    """Score against width over effective rank, against k, and against L0.

    Parameters
    ----------
    settings
        Of :func:`husai.consistency.study.tables.settings_table`.
    score, signed, space
        Which score.
    """
    _need(settings, ["architecture", "width_ratio", "k", "l0", "space", "score"], "settings")
    chosen = settings[
        (settings["score"] == score)
        & (settings["signed"] == signed)
        & (settings["space"] == space)
        & settings["mean"].notna()
    ]
    if chosen.empty:
        raise InputError(f"settings: no defined {score} (signed={signed}) in space {space!r}")
    look = styles(sorted(set(chosen["architecture"])))
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    panels = (
        ("width_ratio", "d_sae over effective rank of the data", ["k", "l1_coefficient"]),
        ("k", "k", ["d_sae"]),
        ("l0", "L0", ["d_sae"]),
    )
    for axis, (column, label, same) in zip(axes, panels, strict=True):
        part = chosen[chosen[column].notna() & (chosen[column] > 0)]
        axis.set_xlabel(label)
        tidy(axis)
        _curves(axis, part, column, same, look)
        values = sorted(set(part[column].astype(float)))
        if len(values) < 2:
            axis.set_title("one value: no curve" if values else "no group has one", size=FONT)
        if column == "l0" and len(values) > 1:
            plain_log(axis)
        elif values:
            axis.set_xscale("log")
            axis.xaxis.set_minor_locator(NullLocator())
            axis.set_xticks(values, [f"{value:.3g}" for value in values])
            axis.set_xlim(values[0] / 1.25, values[-1] * 1.25)
    axes[0].set_ylabel(score_name(score, signed), size=FONT)
    handles = [
        Line2D([], [], color=c, marker=m, ls="-", label=name) for name, (c, m) in look.items()
    ]
    handles += [
        Line2D([], [], color=c, marker=m, ls="", ms=8, label=label)
        for kind, (label, m, c) in _NULLS.items()
        if f"{kind}_mean" in chosen and chosen[f"{kind}_mean"].notna().any()
    ]
    if any(_unconverged(v) for v in chosen["converged"]):
        handles.append(
            Line2D([], [], color=GREY, marker="o", mfc="white", ls="", label="† not converged")
        )
    figure.legend(
        handles=handles, loc="outside lower center", ncols=4, fontsize=FONT - 1, frameon=False
    )
    return figure


def _curves(
    axis: Axes,
    part: pd.DataFrame,
    column: str,
    same: Sequence[str],
    look: Mapping[str, tuple[str, str]],
) -> None:
    """One line for each architecture and value of ``same``, with intervals and nulls."""
    # architectures that share a setting stand side by side
    beside = 1.0 if column == "l0" else 1.03
    for keys, own in part.groupby(["architecture", *same], dropna=False, sort=True):
        colour, marker = look[str(keys[0])]
        shift = beside ** (list(look).index(str(keys[0])) - (len(look) - 1) / 2)
        own = own.sort_values(column)
        axis.plot(own[column] * shift, own["mean"], "-", color=colour, lw=0.8)
        for row in own.to_dict("records"):
            x = row[column] * shift
            if not pd.isna(row["low"]):
                axis.plot([x, x], [row["low"], row["high"]], color=colour, lw=1.2)
            face = "white" if _unconverged(row["converged"]) else colour
            axis.plot(x, row["mean"], marker, ms=5, color=colour, mfc=face, zorder=3)
            for kind, (_, mark, tone) in _NULLS.items():
                value = row.get(f"{kind}_mean")
                if value is not None and not pd.isna(value):
                    axis.plot(x, value, mark, ms=7, color=tone, mew=1.2)


def not_available(why: str) -> Figure:
    """Give a figure that says why there is nothing to draw."""
    figure = Figure(figsize=(4.8, 0.8), layout="constrained")
    figure.text(0.5, 0.5, why, ha="center", va="center", size=FONT + 1)
    return figure


def training_figure(trajectories: pd.DataFrame, *, max_columns: int = 5) -> Figure:
    """PW-MCC and cosine to the initialisation over training, with the nulls; a column a width.

    Parameters
    ----------
    trajectories
        Of :func:`husai.consistency.study.tables.trajectory_table`.
    max_columns
        Show so many widths, the narrowest and the widest among them.
    """
    if "step" not in trajectories or trajectories["step"].isna().all():
        given = trajectories["reason"].dropna() if "reason" in trajectories else ()
        reasons = [str(reason) for reason in given]
        return not_available("; ".join(dict.fromkeys(reasons)) or "no trajectory")
    known = trajectories[trajectories["step"].notna() & trajectories["mean"].notna()]
    widths = sorted(set(known["d_sae"]))
    if len(widths) > max_columns:
        at = np.linspace(0, len(widths) - 1, max_columns).round().astype(int)
        widths = [widths[i] for i in at]
    look = styles(sorted(set(known["architecture"])))
    figure = Figure(figsize=(max(4.4, 2.5 * len(widths) + 0.6), 4.6), layout="constrained")
    axes = figure.subplots(2, len(widths), squeeze=False, sharey="row", sharex=True)
    any_open = False
    for column, width in enumerate(widths):
        part = known[known["d_sae"] == width]
        drawn: set[str] = set()
        for name, own in part.groupby("group", sort=True):
            kind = str(own["architecture"].iloc[0])
            colour, marker = look[kind]
            # further settings of one architecture: the same colour, other strokes
            stroke = LINES[sum(one.startswith(f"{kind} ") for one in drawn) % len(LINES)]
            drawn.add(f"{kind} {name}")
            hollow = any(_unconverged(v) for v in own["converged"])
            any_open |= hollow
            _trajectory(axes[:, column], own.sort_values("step"), colour, marker, stroke, hollow)
        for kind, stroke in (("isotropic", ":"), ("data_aware", "--")):
            if f"{kind}_mean" in part and part[f"{kind}_mean"].notna().any():
                level = float(part[f"{kind}_mean"].mean())
                axes[0, column].axhline(level, color="black", ls=stroke, lw=0.9)
        axes[0, column].set(title=f"d_sae = {int(width)}", ylim=(0, 1.02))
        axes[1, column].set(xlabel="training step", ylim=(0, 1.02))
        for axis in axes[:, column]:
            later = known.loc[known["step"] > 0, "step"].min()
            axis.set_xscale("symlog", linthresh=1.0 if pd.isna(later) else float(later))
            axis.set_xlim(left=0)
            axis.xaxis.set_minor_locator(NullLocator())
            tidy(axis)
    axes[0, 0].set_ylabel("PW-MCC between seeds", size=FONT)
    axes[1, 0].set_ylabel("|cosine| to own start", size=FONT)
    handles = [Line2D([], [], color=c, marker=m, label=n) for n, (c, m) in look.items()]
    handles += [
        Line2D([], [], color="black", ls=":", lw=0.9, label="isotropic null"),
        Line2D([], [], color="black", ls="--", lw=0.9, label="data-aware null"),
    ]
    if any_open:
        handles.append(
            Line2D([], [], color=GREY, marker="o", mfc="white", ls="", label="† not converged")
        )
    figure.legend(
        handles=handles, loc="outside lower center", ncols=4, fontsize=FONT - 1, frameon=False
    )
    return figure


def _trajectory(
    axes: Sequence[Axes] | NDArray[Any],
    table: pd.DataFrame,
    colour: str,
    marker: str,
    stroke: str,
    hollow: bool,
) -> None:
    step = table["step"].to_numpy(dtype=np.float64)
    face = "white" if hollow else colour
    look: dict[str, Any] = {"marker": marker, "ms": 3.5, "color": colour, "mfc": face, "lw": 1}
    axes[0].plot(step, table["mean"], stroke, **look)
    if table["low"].notna().any():
        low, high = (table[name].to_numpy(dtype=np.float64) for name in ("low", "high"))
        axes[0].fill_between(step, low, high, color=colour, alpha=0.15, lw=0)
    if "cosine_to_init" in table:
        axes[1].plot(step, table["cosine_to_init"], stroke, **look)
