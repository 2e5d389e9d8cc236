"""The probability that a new seed has a feature, on features whose probability is planted."""

from __future__ import annotations

import numpy as np
import pytest

from husai.errors import InputError
from husai.features import feature_cards
from husai.features.returning import (
    fit_return,
    left_out_calibration,
    new_seed_calibration,
    reliability,
    return_probabilities,
)
from husai.figures.consensus import calibration_figure
from husai.figures.features import reliability_figure


def similarities(chance, n_seeds, rng):
    """Each other seed has feature i with probability i; there its |cosine| is near .9, else .5."""
    there = rng.random((len(chance), n_seeds - 1)) < chance[:, None]
    noise = 0.05 * rng.standard_normal(there.shape)
    return np.clip(np.where(there, 0.9, 0.5) + noise, 0, 1)


def test_probabilities_are_calibrated_on_new_seeds():
    rng = np.random.default_rng(0)
    # three populations: nearly always, now and then, hardly ever
    chance = rng.choice([0.97, 0.5, 0.05], 400)
    known = [similarities(chance, 6, rng) for _ in range(6)]
    model = fit_return(known, 0.7)
    predicted = np.concatenate([model.probability(s) for s in known])
    new = rng.random((6 * 400, 50)) < np.tile(chance, 6)[:, None]
    table = reliability(np.repeat(predicted, 50), new.ravel())
    assert (table["predicted"] - table["happened"]).abs().max() < 0.1
    weight = table["n"] / table["n"].sum()
    assert (weight * (table["predicted"] - table["happened"]).abs()).sum() < 0.03
    # the least possible error is that of who knows each feature's chance
    least = float(np.mean(chance * (1 - chance)))
    assert least < table["brier"][0] < least + 0.03 < table["brier_of_base_rate"][0]


def test_new_seeds_are_those_that_were_not_learned_from():
    """Eight seeds of one world; the model knows four of them."""
    rng = np.random.default_rng(4)
    chance = rng.choice([0.97, 0.5, 0.05], 300)
    similarity = [similarities(chance, 8, rng) for _ in range(8)]
    table = new_seed_calibration(similarity, 4, (0.7, 0.95))
    main = table[table["threshold"] == 0.7]
    assert main["n"].sum() == 4 * 4 * 300
    weight = main["n"] / main["n"].sum()
    assert (weight * (main["predicted"] - main["happened"]).abs()).sum() < 0.04
    least = float(np.mean(chance * (1 - chance)))
    first = main.iloc[0]
    assert least - 0.01 < first["brier_low"] < first["brier"] < first["brier_high"]
    assert first["brier"] < 0.6 * first["brier_of_base_rate"]
    axis = calibration_figure(table).axes[0]
    assert len(axis.collections) == 2
    for known in (2, 7):
        with pytest.raises(InputError, match="known"):
            new_seed_calibration(similarity, known, (0.7,))


def test_features_of_one_kind_get_the_base_rate():
    rng = np.random.default_rng(1)
    known = [similarities(np.full(300, 0.6), 8, rng) for _ in range(8)]
    predicted = np.concatenate([fit_return(known, 0.7).probability(s) for s in known])
    assert predicted.mean() == pytest.approx(0.6, abs=0.03)
    assert predicted.std() < 0.08


@pytest.mark.parametrize(("chance", "expected"), [(1.0, 1.0), (0.0, 0.0)])
def test_outcomes_that_always_or_never_happen_are_predicted(chance, expected):
    rng = np.random.default_rng(2)
    known = [similarities(np.full(100, chance), 4, rng) for _ in range(4)]
    assert fit_return(known, 0.7).probability(known[0]) == pytest.approx(expected, abs=0.02)


def test_the_column_of_the_seed_that_is_left_out_is_the_right_one():
    """Seed 2 alone lacks the features: only predictions of seed 2 fail."""
    n, rng = 50, np.random.default_rng(3)
    known = []
    for s in range(5):
        own = 0.9 + 0.02 * rng.standard_normal((n, 4))
        others = [t for t in range(5) if t != s]
        if 2 in others:
            own[:, others.index(2)] = 0.3
        else:
            own[:] = 0.3
        known.append(np.clip(own, 0, 1))
    table = left_out_calibration(known, 0.7)
    # 20 ordered pairs of seeds, of which 8 have seed 2 in them
    happened = (table["happened"] * table["n"]).sum() / table["n"].sum()
    assert happened == pytest.approx(12 / 20)
    assert table["n"].sum() == 20 * n


def test_planted_features_have_high_return_probability_and_others_low(planted):
    cards = feature_cards(planted.group)
    features, calibration = return_probabilities(cards)
    truth = {one.record.id: planted.truth[s] for s, one in enumerate(planted.group.live)}
    is_shared = np.array([truth[i][j] >= 0 for i, j in features[["id", "latent"]].to_numpy()])
    assert features.loc[is_shared, "probability"].min() > 0.9
    assert features.loc[~is_shared, "probability"].mean() < 0.4
    curve = features[[f"probability_{t}" for t in (0.5, 0.6, 0.7, 0.8, 0.9)]].to_numpy()
    assert (np.diff(curve, axis=1) <= 1e-12).all()
    assert calibration.empty  # three SAEs leave two, from which nothing is learned
    with pytest.raises(InputError, match="at least three"):
        fit_return([np.ones((3, 1))], 0.7)
    with pytest.raises(InputError):
        reliability([1.2], [True])


def test_the_diagram_shows_every_bin_or_says_that_there_is_none():
    table = reliability([0.05, 0.95, 0.9], [False, True, False])
    (axis,) = reliability_figure(table).axes
    (dots,) = axis.collections
    assert np.allclose(dots.get_offsets(), table[["predicted", "happened"]])
    assert f"{table['brier'][0]:.3f}" in axis.get_title()
    with pytest.raises(InputError, match="four SAEs"):
        reliability_figure(table.head(0))
