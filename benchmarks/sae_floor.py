"""A training step of an SAE on a CPU beside the products that it cannot do without.

    python benchmarks/sae_floor.py                 # d_in 128, d_sae 16 to 512, k 4, both batches
    python benchmarks/sae_floor.py --wide          # d_in 768, d_sae 16,384, k 64
    python benchmarks/sae_floor.py --only topk 128 # one case, printed, nothing written
    python benchmarks/sae_floor.py --width 64      # one width; what is in the file otherwise stays
    python benchmarks/sae_floor.py --batch 2048    # one batch size; the same
    python benchmarks/sae_floor.py --label before  # under another name in the same file

The floor is the sum of five products on the codes of the step itself: encoder, decoder, gradient
of the codes, and the gradients of the two weight matrices. The encoder is a product of the BLAS
into kept memory. The four others are the cheaper of two: dense products, or one loop over the
active latents of each row that does all four while the row is in cache. Selection, biases, Adam,
counting and the gathering of rows are no part of the floor: they are what the ratio counts.

One thread, and CPU time. Step and floor alternate in one process; a ratio is that of one round, and
its median over the rounds is given, beside the least milliseconds. An engine is faster or slower by
where its memory lies: of three the one in the middle is given. SAEs hardly move while they are
timed (rate 1e-6), so that all rounds do the same work. A bank has several SAEs that see the same
rows, as seeds of one setting do.
Writes benchmarks/results/sae_floor.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numba import njit

from husai.sae import BankTrainingConfig, SAEConfig
from husai.sae.bank import build_bank
from husai.sae.engines.sparse import SparseEngine
from husai.sae.schedule import batch_rows, step_table

RESULTS = Path(__file__).resolve().parent / "results" / "sae_floor"
WIDTHS, BATCHES = (16, 64, 128, 256, 512), (1024, 2048)
N_ROWS, ROUNDS, ROUND_SECONDS = 11_492, 31, 0.015
WIDE_ROUNDS = 7
ENGINES = 3


@dataclass(frozen=True)
class Case:
    """What is timed: an architecture at one size, with about ``l0`` active latents per row."""

    name: str
    architecture: str
    d_sae: int
    l0: float
    batch_size: int
    d_in: int = 128
    seeds: int = 6


def small_cases() -> list[Case]:
    """The sizes of the home study, and one either side."""
    cases = []
    for batch_size, d_sae in product(BATCHES, WIDTHS):
        cases += [
            Case("topk", "topk", d_sae, 4, batch_size),
            Case("batch_topk", "batch_topk", d_sae, 4, batch_size),
            Case("relu, L0 4", "relu", d_sae, 4, batch_size),
            Case("relu, L0 = d_sae/2", "relu", d_sae, d_sae / 2, batch_size),
        ]
    return cases


def wide_cases() -> list[Case]:
    """The size of a language model's SAE."""
    return [Case("topk, k 64", "topk", 16_384, 64, batch_size=2048, d_in=768, seeds=1)]


def planted_rows(n: int, d_in: int) -> torch.Tensor:
    """Rows of 4·d_in planted directions, 16 active, scaled to mean square 1."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(4 * d_in, d_in, generator=generator)
    directions = directions / directions.norm(dim=1, keepdim=True)
    support = torch.rand(n, 4 * d_in, generator=generator).topk(16, dim=1).indices
    code = torch.zeros(n, 4 * d_in).scatter_(1, support, 1.0)
    values = torch.randn(n, 4 * d_in, generator=generator).abs()
    rows: torch.Tensor = (code * values) @ directions
    scaled: torch.Tensor = rows * (d_in / rows.square().sum(1).mean()).sqrt()
    return scaled


@njit(fastmath=True, error_model="numpy")
def sparse_products(W_dec, x, start, latent, value, error, g_enc, g_dec):  # type: ignore[no-untyped-def]
    """Decode, gradient of the codes, and the two weight gradients, row by row."""
    d = x.shape[1]
    for r in range(len(start) - 1):
        for c in range(d):
            error[c] = -x[r, c]
        for q in range(start[r], start[r + 1]):
            j, v = latent[q], value[q]
            for c in range(d):
                error[c] += v * W_dec[j, c]
        for q in range(start[r], start[r + 1]):
            j, v = latent[q], value[q]
            dot = np.float32(0.0)
            for c in range(d):
                dot += W_dec[j, c] * error[c]
            for c in range(d):
                g_dec[j, c] += v * error[c]
            for c in range(d):
                g_enc[j, c] += dot * x[r, c]


class Step:
    """The engine's step."""

    def __init__(self, case: Case, rows: torch.Tensor) -> None:
        self.rows = rows
        k = None if case.architecture == "relu" else round(case.l0)
        self.configs = [
            SAEConfig(
                architecture=case.architecture,
                d_sae=case.d_sae,
                k=k,
                l1_coefficient=1.0 if k is None else None,
                learning_rate=1e-6,
                init_seed=seed,
            )
            for seed in range(case.seeds)
        ]
        self.training = BankTrainingConfig(
            threads=1, steps=10**7, warmup_steps=0, batch_size=case.batch_size
        )
        self.bank = build_bank(self.configs, rows, rows.mean(0))
        if k is None:
            # biases that leave so many latents active
            p = self.bank.parameters
            for i in range(case.seeds):
                pre = (rows[:2048] - p["b_dec"][i]) @ p["W_enc"][i].T
                rank = round(pre.numel() * (1 - case.l0 / case.d_sae))
                p["b_enc"][i] -= pre.flatten().kthvalue(rank).values
        self.engine = SparseEngine(self.bank, rows, self.training)
        self.done = 0
        self.l0 = 0.0

    def __call__(self, steps: int) -> None:
        """Advance the bank."""
        until = self.done + steps
        chosen = batch_rows(0, len(self.rows), self.training.batch_size, self.done, until)
        table = step_table(self.configs, self.training, self.done, until)
        means = self.engine.run(table, {0: torch.from_numpy(chosen)})
        self.l0 = float(means["train_l0"].mean())
        self.done = until


class Floor:
    """The products of one SAE's step, on as many active latents."""

    def __init__(self, case: Case, step: Step) -> None:
        d, F, B = case.d_in, case.d_sae, case.batch_size
        self.x = step.rows[:B].contiguous()
        p = {name: tensor[0] for name, tensor in step.bank.parameters.items()}
        self.W_enc, self.W_dec = p["W_enc"].clone(), p["W_dec"].clone()
        self.pre, self.dense = torch.empty(B, F), torch.empty(B, F)
        self.recon, self.gradient = torch.empty(B, d), torch.empty(F, d)
        pre = (self.x - p["b_dec"]) @ self.W_enc.T + p["b_enc"]
        code = pre.clamp_min(0)
        if case.architecture != "relu":
            size = round(case.l0) * (B if case.architecture == "batch_topk" else 1)
            groups = code.reshape(1, -1) if case.architecture == "batch_topk" else code
            top = groups.topk(size, dim=1)
            code = torch.zeros_like(groups).scatter_(1, top.indices, top.values).reshape(B, F)
        row, latent = code.nonzero(as_tuple=True)
        counts = torch.bincount(row, minlength=B).cumsum(0)
        self.codes = (
            np.concatenate([[0], counts.numpy()]).astype(np.int64),
            latent.int().numpy(),
            code[row, latent].numpy(),
        )
        self.error = np.empty(d, np.float32)
        self.g_enc, self.g_dec = np.zeros((2, F, d), np.float32)

    def encoder(self) -> None:
        """Product of the rows with the encoder."""
        torch.mm(self.x, self.W_enc.T, out=self.pre)

    def with_dense(self) -> None:
        """Do the four other products densely."""
        torch.mm(self.pre, self.W_dec, out=self.recon)
        torch.mm(self.recon, self.W_dec.T, out=self.dense)
        torch.mm(self.pre.T, self.recon, out=self.gradient)
        torch.mm(self.dense.T, self.x, out=self.gradient)

    def with_loop(self) -> None:
        """Do the four other products over the active latents."""
        arrays = (self.W_dec.numpy(), self.x.numpy(), *self.codes)
        sparse_products(*arrays, self.error, self.g_enc, self.g_dec)


def cpu_ms(work: Callable[[], object], repeats: int) -> float:
    """CPU milliseconds of one call."""
    started = time.process_time()
    for _ in range(repeats):
        work()
    return 1e3 * (time.process_time() - started) / repeats


def measure(case: Case) -> dict[str, Any]:
    """Milliseconds of a step and of its products, and their ratios."""
    rows = planted_rows(N_ROWS, case.d_in)
    step = Step(case, rows)
    step(4)
    floor = Floor(case, step)
    works: dict[str, Callable[[], object]] = {
        "encoder": floor.encoder,
        "loop": floor.with_loop,
    }
    if 50 * case.l0 > case.d_sae:  # else the dense products cannot be the cheaper ones
        works["dense"] = floor.with_dense
    for work in works.values():
        work()
    repeats = {
        name: max(1, round(1e3 * ROUND_SECONDS / max(cpu_ms(work, 1), 0.01)))
        for name, work in works.items()
    }
    n_steps = max(1, round(ROUND_SECONDS / max(cpu_ms(lambda: step(1), 1) / 1e3, 1e-5)))
    rounds: dict[str, list[float]] = {name: [] for name in [*works, "step"]}
    for _ in range(ROUNDS if case.d_sae <= max(WIDTHS) else WIDE_ROUNDS):
        for name, work in works.items():
            rounds[name].append(cpu_ms(work, repeats[name]))
        rounds["step"].append(cpu_ms(lambda: step(n_steps), 1) / n_steps / case.seeds)
    least = {name: min(times) for name, times in rounds.items()}
    others = min(least.keys() - {"encoder", "step"}, key=least.__getitem__)
    ms = {name: np.array(times) for name, times in rounds.items()}
    return {
        "case": case.name,
        "d_sae": case.d_sae,
        "d_in": case.d_in,
        "batch_size": case.batch_size,
        "seeds": case.seeds,
        "l0": round(step.l0, 2),
        "step_ms": round(least["step"], 4),
        "encoder_ms": round(least["encoder"], 4),
        "other_products_ms": round(least[others], 4),
        "other_products": "dense" if others == "dense" else "sparse",
        "step_over_products": median(ms["step"] / (ms["encoder"] + ms[others])),
        "step_over_encoder": median(ms["step"] / ms["encoder"]),
    }


def median(ratios: np.ndarray) -> float:
    """Median of the rounds' ratios."""
    return round(float(np.median(ratios)), 2)


def key(cell: dict[str, Any]) -> tuple[str, int, int]:
    """What tells the cells of one version apart."""
    return cell["case"], cell["d_sae"], cell["batch_size"]


def write(label: str, found: list[dict[str, Any]]) -> None:
    """Add what was measured under a label to the file, and write the page."""
    path = RESULTS.with_suffix(".json")
    runs = json.loads(path.read_text()) if path.exists() else {}
    kept = {key(c): c for c in runs.get(label, [])}
    kept |= {key(c): c for c in found}
    runs[label] = list(kept.values())
    path.write_text(json.dumps(runs, indent=1) + "\n")
    labels = list(runs)
    lines = [
        "# A training step on a CPU over its products",
        "",
        "Milliseconds per SAE and step on one thread (least of the rounds), and the step over the "
        "sum of its five products (encoder, decoder, gradient of the codes, two weight gradients), "
        "measured in turn in one run (median of the rounds). The last column is the step over its "
        "encoder product alone. The ratios of the version `before` are those of the least times.",
        "",
        "| version | case | d_sae | batch | L0 | step ms | encoder ms | other products ms | "
        "step / products | step / encoder |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    cells = {(label, key(c)): c for label in labels for c in runs[label]}
    for of_case in sorted({of_case for _, of_case in cells}):
        for label in labels:
            if (label, of_case) not in cells:
                continue
            c = cells[label, of_case]
            lines.append(
                f"| {label} | {c['case']} | {c['d_sae']} | {c['batch_size']:,} | {c['l0']} | "
                f"{c['step_ms']} | {c['encoder_ms']} | "
                f"{c['other_products_ms']} ({c['other_products']}) | {c['step_over_products']} | "
                f"{c['step_over_encoder']} |"
            )
    lines += ["", "Made by `python benchmarks/sae_floor.py` (and `--wide`).", ""]
    RESULTS.with_suffix(".md").write_text("\n".join(lines))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wide", action="store_true", help="the language model's size")
    parser.add_argument("--only", nargs=2, metavar=("CASE", "D_SAE"), help="print, write nothing")
    parser.add_argument("--width", type=int, help="only the cases of one d_sae; the rest is kept")
    parser.add_argument("--batch", type=int, help="only the cases of one batch size")
    parser.add_argument("--label", default="now", help="name of this version in the file")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    cases = wide_cases() if options.wide else small_cases()
    if options.only:
        name, d_sae = options.only
        cases = [c for c in cases if c.name == name and (d_sae == "all" or c.d_sae == int(d_sae))]
    if options.batch:
        cases = [c for c in cases if c.batch_size == options.batch]
    if options.width:
        cases = [c for c in cases if c.d_sae == options.width]
    found = []
    for case in cases:
        engines = [measure(case) for _ in range(1 if options.wide else ENGINES)]
        found.append(
            sorted(engines, key=lambda cell: cell["step_over_products"])[len(engines) // 2]
        )
        print(json.dumps(found[-1]), flush=True)
    if not options.only:
        write(options.label, found)


if __name__ == "__main__":
    main()
