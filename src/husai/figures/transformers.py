"""What is universal and what belongs to one transformer, in one picture."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from husai.figures.style import FONT, GREY, require, styles, tidy

STOPS: Mapping[str, tuple[str, bool]] = {
    "early_stop": ("early stop", True),
    "cleaned_up": ("cleaned up", False),
}
"""A transformer's stop: its name, and whether its markers are filled."""


def transformers_figure(groups: pd.DataFrame, kinds: pd.DataFrame, d_sae: int) -> Figure:
    """Draw, for each transformer, answers with a latent and what comes back, by its frequencies.

    Parameters
    ----------
    groups, kinds
        Of ``benchmarks/transformers_study.py``.
    d_sae
        The width that is drawn.

    Raises
    ------
    InputError
        When a column is missing, or no row has that width.
    """
    groups, kinds = (
        table[table["d_sae"] == d_sae] if "d_sae" in table else table for table in (groups, kinds)
    )
    require(
        groups, ["transformer", "stop", "architecture", "frequency_balance", "answers"], "groups"
    )
    require(kinds, ["transformer", "architecture", "kind", "reproducibility"], "kinds")
    figure = Figure(figsize=(7.6, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    look = styles(sorted(set(groups["architecture"])))
    for (architecture, stop), part in groups.groupby(["architecture", "stop"], sort=True):
        colour, mark = look[str(architecture)]
        title, filled = STOPS[str(stop)]
        left.plot(
            part["frequency_balance"],
            part["answers"],
            mark,
            color=colour,
            mfc=colour if filled else "none",
            ms=5,
            label=f"{architecture}, {title}",
        )
    left.axhline(float(groups["n_answers"].max()), color=GREY, ls=":", lw=0.9)
    left.set(
        xlabel="balance of the key frequencies\n(effective number over number)",
        ylabel=f"answers with a latent (d_sae {d_sae})",
        ylim=(-3, None),
    )
    left.legend(fontsize=FONT - 1, frameon=False)
    balance = groups.drop_duplicates("transformer").set_index("transformer")["frequency_balance"]
    order = list(balance.sort_values().index)
    at = {str(one): place for place, one in enumerate(order)}
    for place, name in enumerate(sorted(look)):
        part, (colour, mark) = kinds[kinds["architecture"] == name], look[name]
        shift = 0.15 * (1 - 2 * place)
        for answer, filled in ((True, True), (False, False)):
            own = part[(part["kind"] == "answer") == answer]
            if own.empty:
                continue
            weighted = own.assign(_sum=own["reproducibility"] * own["n_features"])
            sums = weighted.groupby("transformer")[["_sum", "n_features"]].sum()
            means = sums["_sum"] / sums["n_features"]
            right.plot(
                [at[str(one)] + shift for one in means.index],
                means,
                mark,
                color=colour,
                mfc=colour if filled else "none",
                ms=5,
                label=f"{name}, {'answers' if answer else 'the rest'}",
            )
    null = kinds.groupby("transformer")["null_mean"].mean().reindex(order)
    right.plot(range(len(order)), null, "_", color=GREY, ms=12, label="permuted null")
    right.set_xticks(range(len(order)), order, rotation=60, ha="right")
    right.set(
        ylabel="reproducibility of a feature",
        xlabel="transformers, least balanced first",
        ylim=(None, 1.02),
    )
    right.legend(fontsize=FONT - 1, frameon=False)
    for axis in (left, right):
        tidy(axis)
    return figure
