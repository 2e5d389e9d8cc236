"""Figures of geometry show what the measures say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.patches import StepPatch

from husai.consistency import (
    ConsistencyConfig,
    SAERecord,
    plane_recovery,
    sparsity_pattern,
)
from husai.consistency.study.geometry import symmetry_table
from husai.errors import InputError
from husai.figures import geometry as figures


def test_circles_show_each_feature_at_its_angle() -> None:
    planes = np.eye(4).reshape(2, 2, 4)
    angles = np.array([0.2, 2.0, 4.5])
    circle = np.outer(np.cos(angles), planes[0, 0]) + np.outer(np.sin(angles), planes[0, 1])
    stray = np.array([[1.0, 0.0, 1.1, 0.0]])
    got = plane_recovery(np.r_[circle, stray], planes)
    figure = figures.circle_figure(
        {"a": got, "b": got}, plane_names=["k = 1", "k = 2"], unconverged=["b"]
    )
    # no feature lies in the second plane: it is counted, not drawn
    assert len(figure.axes) == 2
    assert figure.get_suptitle() == "2 of 2 SAEs have features in 1 of 2 planes"
    points = next(line for line in figure.axes[0].lines if line.get_marker() == "o")
    np.testing.assert_allclose(np.asarray(points.get_xdata(), dtype=float), np.cos(angles))
    assert "3 in plane" in figure.axes[0].get_xlabel()
    assert figure.axes[1].get_ylabel() == "b †"
    near = plane_recovery(np.r_[circle, [[1.0, 0.0, 0.9, 0.0]]], planes)
    with_stray = figures.circle_figure({"a": near})
    crosses = next(line for line in with_stray.axes[0].lines if line.get_marker() == "x")
    assert len(np.atleast_1d(crosses.get_xdata())) == 1
    nothing = figures.circle_figure({"a": plane_recovery(stray, planes)})
    assert "No feature" in nothing.texts[0].get_text()
    with pytest.raises(InputError, match="planes"):
        figures.circle_figure({"a": got, "b": plane_recovery(circle, planes[:1])})


def test_shares_of_activations_add_up_and_dead_latents_are_counted() -> None:
    rng = np.random.default_rng(0)
    codes = rng.random((200, 10)) * (rng.random((200, 10)) < 0.3)
    codes[:, 3] = 0.0
    figure = figures.activation_figure({"one": sparsity_pattern(codes)})
    figure.draw_without_rendering()
    assert figure.legends[0].get_texts()[0].get_text() == "one (1 dead)"
    l0 = figure.axes[2].lines[0]
    assert np.asarray(l0.get_ydata(), dtype=float).sum() == pytest.approx(1.0)


def test_geometry_names_the_dimension() -> None:
    circle = np.stack([np.cos(np.arange(9)), np.sin(np.arange(9)), np.zeros(9)], axis=1)
    figure = figures.geometry_figure({"flat": (circle, np.full(9, 0.72))})
    figure.draw_without_rendering()
    (aligned,) = figure.axes[2].patches
    assert isinstance(aligned, StepPatch)
    values, edges, _ = aligned.get_data()
    assert edges[int(np.argmax(values))] == pytest.approx(0.7)
    assert max(values) == 1.0
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[0] == "flat (2.0)"
    assert labels[1].startswith("random directions")


def test_symmetries_are_drawn_beside_their_null() -> None:
    p = 7
    a, b = np.divmod(np.arange(p * p), p)
    codes = np.stack([np.maximum(np.cos(2 * np.pi * (a + b + j) / p), 0) for j in range(p)], axis=1)
    records = [
        SAERecord(f"s{seed}", "topk", seed, np.eye(p), codes=codes, group="one", converged=False)
        for seed in range(2)
    ]
    table = symmetry_table({"one": records}, p, ConsistencyConfig(symmetry_draws=2))
    figure = figures.symmetry_figure(table)
    figure.draw_without_rendering()
    itself, other = figure.axes
    assert [t.get_text() for t in itself.get_yticklabels()][-1] == "swap"
    for axis, kind in ((itself, "itself"), (other, "other seed")):
        expected = table.loc[table["kind_of_pair"] == kind, "score"]
        drawn = [np.asarray(line.get_xdata(), dtype=float) for line in axis.lines]
        assert any(len(x) == len(expected) and np.allclose(x, expected) for x in drawn)
    assert any("†" in text.get_text() for text in figure.legends[0].get_texts())
    dead = [replace(record, codes=np.zeros((p * p, p))) for record in records]
    nothing = symmetry_table({"one": dead}, p, ConsistencyConfig(symmetry_draws=2))
    assert figures.symmetry_figure(nothing).texts[0].get_text()
