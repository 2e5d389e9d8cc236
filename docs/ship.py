"""Ship the SAEs of a study with the project, and write the cards of what is shipped.

    python docs/ship.py --study data     # a study's folder, after make results: SAEs and cards
    python docs/ship.py                  # the cards alone

An SAE is shipped with its weights, configuration, metrics and curves, and what the gate said of
it; earlier decoders and initial weights are left out. The numbers of the cards are those of the
files, and of the study's tables in docs/results/home. The cards are the README.md in the folders
of the files, in the form of the Hugging Face hub.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

from husai.compare.files import load_one
from husai.consistency.study.labels import kind_words
from husai.errors import InputError
from husai.reporting.render import environment
from husai.sae import save_sae
from husai.sae.shipped import ADDRESS, SUFFIX, shipped_path, shipped_saes
from husai.sae.shipped import FOLDER as SAES
from husai.sae.trained import TrainedSAE, read_sae
from husai.storage import atomic_path, read_header
from husai.transformer import shipped_transformers
from husai.transformer.shipped import FOLDER as TRANSFORMERS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "home"
TEMPLATES = Path(__file__).with_name("cards")
CARD = "README.md"

SETTINGS = ("topk_256", "topk_128", "batch_topk_128", "relu_128")
"""Settings that are shipped: architecture and number of latents."""

COMPARISON = ("shared_threshold", "level", "label_r2", "label_f1")
"""Parameters of the comparison that the card speaks of."""

# a kind with fewer features in an SAE has no row of its own
FEWEST = 1.0


def setting_of(row: Mapping[str, Any]) -> str:
    """Name the setting of an SAE: its architecture and number of latents."""
    return f"{row['architecture']}_{int(row['d_sae'])}"


def summary_of(study: Path) -> dict[str, Any]:
    """Read the newest summary of a study's comparison."""
    versions = sorted((study / "consistency" / "summary.json").glob("*/summary.json"))
    if not versions:
        raise InputError(f"{study}: no study that was compared; run kedro run there")
    found: dict[str, Any] = json.loads(versions[-1].read_text(encoding="utf-8"))
    return found


def light(sae: TrainedSAE, path: Path, summary: Mapping[str, Any]) -> TrainedSAE:
    """Leave out what is not needed to use an SAE, and say where it comes from."""
    record = load_one(path, path.stem)
    own, made = sae.provenance, summary["provenance"]
    campaign = own["campaign"]
    transformer = made["transformer"]
    return replace(
        sae,
        W_dec_init=torch.full_like(sae.W_dec, torch.nan),
        snapshots={},
        provenance={
            "contract": {
                "model": f"husai transformer {transformer['name']} ({transformer['fingerprint']})",
                "hook": campaign["hook_name"],
                "position": campaign["position"],
            },
            "gate": {"settled": record.converged, "motion": record.motion},
            "study": {
                **{name: campaign[name] for name in ("name", "group", "seed")},
                "sae_id": path.stem,
                **{name: made[name] for name in ("commit", "dirty", "versions", "transformer")},
                "comparison": {name: summary["config"][name] for name in COMPARISON},
            },
            **{name: own[name] for name in ("rows", "training", "engine", "device")},
        },
    )


def ship(study: Path, folder: Path, settings: Sequence[str] = SETTINGS) -> None:
    """Write the SAEs of a study's settings as the shipped ones, in place of those there.

    Parameters
    ----------
    study
        Folder of the study.
    folder
        Where the files go: one below it for each setting.
    settings
        Names of :func:`setting_of`.

    Raises
    ------
    InputError
        When the study has no SAEs of a setting, or two groups of it.
    """
    summary = summary_of(study)
    table = pd.read_parquet(study / "saes" / "table.parquet")
    table = table[(table["model"] == "trained") & (table["baseline"] == "none")]
    names = table.apply(setting_of, axis=1)
    for setting in settings:
        group = table[names == setting]
        if group["group"].nunique() != 1:
            raise InputError(f"{study}: {group['group'].nunique()} groups of {setting}, not one")
    for setting in settings:
        shutil.rmtree(folder / setting, ignore_errors=True)
        (folder / setting).mkdir(parents=True)
        for row in table[names == setting].itertuples():
            path = study / "saes" / "trained" / f"{row.sae_id}{SUFFIX}"
            save_sae(
                light(read_sae(path), path, summary), folder / setting / f"seed{row.seed}{SUFFIX}"
            )


def results(name: str, columns: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """Read a table of the home study in the full space, of some values of its columns."""
    table = pd.read_csv(RESULTS / f"{name}.csv")
    for column, value in {
        **({"space": "full"} if "space" in table else {}),
        **(columns or {}),
    }.items():
        table = table[table[column] == value]
    return table


def one(table: pd.DataFrame) -> dict[str, Any]:
    """Give the only row of a table."""
    (row,) = table.to_dict("records")
    return {str(name): value for name, value in row.items()}


def file_row(address: str) -> dict[str, Any]:
    """Say what the card's table says of one SAE."""
    path = shipped_path(address)
    sae = read_sae(path)
    sae_id = sae.provenance["study"]["sae_id"]
    return {
        "address": address,
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "sae": sae,
        "measured": one(results("saes", {"id": sae_id})),
        "loss_recovered": one(results("loss_recovery", {"sae_id": sae_id}))["loss_recovered"],
        "answers": one(results("covered", {"id": sae_id, "family": "answer"}))["covered"],
    }


def setting_row(setting: str, files: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Say what the card's tables say of the SAEs of one setting."""
    first: TrainedSAE = files[0]["sae"]
    name = first.provenance["study"]["group"]
    own = {"group": name, "signed": False}
    kinds = results("kinds", {"group": name})
    return {
        "address": f"{ADDRESS}{setting}",
        "group": name,
        "config": first.config,
        "steps": first.provenance["training"]["steps"],
        "files": files,
        "scores": {
            score: one(results("groups", {**own, "score": score}))
            for score in ("pw_mcc", "matched_fraction")
        },
        "kinds": kinds[kinds["n_features"] >= FEWEST]
        .assign(words=kinds["kind"].map(kind_words))
        .to_dict("records"),
        "answers": one(results("coverage", {"group": name, "family": "answer"})),
    }


def card(template: str, tags: Sequence[str], **values: Any) -> str:
    """Fill in the template of a card, below the head that the hub reads."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    about = {
        "license": citation["license"].lower(),
        "library_name": "husai",
        "tags": ["mechanistic-interpretability", "modular-arithmetic", "grokking", *tags],
    }

    def filled(name: str, **given: Any) -> str:
        text = (TEMPLATES / name).read_text(encoding="utf-8")
        return environment().from_string(text).render(given)

    ending = filled("ending.md.j2", citation=citation)
    head = yaml.safe_dump(about, sort_keys=False)
    return f"---\n{head}---\n{filled(template, ending=ending, **values).strip()}\n"


def sae_card() -> str:
    """Write the card of the shipped SAEs."""
    files = [file_row(address) for address in shipped_saes()]
    by_setting: dict[str, list[dict[str, Any]]] = {}
    for row in files:
        setting = row["address"].removeprefix(ADDRESS).partition("/")[0]
        by_setting.setdefault(setting, []).append(row)
    rows = [setting_row(name, by_setting[name]) for name in sorted(by_setting, key=SETTINGS.index)]
    studies = [row["sae"].provenance["study"] for row in files]
    shared = ("name", "commit", "transformer", "comparison")
    if any(other[name] != studies[0][name] for other in studies for name in shared):
        raise InputError(f"{SAES}: the SAEs come from several studies; ship those of one")
    return card(
        "saes.md.j2",
        ["sparse-autoencoder", "sae", "reproducibility"],
        title="SAEs of a transformer that adds modulo 113",
        settings=rows,
        main=rows[0],
        files=[file for row in rows for file in row["files"]],
        study=studies[0],
        others=answers_on_others(studies[0]["transformer"]["seed"], rows[0]["config"].d_sae),
    )


def answers_on_others(seed: int, d_sae: int) -> list[float]:
    """Count the answers with a feature on each transformer of another seed, in its best setting."""
    table = pd.read_csv(ROOT / "docs" / "results" / "transformers" / "groups.csv")
    table = table[(table["transformer_seed"] != seed) & (table["d_sae"] == d_sae)]
    most: list[float] = table.groupby("transformer")["answers"].max().tolist()
    return most


def transformer_card() -> str:
    """Write the card of the shipped transformers."""
    entries = shipped_transformers()
    rows = [
        {"entry": entry, "header": read_header(TRANSFORMERS / f"{entry.name}{SUFFIX}")}
        for entry in entries
    ]
    early = [entry for entry in entries if entry.shipped == "early_stop"]
    made = [entry.made_by for entry in entries]
    (threads,) = {one["threads"] for one in made}
    return card(
        "transformers.md.j2",
        ["transformer"],
        title="Transformers that add modulo 113",
        rows=rows,
        lead=max(early, key=lambda entry: entry.frequency_balance),
        threads=threads,
        hardware=sorted({one["hardware"] for one in made}),
        commits=dict.fromkeys(one["commit"] for one in made),
    )


def cards() -> dict[Path, str]:
    """Every card with its text."""
    return {SAES / CARD: sae_card(), TRANSFORMERS / CARD: transformer_card()}


def check_results(study: Path) -> None:
    """Check that the tables in docs/results/home are those of a study."""
    table = pd.read_parquet(study / "consistency" / "tables" / "saes.parquet")
    own = table.set_index("id")["fvu"]
    there = pd.read_csv(RESULTS / "saes.csv").set_index("id")["fvu"]
    if set(own.index) != set(there.index) or (own - there).abs().max() > 1e-5:
        raise InputError(f"{RESULTS}: not the tables of {study}; run make results first")


def main() -> None:
    """Ship what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--study", type=Path, help="folder of the study whose SAEs are shipped")
    given = parser.parse_args()
    if given.study is not None:
        check_results(given.study)
        ship(given.study, SAES)
    for path, text in cards().items():
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(str(error))
