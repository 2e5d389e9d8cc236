"""Dead-latent methods and architectures of the engine, by what they recover of planted truth.

    python benchmarks/planted_trainers.py [--steps 1500] [--seeds 3]

Every method trains the same SAEs on the same rows: the study of the pipeline ``planted_truth``
with ``dead_latents`` as its axis, in worlds and widths where latents die. Methods are compared on
the same world, draw and seed, and a method is as good as the best where the interval of their
difference in GT-MCC holds 0. Writes ``benchmarks/results/planted_trainers.csv`` (what each setting
recovers) and ``planted_trainers_winners.csv`` (the methods of each architecture).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import pandas as pd

from husai.calibration.config import PlantedTruthConfig
from husai.calibration.scores import score_study
from husai.calibration.study import SETTING, plan_study, train_study
from husai.campaign import CampaignFolders
from husai.consistency import mean_interval
from husai.sae.architectures import architecture
from husai.storage import atomic_path

RESULTS = Path(__file__).parent / "results"
METHODS = ("none", "auxk", "ghost", "resample")
UNIT = ["world", "draw", "seed"]


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
            "lengths": [steps],
            "learning_rate": 0.01,
            "n_rows": 5000,
            "n_eval_rows": 2000,
            "training": {
                "batch_size": 256,
                # a pass is 18 steps here
                "dead_after_passes": 5.0,
                "resample_every_passes": 20.0,
            },
        }
    )


def compare_methods(runs: pd.DataFrame) -> pd.DataFrame:
    """Say of every architecture which method recovers most, and how far the others are behind.

    Parameters
    ----------
    runs
        From :func:`husai.calibration.scores.score_study`.

    Returns
    -------
    pandas.DataFrame
        A row per architecture and method: ``gt_mcc`` (mean over world, draw and seed), ``best``,
        ``behind`` (mean difference to the best on the same world, draw and seed) with ``low`` and
        ``high`` (t, 95 %), ``as_good`` (the best, or the interval holds 0), ``default`` (what
        ``auto`` is), ``n``.
    """
    rows = []
    for name, part in runs[runs["failure"] == ""].groupby("architecture", sort=False):
        default = architecture(str(name)).dead_latents
        table = part.pivot(index=UNIT, columns="dead_latents", values="gt_mcc").dropna()
        best = str(table.mean().idxmax())
        for method in table.columns:
            behind = mean_interval(table[best] - table[method])
            holds = behind.low is not None and behind.low <= 0
            rows.append(
                {
                    "architecture": name,
                    "dead_latents": method,
                    "gt_mcc": table[method].mean(),
                    "best": method == best,
                    "behind": behind.mean,
                    "low": behind.low,
                    "high": behind.high,
                    "as_good": method == best or holds,
                    "default": method == default,
                    "n": len(table),
                }
            )
    return pd.DataFrame(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    config = study(arguments.steps, arguments.seeds)
    plan = plan_study(config)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folders = CampaignFolders(folder / "saes", folder / "checkpoints", folder / "campaign")
        saes = dict(train_study(plan, config, folders))
    seconds = time.perf_counter() - started
    tables = score_study(plan, saes, config)
    scores = ["dead_fraction", "gt_mcc", "frr_0.9", "f1", "l0", "explained_variance", "pw_mcc"]
    table = tables.settings[[*SETTING, *scores]].round(4)
    winners = compare_methods(tables.runs).round(4)
    for file, content in (("planted_trainers", table), ("planted_trainers_winners", winners)):
        with atomic_path(RESULTS / f"{file}.csv") as path:
            content.to_csv(path, index=False)
    print(table.to_string(index=False))
    print(winners.to_string(index=False))
    for row in winners[winners["default"]].itertuples(index=False):
        verdict = "as good as the best" if row.as_good else f"{row.behind:.3f} behind the best"
        print(f"{row.architecture}: the default, {row.dead_latents}, is {verdict}")
    means = table.groupby("dead_latents")[["dead_fraction", "gt_mcc", "frr_0.9", "f1"]].mean()
    print(pd.DataFrame(means).round(4).to_string())
    print(f"{len(plan)} SAEs in {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
