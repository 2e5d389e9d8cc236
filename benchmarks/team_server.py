"""Test a team's tracking server: Postgres, two users at once, a restart during their studies.

    python benchmarks/team_server.py --server-python PYTHON

starts Debian's PostgreSQL and conf/team/serve.sh on this machine's own address, runs a study for
each of two users at the same time (`kedro run --env=team` with the sizes of conf/test), stops the
server when some of the SAEs are trained, starts it again, and checks what the server has recorded
of both. PYTHON is the Python of an environment with the packages of conf/team/Dockerfile. Writes
benchmarks/results/team_server.json.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from husai.campaign.folders import LEDGER
from husai.campaign.ledger import Ledger
from husai.provenance import versions
from husai.tracking.processes import search_runs
from husai.tracking.sae_runs import ID_TAG

PROJECT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "team_server.json"
USERS = ("ada", "bo")
TIMEOUT = 230
LEFT_OUT = re.compile(r"campaign\.plan\.variants\.|campaign\.plan\.untrained|planted_truth\.")
TRAINED_BEFORE_STOP = 2
SECONDS_AWAY = 5


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def wait_for(port: int, process: subprocess.Popen[bytes] | None = None) -> None:
    """Wait until something listens on a port."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        if process is not None and process.poll() is not None:
            break
        time.sleep(0.2)
    raise RuntimeError(f"nothing listens on port {port}")


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[tuple[str, Any]]:
    """Run a database of its own; give its address, and a function that asks it a question."""
    folder.mkdir()
    as_user: list[str] = []
    if os.geteuid() == 0:  # the database refuses to run as root
        as_user = ["runuser", "-u", "postgres", "--"]
        subprocess.run(["chown", "postgres", str(folder)], check=True)
    binaries = max(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name)
    )
    password, port = secrets.token_hex(16), free_port()
    (folder / "password").write_text(password)
    (folder / "password").chmod(0o644)
    data = folder / "data"

    def run(*words: str) -> str:
        environment = {**os.environ, "PGPASSWORD": password}
        done = subprocess.run(
            [*as_user, *words], capture_output=True, text=True, env=environment, cwd=folder
        )
        if done.returncode:
            raise RuntimeError(f"{words[0]}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    run(
        *(f"{binaries}/initdb", "--pgdata", str(data), "--username", "mlflow"),
        *("--auth", "scram-sha-256", "--pwfile", str(folder / "password")),
    )
    options = f"-h 127.0.0.1 -p {port} -k {folder}"
    run(
        *(f"{binaries}/pg_ctl", "--pgdata", str(data), "--log", str(folder / "log")),
        *("--options", options, "--wait", "start"),
    )
    reached = ("-h", "127.0.0.1", "-p", str(port), "-U", "mlflow")
    try:
        run("createdb", *reached, "mlflow")
        yield (
            f"postgresql://mlflow:{password}@127.0.0.1:{port}/mlflow",
            lambda question: run("psql", *reached, "-tAc", question, "mlflow"),
        )
    finally:
        run(f"{binaries}/pg_ctl", "--pgdata", str(data), "--mode", "fast", "stop")


class Server:
    """The team's server: conf/team/serve.sh in the environment of the Dockerfile."""

    def __init__(self, folder: Path, python: Path, store: str) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.artifacts = folder / "artifacts"
        self._log = folder / "server.log"
        self._environment = {
            **os.environ,
            "PATH": f"{python.parent}:{os.environ['PATH']}",
            "HUSAI_STORE": store,
            "HUSAI_ARTIFACTS": str(self.artifacts),
            "HUSAI_PORT": str(self.port),
        }
        self._environment.pop("PYTHONPATH", None)

    def start(self) -> float:
        """Start it and wait until it answers; give the seconds that this took."""
        began = time.monotonic()
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                ["sh", PROJECT / "conf" / "team" / "serve.sh"],
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )
        wait_for(self.port, self.process)
        return time.monotonic() - began

    def stop(self) -> None:
        """Stop it and the processes that it started, as a restart of its machine does."""
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def small_study() -> str:
    """The sizes of conf/test as --params takes them: lists as words."""
    settings = yaml.safe_load((PROJECT / "conf" / "test" / "parameters.yml").read_text())

    def leaves(prefix: str, value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            for name, inner in value.items():
                yield from leaves(f"{prefix}.{name}" if prefix else name, inner)
        elif isinstance(value, list):
            yield f"{prefix}={' '.join(map(str, value))}"
        else:
            yield f"{prefix}={'null' if value is None else value}"

    kept = [one for one in leaves("", settings) if not LEFT_OUT.match(one)]
    kept += ["campaign.plan.variants=null", "campaign.plan.untrained=none"]
    kept += ["campaign.plan.architectures.batch_topk=null"]
    return ",".join([*kept, "campaign.compute.processes=0"])


def start_study(user: str, data: Path, uri: str) -> subprocess.Popen[bytes]:
    """Start the study of a user, with a data folder of their own."""
    data.mkdir(parents=True)
    parameters = f"study={user},{small_study()}"
    environment = {
        **os.environ,
        "USER": user,
        "HUSAI_DATA_DIR": str(data),
        "MLFLOW_TRACKING_URI": uri,
    }
    with (data / "log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "kedro", "run", "--env=team", "--params", parameters],
            cwd=PROJECT,
            env=environment,
            stdout=log,
            stderr=log,
        )


def trained(data: Path) -> list[Path]:
    """The files of the SAEs that a user has trained."""
    return sorted(data.glob("studies/*/saes/trained/*.safetensors"))


def warnings_of(log: Path) -> list[str]:
    """What a study said of the server, without the reason and the folder, which are of one try."""
    said = re.findall(r"WARNING +(.*tracking server.*)", log.read_text())
    return [re.sub(r" \(.*\)| in \S+$", "", line) for line in said]


def what_is_known(uri: str, user: str, data: Path) -> dict[str, Any]:
    """What the server knows of a user's study, beside what the user's folder holds."""
    import mlflow
    from mlflow.artifacts import download_artifacts

    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("husai")
    assert experiment is not None
    sessions = list(search_runs(client, experiment.experiment_id, f"tags.`husai.study` = '{user}'"))
    saes = list(search_runs(client, experiment.experiment_id, f"tags.`husai.campaign` = '{user}'"))
    files = {path.stem: path for path in trained(data)}
    same = 0
    for run in saes:
        models = client.search_logged_models(
            [experiment.experiment_id], filter_string=f"source_run_id = '{run.info.run_id}'"
        )
        for model in models:
            folder = Path(download_artifacts(f"models:/{model.model_id}"))
            (weights,) = folder.rglob("*.safetensors")
            mine = hashlib.sha256(files[run.data.tags[ID_TAG]].read_bytes()).digest()
            same += hashlib.sha256(weights.read_bytes()).digest() == mine
    (ledger,) = data.glob(f"studies/*/saes/campaign/{LEDGER}")
    spool = data / "tracking_spool"
    left = {path.name: len(path.read_bytes().splitlines()) for path in spool.glob("*.jsonl")}
    (session,) = sessions
    return {
        "user": session.data.tags["mlflow.user"],
        "session": session.info.status,
        "artifacts_of_the_session": len(client.list_artifacts(session.info.run_id)),
        "artifact_address": session.info.artifact_uri.split("/")[0],
        "saes_trained": len(files),
        "saes_with_a_run": len({run.data.tags[ID_TAG] for run in saes}),
        "runs_of_saes": len(saes),
        "runs_finished": sum(run.info.status == "FINISHED" for run in saes),
        "attempts": int(Ledger(ledger).table()["attempts"].sum()),
        "saes_as_models": same,
        "left_in_the_spool": left,
        "file_store_of_its_own": bool(list(data.glob("**/mlflow.db"))),
    }


def trial(folder: Path, python: Path) -> dict[str, Any]:
    """Two studies at once and a restart of the server; what was seen."""
    data = {user: folder / user for user in USERS}
    with postgres(folder / "postgres") as (store, ask):
        server = Server(folder, python, store)
        found: dict[str, Any] = {"seconds_to_start": round(server.start(), 1)}
        studies: dict[str, subprocess.Popen[bytes]] = {}
        try:
            studies = {user: start_study(user, data[user], server.uri) for user in USERS}
            until = time.monotonic() + TIMEOUT
            while min(len(trained(data[user])) for user in USERS) < TRAINED_BEFORE_STOP:
                ended = [user for user in USERS if studies[user].poll() is not None]
                if ended or time.monotonic() > until:
                    raise RuntimeError((data[(ended or USERS)[0]] / "log").read_text()[-3000:])
                time.sleep(0.1)
            found["trained_when_stopped"] = {user: len(trained(data[user])) for user in USERS}
            server.stop()
            time.sleep(SECONDS_AWAY)
            found["trained_when_started_again"] = {u: len(trained(data[u])) for u in USERS}
            found["seconds_to_start_again"] = round(server.start(), 1)
            for user, study in studies.items():
                if study.wait(TIMEOUT):
                    raise RuntimeError((data[user] / "log").read_text()[-3000:])
            found["users"] = {u: what_is_known(server.uri, u, data[u]) for u in USERS}
            found["warnings"] = {u: warnings_of(data[u] / "log") for u in USERS}
            found["postgres"] = {
                "version": ask("show server_version"),
                **{
                    table: int(ask(f"select count(*) from {table}"))
                    for table in ("experiments", "runs", "metrics", "model_versions")
                },
            }
            found["artifact_files_of_the_server"] = sum(
                path.is_file() for path in server.artifacts.rglob("*")
            )
        finally:
            for study in studies.values():
                study.kill()
                study.wait()
            server.stop()
    return found


def main() -> None:
    """Carry the trial out and write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--server-python", type=Path, default=Path(sys.executable))
    parser.add_argument("--folder", type=Path, help="a new folder to keep, with all logs")
    options = parser.parse_args()
    # so that the database and the server are stopped whatever ends this
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    with tempfile.TemporaryDirectory(prefix="husai-team-") as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
        found = trial(folder, options.server_python.absolute())
    found["versions"] = versions()
    RESULT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
