"""Dead-latent methods and architectures of the engine, by what they recover of planted truth.

    python benchmarks/planted_trainers.py [--steps 1500] [--seeds 3]

Every method trains the same SAEs on the same rows: the study of the pipeline ``planted_truth``
with ``dead_latents`` as its axis, in worlds and widths where latents die. Writes
``benchmarks/results/planted_trainers.csv``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import pandas as pd

from husai.pipelines.planted_truth.config import PlantedTruthConfig
from husai.pipelines.planted_truth.study import (
    SETTING,
    plan_study,
    score_study,
    train_study,
)
from husai.storage import atomic_path

RESULTS = Path(__file__).parent / "results"
METHODS = ("none", "auxk", "ghost", "resample")


def study(steps: int, seeds: int) -> PlantedTruthConfig:
    """Twice as many latents as features, frequent and rare ones, and a learning rate that kills."""
    worlds = {
        "redundant": {
            "world": {"n_features": 48, "d_in": 24, "firing": {"kind": "uniform_k", "k": 3}},
            "d_sae": [96],
        },
        "zipf": {
            "world": {
                "n_features": 96,
                "d_in": 32,
                "firing": {"kind": "zipf", "exponent": 1.0, "p_max": 0.4, "p_min": 0.005},
            },
            "d_sae": [96],
        },
    }
    return PlantedTruthConfig.model_validate(
        {
            "worlds": worlds,
            "architectures": {
                "relu": {"l1_coefficient": [2.0]},
                "topk": {"k": [3]},
                "batch_topk": {"k": [3]},
                "jumprelu": {"l0_coefficient": [1.0]},
                "matryoshka_batch_topk": {"k": [3]},
            },
            "dead_latents": list(METHODS),
            "seeds": list(range(seeds)),
            "learning_rate": 0.01,
            "n_rows": 5000,
            "n_eval_rows": 2000,
            "training": {
                "steps": steps,
                "batch_size": 256,
                "eval_interval": steps // 5,
                "snapshot_interval": steps // 5,
                "checkpoint_interval": steps,
                # a pass is 20 steps here
                "dead_after_passes": 5.0,
                "resample_every_passes": 20.0,
            },
            "score_steps": [0],
        }
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    config = study(arguments.steps, arguments.seeds)
    plan = plan_study(config)
    started = time.perf_counter()
    saes = dict(train_study(plan, config))
    seconds = time.perf_counter() - started
    settings, _, _, _ = score_study(plan, saes, config)
    final = settings[settings["final"]]
    columns = [*SETTING, "dead_fraction", "gt_mcc", "frr_0.9", "f1", "l0", "explained_variance"]
    table = final[[*columns, "pw_mcc"]].round(4)
    with atomic_path(RESULTS / "planted_trainers.csv") as path:
        table.to_csv(path, index=False)
    print(table.to_string(index=False))
    wins = table.loc[table.groupby(["world", "architecture"])["gt_mcc"].idxmax()]
    print(wins[["world", "architecture", "dead_latents", "gt_mcc"]].to_string(index=False))
    means = table.groupby("dead_latents")[["dead_fraction", "gt_mcc", "frr_0.9", "f1"]].mean()
    print(pd.DataFrame(means).round(4).to_string())
    print(f"{len(plan)} SAEs in {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
