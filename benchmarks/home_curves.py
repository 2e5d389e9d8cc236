"""All architectures and dead-latent methods on the home study's activations, at matched L0.

    kedro run --to-nodes=activation_extraction.extract_activations
    python benchmarks/home_curves.py

Trains the five architectures at width 64 with about 4 active latents: where k sets the L0 it is
4; relu's and jumprelu's coefficients are searched by bisection on one seed, then trained on the
others. Then every dead-latent method at a width where latents die. Writes
benchmarks/results/home_curves.{csv,png} and home_dead_latents.csv.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd

from husai.activations import Activations
from husai.figures.sae import learning_curves
from husai.sae import BankTrainingConfig, SAEConfig, TrainedSAE, train_bank
from husai.storage import atomic_path, read_tensors

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("HUSAI_DATA_DIR", ROOT / "data"))
RESULTS = ROOT / "benchmarks" / "results"
KEY = "blocks.0.hook_resid_post@-1"
WIDTH, L0, SEEDS = 64, 4, (0, 1, 2)
METHODS = ("none", "auxk", "ghost", "resample")
TRAINING: dict[str, Any] = {"steps": 3000, "batch_size": 1024, "eval_interval": 150}
ROUNDS = 4


def config(architecture: str, seed: int, width: int = WIDTH, **sparsity: Any) -> SAEConfig:
    """An SAE with the project's defaults otherwise."""
    return SAEConfig(architecture=architecture, d_sae=width, init_seed=seed, **sparsity)


def coefficient_of(rows: Any, architecture: str, field: str, low: float, high: float) -> float:
    """Coefficient at which an architecture keeps about :data:`L0` latents."""
    from match_l0 import match_l0  # beside this script, not a package

    training = BankTrainingConfig(**TRAINING)

    def l0_of(coefficients: list[float]) -> list[float]:
        configs = [config(architecture, 0, WIDTH, **{field: value}) for value in coefficients]
        l0 = [sae.metrics["l0"] for sae in train_bank(rows, configs, training)]
        print(
            architecture,
            {round(c, 4): round(v, 2) for c, v in zip(coefficients, l0, strict=True)},
        )
        return l0

    found: float = match_l0(l0_of, L0, low, high, points=4, rounds=ROUNDS, tolerance=0.05)
    return found


def measured(sae: TrainedSAE, **more: Any) -> dict[str, Any]:
    """One line of the table."""
    c, m = sae.config, sae.metrics
    names = ("l0", "fvu", "explained_variance", "dead_fraction", "cosine_to_init", "converged")
    return {
        "architecture": c.architecture,
        "d_sae": c.d_sae,
        "seed": c.init_seed,
        "coefficient": c.k or c.l1_coefficient or c.l0_coefficient,
        **more,
        **{name: m[name] for name in names},
    }


def main() -> None:
    """Train, print, write."""
    tensors, header = read_tensors(DATA / "activations" / f"{KEY}.safetensors")
    rows = Activations.from_tensors(tensors, header, KEY).values
    relu = coefficient_of(rows, "relu", "l1_coefficient", 1.0, 30.0)
    jump = coefficient_of(rows, "jumprelu", "l0_coefficient", 0.5, 30.0)
    settings: dict[str, dict[str, Any]] = {
        "relu": {"l1_coefficient": relu},
        "topk": {"k": L0},
        "batch_topk": {"k": L0},
        "jumprelu": {"l0_coefficient": jump},
        "matryoshka_batch_topk": {"k": L0},
    }
    training = BankTrainingConfig(**TRAINING)
    groups = {
        name: train_bank(rows, [config(name, seed, **sparsity) for seed in SEEDS], training)
        for name, sparsity in settings.items()
    }
    table = pd.DataFrame([measured(sae) for saes in groups.values() for sae in saes])
    print(table.groupby("architecture", sort=False).mean(numeric_only=True).round(4).to_string())
    RESULTS.mkdir(parents=True, exist_ok=True)
    with atomic_path(RESULTS / "home_curves.csv") as path:
        table.to_csv(path, index=False, float_format="%.5g")
    learning_curves(groups).savefig(RESULTS / "home_curves.png", dpi=150)

    lines = []
    for method in METHODS:
        training = BankTrainingConfig(**TRAINING, dead_latents=method)
        for name in ("relu", "topk", "batch_topk"):
            for width in (WIDTH, 8 * WIDTH):
                saes = train_bank(
                    rows, [config(name, s, width, **settings[name]) for s in SEEDS], training
                )
                lines += [measured(sae, dead_latents=method) for sae in saes]
    dead = pd.DataFrame(lines)
    keys = ["architecture", "d_sae", "dead_latents"]
    print(dead.groupby(keys, sort=False).mean(numeric_only=True).round(4).to_string())
    with atomic_path(RESULTS / "home_dead_latents.csv") as path:
        dead.to_csv(path, index=False, float_format="%.5g")


if __name__ == "__main__":
    main()
