"""Figures of SAE training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from husai.errors import InputError
from husai.figures.consistency import styles, tidy

CURVES = (
    ("fvu", "FVU on held-out rows", True),
    ("l0", "L0", False),
    ("dead_fraction", "dead latents (share)", False),
    ("cosine_to_init", "cosine to own initialisation", False),
)
_LINES = ("-", "--", ":", "-.")


def learning_curves(histories: Mapping[str, Sequence[pd.DataFrame]]) -> Figure:
    """Held-out error, L0, dead latents and distance from initialisation over training.

    A row for each width, a line for each group: the mean over its seeds, with their range as a
    band.

    Parameters
    ----------
    histories
        Group name ("architecture d<width> sparsity") to the histories of its SAEs, which are
        those of :class:`husai.sae.TrainedSAE`.
    """
    if not histories or not any(len(one) for group in histories.values() for one in group):
        raise InputError("histories: none given, or none has an entry; nothing to draw")
    widths = sorted({_width(name) for name in histories})
    look = styles(sorted({name.split()[0] for name in histories}))
    figure = Figure(figsize=(2.6 * len(CURVES), 1.9 * len(widths) + 0.7), layout="constrained")
    axes = figure.subplots(len(widths), len(CURVES), squeeze=False, sharex=True)
    for line, width in enumerate(widths):
        seen: dict[str, int] = {}
        for name in (n for n in histories if _width(n) == width):
            architecture = name.split()[0]
            order = seen[architecture] = seen.get(architecture, -1) + 1
            colour = look[architecture][0]
            for axis, (column, _, _) in zip(axes[line], CURVES, strict=True):
                steps, values = _stack(histories[name], column)
                axis.plot(
                    steps,
                    values.mean(axis=0),
                    color=colour,
                    linestyle=_LINES[order % len(_LINES)],
                    label=name,
                )
                axis.fill_between(
                    steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, lw=0
                )
        for axis, (_, title, logarithmic) in zip(axes[line], CURVES, strict=True):
            if logarithmic:
                axis.set_yscale("log")
            else:
                axis.set_ylim(bottom=0)
            if line == 0:
                axis.set_title(title, fontsize=9)
            if line == len(widths) - 1:
                axis.set_xlabel("step", fontsize=9)
            tidy(axis)
        axes[line][0].set_ylabel(f"d_sae = {width}", fontsize=9)
        axes[line][0].legend(fontsize=6, frameon=False)
    return figure


def _width(name: str) -> int:
    return int(name.split()[1].removeprefix("d"))


def _stack(histories: Sequence[pd.DataFrame], column: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Curves of the seeds as far as all of them go: steps ``[n]``, values ``[seeds, n]``."""
    length = min(len(history) for history in histories)
    steps = histories[0]["step"].to_numpy()[:length]
    return steps, np.stack(
        [history[column].to_numpy(dtype=float)[:length] for history in histories]
    )
