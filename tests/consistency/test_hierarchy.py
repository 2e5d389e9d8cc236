"""Seeds within transformers: planted variances, coverage of intervals, and undefined results."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy import stats

from husai.consistency.inference.hierarchy import (
    Hierarchy,
    association,
    hierarchy_table,
    score_hierarchy,
    value_hierarchy,
)
from husai.consistency.inference.planning import VarianceComponents
from husai.errors import InputError

Floats = NDArray[np.float64]
MEAN, BETWEEN, SEED, PAIR = 0.8, 0.05, 0.03, 0.02


def planted_pairs(rng: np.random.Generator, n: int = 8, seeds: int = 6) -> list[Floats]:
    levels = MEAN + BETWEEN * rng.standard_normal(n)
    return [
        np.asarray(VarianceComponents(level, SEED, PAIR, 0).simulate(seeds, rng))
        for level in levels
    ]


def planted_values(rng: np.random.Generator, n: int = 8, seeds: int = 6) -> list[Floats]:
    levels = MEAN + BETWEEN * rng.standard_normal(n)
    return [level + SEED * rng.standard_normal(seeds) for level in levels]


@pytest.mark.parametrize(
    ("plant", "analyse"), [(planted_pairs, score_hierarchy), (planted_values, value_hierarchy)]
)
def test_variances_are_unbiased_and_intervals_cover(
    plant: Callable[..., list[Floats]], analyse: Callable[..., Hierarchy]
) -> None:
    rng = np.random.default_rng(0)
    found: list[Hierarchy] = [analyse(plant(rng)) for _ in range(200)]
    assert np.mean([one.between_sd**2 for one in found if one.between_sd is not None]) == (
        pytest.approx(BETWEEN**2, rel=0.15)
    )
    assert np.mean([one.seed_sd**2 for one in found if one.seed_sd is not None]) == (
        pytest.approx(SEED**2, rel=0.1)
    )
    covered = [
        one.low <= MEAN <= one.high for one in found if one.low is not None and one.high is not None
    ]
    assert len(covered) == 200
    assert 0.9 < np.mean(covered) < 0.995
    # another transformer, measured with as many seeds, falls where it is said to
    fresh = [
        np.mean(
            plant(rng, n=1)[0][np.triu_indices(6, 1)]
            if plant is planted_pairs
            else plant(rng, n=1)[0]
        )
        for _ in range(200)
    ]
    inside = [
        one.new_low <= value <= one.new_high
        for one, value in zip(found, fresh, strict=True)
        if one.new_low is not None and one.new_high is not None
    ]
    assert 0.9 < np.mean(inside) < 0.995


def test_pair_noise_is_separated_from_seed_effects() -> None:
    rng = np.random.default_rng(1)
    found = [score_hierarchy(planted_pairs(rng)) for _ in range(100)]
    assert np.mean([one.pair_sd**2 for one in found if one.pair_sd is not None]) == (
        pytest.approx(PAIR**2, rel=0.1)
    )
    share = BETWEEN**2 / (BETWEEN**2 + 2 * SEED**2 + PAIR**2)
    shares = [one.between_share for one in found if one.between_share is not None]
    # a ratio of estimates from eight transformers is somewhat low
    assert np.mean(shares) == pytest.approx(share, abs=0.1)


def test_transformers_that_differ_only_by_sae_seeds_show_no_difference() -> None:
    rng = np.random.default_rng(2)
    world = VarianceComponents(MEAN, SEED, PAIR, 0)
    found = [score_hierarchy([world.simulate(6, rng) for _ in range(8)]) for _ in range(100)]
    shares = [one.between_share for one in found if one.between_share is not None]
    assert np.median(shares) < 0.1


def test_undefined_results_give_a_reason() -> None:
    one = score_hierarchy([np.full((5, 5), 0.7)])
    assert (one.mean, one.low, one.between_sd) == (0.7, None, None)
    assert "one transformer" in one.reason
    few = score_hierarchy([np.full((3, 3), 0.7), np.full((3, 3), 0.9)])
    assert few.mean == pytest.approx(0.8)
    assert few.low is not None
    assert few.seed_sd is few.between_sd is None
    assert "four seeds" in few.reason
    alone = value_hierarchy([[1.0], [2.0]])
    assert alone.between_sd is None
    assert "one SAE" in alone.reason
    assert value_hierarchy([[110.0, 113.0], [113.0, 112.0]], bounds=(0, 113)).new_high == 113
    for wrong in ([], [np.eye(1)]):
        with pytest.raises(InputError):
            score_hierarchy(wrong)
    bad: Any
    for bad in ([], [[]], [[np.nan]]):
        with pytest.raises(InputError):
            value_hierarchy(bad)


def test_association_is_spearmans_with_an_exact_permutation_test() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal(6), rng.standard_normal(6)
    got = association(x, y)
    assert got.rho is not None
    assert got.rho == pytest.approx(float(stats.spearmanr(x, y).statistic))
    every = [abs(float(stats.spearmanr(x, order).statistic)) for order in permutations(y)]
    assert got.p_value == pytest.approx(np.mean(np.array(every) >= abs(got.rho) - 1e-9))
    assert association(np.arange(6), np.arange(6)).p_value == pytest.approx(2 / 720)
    # drawn orders where all would be too many
    drawn = association(np.arange(12), np.arange(12), n_permutations=999)
    assert drawn.p_value == pytest.approx(1 / 1000)
    assert association([1, 2, 3], [5, 5, 5]).reason.endswith("does not vary over the transformers")
    assert association([1, 2], [1, 2]).rho is None
    with pytest.raises(InputError):
        association([1, 2], [1])


def test_false_positives_of_the_association_are_as_rare_as_the_level() -> None:
    rng = np.random.default_rng(4)
    p = [association(*rng.standard_normal((2, 6))).p_value for _ in range(300)]
    assert np.mean([value <= 0.05 for value in p if value is not None]) < 0.08


def test_each_part_of_a_table_is_analysed_by_itself() -> None:
    table = pd.DataFrame(
        {
            "group": ["a", "a", "a", "a", "b", "b", "b", "b"],
            "transformer": ["t0", "t0", "t1", "t1"] * 2,
            "answers": [1.0, 3.0, 5.0, 7.0, 2.0, 2.0, 2.0, 2.0],
        }
    )
    found = hierarchy_table(
        table, ["group"], value_hierarchy, lambda own: own["answers"].to_numpy(dtype=np.float64)
    ).set_index("group")
    assert found["mean"].to_dict() == {"a": 4.0, "b": 2.0}
    assert found["between_sd"]["b"] == 0.0
    assert found["between_sd"]["a"] == pytest.approx(np.sqrt(8 - 1))
