"""Figures of SAEs: how they learn, and how often their latents are active."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from husai.sae import TrainedSAE

# Okabe & Ito's palette: told apart by colour-blind readers, with line styles for print
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))

PANELS = (
    ("fvu", "fraction of variance unexplained", True),
    ("loss", "training loss", True),
    ("l0", "active latents per row (L0)", False),
    ("dead_fraction", "dead latents", False),
    ("cosine_to_init", "cosine of decoder rows to their start", False),
)


def learning_curves(groups: Mapping[str, Sequence[TrainedSAE]]) -> Figure:
    """Held-out FVU, training loss, L0, dead latents and distance from the start, by step.

    Parameters
    ----------
    groups
        Name (an architecture, a dead-latent method) to its SAEs; a line is the mean over them,
        the band its smallest and largest value. SAEs that failed are left out.

    Returns
    -------
    Figure
        One panel a quantity.
    """
    figure = Figure(figsize=(12.5, 6.2), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    for axis, (column, label, logarithmic) in zip(axes, PANELS, strict=False):
        for number, (name, saes) in enumerate(groups.items()):
            histories = [s.history for s in saes if s.failure is None and len(s.history)]
            if not histories:
                continue
            length = min(len(history) for history in histories)
            step = histories[0]["step"].to_numpy()[:length]
            values = np.stack([h[column].to_numpy(dtype=float)[:length] for h in histories])
            colour, style = COLOURS[number % len(COLOURS)], STYLES[number % len(STYLES)]
            axis.plot(step, values.mean(0), color=colour, linestyle=style, label=name)
            axis.fill_between(step, values.min(0), values.max(0), color=colour, alpha=0.15, lw=0)
        axis.set_xlabel("step")
        axis.set_ylabel(label)
        if logarithmic:
            axis.set_yscale("log")
        else:
            axis.set_ylim(bottom=0)
        axis.grid(alpha=0.25)
    handles, labels = axes[0].get_legend_handles_labels()
    axes[-1].axis("off")
    axes[-1].legend(handles, labels, loc="center", frameon=False, title="mean, smallest to largest")
    return figure


def density_histogram(groups: Mapping[str, Sequence[TrainedSAE]]) -> Figure:
    """How many latents are active on what fraction of held-out rows.

    Parameters
    ----------
    groups
        Name to its SAEs, whose latents are pooled.

    Returns
    -------
    Figure
        Histogram over log10 of the density; latents active on no row stand in a bar of their own
        at the left.
    """
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axis = figure.subplots()
    pooled = {
        name: np.concatenate([s.density.numpy() for s in saes if s.failure is None])
        for name, saes in groups.items()
        if any(s.failure is None for s in saes)
    }
    positive = [d[d > 0] for d in pooled.values() if (d > 0).any()]
    lowest = np.floor(min((np.log10(d).min() for d in positive), default=-1.0))
    bins = np.linspace(lowest, 0, 41)
    silent_at = lowest - 0.25
    for number, (name, density) in enumerate(pooled.items()):
        colour, style = COLOURS[number % len(COLOURS)], STYLES[number % len(STYLES)]
        active = np.log10(density[density > 0])
        counts, _ = np.histogram(active, bins)
        axis.stairs(
            counts / len(density), bins, color=colour, linestyle=style, label=name, linewidth=1.6
        )
        silent = float((density == 0).mean())
        offset = 0.12 * (number - (len(pooled) - 1) / 2) / max(1, len(pooled) - 1)
        axis.bar(silent_at + offset, silent, width=0.12 / max(1, len(pooled)), color=colour)
    ticks = np.arange(lowest, 1)
    axis.set_xticks([silent_at, *ticks], ["none", *[f"$10^{{{int(t)}}}$" for t in ticks]])
    axis.set_xlabel("fraction of held-out rows on which a latent is active")
    axis.set_ylabel("fraction of latents")
    axis.legend(frameon=False)
    axis.grid(alpha=0.25)
    return figure
