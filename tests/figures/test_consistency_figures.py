"""Figures show the numbers they are given, and mark what is not converged."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from husai.consistency import ConsistencyConfig, SAERecord, consistency_report, match_features
from husai.consistency.study.tables import settings_table
from husai.figures import features, scores, trajectories
from husai.figures.style import group_order

N, D = 12, 8


@cache
def report_tables(unconverged: bool = False) -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((N, D))
    records = [
        SAERecord(
            f"{a}-{s}",
            a,
            s,
            truth + 0.3 * rng.standard_normal((N, D)),
            k=4,
            l0=4.0 + s,
            converged=not (unconverged and a == "relu"),
            firing_rate=np.r_[0.0, rng.random(N - 1)],
        )
        for a in ("relu", "topk")
        for s in range(3)
    ]
    report = consistency_report(records, ConsistencyConfig(null_draws=3), covariance=np.eye(D))
    return report.tables()


def words(figure: Figure) -> str:
    """All text of a figure, drawn first so that it is laid out."""
    figure.draw_without_rendering()
    found = [text.get_text() for text in figure.findobj(match=lambda a: hasattr(a, "get_text"))]  # type: ignore[attr-defined]
    return "\n".join(found)


def heights(figure: Figure) -> list[float]:
    return [
        float(y) for a in figure.axes for line in a.lines for y in np.atleast_1d(line.get_ydata())
    ]


def breadths(figure: Figure) -> list[float]:
    return [
        float(x) for a in figure.axes for line in a.lines for x in np.atleast_1d(line.get_xdata())
    ]


def test_scores_and_their_nulls_are_drawn_at_their_values() -> None:
    groups = report_tables()["groups"]
    figure = scores.scores_figure(groups)
    drawn = breadths(figure)
    chosen = groups.query("score == 'pw_mcc' and not signed")
    for column in ("mean", "low", "high", "isotropic_mean", "data_aware_mean"):
        for value in chosen[column].astype(float):
            assert np.isclose(drawn, value).any(), column
    text = words(figure)
    assert "PW-MCC (absolute)" in text
    assert "isotropic null" in text
    assert "†" not in text
    with pytest.raises(Exception, match="no defined"):
        scores.scores_figure(groups, score="nonsense")


def test_unconverged_is_marked_in_every_figure() -> None:
    tables = report_tables(unconverged=True)
    made = [
        scores.scores_figure(tables["groups"]),
        scores.seed_matrix_figure(tables["pairs"]),
        features.reproducibility_figure(tables["features"]),
    ]
    for figure in made:
        assert "†" in words(figure)
    hollow = [
        line for a in made[0].axes for line in a.lines if line.get_markerfacecolor() == "white"
    ]
    assert len(hollow) == 2  # the relu group in both spaces


def test_similarity_is_ordered_by_the_match() -> None:
    rng = np.random.default_rng(1)
    A = rng.standard_normal((20, 6))
    B = (A + 0.5 * rng.standard_normal((20, 6)))[rng.permutation(20)]
    match = match_features(A, B)
    figure = features.similarity_figure(A, B, match, names=("one", "two"), unconverged=True)
    lines = {str(line.get_label()): np.asarray(line.get_ydata()) for line in figure.axes[0].lines}
    np.testing.assert_allclose(lines["its partner in two"], np.sort(match.similarity)[::-1])
    unit_a, unit_b = (M / np.linalg.norm(M, axis=1, keepdims=True) for M in (A, B))
    cosine = np.abs(unit_a @ unit_b.T)
    cosine[match.a_index, match.b_index] = 0
    best = cosine.max(axis=1)[match.a_index[np.argsort(-match.similarity)]]
    np.testing.assert_allclose(lines["best other feature of two"], best)
    assert "†" in words(figure)


def test_groups_have_the_same_order_in_every_figure() -> None:
    names = ["relu d64 l1_1", "topk d256 k4", "topk d64 k4", "topk d128 k4"]
    ordered = ["topk d64 k4", "topk d128 k4", "topk d256 k4", "relu d64 l1_1"]
    table = pd.DataFrame({"group": names})
    assert group_order(table) == ordered
    known = table.assign(architecture=["relu", "topk", "topk", "topk"], d_sae=[64, 256, 64, 128])
    assert group_order(known) == ordered
    assert group_order(pd.DataFrame({"group": ["mine", "yours"]})) == ["mine", "yours"]


def test_seed_matrix_holds_each_pair_twice_and_follows_an_order() -> None:
    pairs = report_tables()["pairs"]
    orders = {"topk k4": ["topk-2", "topk-0", "topk-1"]}
    name = next(g for g in pairs["group"].unique() if g.startswith("topk"))
    figure = scores.seed_matrix_figure(pairs, orders={name: orders["topk k4"]})
    axis = next(a for a in figure.axes if a.get_title() == name)
    image = np.asarray(axis.images[0].get_array())
    value = pairs.query(
        "score == 'pw_mcc' and not signed and space == 'full'"
        " and id_a == 'topk-0' and id_b == 'topk-2'"
    )["value"].iloc[0]
    assert image[0, 1] == pytest.approx(value)
    assert image[1, 0] == pytest.approx(value)
    assert [label.get_text() for label in axis.get_xticklabels()] == ["2", "0", "1"]


def test_reproducibility_shows_every_feature_and_needs_firing_rates() -> None:
    table = report_tables()["features"]
    figure = features.reproducibility_figure(table)
    clouds = [line for a in figure.axes for line in a.lines if line.get_marker() == "."]
    assert sum(len(np.atleast_1d(line.get_xdata())) for line in clouds) == 2 * 3 * N
    with pytest.raises(Exception, match="firing_rate"):
        features.reproducibility_figure(table.drop(columns="firing_rate"))


def test_training_shows_score_nulls_and_cosine_to_init() -> None:
    curve = pd.DataFrame(
        {
            "step": [0, 100, 1000],
            "mean": [0.3, 0.5, 0.9],
            "low": [0.25, 0.45, 0.85],
            "high": [0.35, 0.55, 0.95],
            "isotropic_mean": 0.31,
            "permuted_mean": 0.6,
            "cosine_to_init": [1.0, 0.7, 0.2],
        }
    )
    curve = curve.assign(group="topk d8", architecture="topk", d_sae=8, converged=False)
    figure = trajectories.training_figure(curve)
    assert len(figure.axes) == 2
    drawn = heights(figure)
    for value in (0.9, 0.31, 0.6, 0.2):
        assert np.isclose(drawn, value).any()
    assert "† not converged" in [text.get_text() for text in figure.legends[0].get_texts()]
    head = ["group", "architecture", "d_sae", "converged"]
    none = curve[head].head(1).assign(reason="no decoders saved during training")
    assert "no decoders saved" in trajectories.training_figure(none).texts[0].get_text()


def test_a_curve_is_drawn_only_for_several_settings() -> None:
    groups = report_tables()["groups"]
    table = settings_table(groups, 4.0)
    own = (table["score"] == "pw_mcc") & ~table["signed"].astype(bool) & (table["space"] == "full")
    # one width, one k, one L0: nothing to follow
    assert "A curve needs 3" in words(scores.settings_figure(table))
    parts = [
        table[own].assign(l0=l0, mean=mean, low=mean - 0.1, high=mean + 0.1)
        for l0, mean in ((2.0, 0.31), (4.0, 0.42), (8.0, 0.53))
    ]
    alone = parts[0].iloc[[0]].assign(d_sae=99, l0=16.0, mean=0.64)
    figure = scores.settings_figure(pd.concat([*parts, alone]))
    (axis,) = figure.axes
    assert axis.get_xlabel() == "L0"
    assert axis.get_title() == f"d_sae = {N}"
    curves = [line for line in axis.lines if len(np.atleast_1d(line.get_xdata())) == 3]
    assert len(curves) == table[own]["architecture"].nunique()
    for curve in curves:
        np.testing.assert_allclose(np.asarray(curve.get_ydata(), dtype=float), [0.31, 0.42, 0.53])
    assert 0.64 not in heights(figure)
    with pytest.raises(Exception, match="no defined"):
        scores.settings_figure(table.assign(mean=np.nan))


def test_features_that_never_fire_are_in_a_labelled_column() -> None:
    table = report_tables()["features"]
    figure = features.reproducibility_figure(table)
    figure.draw_without_rendering()
    labels = [text.get_text() for text in figure.axes[-1].get_xticklabels()]
    assert labels[0] == "never"
    ticks = figure.axes[-1].get_xticks()
    points = np.asarray(figure.axes[0].lines[0].get_xdata(), dtype=float)
    silent = table.query("space == 'full' and firing_rate == 0 and group == @table.group.iloc[0]")
    assert (points == ticks[0]).sum() == len(silent) > 0
    firing = features.reproducibility_figure(table.assign(firing_rate=0.5))
    assert "never" not in words(firing)
