"""Time and memory of exact matching, beside scipy and lapx on the dense matrix.

Each measurement runs in a process of its own, so that its peak memory is its own. The floor is
one blocked pass of the float32 product and nothing else, timed on a part of the blocks before and
after the match in the same process. Run, for example::

    python benchmarks/matching_scale.py --sizes 4096 16384 --peers
    python benchmarks/matching_scale.py --sizes 131072 --kinds half

lapx is measured when ``.venv-peers-lapx`` holds it (``python -m venv .venv-peers-lapx`` and
``.venv-peers-lapx/bin/pip install lapx``); results go to ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "matching_scale.json"
LAPX = HERE.parent / ".venv-peers-lapx" / "bin" / "python"
KINDS = ("none", "half", "all", "near")
# Sizes past these take the dense solvers more than some minutes.
SCIPY_LIMIT, LAPX_LIMIT = 16384, 8192

Rows = NDArray[np.float32]


def dictionaries(n: int, d: int, kind: str, seed: int) -> tuple[Rows, Rows]:
    """Two dictionaries ``[n, d]`` that share no feature, half, all, or near-duplicates.

    A shared feature is the same direction with noise (cosine about .95, or .89 for ``all``);
    ``near``: both hold eight noisy copies of each of n / 8 directions.
    """
    rng = np.random.default_rng(seed)
    a, b = (rng.standard_normal((n, d), dtype=np.float32) for _ in range(2))
    if kind == "half":
        b[: n // 2] = a[: n // 2] + np.float32(0.3) * b[: n // 2]
    elif kind == "all":
        b = a + np.float32(0.5) * b
    elif kind == "near":
        centres = np.repeat(rng.standard_normal((n // 8, d), dtype=np.float32), 8, axis=0)
        a *= np.float32(0.1)
        b *= np.float32(0.1)
        a += centres
        b += centres
    return a, b[rng.permutation(n)]


def peak_gib() -> float:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def dense_scores(a: Rows, b: Rows) -> NDArray[np.float64]:
    """|cosine| of all pairs, in float64."""
    unit = [
        x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a.astype(float), b.astype(float))
    ]
    scores: NDArray[np.float64] = np.abs(unit[0] @ unit[1].T)
    return scores


def floor_seconds(a: Rows, b: Rows, seconds: float = 6.0) -> float:
    """Seconds that one pass of the product takes, from as many of its blocks as fit."""
    from husai.matching.candidates import BLOCK_COLUMNS, BLOCK_ROWS

    rows, columns = min(BLOCK_ROWS, len(a)), min(BLOCK_COLUMNS, len(b))
    block = np.empty((rows, columns), np.float32)
    np.matmul(a[:rows], b[:columns].T, out=block)
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        i = done * rows % (len(a) - rows + 1)
        j = done * columns % (len(b) - columns + 1)
        np.matmul(a[i : i + rows], b[j : j + columns].T, out=block)
        done += 1
    spent = time.perf_counter() - start
    return spent / done * (len(a) / rows) * (len(b) / columns)


def measure(method: str, n: int, d: int, kind: str, seed: int, checkpoint: str) -> dict[str, Any]:
    """Measure one case in this process."""
    a, b = dictionaries(n, d, kind, seed)
    result: dict[str, Any] = {"method": method, "n": n, "d": d, "kind": kind, "seed": seed}
    if method == "husai":
        from husai.matching.match import match_features

        # the first call compiles (cached on disk afterwards); it is not part of the measurement
        match_features(a[:2048], b[:2048], method="sparse")
        before = floor_seconds(a, b)
        start = time.perf_counter()
        match = match_features(a, b, method="sparse", progress=True, checkpoint=checkpoint or None)
        result["seconds"] = time.perf_counter() - start
        result["peak_gib"] = peak_gib()
        floor = (before + floor_seconds(a, b)) / 2
        result |= {"floor_seconds": floor, "times_floor": result["seconds"] / floor}
        certificate = match.certificate
        if certificate is None:
            raise SystemExit("the match was not made by the sparse method")
        result |= {
            "mean": match.mean,
            "certified": match.certified,
            "gap_bound": match.gap_bound,
            "largest_violation": certificate.largest_violation,
            "passes": certificate.passes,
            "rounds": certificate.rounds,
            "candidates": certificate.n_candidates,
        }
        return result
    start = time.perf_counter()
    scores = dense_scores(a, b)
    if method == "scipy":
        from scipy.optimize import linear_sum_assignment

        rows, columns = linear_sum_assignment(scores, maximize=True)
    else:
        import lap  # the package lapx

        np.subtract(1.0, scores, out=scores)
        _, columns, _ = lap.lapjv(scores)
        rows = np.arange(n)
        scores = 1.0 - scores
    result["seconds"] = time.perf_counter() - start
    result["peak_gib"] = peak_gib()
    result["mean"] = float(scores[rows, columns].mean())
    return result


def in_own_process(
    python: str, method: str, n: int, d: int, kind: str, seed: int
) -> dict[str, Any]:
    """Run :func:`measure` in a fresh process."""
    command = [python, __file__, "--one", method, "--sizes", str(n), "--dims", str(d)]
    command += ["--kinds", kind, "--seed", str(seed)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2048, 4096, 8192, 16384])
    parser.add_argument("--dims", type=int, nargs="+", default=[768])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peers", action="store_true", help="measure scipy and lapx as well")
    parser.add_argument(
        "--checkpoint", default="", help="file to keep a long case in; a resumed time is no result"
    )
    parser.add_argument("--one", choices=("husai", "scipy", "lapx"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        case = (options.sizes[0], options.dims[0], options.kinds[0], options.seed)
        print(json.dumps(measure(options.one, *case, options.checkpoint)))
        return
    for n in options.sizes:
        for d in options.dims:
            for kind in options.kinds:
                case = (n, d, kind, options.seed)
                results = [in_own_process(sys.executable, "husai", *case)]
                if options.peers and n <= SCIPY_LIMIT:
                    results.append(in_own_process(sys.executable, "scipy", *case))
                if options.peers and n <= LAPX_LIMIT and LAPX.exists():
                    results.append(in_own_process(str(LAPX), "lapx", *case))
                for peer in results[1:]:
                    peer["times_slower"] = peer["seconds"] / results[0]["seconds"]
                    peer["mean_minus_husai"] = peer["mean"] - results[0]["mean"]
                record(results)


def record(results: list[dict[str, Any]]) -> None:
    """Print the results and merge them into the results file."""
    RESULTS.parent.mkdir(exist_ok=True)
    known = json.loads(RESULTS.read_text())["results"] if RESULTS.exists() else []
    key = ("method", "n", "d", "kind", "seed")
    for result in results:
        print(json.dumps(result), flush=True)
        known = [old for old in known if any(old[k] != result[k] for k in key)] + [result]
    known.sort(key=lambda r: (r["d"], KINDS.index(r["kind"]), r["n"], r["method"]))
    machine = {
        "cores": os.cpu_count(),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    command = "python benchmarks/matching_scale.py --sizes N … --kinds K … --dims D … [--peers]"
    text = json.dumps({"command": command, "machine": machine, "results": known}, indent=1)
    RESULTS.write_text(text + "\n")
    RESULTS.with_suffix(".md").write_text(table(known, command))


def table(results: list[dict[str, Any]], command: str) -> str:
    """The results as a table: a line per case, the peers beside."""
    lines = [
        "# Exact matching: time and memory",
        "",
        f"`{command}`; seconds of wall time on a machine that others used too, so read the ratios.",
        "",
        "| d | shared | n | seconds | × one pass | passes | peak GiB | gap bound | scipy | lapx |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        if r["method"] != "husai":
            continue
        cells = [f"{r['d']}", r["kind"], f"{r['n']:,}", f"{r['seconds']:.1f}"]
        cells += [f"{r['times_floor']:.2f}", f"{r['passes']:.2f}", f"{r['peak_gib']:.2f}"]
        cells.append(f"{r['gap_bound']:.1e}" + ("" if r["certified"] else " (not certified)"))
        for peer in ("scipy", "lapx"):
            same = [
                o
                for o in results
                if o["method"] == peer and all(o[k] == r[k] for k in ("n", "d", "kind", "seed"))
            ]
            cells.append(
                f"{same[0]['seconds']:.1f} s, {same[0]['times_slower']:.1f} ×" if same else "–"
            )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
