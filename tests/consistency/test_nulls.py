"""Nulls against the published table and exact expectations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import integrate, optimize, stats

from husai.consistency import (
    SCORES,
    ComparisonConfig,
    Side,
    dictionary_pair,
    match_features,
    null_scores,
    pw_mcc,
)
from husai.consistency.inference import null_cache
from husai.consistency.inference.nulls import (
    NULL_KINDS,
    NullDistribution,
    NullKind,
    NullSource,
    draw_nulls,
    random_dictionary,
)
from husai.consistency.scores.subspace import covariance_root
from husai.errors import InputError
from husai.matching.match import unit_rows

# d, n, MMCS signed and absolute, matched signed and absolute: random unit Gaussian dictionaries
TABLE = [
    (128, 512, 0.265, 0.283, 0.253, 0.273),
    (128, 1024, 0.283, 0.300, 0.273, 0.290),
]
# Sizes at which one pair scatters by .02 to .04: these published entries are single draws.
SMALL = [(8, 16, 0.606, 0.731, 0.460, 0.665), (16, 32, 0.503, 0.563, 0.460, 0.536)]


def expected_maximum(n: int, d: int, signed: bool) -> float:
    """Mean of the largest of n cosines to random directions, by quadrature of ``1 - F^n``.

    The squared cosine of two random directions is Beta(1/2, (d-1)/2).
    """

    def cdf(x: float) -> float:
        inside = stats.beta.cdf(x * x, 0.5, (d - 1) / 2)
        return float(0.5 * (1 + np.sign(x) * inside) if signed else inside)

    value, _ = integrate.quad(lambda x: 1 - cdf(x) ** n, 0, 1, limit=200)
    if signed:
        value -= integrate.quad(lambda x: cdf(x) ** n, -1, 0, limit=200)[0]
    return float(value)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"d{row[0]}-n{row[1]}")
def test_isotropic_null_reproduces_the_table(row: tuple[float, ...], signed: bool) -> None:
    d, n = int(row[0]), int(row[1])
    expected = row[2::2] if signed else row[3::2]
    null = null_scores(n, n, d, signed=signed, n_draws=3, seed=1)
    assert null["mmcs"].mean == pytest.approx(expected[0], abs=0.002)
    assert null["pw_mcc"].mean == pytest.approx(expected[1], abs=0.002)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("row", SMALL, ids=lambda row: f"d{row[0]}-n{row[1]}")
def test_small_nulls_are_exact_on_average_with_the_stated_spread(
    row: tuple[float, ...], signed: bool
) -> None:
    d, n = int(row[0]), int(row[1])
    null = null_scores(n, n, d, signed=signed, n_draws=500, seed=2)
    assert null["mmcs"].mean == pytest.approx(expected_maximum(n, d, signed), abs=0.005)
    expected = row[2::2] if signed else row[3::2]
    for name, value in zip(("mmcs", "pw_mcc"), expected, strict=True):
        assert abs(null[name].values - value).min() < 0.01  # a draw like the printed one occurs
        assert abs(null[name].z(value) or 0.0) < 2.5


def test_one_dimension_is_always_identical() -> None:
    null = null_scores(3, 3, 1, n_draws=2)
    np.testing.assert_allclose(null["pw_mcc"].values, 1.0)
    with pytest.raises(InputError, match="perfect"):
        null["pw_mcc"].corrected(1.0)


def test_data_aware_null_equals_the_isotropic_null_of_the_space_of_the_data() -> None:
    # a covariance that is flat on 6 of 40 dimensions: chance is that of 6 dimensions
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.standard_normal((40, 6)))
    aware = null_scores(
        12, 12, 40, kind="data_aware", covariance=basis @ basis.T, n_draws=300, seed=3
    )
    flat = null_scores(12, 12, 6, n_draws=300, seed=4)
    wide = null_scores(12, 12, 40, n_draws=20, seed=4)
    assert aware["pw_mcc"].mean == pytest.approx(flat["pw_mcc"].mean, abs=0.008)
    assert aware["pw_mcc"].mean > wide["pw_mcc"].mean + 0.2


def test_random_dictionary_has_the_given_covariance() -> None:
    rng = np.random.default_rng(5)
    factor = rng.standard_normal((5, 3))
    covariance = factor @ factor.T
    root = covariance_root(covariance)
    assert root.shape == (3, 5)
    np.testing.assert_allclose(root.T @ root, covariance, atol=1e-10)
    rows = random_dictionary(2000, 5, rng, root)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0)
    assert np.linalg.matrix_rank(rows, tol=1e-8) == 3


def test_workers_and_order_do_not_change_the_null() -> None:
    one = null_scores(10, 8, 5, n_draws=6, seed=7)
    two = null_scores(10, 8, 5, n_draws=6, seed=7, workers=3)
    np.testing.assert_array_equal(one["pw_mcc"].values, two["pw_mcc"].values)
    more = null_scores(10, 8, 5, n_draws=9, seed=7)
    np.testing.assert_array_equal(more["pw_mcc"].values[:6], one["pw_mcc"].values)


def test_p_value_counts_the_draws_and_is_uniform_under_the_null() -> None:
    null = NullDistribution("isotropic", "pw_mcc", False, np.array([0.1, 0.2, 0.3, 0.4]))
    assert null.p_value(0.5) == pytest.approx(1 / 5)
    assert null.p_value(0.25) == pytest.approx(3 / 5)
    assert null.p_value(0.0) == 1.0
    assert null.corrected(1.0) == 1.0
    assert null.corrected(null.mean) == 0.0
    distance = NullDistribution("isotropic", "l2", False, np.array([1.0, 1.2]), perfect=0.0)
    assert distance.p_value(0.5) == pytest.approx(1 / 3)
    assert distance.corrected(0.0) == 1.0
    draws = null_scores(6, 6, 4, n_draws=400, seed=8)["pw_mcc"].values
    reference = NullDistribution("isotropic", "pw_mcc", False, draws[:199])
    p = np.array([reference.p_value(float(v)) for v in draws[199:]], dtype=float)
    assert stats.kstest(p, "uniform").pvalue > 1e-3


def test_bad_nulls_are_errors() -> None:
    with pytest.raises(InputError, match="covariance"):
        null_scores(3, 3, 2, kind="data_aware")
    with pytest.raises(InputError, match="dimensions"):
        null_scores(3, 3, 2, kind="data_aware", covariance=np.eye(3))
    with pytest.raises(InputError, match="all zero"):
        covariance_root(np.zeros((2, 2)))
    with pytest.raises(InputError, match="negative"):
        covariance_root(np.diag([1.0, -1.0]))
    with pytest.raises(InputError, match="not a null"):
        null_scores(3, 3, 2, kind="gaussian")
    with pytest.raises(InputError, match="not known"):
        null_scores(3, 3, 2, scores=["mcc"])


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("signed", [True, False])
def test_the_null_of_the_shared_fraction_is_computed_at_the_threshold_in_use(
    threshold: float, signed: bool
) -> None:
    """By brute force: random decoders and encoders that name one partner, both at the threshold."""
    n, d, draws = 12, 4, 8
    scores = ("matched_fraction", "shared_fraction")
    null = null_scores(
        n, n, d, scores=scores, signed=signed, n_draws=draws, seed=3, threshold=threshold
    )
    joint, alone = [], []
    for t in range(draws):
        rng = np.random.default_rng([3, t])
        streams = rng.spawn(2)
        decoders = [random_dictionary(n, d, rng) for _ in range(2)]
        encoders = [random_dictionary(n, d, stream) for stream in streams]
        partners = []
        for A, B in (decoders, encoders):
            C = A @ B.T if signed else np.abs(A @ B.T)
            rows, columns = optimize.linear_sum_assignment(C, maximize=True)
            partners.append(
                {(i, j) for i, j in zip(rows, columns, strict=True) if C[i, j] >= threshold}
            )
        alone.append(len(partners[0]) / n)
        joint.append(len(partners[0] & partners[1]) / n)
    np.testing.assert_allclose(null["matched_fraction"].values, alone)
    np.testing.assert_allclose(null["shared_fraction"].values, joint)
    assert null["shared_fraction"].mean <= null["matched_fraction"].mean
    if threshold == 0.3:
        assert null["shared_fraction"].mean > 0


def test_a_fraction_and_its_null_follow_the_threshold() -> None:
    rng = np.random.default_rng(0)
    A, B = rng.standard_normal((20, 6)), rng.standard_normal((20, 6))
    match = match_features(A, B)
    for threshold in (0.2, 0.6, 0.95):
        pair = dictionary_pair(A, B, config=ComparisonConfig(shared_threshold=threshold))
        expected = (match.similarity >= threshold).mean()
        assert SCORES["matched_fraction"].of(pair, False).value == pytest.approx(expected)
    chance = [
        null_scores(20, 20, 6, scores=["matched_fraction"], n_draws=4, threshold=threshold)
        for threshold in (0.2, 0.6, 0.95)
    ]
    means = [one["matched_fraction"].mean for one in chance]
    assert means[0] == 1.0
    assert means[0] > means[1] > means[2]


def test_nulls_are_drawn_once_per_shape(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[str] = []
    real = draw_nulls

    def counted(kind: NullKind, *arguments: Any, **options: Any) -> Any:
        drawn.append(kind.name)
        return real(kind, *arguments, **options)

    monkeypatch.setattr(null_cache, "draw_nulls", counted)
    cache = null_cache.NullCache(ComparisonConfig(null_draws=3), np.diag([1.0, 2, 3, 4]))
    rows = np.eye(4)[[0, 1, 2]]
    side, other = Side(rows, rows), Side(rows[::-1], rows)
    first, second = cache.pair(side, other), cache.pair(other, side)
    assert drawn == ["isotropic", "data_aware", "permuted"]
    assert first["pw_mcc", True]["isotropic"] is second["pw_mcc", True]["isotropic"]
    assert set(first["pw_mcc", True]) == {"isotropic", "data_aware", "permuted"}
    # the covariance of the data says nothing about which directions are read
    assert set(first["pw_mcc_encoder", True]) == {"isotropic", "permuted"}
    assert ("shared_fraction", True) not in cache.pair(Side(rows), Side(rows))


def test_random_encoders_are_compared_in_the_metric_of_the_encoders() -> None:
    """Data of two dimensions in twelve: in their metric random read-outs lie in a plane."""
    covariance = np.diag([1.0, 1.0, *[0.0] * 10])
    rows = unit_rows(np.random.default_rng(0).standard_normal((8, 12)))
    sides = Side(rows, rows), Side(rows, rows)
    chance = {}
    for metric in ("data", "raw"):
        config = ComparisonConfig(null_draws=20, encoder_metric=metric)
        found = null_cache.NullCache(config, covariance).pair(*sides)
        chance[metric] = found["pw_mcc_encoder", False]["isotropic"].mean
    plane = null_scores(8, 8, 2, scores=("pw_mcc",), n_draws=40)["pw_mcc"].mean
    full = null_scores(8, 8, 12, scores=("pw_mcc",), n_draws=40)["pw_mcc"].mean
    assert chance["data"] == pytest.approx(plane, abs=0.03)
    assert chance["raw"] == pytest.approx(full, abs=0.03)


def test_the_permuted_null_permutes_encoders_and_decoders_of_all_seeds_together() -> None:
    rng = np.random.default_rng(3)
    seeds = [unit_rows(rng.standard_normal((40, 12))) for _ in range(3)]
    sides = [Side(rows, rows) for rows in seeds]
    cache = null_cache.NullCache(ComparisonConfig(null_draws=20, shared_threshold=0.5))
    found = cache.pair(sides[0], sides[1], group="a", own=sides)
    assert len(found["pw_mcc", False]["isotropic"].values) == 20
    assert len(found["pw_mcc", False]["permuted"].values) == 100  # claims rest on it
    independent = np.mean([pw_mcc(seeds[i], seeds[j]) for i, j in ((0, 1), (0, 2), (1, 2))])
    assert found["pw_mcc", False]["permuted"].mean == pytest.approx(independent, abs=0.03)
    # encoders equal to their decoders stay so: both name the same partner whenever one does
    np.testing.assert_allclose(
        found["shared_fraction", True]["permuted"].values,
        found["matched_fraction", True]["permuted"].values,
    )
    other = cache.pair(sides[1], sides[2], group="b", own=sides[1:])
    assert other["pw_mcc", False]["isotropic"] is found["pw_mcc", False]["isotropic"]
    assert other["pw_mcc", False]["permuted"] is not found["pw_mcc", False]["permuted"]


def test_a_null_made_from_the_saes_is_drawn_for_each_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A new kind is one entry: here the SAEs' own rows with random signs."""

    def flipped(source: NullSource, rng: np.random.Generator) -> tuple[Side, Side]:
        return tuple(  # type: ignore[return-value]
            Side(own.decoder * rng.choice([-1.0, 1.0], (len(own.decoder), 1))) for own in source.own
        )

    kind = NullKind(
        "flipped", "signs", "own rows, signs random", frozenset({"dictionaries"}), flipped
    )
    monkeypatch.setitem(NULL_KINDS, "flipped", kind)
    monkeypatch.setitem(SCORES, "pw_mcc", replace(SCORES["pw_mcc"], nulls=("isotropic", "flipped")))
    cache = null_cache.NullCache(ComparisonConfig(null_draws=4))
    one, two = Side(np.eye(5)), Side(np.eye(5)[::-1])
    null = cache.pair(one, two, group="a")["pw_mcc", False]["flipped"]
    np.testing.assert_allclose(null.values, 1.0)
    half = Side(np.eye(10)[:5]), Side(np.eye(10)[5:])
    assert cache.pair(*half, group="b")["pw_mcc", False]["flipped"].mean == 0.0
