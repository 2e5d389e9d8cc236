"""Figures of single dictionaries: how they fire, the circles they cover, geometry, symmetries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from husai.consistency.analyses.geometry import (
    SparsityPattern,
    effective_dimension,
    neighbours,
)
from husai.consistency.analyses.truth import PlaneRecovery
from husai.errors import InputError
from husai.figures.style import (
    COLOURS,
    FONT,
    GREY,
    LINES,
    not_available,
    outside_legend,
    plain_log,
    styles,
    tidy,
)


def activation_figure(
    patterns: Mapping[str, SparsityPattern], *, unconverged: Sequence[str] = ()
) -> Figure:
    """Draw how SAEs fire: activation sizes, firing rates of latents, and L0 of rows if it varies.

    Parameters
    ----------
    patterns
        For each SAE what :func:`husai.consistency.sparsity_pattern` gave.
    unconverged
        Names of SAEs that are not converged: marked †.
    """
    if not patterns:
        raise InputError("patterns: none given")
    # if every row has the same number of active latents, L0 is not drawn
    varied = any(np.count_nonzero(one.l0_counts) > 1 for one in patterns.values())
    figure = Figure(figsize=(8.4 if varied else 5.8, 3.2), layout="constrained")
    axes = figure.subplots(1, 3 if varied else 2)
    sizes, rates = axes[:2]
    look = styles(list(patterns))
    for i, (name, pattern) in enumerate(patterns.items()):
        colour, stroke = look[name][0], LINES[i % len(LINES)]
        share = pattern.histogram / max(1, pattern.histogram.sum())
        dead = f" ({pattern.n_dead} dead)" if pattern.n_dead else ""
        dead += " †" if name in unconverged else ""
        sizes.stairs(share, pattern.edges, color=colour, ls=stroke, label=name + dead)
        rate = np.sort(pattern.latents["firing_rate"].to_numpy(dtype=np.float64))[::-1]
        alive = rate[rate > 0]
        rates.plot(np.arange(1, len(alive) + 1), alive, ls=stroke, color=colour)
        if varied:
            l0 = np.flatnonzero(pattern.l0_counts)
            rows = pattern.l0_counts[l0] / pattern.n_rows
            axes[2].plot(l0, rows, ls=stroke, marker=".", color=colour)
    sizes.set(xlabel="activation, if above 0", ylabel="share of activations")
    rates.set(xlabel="latents, most frequent first", ylabel="firing rate")
    if varied:
        axes[2].set(xlabel="L0 of a row", ylabel="share of rows")
        axes[2].set_ylim(bottom=0)
        axes[2].xaxis.set_major_locator(MaxNLocator(5, integer=True))
    plain_log(sizes)
    plain_log(rates)
    plain_log(rates, "y")
    for axis in axes:
        tidy(axis)
    outside_legend(figure, title="† not converged" if unconverged else None)
    return figure


def circle_figure(
    recoveries: Mapping[str, PlaneRecovery],
    *,
    plane_names: Sequence[str] | None = None,
    unconverged: Sequence[str] = (),
    max_planes: int = 8,
) -> Figure:
    """Draw the features in each true plane: a row for each SAE, a column for each plane.

    SAEs without a feature in any plane, and planes without a feature of any SAE, are left out; the
    title counts them.

    Filled points lie in the plane (rho at the threshold or above). Crosses do not lie in it, but it
    is their nearest plane. The circle has radius 1.

    Parameters
    ----------
    recoveries
        For each SAE what :func:`husai.consistency.plane_recovery` gave, of the same planes.
    plane_names
        Of the planes, for example ``["k = 4", …]``.
    unconverged
        Names of SAEs that are not converged.
    max_planes
        Most planes to show: the first ones that hold a feature.
    """
    if not recoveries:
        raise InputError("recoveries: none given")
    counts = {len(one.planes) for one in recoveries.values()}
    if len(counts) != 1:
        raise InputError(
            f"recoveries: they have {sorted(counts)} planes; give the same planes for all SAEs"
        )
    total = counts.pop()
    names = list(plane_names) if plane_names is not None else [f"plane {k}" for k in range(total)]
    found = {
        name: set(got.features.loc[got.features["in_plane"], "plane"])
        for name, got in recoveries.items()
    }
    planes = sorted(set().union(*found.values()))[:max_planes]
    shown = [name for name in recoveries if found[name]]
    if not planes:
        return not_available("No feature of these SAEs lies in one of the true planes.")
    figure = Figure(
        figsize=(max(3.6, 1.55 * len(planes) + 0.7), 1.65 * len(shown) + 0.9), layout="constrained"
    )
    axes = figure.subplots(len(shown), len(planes), squeeze=False)
    figure.suptitle(
        f"{len(shown)} of {len(recoveries)} SAEs have features in {len(planes)} of {total} planes",
        size=FONT + 1,
    )
    turn = np.linspace(0, 2 * np.pi, 200)
    for line, name in zip(axes, shown, strict=True):
        got = recoveries[name]
        for column, (axis, k) in enumerate(zip(line, planes, strict=True)):
            own = got.features[got.features["plane"] == k]
            inside = own[own["in_plane"]]
            rest = own[~own["in_plane"]]
            axis.plot(np.cos(turn), np.sin(turn), color=GREY, lw=0.7)
            axis.plot(
                rest["rho"] * np.cos(rest["angle"]),
                rest["rho"] * np.sin(rest["angle"]),
                "x",
                ms=3,
                mew=0.7,
                color=COLOURS[4],
            )
            for rho, angle in zip(inside["rho"], inside["angle"], strict=True):
                axis.plot(
                    [0, rho * np.cos(angle)], [0, rho * np.sin(angle)], color=COLOURS[5], lw=0.6
                )
            axis.plot(
                inside["rho"] * np.cos(inside["angle"]),
                inside["rho"] * np.sin(inside["angle"]),
                "o",
                ms=3.2,
                color=COLOURS[0],
            )
            axis.set(xlim=(-1.12, 1.12), ylim=(-1.12, 1.12), aspect="equal", xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            table = got.planes.iloc[k]
            gap = table["largest_gap"]
            axis.set_xlabel(
                f"{len(inside)} in plane"
                + ("" if pd.isna(gap) else f", gap {np.degrees(float(gap)):.0f}°"),
                size=FONT - 1,
            )
            if axis in axes[0]:
                axis.set_title(names[k], size=FONT)
            if column == 0:
                axis.set_ylabel(name + (" †" if name in unconverged else ""), size=FONT)
    handles = [
        Line2D([], [], color=COLOURS[0], marker="o", ls="", ms=3.5, label="in the plane"),
        Line2D([], [], color=COLOURS[4], marker="x", ls="", ms=4, label="nearest plane, not in it"),
    ]
    if set(unconverged) & set(shown):
        handles.append(Line2D([], [], ls="", label="† not converged"))
    outside_legend(figure, handles)
    return figure


def geometry_figure(
    dictionaries: Mapping[str, tuple[ArrayLike, ArrayLike | None]],
    *,
    unconverged: Sequence[str] = (),
    seed: int = 0,
) -> Figure:
    """Draw the spectrum, nearest neighbours, and cosines of decoder and encoder of several SAEs.

    Parameters
    ----------
    dictionaries
        ``{name: (W_dec [n, d], cosine [n] of each latent's encoder to its decoder or None)}``;
        encoders are compared in the data's metric, see :class:`husai.consistency.study.LiveSAE`.
    unconverged
        Names of SAEs that are not converged: marked †.
    seed
        Of the random dictionary that is drawn for comparison; it has the first one's shape.
    """
    if not dictionaries:
        raise InputError("dictionaries: none given")
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    spectrum, nearest, aligned = figure.subplots(1, 3)
    shape = np.shape(next(iter(dictionaries.values()))[0])
    random = np.random.default_rng(seed).standard_normal(shape)
    look = styles(list(dictionaries))
    drawn: list[tuple[str, ArrayLike, ArrayLike | None, str, str]] = [
        (name, W, cosine, look[name][0], LINES[i % len(LINES)])
        for i, (name, (W, cosine)) in enumerate(dictionaries.items())
    ]
    drawn.append(("random directions", random, None, GREY, ":"))
    bins = np.linspace(0, 1, 41)
    for name, W_dec, cosine, colour, stroke in drawn:
        got = effective_dimension(W_dec)
        held = np.cumsum(got.eigenvalues) / got.eigenvalues.sum()
        spectrum.plot(
            np.arange(1, len(held) + 1),
            held,
            ls=stroke,
            color=colour,
            label=f"{name} ({got.participation_ratio:.1f})" + (" †" if name in unconverged else ""),
        )
        close = neighbours(W_dec, 1)["cosine"].abs()
        nearest.stairs(np.histogram(close, bins)[0] / len(close), bins, color=colour, ls=stroke)
        if cosine is not None:
            edges, n = np.linspace(-1, 1, 41), len(np.asarray(cosine))
            aligned.stairs(np.histogram(cosine, edges)[0] / n, edges, color=colour, ls=stroke)
    plain_log(spectrum)
    spectrum.set(
        xlabel="principal directions", ylabel="share of dictionary's variance", ylim=(0, 1.03)
    )
    nearest.set(xlabel="|cosine| to nearest feature of the SAE", ylabel="share of features")
    aligned.set(
        xlabel="cosine of encoder and decoder,\nin the data's metric",
        ylabel="share of latents",
    )
    for axis in (spectrum, nearest, aligned):
        tidy(axis)
    outside_legend(
        figure,
        title="participation ratio in brackets" + ("; † not converged" if unconverged else ""),
    )
    return figure


def symmetry_figure(symmetries: pd.DataFrame, *, max_groups: int = 6) -> Figure:
    """Draw how well each symmetry of the task maps dictionaries, beside relabelled inputs.

    Parameters
    ----------
    symmetries
        Of :func:`husai.consistency.study.geometry.symmetry_table`.
    max_groups
        Most groups to show: the narrowest and the widest of each architecture.
    """
    if "score" not in symmetries or symmetries["score"].isna().all():
        given = symmetries["reason"].dropna() if "reason" in symmetries else ()
        reasons = [str(reason) for reason in given]
        return not_available("; ".join(dict.fromkeys(reasons)) or "no symmetry is defined")
    known = symmetries[symmetries["score"].notna()]
    groups = known.drop_duplicates("group").sort_values(["architecture", "d_sae"], kind="stable")
    total = len(groups)
    if total > max_groups:
        ends = [part.iloc[[0, -1]] for _, part in groups.groupby("architecture", sort=True)]
        groups = pd.concat(ends).drop_duplicates("group").iloc[:max_groups]
    shown = {
        str(row["group"]): bool(pd.notna(row["converged"]) and not row["converged"])
        for row in groups.to_dict("records")
    }
    look = styles(list(shown))
    names = list(dict.fromkeys(known["symmetry"]))
    place = {name: i for i, name in enumerate(reversed(names))}
    kinds = [kind for kind in ("itself", "other seed") if kind in set(known["kind_of_pair"])]
    figure = Figure(
        figsize=(3.7 * len(kinds) + 1.4, (0.2 + 0.1 * min(3, len(shown))) * len(names) + 1.6),
        layout="constrained",
    )
    axes = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    if len(shown) < total:
        figure.suptitle(
            f"{len(shown)} of {total} groups: the narrowest and widest of each architecture",
            size=FONT + 1,
        )
    spread = np.linspace(0.3, -0.3, len(shown)) if len(shown) > 1 else np.zeros(1)
    for axis, kind in zip(axes, kinds, strict=True):
        for shift, (group, hollow) in zip(spread, shown.items(), strict=True):
            table = known[(known["group"] == group) & (known["kind_of_pair"] == kind)]
            if table.empty:
                continue
            for name in set(names) - set(table["symmetry"]):
                axis.text(0.02, place[name], "not asked", color=GREY, va="center", size=FONT - 1)
            colour, marker = look[group]
            y = np.array([place[one] for one in table["symmetry"]]) + shift
            axis.hlines(y, table["null_mean"], table["score"], color=colour, lw=0.8)
            axis.plot(table["null_mean"], y, "|", ms=5, color=colour)
            face = "white" if hollow else colour
            axis.plot(table["score"], y, marker, ms=4, ls="", color=colour, mfc=face)
            if kind == "other seed":
                level = float(table["identity_score"].iloc[0])
                axis.axvline(level, color=colour, ls=":", lw=0.8)
        for line in np.arange(len(names) - 1) + 0.5:
            axis.axhline(line, color="#DDDDDD", lw=0.5)
        axis.set(
            yticks=list(place.values()),
            yticklabels=list(place),
            title="an SAE to itself" if kind == "itself" else "one seed to another",
            xlabel="correlation of matched codes,\nsymmetry applied to the inputs of one side",
            xlim=(min(0.0, float(known["null_mean"].min())) - 0.02, 1.03),
        )
        tidy(axis)
    handles = [
        Line2D(
            [],
            [],
            color=look[name][0],
            marker=look[name][1],
            mfc="white" if hollow else look[name][0],
            ls="",
            ms=4.5,
            label=name + (" †" if hollow else ""),
        )
        for name, hollow in shown.items()
    ]
    handles.append(
        Line2D([], [], color=GREY, marker="|", ls="", label="inputs relabelled at random")
    )
    if "other seed" in kinds:
        handles.append(Line2D([], [], color=GREY, ls=":", label="two seeds, same inputs"))
    if any(shown.values()):
        handles.append(Line2D([], [], ls="", label="† not converged"))
    outside_legend(figure, handles)
    return figure


__all__ = [
    "activation_figure",
    "circle_figure",
    "geometry_figure",
    "symmetry_figure",
]
