"""Which is faster: one process with all threads, or one process with one thread per core?

    python benchmarks/campaign_workers.py [--repeats 3]

writes benchmarks/results/campaign_workers.json and .md: for several shapes of bank the time of
the same SAEs both ways, warm, and their ratio. The default of campaign.compute.processes rests on
it.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch

from husai.campaign.banks import Bank, RowsInfo, make_banks
from husai.campaign.executors import Done
from husai.campaign.executors.local import ProcessExecutor
from husai.campaign.executors.outcomes import Trained
from husai.provenance import git_commit, versions
from husai.sae import BankTrainingConfig, SAEConfig

RESULTS = Path(__file__).parent / "results"
D_IN, N_ROWS = 128, 12_000
SHAPES: tuple[tuple[str, int, dict[str, Any], int], ...] = (
    ("topk", 64, {"k": 4}, 600),
    ("topk", 1024, {"k": 4}, 100),
    ("batch_topk", 256, {"k": 4}, 250),
    ("relu", 256, {"l1_coefficient": 4.0}, 150),
)
SAES = 6


def banks_of(shape: tuple[str, int, dict[str, Any], int], slots: int, steps: int) -> list[Bank]:
    architecture, d_sae, sparsity, _ = shape
    configs = [
        SAEConfig(architecture=architecture, d_sae=d_sae, init_seed=seed, **sparsity)
        for seed in range(SAES)
    ]
    training = BankTrainingConfig(
        steps=steps, batch_size=1024, eval_interval=steps, device="cpu", dead_after_passes=1
    )
    ids = [f"{architecture}-{d_sae}-{seed}" for seed in range(SAES)]
    rows = RowsInfo("rows", N_ROWS, D_IN, "")
    banks = make_banks(ids, configs, [training] * SAES, [rows] * SAES)
    while len(banks) < slots:
        banks = [half for bank in banks for half in bank.halves()]
    return banks


def seconds(executor: ProcessExecutor, banks: list[Bank]) -> float:
    started = time.perf_counter()
    todo, running = list(banks), 0
    while todo or running:
        while todo and executor.room:
            executor.submit(todo.pop())
            running += 1
        for event in executor.wait(1.0):
            if isinstance(event, Done):
                assert isinstance(event.result, Trained), event.result
                running -= 1
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    rows = torch.randn(N_ROWS, D_IN, generator=torch.Generator().manual_seed(0))
    executors = {
        "one process": ProcessExecutor(None, 1, cores, 0),
        "a process a core": ProcessExecutor(None, cores, 1, 0),
    }
    table = []
    try:
        for executor in executors.values():
            executor.put("rows", rows)
        for shape in SHAPES:
            best = dict.fromkeys(executors, float("inf"))
            for repeat in range(options.repeats + 1):
                for name, executor in executors.items():
                    # the first round starts the processes and compiles
                    steps = shape[3] if repeat else 2
                    took = seconds(executor, banks_of(shape, executor.slots, steps))
                    if repeat:
                        best[name] = min(best[name], took)
            one, many = best.values()
            row = {"architecture": shape[0], "d_sae": shape[1], "saes": SAES, "steps": shape[3]}
            table.append({**row, **best, "ratio": one / many})
            print(json.dumps(table[-1]), flush=True)
    finally:
        for executor in executors.values():
            executor.close()
    RESULTS.mkdir(exist_ok=True)
    document = {
        "command": f"python benchmarks/campaign_workers.py --repeats {options.repeats}",
        "cores": cores,
        "versions": versions(),
        **git_commit(Path(__file__).parent),
        "table": table,
    }
    path = RESULTS / "campaign_workers.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    lines = [
        "# Workers of a campaign",
        "",
        f"`{document['command']}` on {cores} cores: seconds for {SAES} SAEs of one shape, best of "
        f"{options.repeats}, in one process with {cores} threads and in {cores} processes with one "
        "thread each. A ratio above 1 means that processes are faster.",
        "",
        "| architecture | d_sae | steps | one process | a process a core | ratio |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['architecture']} | {row['d_sae']} | {row['steps']} | {row['one process']:.2f} | "
        f"{row['a process a core']:.2f} | {row['ratio']:.2f} |"
        for row in table
    ]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
