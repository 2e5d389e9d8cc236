"""Train the transformers that are shipped with the project, and write them with their manifest.

    python benchmarks/ship_transformers.py WORK --seeds 0 1 2 3 4 5 6 7
    python benchmarks/ship_transformers.py WORK --seeds 0 1 --shipped cleaned_up --epochs 5000

Each transformer is trained by the project's own pipelines, in a folder of its own below WORK. If it
is already trained there, it is used as it is; an interrupted training continues. The files go to
src/husai/transformer/shipped: float32 weights and the learning curves, which have fewer points
after the early stop so that a file stays below 1 MB. The same seed gives other weights on another
processor or with another number of threads.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from husai.provenance import git_commit, versions
from husai.storage import atomic_path
from husai.tasks import ModularDataset, ModularTaskConfig, modular_dataset
from husai.transformer import (
    Shipped,
    TrainedTransformer,
    evaluate_transformer,
    fourier_structure,
    frequency_balance,
    frequency_shares,
    load_transformer,
    save_transformer,
    shipped_transformers,
)
from husai.transformer.shipped import FOLDER, MANIFEST, SUFFIX
from husai.transformer.training import dataset_digest

ROOT = Path(__file__).parents[1]
MADE_BY = "made_by.json"
MAX_BYTES = 1_000_000
# epochs between rows of the curves that are kept once the model has grokked
KEEP_EVERY = 100
NAMES = {"early_stop": "seed{seed}", "cleaned_up": "seed{seed}_clean"}


def command(seed: int, shipped: str, epochs: int) -> list[str]:
    """Give the kedro command that trains one."""
    params = ["transformer.start=train", f"transformer.seed={seed}"]
    if shipped == "cleaned_up":
        params += [
            "transformer_training.early_stopping=false",
            f"transformer_training.max_epochs={epochs}",
        ]
    pipelines = "--pipelines=data_generation,transformer_training"
    return ["kedro", "run", pipelines, "--params", ",".join(params)]


def train(folder: Path, words: list[str]) -> None:
    """Run the command with all data below a folder, unless that was done."""
    if (folder / "transformer" / "progress_measures.parquet").is_file():
        return
    made_by = {"command": shlex.join(words), "versions": versions(), **git_commit(ROOT)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MADE_BY).write_text(json.dumps(made_by))
    environment = {**os.environ, "HUSAI_DATA_DIR": str(folder.resolve())}
    subprocess.run([sys.executable, "-m", *words], cwd=ROOT, env=environment, check=True)


def read(folder: Path, name: str) -> TrainedTransformer:
    """Read what was trained in a folder, with the curves that are shipped."""
    versioned = sorted((folder / "transformer" / f"transformer{SUFFIX}").glob("*/*"))[-1]
    trained = load_transformer(versioned)
    progress = pd.read_parquet(folder / "transformer" / "progress_measures.parquet")
    end = trained.summary["epoch_test_99"] or 0
    end += trained.training_config.patience
    return replace(
        trained,
        name=name,
        history=thinned(trained.history, end),
        progress=thinned(progress, end),
    )


def thinned(table: pd.DataFrame, end: int) -> pd.DataFrame:
    """Keep all rows to an epoch, then every hundredth epoch and the last row."""
    epoch = table["epoch"]
    kept = (epoch <= end) | (epoch % KEEP_EVERY == 0) | (epoch == epoch.max())
    thin: pd.DataFrame = table[kept].reset_index(drop=True)
    return thin


def describe(
    trained: TrainedTransformer,
    shipped: str,
    path: Path,
    task: ModularTaskConfig,
    dataset: ModularDataset,
    made_by: dict[str, Any],
) -> Shipped:
    """Measure what the manifest says, on the file's own weights."""
    found = evaluate_transformer(trained, dataset)
    parts = trained.state_dict, trained.vocabulary, trained.model_config
    shares = frequency_shares(*parts, fourier_structure(*parts).key_frequencies)
    content = path.read_bytes()
    squares = sum(float(value.double().square().sum()) for value in trained.state_dict.values())
    return Shipped.model_validate(
        {
            "name": trained.name,
            "seed": trained.model_config.seed,
            "shipped": shipped,
            "epochs": trained.summary["epochs"],
            "stopped": trained.summary["stopped"],
            **{
                f"{split}_{what}": found[f"{split}_{what}"]
                for split in ("train", "test")
                for what in ("accuracy", "loss")
            },
            "sum_squared_weights": squares,
            "frequency_shares": shares,
            "frequency_balance": frequency_balance(list(shares.values())),
            "fingerprint": trained.fingerprint,
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": len(content),
            "dataset_sha256": dataset_digest(dataset),
            "task": task,
            "made_by": {
                **made_by,
                "hardware": trained.summary["hardware"],
                "threads": trained.summary["threads"],
            },
        }
    )


def ship(
    work: Path,
    seeds: list[int],
    shipped: str,
    epochs: int = 5000,
    folder: Path = FOLDER,
    task: ModularTaskConfig | None = None,
) -> list[Shipped]:
    """Train transformers, write their files, and put them into the manifest.

    Parameters
    ----------
    work
        Folder of the trainings, one below it for each.
    seeds
        Of the transformers.
    shipped
        early_stop or cleaned_up.
    epochs
        How long one that is cleaned up is trained.
    folder
        Where the files go.
    task
        What they were trained on; the default task when None.
    """
    task = task or ModularTaskConfig()
    dataset = modular_dataset(task)
    folder.mkdir(exist_ok=True)
    made = {one.name: one for one in shipped_transformers(folder)} if any_there(folder) else {}
    for seed in seeds:
        own = work / shipped / f"seed{seed}"
        train(own, command(seed, shipped, epochs))
        made_by = json.loads((own / MADE_BY).read_text())
        trained = read(own, NAMES[shipped].format(seed=seed))
        path = folder / f"{trained.name}{SUFFIX}"
        save_transformer(trained, path)
        entry = describe(trained, shipped, path, task, dataset, made_by)
        if entry.bytes > MAX_BYTES:
            raise SystemExit(f"{path}: {entry.bytes} bytes, more than {MAX_BYTES}; thin its curves")
        made[entry.name] = entry
        with atomic_path(folder / MANIFEST) as temporary:
            rows = [made[name].model_dump(mode="json") for name in sorted(made)]
            temporary.write_text(json.dumps(rows, indent=1) + "\n")
        print(
            f"{entry.name}: {entry.epochs} epochs, test accuracy {entry.test_accuracy:.4f}, "
            f"balance {entry.frequency_balance:.2f} of {len(entry.frequency_shares)} frequencies, "
            f"{entry.bytes} bytes"
        )
    return list(made.values())


def any_there(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder of the trainings")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(8)))
    parser.add_argument("--shipped", choices=sorted(NAMES), default="early_stop")
    parser.add_argument("--epochs", type=int, default=5000, help="of those cleaned up")
    given = parser.parse_args()
    ship(given.work, given.seeds, given.shipped, given.epochs)


if __name__ == "__main__":
    main()
