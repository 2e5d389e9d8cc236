"""Selection kernels against sorting."""

from __future__ import annotations

import numpy as np
import pytest

from husai.sae import kernels


def top_by_sorting(values: np.ndarray, k: int) -> set[int]:
    """The k largest positive values; the first ones among equals."""
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    return {i for i in order[:k] if values[i] > 0}


@pytest.mark.parametrize("n", [3, 40, 257])
@pytest.mark.parametrize("k", [1, 3, 32])
@pytest.mark.parametrize("kind", ["continuous", "ties", "few positive"])
def test_keep_top_equals_sorting(n: int, k: int, kind: str) -> None:
    generator = np.random.default_rng(n * k)
    values = np.abs(generator.standard_normal(n)).astype(np.float32)
    if kind == "ties":
        values = (np.round(values * 2) / 2 + 0.5).astype(np.float32)
    if kind == "few positive":
        values[2:] = 0
    for hint in (0, 1, int(values.view(np.int32)[0])):
        positive = np.flatnonzero(values > 0).astype(np.int32)
        bits = values[positive].copy().view(np.int32)
        latent = positive.copy()
        kept, _ = kernels._keep_top(bits, latent, len(bits), k, hint)
        assert set(latent[:kept].tolist()) == top_by_sorting(values, k)
        assert np.array_equal(bits[:kept].view(np.float32), values[latent[:kept]])


def encode(values: np.ndarray, k: int, kind: str, level: int = 0) -> list[set[int]]:
    """Run the selection kernels on pre-activations."""
    B, F = values.shape
    capacity = 2 * B * k + F
    value, row_of = np.empty(capacity, np.float32), np.empty(capacity, np.int32)
    start, latent = np.zeros(B + 1, np.int64), np.empty(capacity, np.int32)
    chunk_max = np.empty(F + 1, np.float32)
    memory = [np.empty(F + 1, np.int32) for _ in range(3)]
    nothing = np.zeros(1, np.int32)
    aux = (np.zeros(B + 1, np.int64), nothing, nothing)
    # the bias must count, and two blocks must join
    bias = np.random.default_rng(F).integers(-3, 3, F).astype(np.float32)
    complete = False
    while not complete:
        state = np.array([0, 0, level, 0])
        for r0 in range(0, B, 128):
            rows = min(128, B - r0)
            pre = (values[r0 : r0 + rows].astype(np.float32) - bias).ravel()
            common = (
                *(pre, pre.view(np.int32), chunk_max, chunk_max.view(np.int32), *memory, state),
                *(start, latent, value.view(np.int32), nothing, 0, 1, *aux),
            )
            if kind == "row":
                kernels.select_in_rows(r0, rows, bias, k, *common)
            else:
                kernels.list_for_batch(r0, rows, bias, k, *common, row_of)
        complete = kind == "row"
        if not complete:
            complete, level = kernels.select_in_batch(
                k, state, start, latent, value.view(np.int32), row_of
            )
    return [set(latent[start[r] : start[r + 1]].tolist()) for r in range(B)]


@pytest.mark.parametrize(("F", "k"), [(7, 2), (64, 4), (300, 3), (1024, 8)])
@pytest.mark.parametrize("ties", [False, True])
def test_row_selection_equals_sorting(F: int, k: int, ties: bool) -> None:
    values = np.random.default_rng(F).standard_normal((300, F))
    if ties:
        values = np.round(values * 2) / 2
    found = encode(values, k, "row")
    for row, chosen in zip(values.astype(np.float32), found, strict=True):
        # which of equal values stays is free in a row cut into chunks; how large they are is not
        expected = top_by_sorting(row, k)
        assert sorted(row[list(chosen)]) == sorted(row[list(expected)])


@pytest.mark.parametrize(("F", "k"), [(7, 2), (64, 4), (300, 3)])
@pytest.mark.parametrize("level", [0.0, 1.5, 100.0])
def test_batch_selection_equals_sorting_from_any_level(F: int, k: int, level: float) -> None:
    values = np.random.default_rng(F).standard_normal((300, F)).astype(np.float32)
    bits = int(np.float32(level).view(np.int32))
    found = encode(values, k, "batch", bits)
    expected = top_by_sorting(values.ravel(), 300 * k)
    assert {r * F + j for r, chosen in enumerate(found) for j in chosen} == expected


def test_batch_selection_takes_ties_and_stops_at_positive_values() -> None:
    values = np.random.default_rng(1).integers(-3, 3, (200, 30)).astype(np.float32)
    found = encode(values, 2, "batch")
    chosen = [values[r, j] for r, row in enumerate(found) for j in row]
    assert len(chosen) == 400
    assert min(chosen) == np.sort(values.ravel())[-400]
    assert sum(len(row) for row in encode(-np.abs(values), 2, "batch")) == 0
