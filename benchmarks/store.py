"""Rows larger than memory: how fast a store is read, and how much memory training on it needs.

    python benchmarks/store.py memory --gb 1 4 16    # peak memory as the rows grow
    python benchmarks/store.py rate                  # rows read per second, beside the engine's

Each size runs in a process of its own, on sparse files of zeros that take no space on the disk. The
rows are read as in any store; memory is the same as with other rows, but the rates do not include
the disk, only memory and conversion. ``--real`` writes random rows instead.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from husai.activations import ActivationStore
from husai.activations.store import BYTES, INDEX, StoreDtype
from husai.sae import BankTrainingConfig, SAEConfig, train_bank
from husai.sae.buffered import BufferedRows
from husai.sae.rows import prepare_rows

SHARD_ROWS = 65536
HELD_OUT = 4096


def make_store(folder: Path, n_rows: int, d: int, dtype: StoreDtype, real: bool) -> ActivationStore:
    """Make a store of so many rows: sparse shards of zeros, or random ones."""
    store = ActivationStore.create(folder, d, dtype, {"benchmark": "store"})
    rng = np.random.default_rng(0)
    n_shards = -(-n_rows // SHARD_ROWS)
    for number in range(n_shards):
        if real:
            store.write(number, torch.from_numpy(rng.standard_normal((SHARD_ROWS, d), np.float32)))
        else:
            _sparse_shard(store, number, d)
    store.write(n_shards, torch.from_numpy(rng.standard_normal((HELD_OUT, d), np.float32)))
    store.finish(HELD_OUT)
    if not real:  # zeros have no scale
        index = json.loads((folder / INDEX).read_text())
        index["square_sum"] = float(d) * (n_shards * SHARD_ROWS + HELD_OUT)
        (folder / INDEX).write_text(json.dumps(index))
    return ActivationStore(folder)


def _sparse_shard(store: ActivationStore, number: int, d: int) -> None:
    nbytes = SHARD_ROWS * d * BYTES[store.dtype]
    about = {"rows": SHARD_ROWS, "digest": "", "sum": [0.0] * d, "square_sum": 0.0}
    kinds = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
    header = {
        "__metadata__": {"husai": json.dumps(about)},
        "rows": {
            "dtype": kinds[store.dtype],
            "shape": [SHARD_ROWS, d],
            "data_offsets": [0, nbytes],
        },
    }
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)
    with (store.folder / f"rows-{number:06d}.safetensors").open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        file.truncate(8 + len(content) + nbytes)


def peak_gb() -> float:
    """Largest resident memory of this process so far, in 10⁹ bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def measure_memory(options: argparse.Namespace) -> dict[str, float]:
    """Train one SAE over all rows of a store, once."""
    d, batch = options.d, options.batch_size
    n_rows = int(options.gb[0] * 1e9 / (BYTES[options.dtype] * d))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        store = make_store(Path(folder), n_rows, d, options.dtype, options.real)
        before = peak_gb()
        training = BankTrainingConfig(
            steps=store.n_rows // batch if options.steps is None else options.steps,
            batch_size=batch,
            eval_interval=10**9,
            rows_memory_gb=options.memory_gb,
        )
        started = time.perf_counter()
        train_bank(store, [SAEConfig(d_sae=options.d_sae, k=8)], training)
        seconds = time.perf_counter() - started
    return {
        "store_gb": options.gb[0],
        "rows": store.n_rows,
        "before_gb": before,
        "peak_gb": peak_gb(),
        "seconds": seconds,
        "rows_per_second": training.steps * batch / seconds,
    }


def measure_rate(options: argparse.Namespace) -> dict[str, float]:
    """Read batches alone, and train alone on rows that are held."""
    d, batch = options.d, options.batch_size
    n_rows = int(options.gb[0] * 1e9 / (BYTES[options.dtype] * d))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        store = make_store(Path(folder), n_rows, d, options.dtype, options.real)
        training = BankTrainingConfig(
            steps=store.n_rows // batch, batch_size=batch, rows_memory_gb=options.memory_gb
        )
        rows = prepare_rows(store, None, training)
        assert isinstance(rows, BufferedRows), "the store fits into memory: raise --gb"
        rows.memory({0}, torch.device("cpu"))
        step, started = 0, time.perf_counter()
        while step < training.steps:
            step, _ = rows.batches({0}, step, training.steps)
        reading = training.steps * batch / (time.perf_counter() - started)
    held = torch.randn(4 * batch, d)
    steps = 12
    short = BankTrainingConfig(steps=steps, batch_size=batch, eval_interval=10**9)
    config = [SAEConfig(d_sae=options.d_sae, k=32)]
    train_bank(held, config, short.model_copy(update={"steps": 2}))  # compiles
    started = time.perf_counter()
    train_bank(held, config, short)
    engine = steps * batch / (time.perf_counter() - started)
    return {
        "store_gb": options.gb[0],
        "reading_rows_per_second": reading,
        "reading_gb_per_second": reading * d * BYTES[options.dtype] / 1e9,
        "engine_rows_per_second": engine,
        "ratio": reading / engine,
    }


def main() -> None:
    """Measure, each size in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["memory", "rate"])
    parser.add_argument("--gb", type=float, nargs="+", default=[4.0])
    parser.add_argument("--memory-gb", type=float, default=2.0, help="the buffer's size")
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--d-sae", type=int, default=3072)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--steps", type=int, help="fewer than go over all rows")
    parser.add_argument("--dtype", choices=list(BYTES), default="float16")
    parser.add_argument("--real", action="store_true", help="random rows, on the disk")
    parser.add_argument("--folder", help="where the store is made")
    options = parser.parse_args()
    if len(options.gb) > 1:
        for size in options.gb:
            given = list(sys.argv[1:])
            at = given.index("--gb")
            given[at + 1 : at + 1 + len(options.gb)] = [str(size)]
            subprocess.run([sys.executable, __file__, *given], check=True)
        return
    found = measure_memory(options) if options.what == "memory" else measure_rate(options)
    print(json.dumps({name: round(value, 3) for name, value in found.items()}), flush=True)


if __name__ == "__main__":
    main()
