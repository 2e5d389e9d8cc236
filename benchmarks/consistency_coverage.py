"""Measured coverage of the intervals over seeds, on simulated seeds.

    python benchmarks/consistency_coverage.py

Three ways to compute an interval for the mean pair score: the jackknife over seeds (the default),
the bootstrap over seeds, and the t interval that treats pairs as independent (which is wrong).
Simulated worlds: seeds that differ in quality, pairs with noise of their own, both; and
dictionaries of which each seed finds a random part, so that the scores are real PW-MCC.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from husai.consistency import match_features, seed_interval
from husai.consistency.inference.intervals import mean_interval

RESULT = Path(__file__).parent / "results" / "consistency_coverage.json"
SEEDS = (3, 5, 10)
Sampler = Callable[[np.random.Generator, int], NDArray[np.float64]]


def random_effects(seed_sd: float, pair_sd: float) -> tuple[Sampler, float]:
    """``W_st = .5 + a_s + a_t + e_st``."""

    def sample(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        a = seed_sd * rng.standard_normal(n)
        e = np.triu(pair_sd * rng.standard_normal((n, n)), 1)
        return np.asarray(0.5 + a[:, None] + a[None, :] + e + e.T)

    return sample, 0.5


def dictionaries(population: int, skewed: bool) -> tuple[Sampler, float]:
    """PW-MCC of seeds that each find a part of 24 true features in 16 dimensions.

    ``skewed``: most seeds find nearly all, a few fail badly.
    """
    rng = np.random.default_rng(7)
    truth = rng.standard_normal((24, 16))
    found = []
    for _ in range(population):
        share = rng.beta(8, 1) if skewed else rng.uniform(0.4, 0.9)
        W = rng.standard_normal((24, 16))
        hit = rng.random(24) < share
        W[hit] = truth[hit] + 0.3 * rng.standard_normal((int(hit.sum()), 16))
        found.append(W[rng.permutation(24)])
    W = np.zeros((population, population))
    for i, j in combinations(range(population), 2):
        W[i, j] = W[j, i] = match_features(found[i], found[j]).mean

    def sample(generator: np.random.Generator, n: int) -> NDArray[np.float64]:
        chosen = generator.choice(population, n, replace=False)
        return np.asarray(W[np.ix_(chosen, chosen)])

    return sample, float(W[np.triu_indices(population, 1)].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=4000)
    parser.add_argument("--population", type=int, default=250)
    arguments = parser.parse_args()
    worlds = {
        "seeds differ": random_effects(0.05, 0.0),
        "seeds differ, pairs noisy": random_effects(0.05, 0.05),
        "pairs noisy only": random_effects(0.0, 0.05),
        "dictionaries, PW-MCC": dictionaries(arguments.population, skewed=False),
        "dictionaries, a few seeds fail": dictionaries(arguments.population, skewed=True),
    }
    rows = []
    for world, (sample, truth) in worlds.items():
        for n in SEEDS:
            rng = np.random.default_rng([n, len(world)])
            hits = {"jackknife": 0, "bootstrap": 0, "pairs as independent": 0}
            widths = dict.fromkeys(hits, 0.0)
            for _ in range(arguments.trials):
                W = sample(rng, n)
                made = {
                    "jackknife": seed_interval(W),
                    "bootstrap": seed_interval(W, method="bootstrap", n_resamples=400),
                    "pairs as independent": mean_interval(W[np.triu_indices(n, 1)]),
                }
                for name, got in made.items():
                    if got.low is None or got.high is None:
                        raise RuntimeError(got.reason)
                    hits[name] += got.low <= truth <= got.high
                    widths[name] += got.high - got.low
            rows += [
                {
                    "world": world,
                    "n_seeds": n,
                    "method": name,
                    "coverage": round(hits[name] / arguments.trials, 4),
                    "mean_width": round(widths[name] / arguments.trials, 4),
                }
                for name in hits
            ]
    result = {
        "command": f"python benchmarks/consistency_coverage.py --trials {arguments.trials} "
        f"--population {arguments.population}",
        "nominal": 0.95,
        "standard_error_of_coverage": round(float(np.sqrt(0.95 * 0.05 / arguments.trials)), 4),
        "rows": rows,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
