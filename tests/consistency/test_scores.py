"""Scores against brute force, worked examples and invariances."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from numpy.typing import NDArray

from husai.consistency import (
    gt_mcc,
    match_features,
    mmcs,
    pw_mcc,
    shared_fraction,
    uniqueness,
)
from husai.errors import InputError

# Two dictionaries whose features come back in the other order.
A_WORKED = np.array([[1.0, 0.0], [0.0, 1.0]])
B_WORKED = np.array([[0.1, 1.0], [1.0, 0.2]])


def unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def brute_force(A: NDArray[np.float64], B: NDArray[np.float64], signed: bool) -> float:
    C = unit(A) @ unit(B).T
    C = C if signed else np.abs(C)
    if C.shape[0] > C.shape[1]:
        C = C.T
    n = C.shape[0]
    best: float = max(  # over all one-to-one partial maps
        float(sum(C[i, j] for i, j in enumerate(order))) / n
        for order in permutations(range(C.shape[1]), n)
    )
    return best


def test_worked_example() -> None:
    identity = (unit(A_WORKED) * unit(B_WORKED)).sum(axis=1).mean()
    assert identity == pytest.approx(0.148, abs=5e-4)
    assert pw_mcc(A_WORKED, B_WORKED) == pytest.approx(0.988, abs=5e-4)
    assert pw_mcc(A_WORKED, B_WORKED, signed=True) == pytest.approx(0.988, abs=5e-4)
    assert list(match_features(A_WORKED, B_WORKED).b_index) == [1, 0]


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("shape", [(4, 4, 3), (3, 6, 4), (6, 3, 4), (5, 5, 2)])
def test_pw_mcc_is_the_best_of_all_matchings(shape: tuple[int, int, int], signed: bool) -> None:
    rng = np.random.default_rng(sum(shape))
    A = rng.standard_normal((shape[0], shape[2]))
    B = rng.standard_normal((shape[1], shape[2]))
    assert pw_mcc(A, B, signed=signed) == pytest.approx(brute_force(A, B, signed), abs=1e-12)


def test_greedy_matching_can_miss_the_optimum() -> None:
    # similarities t·[[.9, .8], [.8, 0]]: greedy takes .9 and is left with 0, the best sum is 1.6
    t = 0.7
    A = np.eye(2, 4)
    B = np.zeros((2, 4))
    B[:, :2] = t * np.array([[0.9, 0.8], [0.8, 0.0]])
    B[0, 2], B[1, 3] = np.sqrt(1 - np.square(B).sum(axis=1))
    assert pw_mcc(A, B) == pytest.approx(t * 0.8, abs=1e-12)
    assert list(match_features(A, B).b_index) == [1, 0]


@pytest.mark.parametrize("signed", [False, True])
def test_mmcs_is_the_mean_of_maxima_in_both_directions(signed: bool) -> None:
    rng = np.random.default_rng(1)
    A, B = rng.standard_normal((7, 5)), rng.standard_normal((11, 5))
    C = unit(A) @ unit(B).T
    C = C if signed else np.abs(C)
    got = mmcs(A, B, signed=signed)
    assert got.a_to_b == pytest.approx(C.max(axis=1).mean(), abs=1e-12)
    assert got.b_to_a == pytest.approx(C.max(axis=0).mean(), abs=1e-12)
    assert got.mean == pytest.approx((got.a_to_b + got.b_to_a) / 2, abs=1e-12)
    assert got.mean >= pw_mcc(A, B, signed=signed) - 1e-12 or len(A) != len(B)


def test_mmcs_in_blocks_equals_mmcs_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    A, B = rng.standard_normal((33, 6)), rng.standard_normal((20, 6))
    whole, share = mmcs(A, B), uniqueness(A, B)
    monkeypatch.setattr("husai.consistency.scores.pair._BLOCK_NUMBERS", 45)
    np.testing.assert_allclose(mmcs(A, B), whole, rtol=1e-13)
    assert uniqueness(A, B) == share


def test_uniqueness_counts_distinct_partners() -> None:
    A = np.array([[1.0, 0.1], [1.0, -0.1], [0.0, 1.0]])
    B = np.eye(2)
    assert uniqueness(A, B) == pytest.approx(2 / 3)
    assert uniqueness(B, A) == 1.0


def test_scores_do_not_depend_on_order_scale_or_sign() -> None:
    rng = np.random.default_rng(3)
    A, B = rng.standard_normal((12, 6)), rng.standard_normal((12, 6))
    scale = np.exp(rng.standard_normal((12, 1)))
    sign = rng.choice([-1.0, 1.0], size=(12, 1))
    shuffled = (B * scale)[rng.permutation(12)]
    for score in (pw_mcc, gt_mcc, uniqueness):
        assert score(A, shuffled) == pytest.approx(score(A, B), abs=1e-12)
        assert score(A, shuffled * sign) == pytest.approx(score(A, B), abs=1e-12)
        assert score(A, shuffled, signed=True) == pytest.approx(score(A, B, signed=True), abs=1e-12)
    assert pw_mcc(A, -B, signed=True) != pytest.approx(pw_mcc(A, B, signed=True), abs=1e-3)
    assert pw_mcc(A, A[::-1]) == pytest.approx(1.0)
    assert pw_mcc(A, -A[::-1]) == pytest.approx(1.0)


def test_shared_needs_the_same_partner_and_both_cosines() -> None:
    eye = np.eye(4)
    decoder = eye.copy()
    decoder[3] = [0.0, 0.0, 0.8, 0.6]  # matched with row 3 at .6: below the threshold
    encoder = eye[[1, 0, 2, 3]]  # the encoder swaps features 0 and 1
    got = shared_fraction(eye, eye, decoder, encoder)
    assert got.fraction == pytest.approx(1 / 4)
    assert list(got.shared) == [False, False, True, False]
    assert shared_fraction(eye, eye, eye, eye).fraction == 1.0
    assert shared_fraction(eye, eye, -eye, -eye).fraction == 0.0
    assert shared_fraction(eye, eye, -eye, -eye, signed=False).fraction == 1.0


def test_bad_dictionaries_are_errors_that_say_why() -> None:
    A = np.eye(3)
    with pytest.raises(InputError, match="one space"):
        mmcs(A, np.eye(4))
    with pytest.raises(InputError, match="NaN"):
        pw_mcc(A, np.full((2, 3), np.nan))
    with pytest.raises(InputError, match=r"W_enc\.T"):
        shared_fraction(np.eye(3, 5), np.eye(3, 5).T, A, A)
