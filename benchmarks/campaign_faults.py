"""Test what a campaign loses when a process, a disk or a machine fails, and if weights differ.

    python benchmarks/campaign_faults.py [--only NAME ...] [--kills 20]

writes benchmarks/results/campaign_faults.json and .md. Each trial breaks a tiny campaign, starts it
again, and compares the result with that of an undisturbed campaign: every SAE must exist, every
tensor and every entry of the history must have the same bits, and no SAE that had been saved may
have been trained again. The Ray trials need `pip install
'ray>=2.50'` and are left out without it; the full disk needs the right to mount a small one.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from husai.activations import Activations
from husai.campaign import CampaignConfig, CampaignFolders, plan_saes, run_campaign
from husai.campaign.executors.base import Progress
from husai.campaign.folders import LEDGER, QUARANTINE, RUNS
from husai.campaign.ledger import Ledger
from husai.errors import CampaignStopped, InputError
from husai.provenance import git_commit, versions
from husai.sae import BankTrainingConfig, save_sae
from husai.sae.trained import read_sae

RESULTS = Path(__file__).parent / "results"
PROJECT = Path(__file__).parents[1]
ROWS = torch.randn(4000, 32, generator=torch.Generator().manual_seed(0))
TRAINING = BankTrainingConfig(
    steps=400, batch_size=256, eval_interval=100, checkpoint_interval=50, device="cpu"
)
PLAN: dict[str, Any] = {
    "hook_name": "h",
    "architectures": {
        "topk": {"k": [4]},
        "batch_topk": {"k": [4]},
        "relu": {"l1_coefficient": [1.0]},
    },
    "d_sae": [64, 128],
    "seeds": [0, 1],
}
TIMEOUT = 300


def config_of(compute: dict[str, Any], plan: dict[str, Any] | None = None) -> CampaignConfig:
    return CampaignConfig.model_validate(
        {"plan": plan or PLAN, "compute": compute, "max_failures": 0.5}
    )


def folders_of(folder: Path) -> CampaignFolders:
    return CampaignFolders(folder / "trained", folder / "checkpoints", folder / "campaign")


def drive(folder: Path, compute: dict[str, Any], plan: dict[str, Any] | None = None) -> int:
    """Run the campaign as Kedro does, saving each SAE; give how many were trained."""
    config = config_of(compute, plan)
    rows = {"h@-1": Activations(ROWS, torch.zeros(len(ROWS), dtype=torch.int64), "h", -1)}
    folders = folders_of(folder)
    trained = 0
    print("started", flush=True)
    for sae_id, sae in run_campaign(
        plan_saes(config.plan), rows, TRAINING, config, folders, progress=False
    ):
        save_sae(sae, folders.store / f"{sae_id}.safetensors")
        trained += 1
    return trained


@contextlib.contextmanager
def driver(
    folder: Path, compute: dict[str, Any], plan: dict[str, Any] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Run the campaign in a process of its own, and wait until it has begun."""
    arguments = json.dumps({"folder": str(folder), "compute": compute, "plan": plan})
    process = subprocess.Popen(
        [sys.executable, __file__, "--drive", arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "started", process.stderr.read()  # type: ignore[union-attr]
        yield process
    finally:
        process.kill()
        process.wait()


def finish(folder: Path, compute: dict[str, Any], plan: dict[str, Any] | None = None) -> str:
    """Start the campaign again and let it end; give what it said when it failed."""
    with driver(folder, compute, plan) as process:
        _, errors = process.communicate(timeout=TIMEOUT)
        return errors if process.returncode else ""


def last_line(said: str, folder: Path) -> str:
    """Give the last line that a campaign said, its folder and machine left out."""
    line = said.strip().splitlines()[-1]
    return line.replace(str(folder), "data").replace(f" on {platform.node()} ", " ")[:400]


def bits(folder: Path) -> dict[str, dict[str, bytes]]:
    """Give every trained SAE's tensors and history as bytes."""
    found = {}
    for path in sorted((folder / "trained").glob("*.safetensors")):
        sae = read_sae(path)
        tensors = {"W_enc", "b_enc", "W_dec", "b_dec", "W_dec_init", "density"}
        found[path.stem] = {name: getattr(sae, name).numpy().tobytes() for name in tensors}
        found[path.stem]["history"] = sae.history.to_numpy().tobytes()
        found[path.stem]["failure"] = str(sae.failure).encode()
    return found


def times(folder: Path) -> dict[str, int]:
    return {p.stem: p.stat().st_mtime_ns for p in (folder / "trained").glob("*.safetensors")}


def verdict(
    folder: Path, expected: dict[str, dict[str, bytes]], saved: dict[str, int]
) -> dict[str, Any]:
    """Compare what is there with the undisturbed campaign."""
    found, now = bits(folder), times(folder)
    table = Ledger(folder / "campaign" / LEDGER).table()
    return {
        "saes": len(expected),
        "missing": len(expected.keys() - found.keys()),
        "different": sum(found[i] != expected[i] for i in expected.keys() & found.keys()),
        "trained_again": sum(now.get(name) != at for name, at in saved.items()),
        "saved_before": len(saved),
        "attempts": int(table["attempts"].sum()),
        "unfinished": int((~table["status"].isin(["done", "failed"])).sum()),
    }


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path | None]:
    """Mount a disk of a size, as tmpfs has them, on a folder; None where that is not allowed."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


class Trials:
    """What every fault's trials share."""

    def __init__(self, folder: Path, kills: int) -> None:
        self.folder = folder
        self.kills = kills
        self.random = random.Random(0)
        self.local: dict[str, Any] = {"processes": 2, "threads": 1}
        self.count = 0
        # of the shortest campaign that nothing happened to: other work makes them longer
        self.seconds = float("inf")
        whole, again = self.new(), self.new()
        for folder, compute in ((whole, self.local), (again, {"processes": 0, "threads": 1})):
            errors = self.finish(folder, compute)
            assert not errors, errors
        self.expected = bits(whole)
        assert bits(again) == self.expected, "one process and two do not give the same bits"

    def finish(self, folder: Path, compute: dict[str, Any] | None = None) -> str:
        """Start the campaign and let it end; give what it said when it failed."""
        new = not (folder / "campaign").exists()
        with driver(folder, compute or self.local) as process:
            started = time.monotonic()
            _, errors = process.communicate(timeout=TIMEOUT)
            if new and process.returncode == 0:
                self.seconds = min(self.seconds, time.monotonic() - started)
            return errors if process.returncode else ""

    def new(self) -> Path:
        self.count += 1
        folder = self.folder / str(self.count)
        folder.mkdir()
        return folder

    def driver_killed(self) -> list[dict[str, Any]]:
        """Kill -9 of the driver at random moments, up to three times a campaign."""
        found = []
        kills = 0
        while kills < self.kills:
            folder, saved, here, touched = self.new(), dict[str, int](), 0, 0
            while here < 3 and kills < self.kills and len(saved) < len(self.expected):
                compute = self.local if kills % 2 else {"processes": 0, "threads": 1}
                with driver(folder, compute) as process:
                    try:
                        process.wait(timeout=self.random.uniform(0, 0.7) * self.seconds)
                    except subprocess.TimeoutExpired:
                        process.send_signal(signal.SIGKILL)
                        process.wait()
                        here += 1
                        kills += 1
                # nothing of what was saved before this kill may have been touched
                touched += sum(times(folder).get(name) != at for name, at in saved.items())
                saved = times(folder)
            if not here:
                continue
            said = self.finish(folder)
            assert not said, said
            result = verdict(folder, self.expected, saved)
            result["trained_again"] += touched
            found.append({**result, "faults": here})
        return found

    def worker_killed(self) -> list[dict[str, Any]]:
        """Kill -9 of one of the two worker processes at a random moment, twice a campaign."""
        found = []
        for _ in range(5):
            folder, killed = self.new(), 0
            with driver(folder, self.local) as process:
                for _ in range(2):
                    time.sleep(self.random.uniform(0.1, 0.4) * self.seconds)
                    children = subprocess.run(
                        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
                    ).stdout.split()
                    if children:
                        os.kill(int(self.random.choice(children)), signal.SIGKILL)
                        killed += 1
                _, errors = process.communicate(timeout=TIMEOUT)
            assert process.returncode == 0, errors
            found.append({**verdict(folder, self.expected, {}), "faults": killed})
        return found

    def nan_sae(self) -> list[dict[str, Any]]:
        """An SAE whose loss is not finite, in one bank with sound ones."""
        folder = self.new()
        hot = {"architecture": "topk", "d_sae": 64, "options": {"k": 4, "learning_rate": 1e30}}
        plan = {**PLAN, "variants": {"hot": hot}}
        assert not finish(folder, self.local, plan)
        found = bits(folder)
        bad = {name for name in found if "hot" in name}
        assert len(bad) == 2
        assert all(b"not finite" in found[name]["failure"] for name in bad)
        before = times(folder)
        assert not finish(folder, self.local, plan)
        result = verdict(folder, self.expected, before)
        return [{**result, "faults": len(bad)}]

    def full_disk(self) -> list[dict[str, Any]]:
        """A disk too small for the campaign, which is then made larger."""
        with small_disk(self.new(), "600k") as folder:
            if folder is None:
                return [{"left_out": "a small disk could not be mounted here"}]
            said = finish(folder, self.local)
            assert "CampaignStopped" in said or "No space left" in said, said
            saved = times(folder)
            enlarge = ["mount", "-o", "remount,size=200m", str(folder)]
            subprocess.run(enlarge, check=True)
            assert not finish(folder, self.local)
            result = verdict(folder, self.expected, saved)
            return [{**result, "faults": 1, "said": last_line(said, folder)}]

    def disk_fills(self) -> list[dict[str, Any]]:
        """A disk that something else fills while the campaign writes to it."""
        with small_disk(self.new(), "60m") as folder:
            if folder is None:
                return [{"left_out": "a small disk could not be mounted here"}]
            with driver(folder, self.local) as process:
                while not times(folder) and process.poll() is None:
                    time.sleep(0.01)
                filler = folder / "filler"
                with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                    while process.poll() is None:
                        file.write(bytes(4096))
                _, said = process.communicate(timeout=TIMEOUT)
            assert process.returncode, "the campaign ended although the disk was full"
            assert "No space left" in said or "CampaignStopped" in said, said
            filler.unlink()
            saved = times(folder)
            assert not finish(folder, self.local)
            result = verdict(folder, self.expected, saved)
            return [{**result, "faults": 1, "said": last_line(said, folder)}]

    def torn_files(self) -> list[dict[str, Any]]:
        """An SAE's file cut in half, one overwritten by another SAE's, a torn ledger."""
        folder = self.new()
        assert not finish(folder, self.local)
        names = sorted(self.expected)
        first, second = ((folder / "trained" / f"{name}.safetensors") for name in names[:2])
        first.write_bytes(first.read_bytes()[:1000])
        second.write_bytes((folder / "trained" / f"{names[5]}.safetensors").read_bytes())
        ledger = folder / "campaign" / LEDGER
        ledger.write_bytes(ledger.read_bytes()[:-20])
        saved = {name: at for name, at in times(folder).items() if name not in names[:2]}
        assert not finish(folder, self.local)
        aside = list((folder / "campaign" / QUARANTINE).iterdir())
        return [{**verdict(folder, self.expected, saved), "faults": 3, "set_aside": len(aside)}]

    def two_at_once(self) -> list[dict[str, Any]]:
        """A second campaign on the same store while the first one runs."""
        folder = self.new()
        with driver(folder, self.local) as process:
            while not (folder / "campaign" / LEDGER).is_file():
                time.sleep(0.05)
            said = finish(folder, self.local)
            _, errors = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0, errors
        assert "works on" in said, said
        saved = times(folder)
        assert not finish(folder, self.local)
        return [
            {
                **verdict(folder, self.expected, saved),
                "faults": 1,
                "said": last_line(said, folder),
            }
        ]

    def ray_worker_killed(self) -> list[dict[str, Any]]:
        """Kill -9 of the process of a Ray task that trains, once for each of four banks."""
        killed: list[int] = []

        def kill(event: Progress, cluster: Any) -> None:
            pid = int(event.worker.split()[-1])
            if 0.1 < event.part < 0.9 and pid not in killed and len(killed) < 4:
                killed.append(pid)
                os.kill(pid, signal.SIGKILL)

        return [self._on_ray(kill, lambda: len(killed))]

    def ray_node_killed(self) -> list[dict[str, Any]]:
        """A node of a Ray cluster of two goes while it trains."""
        removed: list[str] = []

        def kill(event: Progress, cluster: Any) -> None:
            for node in list(cluster.worker_nodes):
                if event.part > 0.1 and event.worker.split()[1] == node.node_id[:8] and not removed:
                    removed.append(node.node_id)
                    cluster.remove_node(node, allow_graceful=False)
                    cluster.add_node(num_cpus=1)

        return [self._on_ray(kill, lambda: len(removed))]

    def _on_ray(
        self, kill: Callable[[Progress, Any], None], faults: Callable[[], int]
    ) -> dict[str, Any]:
        import ray
        from ray.cluster_utils import Cluster

        from husai.campaign.executors.ray import RayExecutor

        folder = self.new()
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        wait = RayExecutor.wait

        def wait_and_kill(self: RayExecutor, timeout: float) -> Any:
            events = wait(self, min(timeout, 0.1))
            for event in events:
                if isinstance(event, Progress):
                    kill(event, cluster)
            return events

        try:
            RayExecutor.wait = wait_and_kill  # type: ignore[method-assign]
            drive(folder, {"backend": "ray", "max_retries": 10})
        finally:
            RayExecutor.wait = wait  # type: ignore[method-assign]
            ray.shutdown()
            cluster.shutdown()
        return {**verdict(folder, self.expected, {}), "faults": faults()}

    def server_stopped(self) -> list[dict[str, Any]]:
        """The MLflow server is stopped while a Kedro campaign runs, and started again."""
        folder = self.new()
        counts = []
        for disturbed in (False, True):
            data = folder / str(disturbed)
            counts.append(self._with_server(data, disturbed))
        whole, broken = counts
        return [
            {
                "saes": whole["runs"],
                "missing": whole["runs"] - broken["runs"],
                "different": int(whole["weights"] != broken["weights"]),
                "trained_again": 0,
                "saved_before": 0,
                "attempts": broken["attempts"],
                "unfinished": broken["unfinished"],
                "faults": 1,
                "points_recorded": broken["points"],
                "points_undisturbed": whole["points"],
                "duplicated_runs": broken["runs"] - broken["ids"],
            }
        ]

    def _with_server(self, data: Path, disturbed: bool) -> dict[str, Any]:
        from mlflow import MlflowClient

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        data.mkdir(parents=True)
        uri = f"http://127.0.0.1:{port}"
        environment = {**os.environ, "HUSAI_DATA_DIR": str(data), "MLFLOW_TRACKING_URI": uri}

        def serve() -> subprocess.Popen[bytes]:
            command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
            command += ["--port", str(port), "--workers", "1"]
            command += ["--backend-store-uri", f"sqlite:///{data / 'server.db'}"]
            command += ["--artifacts-destination", str(data / "server_artifacts")]
            log = (data / "server.log").open("ab")
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True
            )
            until = time.monotonic() + 120
            while time.monotonic() < until:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    return process
                time.sleep(0.2)
            raise RuntimeError("the MLflow server did not start")

        def stop(process: subprocess.Popen[bytes]) -> None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

        def kedro(*arguments: str) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-m", "kedro", "run", *arguments]
            log = (data / "kedro.log").open("ab")
            return subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=log, stderr=log)

        server = serve()
        for pipeline in ("data_generation", "transformer_training", "activation_extraction"):
            assert kedro("--env=team", f"--pipeline={pipeline}").wait(TIMEOUT) == 0
        params = "sae_training.steps=1500,sae_training.eval_interval=100,"
        params += "sae_training.batch_size=64,campaign.plan.d_sae=16 32,"
        params += "campaign.plan.seeds=0 1,campaign.plan.untrained=none,"
        params += "campaign.compute.processes=0"
        run = kedro("--env=team", "--pipeline=sae_training", "--params", params)
        trained = data / "saes" / "trained"
        if disturbed:
            while run.poll() is None and len(list(trained.glob("*.safetensors"))) < 2:
                time.sleep(0.1)
            stop(server)
            while run.poll() is None and len(list(trained.glob("*.safetensors"))) < 5:
                time.sleep(0.1)
            server = serve()
        code = run.wait(TIMEOUT)
        assert code == 0, (data / "kedro.log").read_text()[-3000:]
        # what the run could not send before its end, the next one sends
        again = kedro("--env=team", "--pipeline=sae_training", "--params", params)
        assert again.wait(TIMEOUT) == 0
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name("husai")
        runs = client.search_runs([experiment.experiment_id], "tags.`husai.sae_id` LIKE '%'")
        points = sum(
            len(client.get_metric_history(run.info.run_id, key))
            for run in runs
            for key in sorted(run.data.metrics)
        )
        table = Ledger(data / "saes" / "campaign" / LEDGER).table()
        assert (data / "saes" / "campaign" / RUNS).is_file()
        stop(server)
        return {
            "runs": len(runs),
            "ids": len({run.data.tags["husai.sae_id"] for run in runs}),
            "points": points,
            "weights": bits(data / "saes"),
            "attempts": int(table["attempts"].sum()),
            "unfinished": sum(run.info.status != "FINISHED" for run in runs),
        }


FAULTS = (
    "driver_killed",
    "worker_killed",
    "nan_sae",
    "full_disk",
    "disk_fills",
    "torn_files",
    "two_at_once",
    "server_stopped",
    "ray_worker_killed",
    "ray_node_killed",
)
COUNTED = ("saes", "missing", "different", "trained_again", "unfinished")


def summary(name: str, trials: list[dict[str, Any]]) -> dict[str, Any]:
    """Add up the trials of one fault."""
    what = str(getattr(Trials, name).__doc__).strip()
    if "left_out" in trials[0]:
        return {"fault": name, "what": what, "left_out": trials[0]["left_out"]}
    counts = {key: sum(trial[key] for trial in trials) for key in COUNTED}
    return {
        "fault": name,
        "what": what,
        "campaigns": len(trials),
        "faults": sum(trial.get("faults", 0) for trial in trials),
        **counts,
        "attempts": sum(trial["attempts"] for trial in trials),
        "trials": trials,
    }


def page(found: dict[str, Any]) -> str:
    """Write the results as Markdown."""
    lines = [
        "# Faults, tried for real",
        "",
        f"`{found['command']}`, {found['seconds']:.0f} s. "
        "Missing: SAEs not there when the campaign had been started again and had ended. "
        "Different: SAEs any bit of whose weights or history is not the undisturbed campaign's. "
        "Trained again: SAEs that had been saved before the fault and were written anew. "
        "All must be 0.",
        "",
        "| fault | campaigns | faults | SAEs | missing | different | trained again | attempts |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in found["faults"]:
        if "left_out" in one:
            lines.append(f"| {one['what']} | left out: {one['left_out']} | | | | | | |")
            continue
        cells = [one["what"], *(one[k] for k in ("campaigns", "faults", *COUNTED[:4], "attempts"))]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    for one in found["faults"]:
        for trial in one.get("trials", []):
            if "said" in trial:
                lines += ["", f"{one['what']} The campaign said: `{trial['said']}`"]
            if "points_recorded" in trial:
                lines += [
                    "",
                    f"{one['what']} {trial['points_recorded']} points of metrics in the SAEs' "
                    f"runs, {trial['points_undisturbed']} when the server stayed; "
                    f"{trial['duplicated_runs']} runs twice.",
                ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--drive", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        work = json.loads(options.drive)
        try:
            drive(Path(work["folder"]), work["compute"], work["plan"])
        except (CampaignStopped, InputError, OSError) as error:
            sys.exit(f"{type(error).__name__}: {error}")
        return
    started = time.monotonic()
    output = RESULTS / "campaign_faults.json"
    before = json.loads(output.read_text()) if output.is_file() else {"faults": []}
    found = {one["fault"]: one for one in before["faults"]}
    whole = set(options.only) == set(FAULTS)
    with tempfile.TemporaryDirectory(prefix="campaign-faults-") as folder:
        trials = Trials(Path(folder), options.kills)
        print(f"undisturbed: {len(trials.expected)} SAEs in {trials.seconds:.1f} s", flush=True)
        for name in options.only:
            if name.startswith("ray") and importlib.util.find_spec("ray") is None:
                print(f"{name}: ray is not installed; left out", flush=True)
                continue
            found[name] = summary(name, getattr(trials, name)())
            shown = {k: v for k, v in found[name].items() if k not in ("trials", "what")}
            print(json.dumps(shown), flush=True)
            document = {
                "command": f"python benchmarks/campaign_faults.py --kills {options.kills}",
                # the time of all trials, which a run of some of them does not give
                "seconds": time.monotonic() - started if whole else before.get("seconds"),
                "undisturbed_seconds": trials.seconds,
                "versions": versions(),
                **git_commit(PROJECT),
                "faults": [found[name] for name in FAULTS if name in found],
            }
            RESULTS.mkdir(exist_ok=True)
            output.write_text(json.dumps(document, indent=1) + "\n")
            output.with_suffix(".md").write_text(page(document))


if __name__ == "__main__":
    threading.current_thread().name = "main"
    main()
