"""Plane recovery on planted Fourier embeddings, random ones, and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from husai.consistency.analyses.truth import (
    PHASE_CHANCE,
    axis_gt_mcc,
    circle_tiling,
    orthonormal_planes,
    plane_measures,
    plane_null,
    plane_recovery,
)
from husai.errors import InputError

D, P = 32, 13


def fourier_planes(n: int, seed: int = 0) -> NDArray[np.float64]:
    """Planes spanned through a random embedding by the cosine and sine of n frequencies."""
    rng = np.random.default_rng(seed)
    frame, _ = np.linalg.qr(rng.standard_normal((D, 2 * n)))
    return np.asarray(frame.T.reshape(n, 2, D))


def on_circle(planes: NDArray[np.float64], angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Features of every plane at the given angles."""
    return np.concatenate(
        [np.outer(np.cos(angles), p[0]) + np.outer(np.sin(angles), p[1]) for p in planes]
    )


def test_planted_fourier_embedding_is_recovered_and_a_random_one_scores_chance() -> None:
    planes = fourier_planes(4)
    even = np.arange(5) * 2 * np.pi / 5 + 0.3
    got = plane_recovery(on_circle(planes, even), planes)
    assert (got.recall, got.covered, got.in_plane) == (1.0, 1.0, 1.0)
    assert got.mean_purity == pytest.approx(1.0)
    np.testing.assert_allclose(got.planes["largest_gap"].to_numpy(dtype=float), 2 * np.pi / 5)
    np.testing.assert_allclose(got.planes["resultant"].to_numpy(dtype=float), 0.0, atol=1e-12)
    random = np.random.default_rng(1).standard_normal((20, D))
    null = plane_null(20, planes, n_draws=60)
    values = plane_measures(random, planes, 0.9)
    for measure in ("recall", "in_plane", "mean_purity", "mean_rho"):
        spread = null.sd(measure) + 1e-9
        assert abs(values[measure] - null.mean(measure)) < 4 * spread
    assert null.p_value("recall", 1.0) == pytest.approx(1 / 61)


def test_every_frequency_of_a_planted_embedding_is_its_own_plane() -> None:
    # the embedding of Z_p by two frequencies: its rows mix both planes, its cos/sin axes do not
    k = np.array([2, 5])
    planes = fourier_planes(2, seed=3)
    tokens = np.arange(P)
    waves = np.stack(
        [np.cos(2 * np.pi * np.outer(k, tokens) / P), np.sin(2 * np.pi * np.outer(k, tokens) / P)]
    )
    embedding = np.einsum("ckt,kcd->td", waves, planes)
    mixed = plane_recovery(embedding, planes, threshold=0.9)
    assert mixed.in_plane == 0.0
    np.testing.assert_allclose(mixed.features["purity"], 0.5, atol=1e-9)
    np.testing.assert_allclose(mixed.features["energy"], 1.0)
    single = np.einsum("ct,cd->td", waves[:, 0], planes[0])
    got = plane_recovery(single, planes)
    assert got.in_plane == 1.0
    assert got.recall == 0.5
    angles = np.sort(np.mod(got.features["angle"], 2 * np.pi))
    np.testing.assert_allclose(np.diff(angles), 2 * np.pi / P, atol=1e-9)


def test_rho_does_not_depend_on_phase_sign_scale_or_axes() -> None:
    planes = fourier_planes(3)
    rng = np.random.default_rng(4)
    features = rng.standard_normal((9, D))
    skewed = np.stack([planes[:, 0] * 3, planes[:, 0] + 0.2 * planes[:, 1]], axis=1)
    one = plane_recovery(features, planes).features
    for changed, axes in ((-2.5 * features, planes), (features, skewed)):
        other = plane_recovery(changed, axes).features
        np.testing.assert_allclose(other["rho"], one["rho"])
        np.testing.assert_allclose(other["purity"], one["purity"])


def test_random_rho_has_its_closed_form() -> None:
    # rho² of a random direction is Beta(1, (d-2)/2), of mean 2/d
    planes = fourier_planes(1)
    rows = np.random.default_rng(5).standard_normal((20_000, D))
    rho = plane_recovery(rows, planes).features["rho"].to_numpy()
    assert np.square(rho).mean() == pytest.approx(2 / D, rel=0.03)
    assert (rho > 0.5).mean() == pytest.approx((1 - 0.25) ** ((D - 2) / 2), rel=0.25)


def test_overlapping_planes_do_not_count_energy_twice() -> None:
    planes = fourier_planes(1)
    twice = np.concatenate([planes, planes[:, ::-1]])
    got = plane_recovery(planes[0], twice)
    np.testing.assert_allclose(got.features["energy"], 1.0)
    np.testing.assert_allclose(got.features["purity"], 1.0)


def test_one_dimensional_score_depends_on_an_arbitrary_phase() -> None:
    planes = fourier_planes(6)
    axes = planes.reshape(-1, D)
    got = axis_gt_mcc(axes, planes, n_draws=400)
    assert got.gt_mcc == pytest.approx(1.0)
    # two axes a quarter turn apart, matched best: the larger of |cos| and |sin|, mean 2√2/π
    assert got.phase_mean == pytest.approx(2 * np.sqrt(2) / np.pi, abs=0.01)
    assert got.phase_min < 0.9
    rng = np.random.default_rng(6)
    one_each = np.concatenate(
        [on_circle(planes[k : k + 1], rng.uniform(0, 2 * np.pi, 1)) for k in range(6)]
    )
    cosines = np.abs(np.einsum("kd,kd->k", one_each, planes[:, 0]))
    many = np.abs(np.cos(rng.uniform(0, 2 * np.pi, 20_000)))
    assert many.mean() == pytest.approx(PHASE_CHANCE, abs=0.01)
    assert cosines.max() <= 1.0
    assert plane_recovery(one_each, planes).recall == 1.0


def test_tiling_of_the_circle() -> None:
    half = circle_tiling(np.array([0.0, 1.0, 2.0]))
    assert half["covered"] is False
    assert half["largest_gap"] == pytest.approx(2 * np.pi - 2)
    three = circle_tiling(np.array([0.0, 2.1, 4.2]))
    assert three["covered"] is True
    opposite = circle_tiling(np.array([0.5, 0.5 + np.pi]))
    assert opposite["resultant"] == pytest.approx(0.0, abs=1e-12)
    assert opposite["axial_resultant"] == pytest.approx(1.0)
    assert opposite["covered"] is False  # two opposite directions reach one line only
    none = circle_tiling(np.array([]))
    assert none["n_features"] == 0
    assert none["covered"] is False


def test_rayleigh_p_is_uniform_for_uniform_angles() -> None:
    rng = np.random.default_rng(7)
    p = [circle_tiling(rng.uniform(-np.pi, np.pi, 12))["rayleigh_p"] for _ in range(800)]
    values = np.array(p, dtype=float)
    assert (values < 0.05).mean() == pytest.approx(0.05, abs=0.02)
    assert (values < 0.5).mean() == pytest.approx(0.5, abs=0.06)
    crowded = circle_tiling(rng.normal(1.0, 0.1, 12))["rayleigh_p"]
    assert crowded is not None
    assert crowded < 1e-4


def test_data_aware_null_uses_the_covariance_of_the_data() -> None:
    planes = fourier_planes(2)
    axes = planes.reshape(-1, D)
    flat = plane_null(10, planes, n_draws=20)
    aware = plane_null(10, planes, covariance=axes.T @ axes, n_draws=20)
    assert aware.kind == "data_aware"
    assert aware.mean("mean_rho") > 0.7 > flat.mean("mean_rho")


def test_planes_that_do_not_fit_are_errors() -> None:
    planes = fourier_planes(2)
    with pytest.raises(InputError, match="same hook"):
        plane_recovery(np.eye(5), planes)
    with pytest.raises(InputError, match="parallel"):
        orthonormal_planes(np.stack([planes[:, 0], 2 * planes[:, 0]], axis=1))
    with pytest.raises(InputError, match="zeros"):
        orthonormal_planes(np.zeros((1, 2, 4)))
    with pytest.raises(InputError, match="shape"):
        plane_recovery(np.eye(D), planes[0])
    with pytest.raises(InputError, match="every row is zero"):
        plane_recovery(np.zeros((3, D)), planes)
    with pytest.raises(InputError, match="threshold"):
        plane_recovery(np.eye(D), planes, threshold=0.0)
    got = plane_recovery(np.r_[np.zeros((2, D)), planes[0]], planes)
    assert list(got.features["feature"]) == [2, 3]
