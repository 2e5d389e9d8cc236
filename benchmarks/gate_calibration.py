"""How often convergence gates are wrong on planted features: an earlier gate and the one in use.

    python benchmarks/gate_calibration.py

Trains SAEs of two architectures on worlds with known features, for several lengths and at two
learning rates (a rate that is too low looks settled to a gate that only asks whether something
moves), and compares what each gate says of a short run with the same SAE trained for the longest.
Writes benchmarks/results/gate_calibration.csv and .md. Half an hour on a core; started again,
it continues where it was interrupted.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from husai.calibration.config import PlantedTruthConfig
from husai.calibration.scores import score_study
from husai.calibration.study import plan_study, train_study
from husai.calibration.verdicts import gate_outcomes, gate_table
from husai.campaign import CampaignFolders
from husai.campaign.plan import records
from husai.provenance import git_commit, versions
from husai.sae import load_sae, save_sae
from husai.storage import atomic_path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
WORLDS = {"random": [48], "zipf": [48], "tree": [63]}
ARCHITECTURES = {"relu": {"l1_coefficient": [0.5]}, "topk": {"k": [4]}}
RATES = (0.005, 0.0005)
LENGTHS = (1600, 4800, 14400)


def config(rate: float) -> PlantedTruthConfig:
    """The calibration study's worlds and training, fewer of them, at one learning rate."""
    parameters = yaml.safe_load((ROOT / "conf/base/parameters_planted_truth.yml").read_text())
    base: dict[str, Any] = parameters["planted_truth"]
    worlds = {name: {**base["worlds"][name], "d_sae": widths} for name, widths in WORLDS.items()}
    return PlantedTruthConfig.model_validate(
        {
            **base,
            "worlds": worlds,
            "architectures": ARCHITECTURES,
            "learning_rate": rate,
            "lengths": LENGTHS,
            "compute": {"processes": 0},
        }
    )


def outcomes_at(rate: float, folder: Path) -> pd.DataFrame:
    """What the gates saw of every short run at one learning rate, and how the longest ended."""
    wanted = config(rate)
    plan = plan_study(wanted)
    folders = CampaignFolders.below(folder / f"rate{rate:g}")
    folders.store.mkdir(parents=True, exist_ok=True)
    for sae_id, sae in train_study(plan, wanted, folders, progress=False):
        save_sae(sae, folders.store / f"{sae_id}.safetensors")
    saes = {one: load_sae(folders.store / f"{one}.safetensors") for one in plan["sae_id"]}
    tables = score_study(plan, saes, wanted)
    found = gate_outcomes(tables.runs, wanted)
    return found.assign(run=[f"{run} rate {rate:g}" for run in found["run"]], rate=rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "gate_calibration")
    given = parser.parse_args()
    wanted = config(RATES[0])
    outcomes = pd.concat([outcomes_at(rate, given.data) for rate in RATES], ignore_index=True)
    parts = [gate_table(outcomes, wanted).assign(runs="all")]
    parts += [
        gate_table(own, wanted).assign(runs=f"learning rate {rate:g}")
        for rate, own in outcomes.groupby("rate", sort=False)
    ]
    table = pd.concat(parts, ignore_index=True)
    with atomic_path(RESULTS / "gate_calibration.csv") as path:
        table.to_csv(path, index=False, float_format="%.4g")
    shown = [
        {
            "runs": row["runs"],
            "gate": row["gate"],
            "threshold": f"{row['threshold']:g}" + (" (in use)" if row["in_use"] else ""),
            "pass": f"{row['false_pass_n']:.0f} of {row['n']:.0f}",
            "not settled among those that pass": _share(row, "false_pass"),
            "settled but held back": _share(row, "false_hold"),
        }
        for row in records(table)
    ]
    made = {**versions(), **git_commit(ROOT)}
    lines = [
        "# Convergence gates in planted truth",
        "",
        "`python benchmarks/gate_calibration.py`",
        "",
        f"{len(outcomes)} SAEs trained for {' or '.join(map(str, LENGTHS[:-1]))} steps, each "
        f"beside the same one trained for {LENGTHS[-1]}: settled when its GT-MCC is within "
        f"{wanted.gate_tolerance:g}. Shares with {wanted.level:.0%} intervals over draws of "
        "worlds.",
        "",
        f"| {' | '.join(shown[0])} |",
        f"|{'---|' * len(shown[0])}",
        *(f"| {' | '.join(map(str, row.values()))} |" for row in shown),
        "",
        f"Made with {', '.join(f'{k} {v}' for k, v in made.items() if v is not None)}.",
    ]
    with atomic_path(RESULTS / "gate_calibration.md") as path:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def _share(row: dict[str, Any], name: str) -> str:
    if pd.isna(row[name]):
        return "–"
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    ends = "" if pd.isna(low) else f" [{low:.2f}, {high:.2f}]"
    return f"{row[name]:.2f}{ends}"


if __name__ == "__main__":
    main()
