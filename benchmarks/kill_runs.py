"""Kill whole runs of the study at random moments, start them again, and compare what they end with.

Every trial is a new data folder: its first `kedro run` and those after it are killed at moments
drawn at random, by SIGKILL, SIGTERM and SIGHUP in turn, until the last one may end. Its results
must be those of an undisturbed run, and none of its MLflow runs may be left open. One more trial
starts two first runs at once.

    python benchmarks/kill_runs.py --kills 30 [--minutes 4] [--folder FOLDER]

It can be stopped at any time, or starts nothing new after so many minutes: with the same FOLDER,
which keeps the undisturbed run's results, the same command continues with the next trial. The
folder is removed after the last one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from mlflow import MlflowClient

from husai.provenance import git_commit, versions
from husai.storage import read_tensors

PROJECT = Path(__file__).parents[1]
OUTPUT = PROJECT / "benchmarks" / "results" / "kill_runs.json"
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)
TIMEOUT = 900.0

# the smallest study that goes through every node of the default pipeline
PARAMS = {
    "activations.untrained": "false",
    "campaign.plan.untrained": "none",
    "campaign.plan.d_sae": "8",
    "campaign.plan.seeds": "0 1",
    "campaign.plan.variants": "null",
    "campaign.plan.architectures.relu": "null",
    "campaign.plan.architectures.batch_topk": "null",
}

TIMED = ("seconds", "time", "started", "ended", "finished", "elapsed", "cost", "bytes", "attempts")
"""Columns that say how long something took, by a part of their names."""

DIGITS = 10
"""Decimals that tables are compared in: the order of a sum, and so its last bit, may change from
process to process. Weights and activations are compared bit by bit."""


SEED = 0
"""Of the moments of the kills."""


class Undisturbed(NamedTuple):
    """How long an undisturbed run takes, and what it leaves."""

    seconds: float
    results: dict[str, str]


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Start the whole study in a data folder."""
    folder.mkdir(parents=True, exist_ok=True)
    params = ",".join(f"{name}={value}" for name, value in PARAMS.items())
    environment = {**os.environ, "HUSAI_DATA_DIR": str(folder), "OMP_NUM_THREADS": "1"}
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "kedro", "run", "--env=test", f"--params={params}"],
            cwd=PROJECT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def finish(folder: Path) -> int:
    """Start the study and wait until it ends."""
    return start(folder).wait(TIMEOUT)


def results(folder: Path) -> dict[str, str]:
    """Give every table and every tensor that a run leaves, without what says how long it took."""
    found = {}
    for path in sorted(folder.rglob("*.parquet")):
        if path.is_dir() or "campaign" in path.parts:
            continue
        table = pd.read_parquet(path)
        kept = [name for name in table if not any(word in str(name) for word in TIMED)]
        found[_name(path, folder)] = table[kept].to_json(double_precision=DIGITS)
    for pattern in ("activations/*", "saes/trained/*", "transformer/transformer.safetensors/*/*"):
        for path in sorted(folder.glob(f"{pattern}.safetensors")):
            tensors = dict(sorted(read_tensors(path)[0].items()))
            found[_name(path, folder)] = str({k: v.tolist() for k, v in tensors.items()})
    return found


def _name(path: Path, folder: Path) -> str:
    """Name a file without Kedro's version of it: the newest one stands."""
    return "/".join(part for part in path.relative_to(folder).parts if not part.endswith("Z"))


def verdict(folder: Path, expected: dict[str, str], code: int) -> dict[str, Any]:
    """Compare a folder with the undisturbed one, and count what MLflow holds."""
    found = results(folder)
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("husai-test")
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    saes = [tag for run in runs if (tag := run.data.tags.get("husai.sae_id"))]
    names = {name.split("/")[-1] for name in expected if name.startswith("saes/trained/")}
    return {
        "exit_code": code,
        "missing": sorted(expected.keys() - found.keys()),
        "different": sorted(name for name in expected if found.get(name) != expected[name]),
        "left_running": sum(run.info.status == "RUNNING" for run in runs),
        "sae_runs_missing": len(names) - len(set(saes)),
        "sae_runs_twice": len(saes) - len(set(saes)),
    }


def stage(folder: Path) -> str:
    """Name the last node that a killed run began, or what it did before the first."""
    lines = (folder / "log.txt").read_text(errors="replace").splitlines()
    nodes = [line.split("Running node: ")[1].split(":")[0] for line in lines if "Running n" in line]
    if nodes:
        return nodes[-1]
    return "MLflow's store" if (folder / "mlflow.db.lock").exists() else "start"


def kill_series(
    folder: Path, kills: int, longest: float, chance: random.Random
) -> list[dict[str, Any]]:
    """Start and kill a study again and again."""
    killed = []
    for number in range(kills):
        log = folder / "log.txt"
        log.unlink(missing_ok=True)
        process = start(folder)
        after = chance.uniform(0.02, 0.98) * longest
        kind = SIGNALS[number % len(SIGNALS)]
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            process.send_signal(kind)
        code = process.wait(TIMEOUT)
        killed.append({"after": after, "signal": kind.name, "at": stage(folder), "exit_code": code})
    return killed


def page(document: dict[str, Any]) -> str:
    """Write the results as Markdown."""
    trials = document["trials"]
    kills = [kill for trial in trials for kill in trial["kills"]]
    hit = [kill for kill in kills if kill["exit_code"] != 0]
    places = Counter(kill["at"] for kill in hit)
    lines = [
        "# Whole runs, killed",
        "",
        f"`{document['command']}`: {len(hit)} kills of {len(kills)} starts hit a run before its "
        f"end; an undisturbed run takes {document['undisturbed_seconds']:.0f} s there. Each row is "
        "a data folder of its own. All counts must be 0: files missing or different from the "
        "undisturbed run's, MLflow runs left open, SAEs without a run or with two.",
        "",
        "| trial | kills | exit code | missing | different | left running | no run | two runs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for number, trial in enumerate(trials, 1):
        signals = ", ".join(kill["signal"] for kill in trial["kills"]) or trial["what"]
        counts = [
            trial["exit_code"],
            len(trial["missing"]),
            len(trial["different"]),
            trial["left_running"],
            trial["sae_runs_missing"],
            trial["sae_runs_twice"],
        ]
        lines.append(f"| {number} | {signals} | " + " | ".join(map(str, counts)) + " |")
    lines += [
        "",
        "Where the kills hit (the node that ran last):",
        "",
        "| node | kills |",
        "|---|---|",
    ]
    lines += [f"| {place} | {count} |" for place, count in places.most_common()]
    return "\n".join(lines) + "\n"


def undisturbed(folder: Path) -> tuple[float, dict[str, str]]:
    """Give the seconds and the results of an undisturbed run, made where it is not there."""
    noted = folder / "undisturbed.json"
    if not noted.is_file():
        shutil.rmtree(folder / "undisturbed", ignore_errors=True)
        began = time.monotonic()
        assert finish(folder / "undisturbed") == 0, (folder / "undisturbed/log.txt").read_text()
        seconds = time.monotonic() - began
        content = {"seconds": seconds, "results": results(folder / "undisturbed")}
        noted.write_text(json.dumps(content))
    known = json.loads(noted.read_text())
    return known["seconds"], known["results"]


def trial(folder: Path, number: int, each: int, expected: Undisturbed) -> dict[str, Any]:
    """Start two first runs at once (number 0), or kill one data folder's runs; then finish it."""
    place = folder / str(number)
    shutil.rmtree(place, ignore_errors=True)  # of a trial that was stopped
    kills: list[dict[str, Any]] = []
    what = ""
    if number == 0:
        codes = [process.wait(TIMEOUT) for process in (start(place), start(place))]
        what = f"two at once (exit codes {codes})"
    else:
        kills = kill_series(place, each, expected.seconds, random.Random(f"{SEED} {number}"))
    found = verdict(place, expected.results, finish(place))
    shutil.rmtree(place)
    return {"what": what, "kills": kills, **found}


def hits(trials: list[dict[str, Any]]) -> int:
    """Count the kills that hit a run before its end."""
    return sum(kill["exit_code"] != 0 for trial in trials for kill in trial["kills"])


def main() -> None:
    """Run the trials and write the table after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30, help="that hit a run before its end")
    parser.add_argument("--each", type=int, default=3, help="kills of one data folder")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--folder", type=Path, help="kept until the last trial has ended")
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    temporary = options.folder or Path(tempfile.mkdtemp(prefix="kill-runs-"))
    folder = temporary.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    expected = Undisturbed(*undisturbed(folder))
    noted = folder / "trials.json"
    trials = json.loads(noted.read_text()) if noted.is_file() else []
    while hits(trials) < options.kills and time.monotonic() < until:
        trials.append(trial(folder, len(trials), options.each, expected))
        noted.write_text(json.dumps(trials))
        document = {
            "command": f"python benchmarks/kill_runs.py --kills {options.kills}",
            "undisturbed_seconds": expected.seconds,
            "files": len(expected.results),
            "versions": versions(),
            **git_commit(PROJECT),
            "trials": trials,
        }
        OUTPUT.write_text(json.dumps(document, indent=1) + "\n")
        OUTPUT.with_suffix(".md").write_text(page(document))
        print(json.dumps(trials[-1]), flush=True)
    if hits(trials) >= options.kills:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
