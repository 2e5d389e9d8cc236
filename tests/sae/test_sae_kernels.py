"""Selection kernels against sorting, and compiled code against its sources."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numba import typeof

import husai.sae.kernels
from husai.sae import ARCHITECTURES, BankTrainingConfig, SAEConfig
from husai.sae.bank import SAEBank, build_bank
from husai.sae.engines.memory import block_memory, empty_codes
from husai.sae.engines.sparse import SparseEngine
from husai.sae.kernels import few, select, types
from husai.sae.kernels.types import AuxK, Calls
from husai.sae.schedule import batch_rows, step_table


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
    auxk = AuxK(np.zeros(0, np.int32), 1, empty_codes(B, F, 1), np.zeros((1, 1, 1), np.float32))
    # the bias must count, and two blocks must join
    bias = np.random.default_rng(F).integers(-3, 3, F).astype(np.float32)
    complete = False
    while not complete:
        state = np.array([0, 0, level, 0])
        for r0 in range(0, B, 280):
            rows = min(280, B - r0)
            products = values[r0 : r0 + rows].astype(np.float32) - bias
            products = products.T if kind == "side by side" else products
            # kernels read 32 numbers at a time
            pre = np.concatenate([products.ravel(), np.full(32, 9.0, np.float32)])
            memory = block_memory(pre, F)._replace(state=state)
            if kind == "side by side":
                few.select_side_by_side(
                    *(r0, rows, cast(Any, bias), k, memory, codes, auxk, few.group_memory())
                )
            elif kind == "row":
                select.select_in_rows(r0, rows, cast(Any, bias), k, memory, codes, auxk)
            else:
                select.list_for_batch(r0, rows, cast(Any, bias), k, memory, codes, auxk)
        complete = kind != "batch"
        if not complete:
            complete, level = select.select_in_batch(k, state, codes)
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


@pytest.mark.parametrize(("F", "k"), [(7, 2), (64, 4), (65, 1), (130, 8), (300, 5)])
@pytest.mark.parametrize("ties", [False, True])
def test_parallel_selection_takes_the_first_of_equal_values(F: int, k: int, ties: bool) -> None:
    values = np.random.default_rng(F).standard_normal((300, F))
    if ties:
        values = np.round(values * 2) / 2
    # rows with fewer positive values than k, and with none
    values[:3, 2:] = -1.0
    values[5] = -1.0
    found = encode(values, k, "side by side")
    for row, chosen in zip(values.astype(np.float32), found, strict=True):
        assert chosen == top_by_sorting(row, k)


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


def some_bank(architecture: str = "topk") -> SAEBank:
    fields: dict[str, dict[str, float]] = {
        "relu": {"l1_coefficient": 1.0},
        "jumprelu": {"l0_coefficient": 0.5},
    }
    changed = fields.get(architecture, {"k": 2})
    configs = [SAEConfig(architecture=architecture, d_sae=12, **changed)]
    rows = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    return build_bank(configs, rows, rows.mean(0))


def advanced(rows: torch.Tensor) -> torch.Tensor:
    training = BankTrainingConfig(batch_size=8, threads=1)
    bank = some_bank()
    engine = SparseEngine(bank, rows, training)
    batches = torch.from_numpy(batch_rows(0, len(rows), 8, 0, 5))
    engine.run(step_table(bank.configs, training, 0, 5), {0: batches})
    return bank.parameters["W_dec"]


def test_rows_of_another_type_or_layout_are_converted() -> None:
    rows = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    expected = advanced(rows)
    assert torch.equal(advanced(rows.double()), expected)
    transposed = rows.T.contiguous().T
    assert not transposed.is_contiguous()
    assert torch.equal(advanced(transposed), expected)
    spread = torch.zeros(40, 12)
    spread[:, ::2] = rows
    assert torch.equal(advanced(spread[:, ::2]), expected)
    with pytest.raises(ValueError, match="rows: width 5"):
        advanced(rows[:, :5])


@pytest.mark.parametrize(
    "batches",
    [
        torch.zeros(5, 8, dtype=torch.int32),
        torch.zeros(5, 8),
        torch.zeros(8, 5, dtype=torch.int64).T,
        torch.zeros(5, 7, dtype=torch.int64),
        torch.zeros(4, 8, dtype=torch.int64),
        torch.full((5, 8), 40),
        torch.full((5, 8), -1),
    ],
)
def test_row_numbers_that_kernels_would_read_wrongly_are_refused(batches: torch.Tensor) -> None:
    training = BankTrainingConfig(batch_size=8, threads=1)
    bank = some_bank()
    engine = SparseEngine(bank, torch.randn(40, 6), training)
    before = bank.parameters["W_dec"].clone()
    table = step_table(bank.configs, training, 0, 5)
    with pytest.raises(ValueError, match="batches"):
        engine.run(table, {0: batches})
    assert torch.equal(bank.parameters["W_dec"], before)


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "log_threshold"])
def test_parameters_that_kernels_would_read_wrongly_are_refused(name: str) -> None:
    training = BankTrainingConfig(batch_size=8, threads=1)
    for change in (
        torch.Tensor.double,
        lambda tensor: torch.stack([tensor, tensor], dim=-1)[..., 0],
        lambda tensor: tensor[:, 1:].contiguous(),
    ):
        for group in ("parameters", "first_moment", "second_moment"):
            bank = some_bank("jumprelu")
            tensors = getattr(bank, group)
            tensors[name] = change(tensors[name])
            with pytest.raises(ValueError, match=name):
                SparseEngine(bank, torch.randn(40, 6), training)


class CheckedCalls(Calls):
    """Calls that look at the types of the arguments every time."""

    def __init__(self) -> None:
        super().__init__()
        self.types: dict[object, object] = {}

    def __call__(self, function: Any, *arguments: Any) -> Any:  # type: ignore[override]
        types = tuple(typeof(argument) for argument in arguments)
        # the first call is numba's own, which may convert: compare with what it compiled
        result = super().__call__(function, *arguments)
        assert self.types.setdefault(function, types) == types, function
        return result


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("method", ["auxk", "ghost", "resample"])
def test_no_call_of_an_engine_changes_its_types(
    architecture: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("husai.sae.engines.sparse.Calls", CheckedCalls)
    rows = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    for changes in ({}, {"clip_grad_norm": 0.1, "unit_norm_decoder": False, "k_anneal_steps": 9}):
        training = BankTrainingConfig.model_validate(
            {"batch_size": 16, "threads": 1, "dead_latents": method, "dead_after_passes": 0.3}
            | changes
        )
        bank = some_bank(architecture)
        engine = SparseEngine(bank, rows, training)
        # from many active latents, which take the dense way, to few, with dead ones among them
        for first, shift in ((0, 0.0), (10, 1.0), (20, 3.0)):
            bank.parameters["b_enc"] -= shift
            batches = torch.from_numpy(batch_rows(0, len(rows), 16, first, first + 10))
            engine.run(step_table(bank.configs, training, first, first + 10), {0: batches})
        assert len(cast(CheckedCalls, engine.workers[0].call).types) >= 5
        assert not bool(bank.failed.any())


def test_numba_without_the_private_attribute_falls_back_to_the_usual_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for missing in (
        SimpleNamespace(),
        SimpleNamespace(_cache=SimpleNamespace()),
        SimpleNamespace(_cache=SimpleNamespace(_cache_file=SimpleNamespace())),
    ):
        monkeypatch.setattr(types, "njit", lambda missing=missing, **_: lambda _: missing)
        compiled: Any = types.kernel(len)
        assert compiled is missing
        assert "_source_stamp" not in repr(missing)
    stamped = SimpleNamespace(
        _cache=SimpleNamespace(_cache_file=SimpleNamespace(_source_stamp="its own file"))
    )
    types.stamp_with_sources(stamped)
    assert stamped._cache._cache_file._source_stamp == types.SOURCES


def test_cached_code_for_a_missing_type_is_compiled_again() -> None:
    def load() -> dict[str, str]:
        raise AttributeError("Can't get attribute 'OldSums'")

    cache = SimpleNamespace(_source_stamp="its own file", _load_index=load)
    types.stamp_with_sources(SimpleNamespace(_cache=SimpleNamespace(_cache_file=cache)))
    assert cache._load_index() == {}
    cache = SimpleNamespace(_source_stamp="its own file", _load_index=lambda: {"key": "code"})
    types.stamp_with_sources(SimpleNamespace(_cache=SimpleNamespace(_cache_file=cache)))
    assert cache._load_index() == {"key": "code"}


def test_compiled_code_changes_with_sources_in_other_files(tmp_path: Path) -> None:
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


def test_a_run_that_compiles_trains_the_same_weights_as_one_that_reads_the_code(
    tmp_path: Path,
) -> None:
    # a kernel left as a call inside another one is the code that was loaded first: last bits differ
    script = (
        "import hashlib, torch\n"
        "from husai.sae import BankTrainingConfig, SAEConfig, train_bank\n"
        "torch.set_num_threads(1)\n"
        "rows = torch.randn(700, 24, generator=torch.Generator().manual_seed(0))\n"
        "config = SAEConfig(architecture='relu', d_sae=16, l1_coefficient=2.0)\n"
        "training = BankTrainingConfig(steps=120, batch_size=256, device='cpu', threads=1)\n"
        "sae = train_bank(rows, [config], training, progress=False)[0]\n"
        "print(hashlib.sha256(sae.W_enc.numpy().tobytes()).hexdigest())\n"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    compiled, read = (
        subprocess.run(
            [sys.executable, "-c", script],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for _ in range(2)
    )
    assert any(tmp_path.rglob("*.nbi"))
    assert compiled == read
