"""Scores on codes against dense numpy, planted codes and closed forms."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import sparse

from husai.consistency import match_features
from husai.consistency.scores.code_scores import (
    RepresentationSimilarity,
    code_consistency,
    code_gram,
    code_similarity,
    match_activations,
)
from husai.consistency.scores.codes import (
    code_moments,
    cross_moments,
    shuffle_rows,
    sparse_codes,
)
from husai.consistency.scores.similarity import svcca_from_whitening, whitening
from husai.errors import InputError


def random_codes(rows: int, n: int, seed: int, density: float = 0.3) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    return np.abs(rng.standard_normal((rows, n))) * (rng.random((rows, n)) < density)


def stream(codes: NDArray[np.float64], step: int) -> Callable[[], Iterator[NDArray[np.float64]]]:
    return lambda: (codes[i : i + step] for i in range(0, len(codes), step))


def test_moments_equal_those_of_numpy_for_every_kind_of_codes() -> None:
    a, b = random_codes(50, 6, 0), random_codes(50, 4, 1)
    expected = np.corrcoef(a.T, b.T)[:6, 6:]
    for one, other in (
        (a, b),
        (sparse.csr_array(a), sparse.csc_array(b)),
        (stream(a, 7), stream(b, 7)),
        (sparse_codes(stream(a, 9)()), b),
    ):
        got = cross_moments(one, other)
        np.testing.assert_allclose(got.correlation, expected, atol=1e-6)
        assert got.a.l0 == pytest.approx((a > 0).sum() / 50)
        np.testing.assert_array_equal(got.b.fires, (b > 0).sum(axis=0))
    gram = code_gram(stream(a, 11))
    np.testing.assert_allclose(gram.product, np.cov(a.T) * 49, atol=1e-10)


def test_rare_small_latents_keep_their_correlation() -> None:
    # a latent on top of a large constant: float32 sums would lose its variance
    rows = 20_000
    x = np.zeros((rows, 2))
    x[:, 0] = 100.0
    x[::1000, 0] += 1.0
    x[::1000, 1] = 1.0
    got = cross_moments(x[:, :1], x[:, 1:]).correlation[0, 0]
    assert got == pytest.approx(1.0, abs=1e-4)


def test_activation_match_finds_a_permutation_whatever_the_scale() -> None:
    a = random_codes(200, 8, 2)
    order = np.random.default_rng(3).permutation(8)
    b = a[:, order] * np.exp(np.random.default_rng(4).standard_normal(8))
    got = match_activations(a, b)
    assert got.mean == pytest.approx(1.0)
    np.testing.assert_array_equal(order[got.b_index], got.a_index)


def test_dead_latents_are_left_out_and_counted() -> None:
    a = random_codes(100, 5, 5)
    b = a.copy()
    b[:, 2] = 0.0
    got = match_activations(a, b)
    assert got.n_dead_b == 1
    assert got.mean == pytest.approx(1.0)
    assert 2 not in got.b_index
    none = match_activations(a, np.zeros((100, 3)))
    assert none.mean is None
    assert "no latent of B varies" in none.reason


def dense_scores(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, float, float]:
    jaccard = [
        ((x > 0) & (y > 0)).sum() / ((x > 0) | (y > 0)).sum() for x, y in zip(a.T, b.T, strict=True)
    ]
    correlation = [np.corrcoef(x, y)[0, 1] for x, y in zip(a.T, b.T, strict=True)]
    error = np.square(a - b).sum()
    r2 = np.mean([1 - error / np.square(s - s.mean(axis=0)).sum() for s in (a, b)])
    return float(np.mean(jaccard)), float(np.mean(correlation)), float(r2)


def test_code_consistency_is_the_dense_computation_under_the_match() -> None:
    rng = np.random.default_rng(6)
    A, B = rng.standard_normal((6, 4)), rng.standard_normal((9, 4))
    a, b = random_codes(60, 6, 7), random_codes(60, 9, 8)
    match = match_features(A, B, signed=True)
    expected = dense_scores(a[:, match.a_index], b[:, match.b_index])
    for one, other in ((a, b), (stream(a, 13), stream(b, 13))):
        got = code_consistency(one, other, match)
        assert (got.jaccard, got.correlation, got.r2) == pytest.approx(expected)


def test_equal_codes_agree_fully_and_rotated_features_do_not() -> None:
    A = np.eye(5)
    a = random_codes(80, 5, 9)
    same = code_consistency(a, a[:, ::-1], match_features(A, A[::-1]))
    assert (same.jaccard, same.correlation, same.r2) == pytest.approx((1.0, 1.0, 1.0))
    turned = code_consistency(a, a, match_features(A, -A))
    assert turned.jaccard == pytest.approx(1.0)
    assert turned.correlation == pytest.approx(-1.0)


def test_chance_jaccard_is_that_of_shuffled_rows() -> None:
    a = random_codes(4000, 5, 10)
    match = match_features(np.eye(5), np.eye(5))
    shuffled = shuffle_rows(a, np.random.default_rng(11))
    got = code_consistency(a, shuffled, match)
    assert got.jaccard == pytest.approx(got.jaccard_chance, abs=0.02)
    assert got.correlation == pytest.approx(0.0, abs=0.03)


def test_pairs_that_never_fire_are_masked_not_counted() -> None:
    a, b = random_codes(40, 3, 12), random_codes(40, 3, 13)
    a[:, 0] = b[:, 0] = 0.0
    b[:, 1] = 0.0
    got = code_consistency(a, b, match_features(np.eye(3), np.eye(3)))
    assert (got.n_jaccard, got.n_correlation) == (2, 1)
    assert got.pair_jaccard[1] == 0.0
    assert got.jaccard == pytest.approx(float(got.pair_jaccard[2]) / 2)
    dead = code_consistency(0 * a, 0 * b, match_features(np.eye(3), np.eye(3)))
    assert dead.jaccard is None
    assert dead.r2 is None
    assert "no matched latent fires" in dead.reason


def whole_similarity(a: NDArray[np.float64], b: NDArray[np.float64]) -> RepresentationSimilarity:
    """With all of the variance kept."""
    return code_similarity(
        cross_moments(a, b), code_gram(a, variance=1.0), code_gram(b, variance=1.0)
    )


def test_cka_and_svcca_do_not_change_with_rotation_and_equal_their_definitions() -> None:
    a = random_codes(120, 5, 14)
    rotation, _ = np.linalg.qr(np.random.default_rng(15).standard_normal((5, 5)))
    b = a @ rotation
    got = whole_similarity(a, b)
    assert got.cka == pytest.approx(1.0)
    assert got.svcca == pytest.approx(1.0)
    c = random_codes(120, 4, 16)
    x, y = a - a.mean(axis=0), c - c.mean(axis=0)
    K, L = x @ x.T, y @ y.T
    other = code_similarity(cross_moments(a, c), code_gram(a), code_gram(c))
    assert other.cka == pytest.approx((K * L).sum() / np.linalg.norm(K) / np.linalg.norm(L))
    # canonical correlations are the cosines between the two column spaces
    cosines = np.linalg.svd(np.linalg.qr(x)[0].T @ np.linalg.qr(y)[0], compute_uv=False)
    whole = whole_similarity(a, c)
    assert whole.svcca == pytest.approx(cosines.mean())


def test_cka_chance_is_the_mean_over_row_permutations() -> None:
    a, b = random_codes(30, 4, 17), random_codes(30, 6, 18)
    rng = np.random.default_rng(19)
    draws = []
    for _ in range(150):
        c = shuffle_rows(b, rng)
        value = code_similarity(cross_moments(a, c), code_gram(a), code_gram(c)).cka
        assert value is not None
        draws.append(value)
    chance = code_similarity(cross_moments(a, b), code_gram(a), code_gram(b)).cka_chance
    assert np.mean(draws) == pytest.approx(chance, rel=0.05)


def test_svcca_with_too_few_rows_is_not_defined() -> None:
    a, b = random_codes(8, 6, 20, 0.9), random_codes(8, 6, 21, 0.9)
    got = whole_similarity(a, b)
    assert got.svcca is None
    assert "do not outnumber" in got.reason
    flat = code_similarity(
        cross_moments(a, np.ones((8, 2))), code_gram(a), code_gram(np.ones((8, 2)))
    )
    assert flat.cka is None
    assert "codes of B do not vary" in flat.reason


def test_rows_that_do_not_correspond_are_errors() -> None:
    a = random_codes(20, 3, 22)
    with pytest.raises(InputError, match="same activation rows"):
        cross_moments(a, a[:19])
    with pytest.raises(InputError, match="same activation rows"):
        cross_moments(stream(a, 5), stream(a, 4))
    with pytest.raises(InputError, match="the match is of"):
        code_consistency(a, a, match_features(np.eye(4), np.eye(4)))
    with pytest.raises(InputError, match="NaN"):
        code_moments(np.full((2, 2), np.nan))
    with pytest.raises(InputError, match="no rows"):
        code_moments(np.zeros((0, 3)))
    with pytest.raises(InputError, match="shape"):
        code_moments(np.zeros(3))


def test_svcca_keeps_the_top_directions_only() -> None:
    # ten shared directions of large variance and many private ones of little
    rng = np.random.default_rng(23)
    shared = rng.standard_normal((400, 10)) * 10
    a = np.c_[shared, rng.standard_normal((400, 30))]
    b = np.c_[shared[:, ::-1], rng.standard_normal((400, 30))]
    few = [whitening(code_gram(x).product, 1.0, 10) for x in (a, b)]
    got = svcca_from_whitening(cross_moments(a, b).covariance, few[0], few[1], 400)
    assert got == pytest.approx(1.0, abs=0.01)
    everything = whole_similarity(a, b).svcca
    assert everything is not None
    assert everything < 0.6
