"""Geometry against brute force and shapes that are known."""

from __future__ import annotations

import numpy as np
import pytest

from husai.consistency import (
    cluster_features,
    coactivation,
    effective_dimension,
    neighbours,
    sparsity_pattern,
)
from husai.errors import InputError


@pytest.mark.parametrize("signed", [False, True])
def test_neighbours_by_brute_force_and_in_blocks(
    signed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    W = np.random.default_rng(0).standard_normal((20, 6))
    C = W @ W.T / np.outer(np.linalg.norm(W, axis=1), np.linalg.norm(W, axis=1))
    whole = neighbours(W, 3, signed=signed)
    for i in range(20):
        similarity = (C if signed else np.abs(C))[i].copy()
        similarity[i] = -np.inf
        expected = np.argsort(-similarity)[:3]
        own = whole[whole["feature"] == i]
        assert list(own["neighbour"]) == list(expected)
        np.testing.assert_allclose(own["cosine"], C[i, expected])
    monkeypatch.setattr("husai.consistency.analyses.geometry._BLOCK_NUMBERS", 60)
    blocks = neighbours(W, 3, signed=signed)
    assert list(blocks["neighbour"]) == list(whole["neighbour"])


def test_effective_dimension_of_known_shapes() -> None:
    even = np.r_[np.eye(6), -np.eye(6)]
    got = effective_dimension(even)
    assert got.participation_ratio == pytest.approx(6.0)
    assert got.entropy_rank == pytest.approx(6.0)
    assert got.dims_99 == 6
    angles = np.arange(7) * 2 * np.pi / 7
    circle = np.zeros((7, 30))
    circle[:, 3], circle[:, 8] = np.cos(angles), np.sin(angles)
    assert effective_dimension(circle).participation_ratio == pytest.approx(2.0)
    tilted = circle + np.eye(30)[0] * 5  # the common part is no dimension once centred
    assert effective_dimension(tilted).dims_99 == 2
    assert effective_dimension(tilted, centred=False).participation_ratio < 1.2
    with pytest.raises(InputError, match="do not vary"):
        effective_dimension(np.ones((4, 3)))


def test_clusters_of_planted_directions() -> None:
    rng = np.random.default_rng(1)
    centres = np.linalg.qr(rng.standard_normal((12, 4)))[0].T
    member = rng.permutation(np.repeat(np.arange(4), [9, 7, 5, 3]))
    sign = rng.choice([-1.0, 1.0], size=(24, 1))
    W = sign * (centres[member] + 0.05 * rng.standard_normal((24, 12)))
    got = cluster_features(W)
    assert list(got.table["size"]) == [9, 7, 5, 3]
    assert all(len(set(got.labels[member == k])) == 1 for k in range(4))
    assert (got.table["mean_similarity"] > 0.9).all()
    blocks = np.flatnonzero(np.diff(got.labels[got.order]))
    assert len(blocks) == 3  # in leaf order each cluster is one block
    assert len(cluster_features(W, signed=True).table) > 4
    with pytest.raises(InputError, match="2 to"):
        cluster_features(np.ones((1, 3)))


def test_sparsity_pattern_counts() -> None:
    codes = np.array([[0.0, 2.0, 0.0], [0.0, 4.0, 1.0], [0.0, 0.0, 3.0], [0.0, 0.0, 0.0]])
    got = sparsity_pattern(codes, n_bins=4)
    assert list(got.latents["firing_rate"]) == [0.0, 0.5, 0.5]
    assert list(got.latents["mean_active"]) == [0.0, 3.0, 2.0]
    assert list(got.latents["max_active"]) == [0.0, 4.0, 3.0]
    assert list(got.l0_counts) == [1, 2, 1, 0]
    assert got.histogram.sum() == 4
    assert got.n_dead == 1
    none = sparsity_pattern(np.zeros((3, 2)))
    assert none.histogram.sum() == 0
    assert none.n_dead == 2


def test_coactivation_by_brute_force() -> None:
    rng = np.random.default_rng(3)
    codes = rng.random((400, 6)) * (rng.random((400, 6)) < [0.5, 0.4, 0.3, 0.2, 0.1, 0.0])
    codes[:, 1] = codes[:, 0] * 2  # always together
    got = coactivation(codes)
    assert set(got.latents) == {0, 1, 2, 3, 4}
    fires = codes[:, got.latents] > 0
    for i in range(5):
        for j in range(5):
            both, either = (fires[:, i] & fires[:, j]).sum(), (fires[:, i] | fires[:, j]).sum()
            assert got.jaccard[i, j] == pytest.approx(both / either)
            ratio = both / 400 / (fires[:, i].mean() * fires[:, j].mean())
            assert got.log_ratio[i, j] == pytest.approx(np.log2(ratio))
    place = {int(latent): i for i, latent in enumerate(got.latents)}
    assert got.jaccard[place[0], place[1]] == 1.0
    assert len(coactivation(codes, max_latents=2).latents) == 2
    with pytest.raises(InputError, match="no latent fires"):
        coactivation(np.zeros((4, 2)))
