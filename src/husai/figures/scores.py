"""Figures of scores: each group beside its nulls, pairs of seeds, and curves over settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator
from numpy.typing import NDArray

from husai.errors import InputError
from husai.figures.style import (
    FONT,
    GREY,
    NULLS,
    SEQUENTIAL,
    dagger_note,
    group_order,
    not_available,
    outside_legend,
    plain_log,
    require,
    score_name,
    styles,
    tidy,
    unconverged_gate,
)

# a curve over a setting needs this many values, and each must be APART times the one before
MIN_VALUES = 3
APART = 1.1
# up to this number, each value of a setting has a tick of its own
MOST_TICKS = 6
_UPRIGHT = {"_": "|"}


def legend_handles(
    chosen: pd.DataFrame,
    look: Mapping[str, tuple[Any, str]],
    line: str,
    *,
    upright: bool = False,
) -> list[Line2D]:
    """Give the legend's entries: architectures, the nulls that are drawn, and the gate's mark.

    With ``upright`` the bars of nulls are vertical, for figures with scores on the horizontal axis.
    """
    turned = _UPRIGHT if upright else {}
    handles = [
        Line2D([], [], color=c, marker=m, ls=line, label=name) for name, (c, m) in look.items()
    ]
    handles += [
        Line2D([], [], color=c, marker=turned.get(m, m), ls="", ms=8, label=label)
        for kind, (label, m, c) in NULLS.items()
        if f"{kind}_mean" in chosen and chosen[f"{kind}_mean"].notna().any()
    ]
    if any(unconverged_gate(v) for v in chosen["converged"]):
        handles.append(
            Line2D([], [], color=GREY, marker="o", mfc="white", ls="", label="† not converged")
        )
    return handles


def scores_figure(groups: pd.DataFrame, *, score: str = "pw_mcc", signed: bool = False) -> Figure:
    """Draw a score with its interval over seeds and its nulls: a line for each group.

    Parameters
    ----------
    groups
        ``groups`` of a report.
    score, signed
        Which score.
    """
    require(groups, ["architecture", "d_sae", "space", "score", "signed", "group"], "groups")
    chosen = groups[(groups["score"] == score) & (groups["signed"] == signed)]
    if chosen.empty or "mean" not in chosen or chosen["mean"].isna().all():
        raise InputError(f"groups: no defined {score} (signed={signed}) to show")
    names = group_order(chosen)
    spaces = list(dict.fromkeys(chosen["space"]))
    look = styles(sorted(set(chosen["architecture"])))
    figure = Figure(figsize=(2.0 + 3.0 * len(spaces), 0.3 * len(names) + 1.6), layout="constrained")
    axes = figure.subplots(1, len(spaces), sharey=True, squeeze=False)[0]
    place = {name: at for at, name in enumerate(reversed(names))}
    marked = {str(row["group"]) for row in _rows(chosen) if unconverged_gate(row["converged"])}
    for axis, space in zip(axes, spaces, strict=True):
        part = chosen[chosen["space"] == space]
        _score_panel(axis, part, look, place)
        dims = sorted(set(part["dimensions"].dropna().astype(int))) if "dimensions" in part else []
        where = "full space" if space == "full" else "within the data's subspace"
        axis.set(
            title=f"{where} ({', '.join(map(str, dims))} dimensions)" if dims else where,
            xlabel=score_name(score, signed),
            yticks=list(place.values()),
            yticklabels=[f"{name} †" if name in marked else name for name in place],
            ylim=(-0.6, len(names) - 0.4),
        )
        axis.set_xlim(right=1.02)
        axis.grid(axis="y", color="#EEEEEE", lw=0.6)
        axis.set_axisbelow(True)
        tidy(axis)
    handles = legend_handles(chosen, look, "", upright=True)
    outside_legend(figure, handles, columns=4)
    return figure


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _score_panel(
    axis: Axes,
    part: pd.DataFrame,
    look: Mapping[str, tuple[str, str]],
    place: Mapping[str, int],
) -> None:
    """Draw a line for each group: its score with the interval, and its nulls."""
    for row in _rows(part):
        if pd.isna(row["mean"]):
            continue
        colour, marker = look[row["architecture"]]
        y = place[str(row["group"])]
        for kind, (_, mark, tone) in NULLS.items():
            value = row.get(f"{kind}_mean")
            if value is not None and not pd.isna(value):
                mark = _UPRIGHT.get(mark, mark)
                axis.plot(value, y, mark, ms=9, color=tone, mew=1.8 if kind == "permuted" else 1)
        low, high = row.get("low"), row.get("high")
        if low is not None and not pd.isna(low):
            axis.plot([low, high], [y, y], color=colour, lw=1.6)
        face = "white" if unconverged_gate(row["converged"]) else colour
        axis.plot(row["mean"], y, marker, ms=5, color=colour, mfc=face, zorder=3)


def seed_matrix_figure(
    pairs: pd.DataFrame,
    *,
    score: str = "pw_mcc",
    signed: bool = False,
    space: str = "full",
    orders: Mapping[str, Sequence[str]] | None = None,
) -> Figure:
    """Draw the score of every pair of seeds: a heat map for each group, on one colour scale.

    Parameters
    ----------
    pairs
        ``pairs`` of a report.
    score, signed, space
        Which score.
    orders
        Ids of each group in the order to show, for example the seed path.
    """
    require(pairs, ["group", "id_a", "id_b", "space", "score", "signed", "value"], "pairs")
    chosen = pairs[
        (pairs["score"] == score) & (pairs["signed"] == signed) & (pairs["space"] == space)
    ]
    if "within" in chosen:
        chosen = chosen[chosen["within"]]
    if chosen.empty:
        raise InputError(f"pairs: no {score} (signed={signed}) in space {space!r}")
    names = group_order(chosen)
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
        hollow = any(unconverged_gate(v) for v in part.get("converged", ()))
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
        dagger_note(figure)
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


def settings_figure(
    settings: pd.DataFrame, *, score: str = "pw_mcc", signed: bool = False, space: str = "full"
) -> Figure:
    """Draw a score against width, against k, and against L0.

    A panel is left out if its setting has too few values for a curve. A group is left out if no
    other group differs from it in this setting alone.

    Parameters
    ----------
    settings
        Of :func:`husai.consistency.study.tables.settings_table`.
    score, signed, space
        Which score.
    """
    require(settings, ["architecture", "width_ratio", "k", "l0", "space", "score"], "settings")
    chosen = settings[
        (settings["score"] == score)
        & (settings["signed"] == signed)
        & (settings["space"] == space)
        & settings["mean"].notna()
    ]
    if chosen.empty:
        raise InputError(f"settings: no defined {score} (signed={signed}) in space {space!r}")
    curves = [
        (column, label, same, _on_curves(chosen, column, same))
        for column, label, same in (
            ("d_sae", _width_label(chosen), ["k", "l1_coefficient"]),
            ("k", "k", ["d_sae"]),
            ("l0", "L0", ["d_sae"]),
        )
    ]
    panels = [panel for panel in curves if _distinct(panel[3][panel[0]]) >= MIN_VALUES]
    if not panels:
        return not_available(
            f"A curve needs {MIN_VALUES} widths, values of k or values of L0; this study has fewer."
        )
    drawn = pd.concat([panel[3] for panel in panels])
    look = styles(sorted(set(drawn["architecture"])))
    figure = Figure(figsize=(2.6 + 3.0 * len(panels), 3.9), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (column, label, same, part) in zip(axes, panels, strict=True):
        if same == ["d_sae"]:
            widths = sorted(set(part["d_sae"].astype(int)))
            axis.set_title(f"d_sae = {', '.join(map(str, widths))}")
        axis.set_xlabel(label)
        tidy(axis)
        _curves(axis, part, column, same, look)
        plain_log(axis)
        values = sorted(set(part[column]))
        if column != "l0" and len(values) <= MOST_TICKS:
            axis.xaxis.set_major_locator(FixedLocator(values))
    axes[0].set_ylabel(score_name(score, signed), size=FONT)
    handles = legend_handles(drawn, look, "-")
    outside_legend(figure, handles, columns=4 if len(panels) > 1 else 3)
    return figure


def _width_label(chosen: pd.DataFrame) -> str:
    rank = (chosen["d_sae"] / chosen["width_ratio"]).median()
    return f"d_sae (effective rank of the data: {rank:.1f})"


def _on_curves(chosen: pd.DataFrame, column: str, same: Sequence[str]) -> pd.DataFrame:
    """Keep the groups from which another group differs only in this column."""
    part = chosen[chosen[column].notna() & (chosen[column] > 0)]
    values = part.groupby(["architecture", *same], dropna=False)[column]
    return part[values.transform("nunique") > 1]


def _distinct(values: pd.Series) -> int:
    """Number of values that a reader can distinguish on a logarithmic axis."""
    known = np.sort(values[values.notna() & (values > 0)].to_numpy(dtype=np.float64))
    return len(known) and 1 + int((np.diff(np.log(known)) > np.log(APART)).sum())


def _curves(
    axis: Axes,
    part: pd.DataFrame,
    column: str,
    same: Sequence[str],
    look: Mapping[str, tuple[str, str]],
) -> None:
    """Draw one line for each architecture and value of ``same``, with intervals and nulls."""
    # architectures with the same setting are drawn side by side
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
            face = "white" if unconverged_gate(row["converged"]) else colour
            axis.plot(x, row["mean"], marker, ms=5, color=colour, mfc=face, zorder=3)
            for kind, (_, mark, tone) in NULLS.items():
                value = row.get(f"{kind}_mean")
                if value is not None and not pd.isna(value):
                    axis.plot(x, value, mark, ms=7, color=tone, mew=1.2)
