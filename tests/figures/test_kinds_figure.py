"""The main picture shows two populations of features, and the band of their null behind them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from husai.errors import InputError
from husai.figures.kinds import kinds_figure

HEAD = {"group": "topk d8 k2", "architecture": "topk", "d_sae": 8, "converged": False}


def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    features = pd.DataFrame(
        {
            "group": "topk d8 k2",
            "space": ["full"] * 5 + ["data"],
            "kind": ["answer", "answer", "other", "other", "operand", "answer"],
            "reproducibility": [0.98, 0.96, 0.7, 0.6, 0.65, 0.1],
        }
    )
    kinds = pd.DataFrame(
        [
            {**HEAD, "kind": kind, "n_features": n, "found_everywhere": found}
            | {"reproducibility": mean, "null_q05": 0.3, "null_q95": 0.55}
            for kind, n, found, mean in (
                ("answer", 2, 1.0, 0.97),
                ("operand", 1, 0.0, 0.65),
                ("other", 2, 0.0, 0.65),
            )
        ]
    )
    return features, kinds


def test_two_populations_their_means_and_the_band() -> None:
    figure = kinds_figure(*tables())
    figure.draw_without_rendering()
    (axis,) = figure.axes
    blue, orange = (line for line in axis.lines if line.get_marker() == ".")
    np.testing.assert_allclose(np.sort(np.asarray(blue.get_ydata(), float)), [0.96, 0.98])
    np.testing.assert_allclose(np.sort(np.asarray(orange.get_ydata(), float)), [0.6, 0.65, 0.7])
    assert [text.get_text() for text in axis.texts] == ["0.97", "0.65"]
    band = axis.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (0.3, 0.55)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[:2] == ["features that stand for one answer", "all other features"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["topk\nd8 k2 †\n40% answers"]


def test_without_a_label_that_explains_a_feature_nothing_is_drawn() -> None:
    features, kinds = tables()
    with pytest.raises(InputError, match="no label explains"):
        kinds_figure(features, kinds[kinds["kind"] == "other"])
