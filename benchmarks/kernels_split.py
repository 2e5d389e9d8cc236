"""Two versions of the sparse kernels side by side: the same weights? and how long is a step?

    git worktree add ../before 284839c
    git worktree add ../after f000c21
    python benchmarks/kernels_split.py --before ../before/src --after ../after/src

Later versions than f000c21 scale the rows in another way: their steps compare, their weights do
not.

Steps are timed on one thread, d_in 128, batch 2,048, k 8 (4 at width 16). Each version has a
process of its own; short runs of the two alternate, and their minima are compared, so that a busy
machine slows both alike. A process keeps the places in memory that it got, and with them a step
that is up to a tenth shorter or longer than that of the same version in another process: so
several pairs of processes are timed, and the median of their ratios counts. Compiling is timed
with an empty cache, and starting with a full one. Weights are those of short trainings of every
architecture with every method for dead latents.
Writes benchmarks/results/kernels_split.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "kernels_split.md"
D_IN, BATCH = 128, 2048
WIDTHS = (16, 64, 1024)
TIMED = ("topk", "batch_topk", "relu")
COEFFICIENTS: dict[str, dict[str, Any]] = {
    "relu": {"l1_coefficient": 2.0},
    "topk": {"k": 4},
    "batch_topk": {"k": 4},
    "jumprelu": {"l0_coefficient": 0.5},
    "matryoshka_batch_topk": {"k": 4},
    "matryoshka_topk": {"k": 4},
}
METHODS = ("none", "auxk", "ghost", "resample")
LIMIT = 1.03
"""How much longer a step may be."""


def random_rows(n: int, d_in: int) -> Any:
    """Rows of 64 directions, 8 of them active."""
    import torch

    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(64, d_in, generator=generator)
    support = torch.rand(n, 64, generator=generator).topk(8, dim=1).indices
    code = torch.zeros(n, 64).scatter_(1, support, 1.0)
    rows = (code * torch.rand(n, 64, generator=generator)) @ directions
    return rows * (d_in / rows.square().sum(1).mean()).sqrt()


def weights() -> dict[str, str]:
    """Digest of the weights of short trainings, by what was trained."""
    import torch

    from husai.sae import BankTrainingConfig, SAEConfig, train_bank

    torch.set_num_threads(1)
    rows = random_rows(700, 24)
    digests = {}
    for kind, coefficients in COEFFICIENTS.items():
        variants: list[dict[str, Any]] = [{"dead_latents": method} for method in METHODS]
        variants += [
            {"clip_grad_norm": 0.05},
            {"unit_norm_decoder": False, "optimizer": "adamw", "weight_decay": 0.01},
            {"k_anneal_steps": 40, "normalize": "none", "b_dec_init": "zeros"},
        ]
        for settings in variants:
            for d_sae in (16, 300):
                configs = [
                    SAEConfig(architecture=kind, d_sae=d_sae, init_seed=seed, **coefficients)
                    for seed in range(2)
                ]
                training = BankTrainingConfig(
                    steps=120,
                    batch_size=256,
                    dead_after_passes=2.0,
                    resample_every_passes=8.0,
                    warmup_steps=10,
                    **settings,
                )
                digest = hashlib.sha256()
                for sae in train_bank(rows, configs, training):
                    for tensor in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, sae.threshold):
                        if tensor is not None:
                            digest.update(tensor.contiguous().numpy().tobytes())
                digests[f"{kind} {d_sae} {json.dumps(settings)}"] = digest.hexdigest()
    return digests


def first_steps() -> float:
    """Seconds until every architecture has made its first step."""
    started = time.perf_counter()
    for kind in COEFFICIENTS:
        Stepper(kind, 64).seconds(1)
    return time.perf_counter() - started


class Stepper:
    """A bank of one SAE, advanced a few steps at a time."""

    def __init__(self, kind: str, d_sae: int) -> None:
        import torch

        from husai.sae import BankTrainingConfig, SAEConfig
        from husai.sae.bank import build_bank
        from husai.sae.engines.sparse import SparseEngine

        torch.set_num_threads(1)
        self.rows = random_rows(4096, D_IN)
        self.training = BankTrainingConfig(threads=1, steps=1_000_000)
        coefficients = dict(COEFFICIENTS[kind])
        if "k" in coefficients and d_sae > 16:
            coefficients["k"] = 8
        self.configs = [SAEConfig(architecture=kind, d_sae=d_sae, **coefficients)]
        bank = build_bank(self.configs, self.rows, self.rows.mean(0))
        self.engine = SparseEngine(bank, self.rows, self.training)
        self.step = 0

    def seconds(self, steps: int) -> float:
        """Advance; give the CPU seconds per step."""
        import torch

        from husai.sae.schedule import batch_rows, step_table

        until = self.step + steps
        batches = {0: torch.from_numpy(batch_rows(0, len(self.rows), BATCH, self.step, until))}
        table = step_table(self.configs, self.training, self.step, until)
        started = time.process_time()
        self.engine.run(table, batches)
        self.step = until
        return (time.process_time() - started) / steps


def answer_timings(kind: str, d_sae: int) -> None:
    """Read a number of steps a line, and answer with the seconds of one."""
    stepper = Stepper(kind, d_sae)
    for line in sys.stdin:
        print(stepper.seconds(int(line)), flush=True)


def environment(source: Path, cache: Path | None = None) -> dict[str, str]:
    """Let a process use the sources of one version, and one thread."""
    found = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    return found | ({"NUMBA_CACHE_DIR": str(cache)} if cache else {})


def ask(source: Path, *words: str, cache: Path | None = None) -> Any:
    """Run this script with the sources of one version, and read its JSON."""
    command = [sys.executable, __file__, *words]
    done = subprocess.run(
        command, env=environment(source, cache), stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


def compare_steps(
    versions: dict[str, Path], kind: str, d_sae: int, rounds: int
) -> dict[str, float]:
    """Least milliseconds a step of each version, in alternating short runs of two processes."""
    processes = {
        name: subprocess.Popen(
            [sys.executable, __file__, "--time", kind, str(d_sae)],
            env=environment(source),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        for name, source in versions.items()
    }

    def seconds(name: str, steps: int) -> float:
        process = processes[name]
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{steps}\n")
        return float(process.stdout.readline())

    steps = max(2, min(100, round(0.1 / max(seconds(name, 3) for name in versions))))
    for name in versions:
        seconds(name, steps)
    least = dict.fromkeys(versions, float("inf"))
    for turn in range(rounds):
        for name in list(versions)[:: 1 if turn % 2 else -1]:
            least[name] = min(least[name], 1e3 * seconds(name, steps))
    for process in processes.values():
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
    return least


def main() -> None:
    """Compare the two versions and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, help="src folder of the version to compare with")
    parser.add_argument(
        "--after", type=Path, default=ROOT / "src", help="src folder of the version in question"
    )
    parser.add_argument("--rounds", type=int, default=15, help="short runs of each process")
    parser.add_argument("--pairs", type=int, default=7, help="pairs of processes, odd")
    parser.add_argument(
        "--only", choices=("weights", "steps"), help="weights: print, and write nothing"
    )
    parser.add_argument("--weights", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--first", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--time", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.weights:
        print(json.dumps(weights()))
        return
    if options.first:
        print(json.dumps(first_steps()))
        return
    if options.time:
        answer_timings(options.time[0], int(options.time[1]))
        return
    if options.before is None:
        parser.error("--before: give the src folder of the version to compare with")
    versions = {"before": options.before.resolve(), "after": options.after.resolve()}
    lines = [
        "| architecture | d_sae | ms before | ms after | ratio | ratio of each pair |",
        "|---|---|---|---|---|---|",
    ]
    if options.only != "weights":
        for kind in TIMED:
            for d_sae in WIDTHS:
                pairs = [
                    compare_steps(versions, kind, d_sae, options.rounds)
                    for _ in range(options.pairs)
                ]
                before, after = (median(pair[name] for pair in pairs) for name in versions)
                ratios = sorted(pair["after"] / pair["before"] for pair in pairs)
                each = " ".join(f"{ratio:.3f}" for ratio in ratios)
                lines.append(
                    f"| {kind} | {d_sae} | {before:.3f} | {after:.3f} | {median(ratios):.3f} "
                    f"| {each} |"
                )
                print(lines[-1], flush=True)
    if options.only == "steps":
        write(options, lines, "")
        return
    found = {name: ask(source, "--weights") for name, source in versions.items()}
    differing = [case for case in found["before"] if found["before"][case] != found["after"][case]]
    n_cases = len(found["before"])
    print(f"{n_cases - len(differing)} of {n_cases} trainings end at the same bits", *differing)
    if options.only == "weights":
        return
    compiled = ["| | first steps, empty cache | first steps, full cache |", "|---|---|---|"]
    for name, source in versions.items():
        with tempfile.TemporaryDirectory() as folder:
            first = [ask(source, "--first", cache=Path(folder)) for _ in range(2)]
        compiled.append(f"| {name} | {first[0]:.1f} s | {first[1]:.1f} s |")
        print(compiled[-1], flush=True)
    write(
        options,
        lines,
        "\n\nSeconds until all six architectures have made a step at width 64:\n\n"
        + "\n".join(compiled)
        + f"\n\nOf {n_cases} short trainings (every architecture with every method for dead "
        f"latents, clipping, AdamW with free decoder norms, annealed k; widths 16 and 300), "
        f"{n_cases - len(differing)} end at the same bits as before.",
    )


def write(options: argparse.Namespace, lines: list[str], rest: str) -> None:
    """Write the table of steps, and what else was compared."""
    what = {"steps": " --only steps"}.get(options.only, "")
    RESULT.write_text(
        "# Steps of two versions of the kernels\n\n"
        "Written by `python benchmarks/kernels_split.py --before ../before/src --after "
        f"../after/src{what}` (d_in {D_IN}, batch {BATCH:,}, one thread; a pair of "
        f"processes alternates {options.rounds} short runs each, and its ratio is that of their "
        "shortest CPU time of a step; a version alone differs by up to a tenth from process to "
        f"process, so the median of {options.pairs} pairs counts; a step may be "
        f"{LIMIT - 1:.0%} longer).\n\n" + "\n".join(lines) + rest + "\n"
    )


if __name__ == "__main__":
    main()
