"""The figure of the SAEs' learning curves: held-out FVU, L0 and dead latents over training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from husai.errors import InputError
from husai.figures.style import COLOURS, plain_log

if TYPE_CHECKING:
    import pandas as pd

    from husai.sae import TrainedSAE

STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))

PANELS = (
    ("fvu", "FVU on held-out rows", True),
    ("l0", "L0", False),
    ("dead_fraction", "dead latents (share)", False),
)


def learning_curves(groups: Mapping[str, Sequence[TrainedSAE]]) -> Figure:
    """Draw held-out FVU, L0 and dead latents by step.

    Parameters
    ----------
    groups
        Name (of a setting) to its SAEs, which differ only in their seeds; a line is the mean over
        them, the band their smallest and largest value. SAEs that failed are left out.

    Returns
    -------
    Figure
        A row for each width, a panel for each quantity, a line for each group.

    Raises
    ------
    InputError
        When there is no history to draw.
    """
    histories = {
        name: [sae.history for sae in saes if sae.failure is None and len(sae.history)]
        for name, saes in groups.items()
    }
    histories = {name: found for name, found in histories.items() if found}
    if not histories:
        raise InputError("groups: no SAE has a history; nothing to draw")
    widths = sorted({groups[name][0].config.d_sae for name in histories})
    figure = Figure(
        figsize=(2.4 * len(PANELS) + 1.8, 1.7 * len(widths) + 0.6), layout="constrained"
    )
    axes = figure.subplots(len(widths), len(PANELS), squeeze=False, sharex=True, sharey="col")
    for row, width in zip(axes, widths, strict=True):
        names = [name for name in histories if groups[name][0].config.d_sae == width]
        for number, name in enumerate(names):
            for axis, (column, _, _) in zip(row, PANELS, strict=True):
                _band(axis, histories[name], column, name, number)
        for axis, (_, label, _) in zip(row, PANELS, strict=True):
            axis.tick_params(labelsize=8, which="both")
            axis.spines[["top", "right"]].set_visible(False)
            if width == widths[0]:
                axis.set_title(label, fontsize=9)
            if width == widths[-1]:
                axis.set_xlabel("step", fontsize=9)
        row[0].set_ylabel(f"d_sae = {width}", fontsize=9)
        row[-1].legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.02, 0.5))
    # the rows share their axes: limits are set once all of them are drawn
    for axis, (_, _, logarithmic) in zip(axes[0], PANELS, strict=True):
        if logarithmic:
            plain_log(axis, "y")
        else:
            axis.set_ylim(bottom=0)
    return figure


def _band(
    axis: Axes, histories: Sequence[pd.DataFrame], column: str, name: str, number: int
) -> None:
    """Draw the mean over seeds and their range, up to the last step that all of them have."""
    length = min(len(history) for history in histories)
    step = histories[0]["step"].to_numpy()[:length]
    values = np.stack([history[column].to_numpy(dtype=float)[:length] for history in histories])
    colour = COLOURS[number % len(COLOURS)]
    style = STYLES[(number + number // len(COLOURS)) % len(STYLES)]
    axis.plot(step, values.mean(axis=0), color=colour, linestyle=style, label=name)
    axis.fill_between(
        step, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, linewidth=0
    )
