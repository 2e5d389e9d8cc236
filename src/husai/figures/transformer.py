"""The figure of the transformer's training: how it grokked, and the frequencies that it uses."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from husai.errors import InputError
from husai.figures.style import COLOURS, FONT, GREY

_BLUE, _ORANGE, _GREEN, _PURPLE = COLOURS[:4]
_SPLIT_STYLE = {"train": (_BLUE, "-"), "val": (_GREEN, ":"), "test": (_ORANGE, "--")}


def progress_figure(history: pd.DataFrame, measures: pd.DataFrame) -> Figure:
    """Loss, accuracy and progress measures over training, with the grokking delay marked.

    Parameters
    ----------
    history
        A :class:`~husai.transformer.TrainedTransformer`'s curves.
    measures
        What :func:`~husai.transformer.measures` gave.

    Returns
    -------
    matplotlib.figure.Figure
        Six panels over one axis of epochs.
    """
    if history.empty or measures.empty:
        raise InputError("history and measures need at least one row each")
    figure = Figure(figsize=(7.2, 7.6), layout="constrained")
    axes = figure.subplots(3, 2, sharex=True)
    (loss, accuracy), (circuit, explained), (sparsity, weights) = axes

    for split, (colour, style) in _SPLIT_STYLE.items():
        if history[f"{split}_loss"].notna().any():
            loss.plot(history["epoch"], history[f"{split}_loss"], style, color=colour, label=split)
            accuracy.plot(
                history["epoch"], history[f"{split}_accuracy"], style, color=colour, label=split
            )
    loss.set(title="Loss", ylabel="cross-entropy (nats)", yscale="log")
    accuracy.set(title="Accuracy", ylabel="accuracy", ylim=(-0.03, 1.05))

    _lines(
        circuit,
        measures,
        {
            "restricted_loss": "restricted: key frequencies only",
            "trig_loss": "trig: cos k(s−c) only",
            "excluded_loss": "excluded: without key frequencies (train)",
        },
    )
    circuit.set(title="Losses with and without key frequencies", ylabel="cross-entropy (nats)")
    if measures["restricted_loss"].notna().any():
        circuit.set_yscale("log")
    _lines(
        explained,
        measures,
        {
            "logits_explained": "logits",
            "mlp_post_explained": "neurons",
            "resid_post_explained": "residual stream",
        },
    )
    explained.set(
        title="Variance at the key frequencies", ylabel="fraction explained", ylim=(-0.03, 1.05)
    )
    _lines(sparsity, measures, {"gini_W_E": "$W_E$", "gini_W_L": "$W_L = W_U W_{out}$"})
    sparsity.set(title="Sparsity in the Fourier basis", ylabel="Gini coefficient", ylim=(0, 1.0))
    _lines(weights, measures, {"sum_squared_weights": ""})
    weights.set(title="Sum of squared weights", ylabel="sum of squares", ylim=(0, None))

    _mark_delay(accuracy, history, axes.ravel().tolist())
    for axis in axes.ravel():
        _plain(axis)
        if len(axis.get_legend_handles_labels()[1]) > 1:
            axis.legend(fontsize=FONT - 1, frameon=False, handlelength=2.4)
    for axis in axes[-1]:
        axis.set_xlabel("epoch", fontsize=FONT)
        axis.set_xlim(0, float(history["epoch"].max()))
    return figure


def _lines(axis: Axes, table: pd.DataFrame, columns: dict[str, str]) -> None:
    styles = ((_BLUE, "-"), (_ORANGE, "--"), (_PURPLE, "-."))
    if table[list(columns)].isna().all(axis=None):
        axis.text(
            0.5,
            0.5,
            "no frequency stands out:\nthe model has not grokked",
            transform=axis.transAxes,
            ha="center",
            va="center",
            fontsize=FONT,
            color=GREY,
        )
        return
    for (column, label), (colour, style) in zip(columns.items(), styles, strict=False):
        axis.plot(table["epoch"], table[column], style, color=colour, label=label or None)


def _mark_delay(axis: Axes, history: pd.DataFrame, everywhere: list[Axes]) -> None:
    """Draw the first epochs at 99 % train and test accuracy, and the distance between them."""
    from husai.transformer.evaluation import grokking_summary

    summary = grokking_summary(history)
    train, test = summary["epoch_train_99"], summary["epoch_test_99"]
    for epoch in (train, test):
        if epoch is not None:
            for other in everywhere:
                other.axvline(epoch, color=GREY, linewidth=0.7, linestyle=(0, (1, 2)))
    if train is None or test is None:
        return
    axis.annotate("", (test, 0.5), (train, 0.5), arrowprops={"arrowstyle": "<->", "color": "black"})
    ratio = summary["grokking_delay_ratio"]
    times = "" if ratio is None else f" ({ratio:.1f}×)"
    axis.annotate(
        f"grokking delay\n{summary['grokking_delay_epochs']} epochs{times}",
        ((train + test) / 2, 0.5),
        xytext=(0, 5),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=FONT - 0.5,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0, "alpha": 0.8},
    )


def _plain(axis: Axes) -> None:
    axis.title.set_fontsize(FONT + 1)
    axis.yaxis.label.set_fontsize(FONT)
    axis.tick_params(labelsize=FONT - 1)
    axis.spines[["top", "right"]].set_visible(False)
