"""Architectures at one L0, FVU or number of live latents: exact curves, and coverage over seeds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from husai.consistency.analyses.matched import AXES, Curve, alike, matched
from husai.consistency.inference.intervals import seed_interval
from husai.errors import InputError


def curve(
    level: float, l0: list[float], n_seeds: int = 5, noise: float = 0.0, seed: int = 0
) -> Curve:
    """Score ``level + .1 log(L0)`` plus an effect of each seed, the same at every setting."""
    rng = np.random.default_rng(seed)
    a = noise * rng.standard_normal(n_seeds)
    base = level + 0.1 * np.log(l0)
    scores = base[:, None, None] + a[:, None] + a[None, :]
    values = np.repeat(np.array(l0)[:, None], n_seeds, axis=1)
    return Curve(scores, {"l0": values, "fvu": 1 / values, "n_live": np.sqrt(values) * 10})


def test_scores_are_interpolated_and_never_extrapolated() -> None:
    curves = {"topk": curve(0.3, [2, 8, 32]), "relu": curve(0.2, [4, 16, 64])}
    points, contrasts = matched(curves, "l0", n_points=4)
    assert points["at"].min() == pytest.approx(4.0)
    assert points["at"].max() == pytest.approx(32.0)
    for name, level in (("topk", 0.3), ("relu", 0.2)):
        part = points[points["architecture"] == name]
        np.testing.assert_allclose(part["mean"], level + 0.1 * np.log(part["at"]))
        np.testing.assert_allclose(part["l0"], part["at"])
        np.testing.assert_allclose(part["fvu"], 1 / part["at"])
    np.testing.assert_allclose(contrasts["difference"], 0.1)
    # the other axes tell the same story here, at their own values
    for on in AXES:
        np.testing.assert_allclose(matched(curves, on)[1]["difference"], 0.1)


def test_a_seed_is_left_out_of_all_settings_at_once() -> None:
    """Between two settings with the same seed effects the interval is that of the effects."""
    one = curve(0.5, [4, 16], noise=0.05, seed=3)
    points, contrasts = matched({"a": one, "b": curve(0.4, [4, 16], noise=0.05, seed=3)}, "l0")
    middle = points[points["architecture"] == "a"].iloc[2]
    expected = seed_interval(one.scores[0] + 0.1 * np.log(2))
    assert middle["at"] == pytest.approx(8.0)
    assert middle["mean"] == pytest.approx(expected.mean)
    assert middle["low"] == pytest.approx(expected.low)
    assert middle["high"] == pytest.approx(expected.high)
    # the same seeds in both: their effects cancel
    np.testing.assert_allclose(contrasts["low"], 0.1, atol=1e-9)


@pytest.mark.parametrize("other", [6, 8])
def test_the_interval_of_a_difference_covers_the_truth(other: int) -> None:
    covered = []
    for draw in range(300):
        curves = {
            "a": curve(0.5, [4, 16], 6, noise=0.03, seed=2 * draw),
            "b": curve(0.4, [4, 16], other, noise=0.03, seed=2 * draw + 1),
        }
        row = matched(curves, "l0", n_points=3)[1].iloc[1]
        covered.append(row["low"] <= 0.1 <= row["high"])
    assert 0.91 < np.mean(covered) < 0.99


def test_settings_that_cannot_be_matched_give_a_reason() -> None:
    points, contrasts = matched({"a": curve(0.3, [2, 4]), "b": curve(0.3, [8, 16])}, "l0")
    assert points["reason"].str.contains("no l0 in common: a 2 to 4; b 8 to 16").all()
    assert contrasts.empty
    points, _ = matched({"a": curve(0.3, [2, 4]), "b": curve(0.3, [3])}, "l0")
    assert points.set_index("architecture")["reason"]["b"].startswith("fewer than two settings")
    pair = {name: curve(0.3, [2, 4], n_seeds=2) for name in "ab"}
    points, contrasts = matched(pair, "l0")
    assert points["mean"].notna().all()
    assert points["reason"].str.contains("two seeds").all()
    assert contrasts.empty
    with pytest.raises(InputError, match="axis"):
        matched(pair, "width")
    with pytest.raises(InputError, match="none given"):
        matched({}, "l0")
    with pytest.raises(InputError, match="not positive"):
        Curve(np.zeros((1, 2, 2)), {"l0": np.array([[1.0, 0.0]])})


def test_settings_similar_in_every_measure_are_found() -> None:
    settings = pd.DataFrame(
        {
            "architecture": ["topk", "relu", "relu"],
            "group": ["t", "near", "far"],
            "l0": [4.0, 4.2, 4.0],
            "fvu": [0.10, 0.11, 0.10],
            "n_live": [100, 104, 60],
        }
    )
    found = alike(settings)
    assert found[["group_a", "group_b"]].to_numpy().tolist() == [["t", "near"]]
    assert found["apart"][0] == pytest.approx(0.01 / 0.11)
    assert len(alike(settings, axes=("l0", "fvu"))) == 2
    with pytest.raises(InputError, match="missing"):
        alike(settings.drop(columns="fvu"))
