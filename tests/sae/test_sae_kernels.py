"""Selection kernels against sorting, and compiled code against its sources."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import husai.sae.kernels
from husai.sae.engines.sparse import block_memory, empty_codes
from husai.sae.kernels import select
from husai.sae.kernels.types import AuxK


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
        kept, _ = select._keep_top(bits, latent, len(bits), k, hint)
        assert set(latent[:kept].tolist()) == top_by_sorting(values, k)
        assert np.array_equal(bits[:kept].view(np.float32), values[latent[:kept]])


def encode(values: np.ndarray, k: int, kind: str, level: int = 0) -> list[set[int]]:
    """Run the selection kernels on pre-activations."""
    B, F = values.shape
    codes = empty_codes(B, F, 2 * B * k + F)
    row_of = np.empty(len(codes.latent), np.int32)
    auxk = AuxK(np.zeros(0, np.int32), 1, empty_codes(B, F, 1), np.zeros((1, 1, 1), np.float32))
    # the bias must count, and two blocks must join
    bias = np.random.default_rng(F).integers(-3, 3, F).astype(np.float32)
    complete = False
    while not complete:
        state = np.array([0, 0, level, 0])
        for r0 in range(0, B, 128):
            rows = min(128, B - r0)
            pre = (values[r0 : r0 + rows].astype(np.float32) - bias).ravel()
            memory = block_memory(pre, F)._replace(state=state)
            if kind == "row":
                select.select_in_rows(r0, rows, bias, k, memory, codes, auxk)
            else:
                select.list_for_batch(r0, rows, bias, k, memory, codes, auxk, row_of)
        complete = kind == "row"
        if not complete:
            complete, level = select.select_in_batch(k, state, codes, row_of)
    start = codes.start
    return [set(codes.latent[start[r] : start[r + 1]].tolist()) for r in range(B)]


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


def test_compiled_code_follows_the_sources_of_other_files(tmp_path: Path) -> None:
    # numba alone looks at the file of the kernel that is called, and not at those that it calls
    package = tmp_path / "husai" / "sae" / "kernels"
    shutil.copytree(Path(husai.sae.kernels.__file__).parent, package)
    shutil.rmtree(package / "__pycache__", ignore_errors=True)
    for folder in (package.parent, package.parent.parent):
        (folder / "__init__.py").write_text("")
    (package / "outer.py").write_text(
        "from husai.sae.kernels.inner import two\n"
        "from husai.sae.kernels.types import kernel\n"
        "@kernel\ndef outer():\n    return two()\n"
    )
    answers = []
    for number in (2, 3):
        (package / "inner.py").write_text(
            "from husai.sae.kernels.types import kernel\n"
            f"@kernel\ndef two():\n    return {number}\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", "from husai.sae.kernels.outer import outer; print(outer())"],
            env=os.environ
            | {"PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            check=True,
        )
        answers.append(int(done.stdout))
    assert answers == [2, 3]
