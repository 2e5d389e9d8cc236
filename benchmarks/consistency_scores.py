"""Time and memory of all scores and nulls of all pairs of nine SAEs.

    python benchmarks/consistency_scores.py [--d-sae 2048] [--d 128] [--seeds 9] [--rows 12769]

Nine SAEs of one group share part of their features and have sparse codes on the same rows; the
report covers both spaces, both signs, every score, the isotropic, data-aware, initialisation and
shuffled nulls, paths and cycles. The floor beside it is one dense assignment a match.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import time
from pathlib import Path

import numpy as np
from scipy import sparse
from scipy.optimize import linear_sum_assignment

from husai.consistency import ConsistencyConfig, SAERecord, consistency_report

RESULT = Path(__file__).parent / "results" / "consistency_scores.json"


def make_records(n_seeds: int, d_sae: int, d: int, rows: int, k: int) -> list[SAERecord]:
    """SAEs that share half of their features, with k-sparse codes on the same rows."""
    truth = np.random.default_rng(0).standard_normal((d_sae, d)).astype(np.float32)
    x = np.random.default_rng(1).standard_normal((rows, d)).astype(np.float32)
    records = []
    for seed in range(n_seeds):
        rng = np.random.default_rng([2, seed])
        W = rng.standard_normal((d_sae, d)).astype(np.float32)
        shared = rng.permutation(d_sae)[: d_sae // 2]
        W[shared] = truth[shared] + 0.3 * rng.standard_normal((len(shared), d))
        W = W[rng.permutation(d_sae)]
        W /= np.linalg.norm(W, axis=1, keepdims=True)
        blocks = []
        for start in range(0, rows, 2048):
            codes = np.maximum(x[start : start + 2048] @ W.T, 0.0)
            least = np.partition(codes, d_sae - k, axis=1)[:, [d_sae - k]]
            blocks.append(sparse.csr_array(np.where(codes >= least, codes, 0.0)))
        records.append(
            SAERecord(
                f"seed-{seed}",
                "topk",
                seed,
                W,
                W_enc=W.T.copy(),
                W_dec_init=rng.standard_normal((d_sae, d)).astype(np.float32),
                k=k,
                converged=True,
                codes=sparse.csr_array(sparse.vstack(blocks, format="csr")),
            )
        )
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--d-sae", type=int, default=2048)
    parser.add_argument("--d", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=9)
    parser.add_argument("--rows", type=int, default=12_769)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--null-draws", type=int, default=ConsistencyConfig().null_draws)
    arguments = parser.parse_args()

    records = make_records(
        arguments.seeds, arguments.d_sae, arguments.d, arguments.rows, arguments.k
    )
    load = os.getloadavg()[0]
    spectrum = 1.0 / np.arange(1, arguments.d + 1)
    scores = np.abs(np.asarray(records[0].W_dec, float) @ np.asarray(records[1].W_dec, float).T)
    start = time.perf_counter()
    linear_sum_assignment(scores, maximize=True)
    floor = time.perf_counter() - start

    config = ConsistencyConfig(workers=arguments.workers, null_draws=arguments.null_draws)
    # compile what numba compiles before the clock starts
    consistency_report(make_records(2, 1100, 16, 300, 4), ConsistencyConfig(null_draws=1))
    start, cpu = time.perf_counter(), time.process_time()
    report = consistency_report(records, config, covariance=np.diag(spectrum))
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    pairs = arguments.seeds * (arguments.seeds - 1) // 2
    result = {
        "command": "python benchmarks/consistency_scores.py "
        + " ".join(f"--{k.replace('_', '-')} {v}" for k, v in vars(arguments).items()),
        "machine": f"{platform.machine()}, {arguments.workers} threads",
        "pairs": pairs,
        "rows_of_pairs_table": len(report.pairs),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "load_average_at_start": round(load, 1),
        "peak_memory_gib": round(peak, 2),
        "one_dense_assignment_seconds": round(floor, 3),
        "assignments_worth": round(seconds / floor, 1),
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
