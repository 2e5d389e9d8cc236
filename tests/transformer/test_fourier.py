"""Fourier analysis against the FFT, planted embeddings and group theory."""

from typing import Any

import numpy as np
import pytest

from husai.errors import InputError
from husai.tasks.modular import Operation
from husai.transformer.fourier import (
    answer_indices,
    canonical_frequencies,
    fourier_basis,
    fraction_explained,
    frequencies,
    frequency_planes,
    frequency_powers,
    frequency_rows,
    gini,
    group_elements,
    key_frequencies,
)

P = 29


def waves(keys: Any, x: Any, p: Any = P) -> Any:
    return np.stack([f(2 * np.pi * k * x / p) for k in keys for f in (np.cos, np.sin)], axis=1)


def planted_table(rng: Any, keys: Any, d: Any = 40, p: Any = P) -> Any:
    """An embedding with the waves of some frequencies along random directions, plus a mean."""
    return waves(keys, np.arange(p), p) @ rng.normal(size=(2 * len(keys), d)) + rng.normal(size=d)


def grid(p: Any = P) -> Any:
    return np.divmod(np.arange(p * p), p)


@pytest.mark.parametrize("p", [2, 3, 8, 29, 113])
def test_basis_is_orthonormal(p: Any) -> None:
    basis = fourier_basis(p)
    np.testing.assert_allclose(basis @ basis.T, np.eye(p), atol=1e-12)


def test_rows_of_a_frequency_are_its_cosine_and_its_sine() -> None:
    basis, x = fourier_basis(P), np.arange(P)
    for k in frequencies(P):
        for row, function in zip(frequency_rows(k, P), (np.cos, np.sin), strict=True):
            expected = function(2 * np.pi * k * x / P)
            np.testing.assert_allclose(basis[row], expected / np.linalg.norm(expected), atol=1e-12)


def test_all_frequencies_and_none_twice() -> None:
    assert frequencies(113).tolist() == list(range(1, 57))
    assert canonical_frequencies([3, P - 3, -3, P + 3], P) == [3]
    with pytest.raises(InputError, match="frequency 29 is the constant"):
        canonical_frequencies([P], P)
    assert frequencies(8).tolist() == [1, 2, 3, 4]
    with pytest.raises(InputError, match="order = 1"):
        frequencies(1)


def test_planted_embedding_is_explained_and_found() -> None:
    rng = np.random.default_rng(0)
    table = planted_table(rng, (2, 5, 14))
    assert fraction_explained(table, [2, 5, 14], P) == pytest.approx(1, abs=1e-12)
    assert fraction_explained(table, [1, 3], P) == pytest.approx(0, abs=1e-12)
    assert key_frequencies(table) == [2, 5, 14]
    # k and p - k are one wave: naming it either way is the same claim
    assert fraction_explained(table, [P - 2, 5, 14, P - 14], P) == pytest.approx(1, abs=1e-12)


def test_random_embedding_scores_chance() -> None:
    rng = np.random.default_rng(1)
    p, d = 113, 512
    table = rng.normal(size=(p, d))
    found = fraction_explained(table, [1, 20, 30, 41, 56], p)
    assert found == pytest.approx(2 * 5 / (p - 1), rel=0.15)
    assert key_frequencies(table) == []


def test_powers_are_those_of_the_fft() -> None:
    rng = np.random.default_rng(2)
    table = rng.normal(size=(P, 6))
    spectrum = np.abs(np.fft.fft(table, axis=0)) ** 2 / P
    expected = (2 * spectrum[1 : (P - 1) // 2 + 1]).sum(1)  # k and p - k carry the same power
    np.testing.assert_allclose(frequency_powers(table), expected)


@pytest.mark.parametrize(("operation", "sign"), [("addition", 1), ("subtraction", -1)])
def test_activations_at_waves_of_the_answer(operation: Any, sign: Any) -> None:
    rng = np.random.default_rng(3)
    a, b = grid()
    directions = rng.normal(size=(4, 24))
    values = waves((3, 8), a + sign * b) @ directions
    assert fraction_explained(values, [3, 8], P, operation) == pytest.approx(1)
    # the same waves are products of waves of a and b, and hold nothing of a or b alone
    assert fraction_explained(values, [3, 8], P, operation, "pair") == pytest.approx(1)
    assert fraction_explained(values, [3, 8], P, operation, "a") == pytest.approx(0, abs=1e-12)
    other: Operation = "subtraction" if operation == "addition" else "addition"
    assert fraction_explained(values, [3, 8], P, other) == pytest.approx(0, abs=1e-12)
    planes = frequency_planes(values, [8, 3], P, operation)
    for plane, span in zip(planes, (directions[:2], directions[2:]), strict=True):
        np.testing.assert_allclose(plane @ plane.T, np.eye(2), atol=1e-12)
        np.testing.assert_allclose(span @ plane.T @ plane, span, atol=1e-9)


def test_shares_of_variance_add_up_exactly() -> None:
    rng = np.random.default_rng(4)
    a, b = grid()
    parts = [
        waves((4,), a) @ rng.normal(size=(2, 16)),
        waves((4,), b) @ rng.normal(size=(2, 16)),
        waves((4,), a + b) @ rng.normal(size=(2, 16)),
        waves((6,), a + b) @ rng.normal(size=(2, 16)),
    ]
    values = sum(parts) + rng.normal(size=16)
    powers = np.array([(part**2).sum() for part in parts])
    shares = powers / powers.sum()
    assert fraction_explained(values, [4], P, variable="a") == pytest.approx(shares[0])
    assert fraction_explained(values, [4], P, variable="b") == pytest.approx(shares[1])
    assert fraction_explained(values, [4], P) == pytest.approx(shares[2])
    assert fraction_explained(values, [4, 6], P) == pytest.approx(shares[2] + shares[3])
    assert fraction_explained(values, [4], P, variable="pair") == pytest.approx(shares[:3].sum())


def test_planes_of_an_embedding_survive_rotation_of_phase() -> None:
    rng = np.random.default_rng(5)
    directions = rng.normal(size=(2, 20))
    x = np.arange(P)
    first = frequency_planes(waves((7,), x) @ directions, [7], P)
    shifted = frequency_planes(waves((7,), x + 11) @ directions, [P - 7], P)
    projection, other = (planes[0].T @ planes[0] for planes in (first, shifted))
    np.testing.assert_allclose(projection, other, atol=1e-12)


def test_a_frequency_without_a_plane_is_an_error() -> None:
    table = np.cos(2 * np.pi * 3 * np.arange(P) / P)[:, None] * np.ones(5)
    with pytest.raises(InputError, match="frequency 3 spans no plane"):
        frequency_planes(table, [3], P)


def test_the_frequency_of_half_an_even_order_is_a_line() -> None:
    x = np.arange(12)
    table = np.outer((-1.0) ** x, np.ones(4)) + np.outer(np.cos(2 * np.pi * x / 12), np.arange(4))
    powers = frequency_powers(table)
    np.testing.assert_allclose(powers, [6 * 14, 0, 0, 0, 0, 12 * 4], atol=1e-12)
    assert fraction_explained(table, [1, 6], 12) == pytest.approx(1)
    with pytest.raises(InputError, match="frequency 6 spans no plane"):
        frequency_planes(table, [6], 12)


@pytest.mark.parametrize("p", [3, 5, 7, 29, 113])
def test_powers_of_a_root_are_a_group(p: Any) -> None:
    elements = group_elements(p, "multiplication")
    assert sorted(elements) == list(range(1, p))
    indices = answer_indices(p, "multiplication").reshape(p - 1, p - 1)
    products = elements[:, None] * elements[None, :] % p
    np.testing.assert_array_equal(elements[indices], products)


def test_waves_of_multiplication_are_on_logarithms() -> None:
    rng = np.random.default_rng(7)
    log = np.zeros(P)
    log[group_elements(P, "multiplication")] = np.arange(P - 1)
    a, b = grid()
    directions = rng.normal(size=(4, 24))
    values = waves((3, 8), log[a] + log[b], P - 1) @ directions
    # pairs with a zero are no members of the group: whatever is there does not count
    values[(a == 0) | (b == 0)] = 100 * rng.normal(size=24)
    assert fraction_explained(values, [3, 8], P, "multiplication") == pytest.approx(1)
    assert fraction_explained(values, [3, 8], P, "multiplication", "pair") == pytest.approx(1)
    assert fraction_explained(values, [3, 8], P) < 0.1
    planes = frequency_planes(values, [3, 8], P, "multiplication")
    for plane, span in zip(planes, (directions[:2], directions[2:]), strict=True):
        np.testing.assert_allclose(span @ plane.T @ plane, span, atol=1e-9)


def test_no_group_and_wrong_shapes_are_refused() -> None:
    for modulus in (2, 9, 12):
        with pytest.raises(InputError, match=f"modulus = {modulus}: .* odd prime"):
            group_elements(modulus, "multiplication")
    with pytest.raises(InputError, match=r"needs 29 rows .* or 841 rows"):
        frequency_planes(np.zeros((P + 1, 3)), [1], P)


def test_gini_against_its_definition() -> None:
    rng = np.random.default_rng(6)
    x = rng.exponential(size=30)
    brute = np.abs(x[:, None] - x[None, :]).mean() / (2 * x.mean())
    assert gini(x) == pytest.approx(brute)
    assert gini(np.ones(9)) == pytest.approx(0)
    assert gini([0, 0, 0, 5]) == pytest.approx(0.75)
