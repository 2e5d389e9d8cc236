"""Figures of the transformer show the data they are given."""

import io
from typing import Any

import numpy as np
import pandas as pd
import pytest

from husai.errors import InputError
from husai.figures.transformer import progress_figure
from husai.transformer.measures import MEASURES
from husai.transformer.training import HISTORY_COLUMNS


def history() -> Any:
    epochs = np.arange(0, 100, 10)
    table = pd.DataFrame({name: np.linspace(1.0, 0.1, 10) for name in HISTORY_COLUMNS})
    table["epoch"] = epochs
    table["train_accuracy"] = (epochs >= 20) * 1.0
    table["test_accuracy"] = (epochs >= 70) * 1.0
    return table


def measures() -> Any:
    table = pd.DataFrame({name: np.linspace(0.1, 0.9, 4) for name in MEASURES})
    table["epoch"] = [0, 30, 60, 90]
    return table


def png(figure: Any) -> Any:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=50)
    return file.getvalue()


def drawn(figure: Any) -> Any:
    """The data of every labelled line, by label."""
    return {
        line.get_label(): line.get_xydata()
        for axis in figure.axes
        for line in axis.lines
        if not line.get_label().startswith("_")
    }


def test_progress_figure_draws_the_data_and_the_delay() -> None:
    figure = progress_figure(history(), measures())
    lines = drawn(figure)
    np.testing.assert_allclose(lines["logits"], measures()[["epoch", "logits_explained"]])
    np.testing.assert_allclose(lines["$W_E$"], measures()[["epoch", "gini_W_E"]])
    labels = list(drawn(figure))
    assert sum(label.startswith(("restricted", "trig", "excluded")) for label in labels) == 3
    texts = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert any("50 epochs (3.5×)" in text for text in texts)
    for axis in figure.axes:
        data = [np.asarray(line.get_xdata(), dtype=float) for line in axis.lines]
        marked = {x[0] for x in data if len(x) == 2}
        assert {20.0, 70.0} <= marked
    assert png(figure).startswith(b"\x89PNG")


def test_progress_figure_of_a_run_that_did_not_grok() -> None:
    curves = history().assign(test_accuracy=0.1, val_loss=np.nan, val_accuracy=np.nan)
    table = measures()
    table[[c for c in MEASURES if "loss" in c or "explained" in c]] = np.nan
    figure = progress_figure(curves, table)
    texts = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert not any("delay" in text for text in texts)
    assert sum("has not grokked" in text for text in texts) == 2
    assert "val" not in drawn(figure)
    assert png(figure)


def test_progress_figure_needs_rows() -> None:
    with pytest.raises(InputError, match="at least one row"):
        progress_figure(history().iloc[:0], measures())
