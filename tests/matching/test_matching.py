"""Matching against scipy and brute force, with its certificate, bounds and checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from husai.errors import InputError
from husai.matching import candidates as passes
from husai.matching.blocked import UnitRows
from husai.matching.candidates import Checkpoint, DeviceProducts, HostProducts, find_candidates
from husai.matching.match import (
    match_features,
    match_signed_and_absolute,
    unit_rows,
)
from husai.matching.result import Match

Rows = NDArray[Any]


def random_pair(rng: np.random.Generator, n: int, d: int) -> tuple[Rows, Rows]:
    return rng.standard_normal((n, d)), rng.standard_normal((n, d))


def half_shared(rng: np.random.Generator, n: int, d: int) -> tuple[Rows, Rows]:
    a, b = random_pair(rng, n, d)
    b[: n // 2] = a[: n // 2] + 0.3 * b[: n // 2]
    return a, b[rng.permutation(n)]


def clustered(rng: np.random.Generator, n: int, d: int) -> tuple[Rows, Rows]:
    centres = rng.standard_normal((n // 25, d))
    a, b = (
        np.repeat(centres, 25, axis=0) + 0.2 * rng.standard_normal((n // 25 * 25, d))
        for _ in range(2)
    )
    return a, b[rng.permutation(len(b))]


def duplicated_rows(rng: np.random.Generator, n: int, d: int) -> tuple[Rows, Rows]:
    """Most of A is copies of three rows, and some rows are dead."""
    a, b = random_pair(rng, n, d)
    a[: n // 2] = a[rng.integers(0, 3, n // 2)]
    a[-n // 20 :] = 0
    return a, b


def tie_heavy(rng: np.random.Generator, n: int, d: int) -> tuple[Rows, Rows]:
    """Rows with entries in {-1, 0, 1}: cosines take few values."""
    a, b = (np.sign(rng.standard_normal((n, 4))) for _ in range(2))
    return a, b


def all_alike(rng: np.random.Generator, n: int, d: int) -> tuple[Rows, Rows]:
    """Axis directions only: every cosine is 0 or 1 up to sign."""
    a, b = (np.eye(d)[rng.integers(0, d, n)] * rng.choice([-1, 1], (n, 1)) for _ in range(2))
    return a, b


def wide(rng: np.random.Generator, n: int, d: int) -> tuple[Rows, Rows]:
    a, b = half_shared(rng, n, d)
    return a[: n // 3], b


def tall(rng: np.random.Generator, n: int, d: int) -> tuple[Rows, Rows]:
    a, b = clustered(rng, n, d)
    return a, b[: n - 7]


KINDS = [
    random_pair,
    half_shared,
    clustered,
    duplicated_rows,
    tie_heavy,
    all_alike,
    wide,
    tall,
]


def scipy_optimum(a: Rows, b: Rows, signed: bool) -> float:
    scores = unit_rows(a) @ unit_rows(b).T
    if not signed:
        scores = np.abs(scores)
    rows, columns = linear_sum_assignment(scores, maximize=True)
    return float(scores[rows, columns].mean())


def check_consistent(match: Match, a: Rows, b: Rows) -> None:
    """One to one, sorted, and with the similarities of its pairs."""
    assert len(match.a_index) == min(len(a), len(b))
    assert (np.diff(match.a_index) > 0).all()
    assert len(np.unique(match.b_index)) == len(match.b_index)
    cosine = (unit_rows(a)[match.a_index] * unit_rows(b)[match.b_index]).sum(axis=1)
    np.testing.assert_allclose(match.cosine, cosine, atol=1e-12)
    np.testing.assert_array_equal(
        match.similarity, match.cosine if match.signed else np.abs(match.cosine)
    )


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("seed", range(2))
def test_sparse_search_finds_scipys_optimum_and_proves_it(
    make: Callable[..., tuple[Rows, Rows]], signed: bool, seed: int
) -> None:
    a, b = make(np.random.default_rng(seed), 600, 48)

    match = match_features(a, b, signed=signed, method="sparse", max_passes=50)

    check_consistent(match, a, b)
    best = scipy_optimum(a, b, signed)
    assert match.mean == pytest.approx(best, abs=2e-9)
    assert match.certified
    assert match.gap_bound <= 1e-9
    assert match.method == "sparse"
    check_certificate(match, a, b)


def check_certificate(match: Match, a: Rows, b: Rows) -> None:
    """The prices themselves prove the bound: weak duality over every pair."""
    certificate = match.certificate
    assert certificate is not None
    scores = unit_rows(a) @ unit_rows(b).T
    if not match.signed:
        scores = np.abs(scores)
    slack = scores - certificate.a_price[:, None] - certificate.b_price[None, :]
    assert slack.max() <= certificate.largest_violation + 1e-12
    free = certificate.b_price if len(a) < len(b) else certificate.a_price
    if len(a) != len(b):
        assert free.min() >= 0
    bound = (certificate.a_price.sum() + certificate.b_price.sum()) / min(len(a), len(b))
    assert bound - match.mean == pytest.approx(certificate.duality_gap, abs=1e-9)


@pytest.mark.parametrize("signed", [False, True])
def test_few_candidates_and_a_small_budget_give_a_valid_bound(
    signed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("husai.matching.match._FALLBACK_PAIRS", 0)
    a, b = clustered(np.random.default_rng(3), 600, 24)
    match = match_features(a, b, signed=signed, method="sparse", candidates=2, max_passes=1.0)

    check_consistent(match, a, b)
    assert not match.certified
    assert match.gap_bound > 1e-6
    best = scipy_optimum(a, b, signed)
    assert match.mean < best <= match.mean + match.gap_bound


def test_a_search_that_runs_out_of_paths_bounds_its_distance_from_the_optimum(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("husai.matching.match._FALLBACK_PAIRS", 0)
    monkeypatch.setattr("husai.matching.certified._MOST_SCANS", 1)
    monkeypatch.setattr("husai.matching.certified._SCANS_PER_CALL", 1)
    a, b = random_pair(np.random.default_rng(0), 500, 16)
    match = match_features(a, b, method="sparse")
    check_consistent(match, a, b)
    assert not match.certified
    assert match.mean < scipy_optimum(a, b, False) <= match.mean + match.gap_bound


def test_a_small_search_that_does_not_certify_is_finished_densely() -> None:
    a, b = clustered(np.random.default_rng(3), 600, 24)
    match = match_features(a, b, method="sparse", candidates=1, max_passes=1.0)
    assert match.method == "dense"
    assert match.mean == pytest.approx(scipy_optimum(a, b, False), abs=1e-12)


def test_violators_are_found_when_candidates_are_too_few() -> None:
    a, b = half_shared(np.random.default_rng(5), 1500, 64)
    match = match_features(a, b, method="sparse", candidates=2, max_passes=20)
    assert match.certificate is not None
    assert match.certificate.rounds > 1
    assert match.certified
    assert match.mean == pytest.approx(scipy_optimum(a, b, False), abs=2e-9)


@pytest.mark.parametrize("method", ["dense", "sparse", "exact"])
def test_exact_methods_equal_brute_force_over_all_permutations(method: Any) -> None:
    for seed in range(20):
        a, b = random_pair(np.random.default_rng(seed), 6, 4)
        scores = np.abs(unit_rows(a) @ unit_rows(b).T)
        best = max(sum(scores[i, j] for i, j in enumerate(p)) for p in permutations(range(6))) / 6
        assert match_features(a, b, method=method).mean == pytest.approx(best, abs=1e-9)


def test_exact_methods_find_the_optimum_that_greedy_misses() -> None:
    # cosines [[.5, .4], [.4, 0]]: greedy takes .5 and is left with 0; the best is .8
    gram = np.array([[1, 0, 0.5, 0.4], [0, 1, 0.4, 0], [0.5, 0.4, 1, 0], [0.4, 0, 0, 1]])
    rows = np.linalg.cholesky(gram)
    for method in ("exact", "dense", "sparse"):
        match = match_features(rows[:2], rows[2:], method=method)
        assert match.mean == pytest.approx(0.4)
        assert match.b_index.tolist() == [1, 0]
    greedy = match_features(rows[:2], rows[2:], method="greedy")
    assert greedy.mean == pytest.approx(0.25)
    assert greedy.gap_bound >= 0.15 - 1e-12
    nearest = match_features(rows[:2], rows[2:], method="mutual_nearest")
    assert nearest.a_index.tolist() == [0]
    assert nearest.b_index.tolist() == [0]


def test_greedy_is_the_sorted_greedy_matching() -> None:
    for seed in range(5):
        a, b = random_pair(np.random.default_rng(seed), 90, 16)
        b = b[:70]
        scores = np.abs(unit_rows(a) @ unit_rows(b).T)
        used_a: set[int] = set()
        used_b: set[int] = set()
        expected = {}
        for flat in np.argsort(-scores, axis=None):
            i, j = divmod(int(flat), 70)
            if i not in used_a and j not in used_b:
                expected[i] = j
                used_a.add(i)
                used_b.add(j)
        match = match_features(a, b, method="greedy")
        assert dict(zip(match.a_index.tolist(), match.b_index.tolist(), strict=True)) == expected


def test_mutual_nearest_finds_all_pairs_that_are_each_others_best() -> None:
    a, b = random_pair(np.random.default_rng(1), 80, 12)
    scores = unit_rows(a) @ unit_rows(b).T
    match = match_features(a, b, method="mutual_nearest", signed=True)
    expected = {
        (i, j)
        for i in range(80)
        for j in range(80)
        if scores[i].argmax() == j and scores[:, j].argmax() == i
    }
    assert set(zip(match.a_index.tolist(), match.b_index.tolist(), strict=True)) == expected
    assert match.mean == pytest.approx(match.similarity.sum() / 80)


def test_greedy_and_sinkhorn_end_on_exact_ties() -> None:
    a = np.ones((40, 5))
    for method in ("greedy", "sinkhorn"):
        match = match_features(a, a[:30], method=method)
        check_consistent(match, a, a[:30])
        assert match.mean == pytest.approx(1.0)


@pytest.mark.parametrize("shape", [(60, 60), (60, 45), (45, 60)])
def test_approximations_bound_their_distance_from_the_optimum(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(7)
    a, b = rng.standard_normal((shape[0], 10)), rng.standard_normal((shape[1], 10))
    best = scipy_optimum(a, b, False)
    for method in ("greedy", "mutual_nearest", "sinkhorn"):
        match = match_features(a, b, method=method)
        assert not match.certified
        assert match.method == method
        assert match.mean <= best + 1e-12 <= match.mean + match.gap_bound + 1e-9


def test_sinkhorn_at_low_temperature_comes_close_to_the_optimum() -> None:
    a, b = random_pair(np.random.default_rng(2), 100, 8)
    cold = match_features(a, b, method="sinkhorn", temperature=0.003, iterations=500)
    warm = match_features(a, b, method="sinkhorn", temperature=1.0, iterations=500)
    best = scipy_optimum(a, b, False)
    assert best - cold.mean < 0.01
    assert cold.gap_bound < 0.02
    assert warm.gap_bound > 2 * cold.gap_bound


def test_the_match_does_not_depend_on_order_scale_or_sign() -> None:
    rng = np.random.default_rng(0)
    a, b = half_shared(rng, 300, 20)
    order, scale = rng.permutation(300), rng.uniform(0.1, 10, (300, 1))
    sign = rng.choice([-1, 1], (300, 1))
    match = match_features(a, b, method="sparse")
    moved = match_features(a, (b * scale * sign)[order], method="sparse")
    assert moved.mean == pytest.approx(match.mean, abs=1e-12)
    np.testing.assert_array_equal(order[moved.b_index], match.b_index)
    signed = match_features(a, -b, signed=True, method="sparse")
    assert signed.mean < match.mean


def test_transposing_transposes_the_match_and_its_certificate() -> None:
    a, b = half_shared(np.random.default_rng(0), 300, 20)
    a = a[:220]
    one, other = match_features(a, b, method="sparse"), match_features(b, a, method="sparse")
    pairs = set(zip(one.a_index.tolist(), one.b_index.tolist(), strict=True))
    assert pairs == set(zip(other.b_index.tolist(), other.a_index.tolist(), strict=True))
    check_consistent(other, b, a)
    check_certificate(other, b, a)
    np.testing.assert_array_equal(one.a_nearest, other.b_nearest)


@pytest.mark.parametrize("method", ["dense", "sparse", "greedy", "mutual_nearest", "sinkhorn"])
def test_nearest_partners_come_with_every_method(method: Any) -> None:
    a, b = random_pair(np.random.default_rng(4), 150, 20)
    b = b[:110]
    scores = np.abs(unit_rows(a) @ unit_rows(b).T)
    match = match_features(a, b, method=method)
    np.testing.assert_array_equal(match.a_nearest, scores.argmax(axis=1))
    np.testing.assert_array_equal(match.b_nearest, scores.argmax(axis=0))
    np.testing.assert_allclose(match.a_nearest_similarity, scores.max(axis=1), atol=1e-12)
    np.testing.assert_allclose(match.b_nearest_similarity, scores.max(axis=0), atol=1e-12)


@pytest.mark.parametrize("method", ["dense", "sparse"])
def test_signed_and_absolute_together_equal_each_alone(method: Any) -> None:
    a, b = half_shared(np.random.default_rng(8), 300, 20)
    b *= np.random.default_rng(9).choice([-1, 1], (300, 1))
    signed, absolute = match_signed_and_absolute(a, b, method=method)
    assert signed.signed
    assert not absolute.signed
    for match in (signed, absolute):
        alone = match_features(a, b, signed=match.signed, method=method)
        np.testing.assert_array_equal(match.b_index, alone.b_index)


def test_float32_and_integers_are_accepted_and_rounding_stays_inside_the_certificate() -> None:
    a, b = half_shared(np.random.default_rng(0), 700, 30)
    a32, b32 = a.astype(np.float32), b.astype(np.float32)
    match = match_features(a32, b32, method="sparse")
    assert match.mean == pytest.approx(scipy_optimum(a32, b32, False), abs=2e-9)
    whole = np.arange(1, 13).reshape(4, 3)
    assert match_features(whole, whole).mean == pytest.approx(1.0)


def test_candidate_lists_hold_the_best_of_rows_and_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "BLOCK_ROWS", 70)
    monkeypatch.setattr(passes, "BLOCK_COLUMNS", 90)
    a, b = (UnitRows(rows, "A") for rows in random_pair(np.random.default_rng(0), 200, 16))
    scores = a.unit @ b.unit.T
    for products in (HostProducts(a, b), DeviceProducts(a, b, "cpu")):
        for found, sign in zip(
            find_candidates(a, b, 5, [False, True], products), [False, True], strict=True
        ):
            ranked = scores if sign else np.abs(scores)
            for lists, table in ((found.rows, ranked), (found.columns, ranked.T)):
                expected = np.sort(table, axis=1)[:, -5:]
                np.testing.assert_allclose(np.sort(lists.key, axis=1), expected, atol=1e-6)
                np.testing.assert_allclose(
                    np.take_along_axis(table, lists.index.astype(int), axis=1), lists.key, atol=1e-6
                )
                np.testing.assert_allclose(lists.threshold, expected[:, 0], atol=1e-6)


def test_products_on_a_torch_device_give_the_same_match() -> None:
    a, b = half_shared(np.random.default_rng(0), 1200, 24)
    here = match_features(a, b, method="sparse", candidates=8)
    torch_cpu = match_features(a, b, method="sparse", candidates=8, device="cpu:0")
    np.testing.assert_array_equal(here.b_index, torch_cpu.b_index)
    assert torch_cpu.certified
    with pytest.raises(InputError, match=r"device: 'nowhere'"):
        match_features(a, b, method="sparse", device="nowhere")


def test_an_interrupted_pass_continues_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "BLOCK_ROWS", 64)
    monkeypatch.setattr(passes, "BLOCK_COLUMNS", 100)
    a, b = half_shared(np.random.default_rng(0), 400, 24)
    whole = match_features(a, b, method="sparse", candidates=6)
    file = tmp_path / "pass.safetensors"
    real, calls = np.matmul, 0

    def matmul(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 10:  # in the middle of the third block of rows
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(np, "matmul", matmul)
    with pytest.raises(KeyboardInterrupt):
        match_features(a, b, method="sparse", candidates=6, checkpoint=file)
    done = calls
    assert file.exists()
    with pytest.raises(InputError, match="other dictionaries or options"):
        match_features(a, b, method="sparse", candidates=7, checkpoint=file)
    resumed = match_features(a, b, method="sparse", candidates=6, checkpoint=file)
    # two blocks of rows, four products each, were not computed again
    assert calls - done == 4 * 7 - 8
    np.testing.assert_array_equal(resumed.b_index, whole.b_index)
    assert resumed.certificate is not None
    assert whole.certificate is not None
    assert resumed.certificate.n_candidates == whole.certificate.n_candidates
    done = calls
    again = match_features(a, b, method="sparse", candidates=6, checkpoint=file)
    assert calls == done  # the whole pass was kept
    np.testing.assert_array_equal(again.b_index, whole.b_index)


def test_a_checkpoint_of_other_dictionaries_is_not_used(tmp_path: Path) -> None:
    a, b = (UnitRows(rows, "A") for rows in random_pair(np.random.default_rng(0), 30, 8))
    found = find_candidates(a, b, 3, [False], HostProducts(a, b))
    Checkpoint(tmp_path / "c.safetensors", a, b, 3, [False]).save(found, 30, force=True)
    assert Checkpoint(tmp_path / "c.safetensors", a, b, 3, [False]).load(found) == 30
    with pytest.raises(InputError):
        Checkpoint(tmp_path / "c.safetensors", b, a, 3, [False]).load(found)


@pytest.mark.parametrize(
    ("a", "b", "options", "message"),
    [
        (np.ones((3, 2)), np.ones((3, 4)), {}, "rows of 2 numbers and B of 4"),
        (np.ones(3), np.ones((3, 4)), {}, r"A: its shape is \(3,\)"),
        (np.ones((0, 3)), np.ones((3, 3)), {}, r"A: its shape is \(0, 3\)"),
        (np.ones((3, 3)), np.full((3, 3), np.nan), {}, "B: 3 of its 3 rows hold NaN"),
        (np.ones((3, 3)), np.array([[1, np.inf]] * 2), {}, "the first is row 0"),
        (np.ones((3, 3)), np.array([["a", "b", "c"]]), {}, "give real numbers"),
        (np.ones((3, 3)), np.ones((3, 3)), {"method": "fast"}, "'fast' is not known"),
        (np.ones((3, 3)), np.ones((3, 3)), {"candidates": 0}, "candidates 0"),
        (np.ones((3, 3)), np.ones((3, 3)), {"max_passes": 0.5}, "max_passes 0.5"),
    ],
)
def test_bad_input_is_named(a: Rows, b: Rows, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        match_features(a, b, **options)


def test_progress_is_shown_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    a, b = random_pair(np.random.default_rng(0), 100, 8)
    match_features(a, b, method="sparse", progress="decoders")
    shown = capsys.readouterr().err
    assert "decoders" in shown
    assert "100%" in shown
    match_features(a, b, method="sparse")
    assert capsys.readouterr().err == ""
