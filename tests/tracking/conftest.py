"""Fixtures: a tracking store that can be made unreachable, and an SAE's file to record in it."""

from __future__ import annotations

import http.server
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from requests.exceptions import ConnectionError as NoConnection

from husai.campaign.store import identity
from husai.sae import BankTrainingConfig, SAEConfig, to_tensors, train_bank
from husai.storage import TensorFile, tensors_to_bytes
from husai.tracking import recorder
from husai.tracking.recorder import Recorder

ROWS = torch.randn(120, 6, generator=torch.Generator().manual_seed(0))
TRAINING = BankTrainingConfig(steps=20, batch_size=20, eval_interval=10, device="cpu")


@pytest.fixture(scope="session")
def sae_file() -> bytes:
    (sae,) = train_bank(ROWS, [SAEConfig(architecture="topk", d_sae=8, k=2)], TRAINING)
    tensors, header = to_tensors(sae)
    about = {"group": "topk d8 k2", "name": "c", "cost": 0.5, "attempts": 2, "finished": 1e9}
    header["provenance"] = {**header["provenance"], "husai": "1", "campaign": about}
    return tensors_to_bytes(tensors, header)


class Store:
    """A store that can be made unreachable."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.away = False
        self.recorder = self.new_recorder()
        client = self.recorder.client
        self.experiment = client.create_experiment("e", (folder / "artifacts").as_uri())
        self.parent = client.create_run(self.experiment).info.run_id
        patch.setattr(recorder, "RETRY_SECONDS", 0.0)
        for name, operation in recorder.OPERATIONS.items():
            self._guard(patch, name, operation)

    def _guard(self, patch: pytest.MonkeyPatch, name: str, operation: Any) -> None:
        def guarded(*arguments: Any, **fields: Any) -> None:
            if self.away:
                raise NoConnection("refused")
            operation(*arguments, **fields)

        patch.setitem(recorder.OPERATIONS, name, guarded)

    def new_recorder(self) -> Recorder:
        return Recorder(f"sqlite:///{self.folder / 'mlflow.db'}", self.folder / "spool")

    def record_sae(self, run_id: str, content: bytes, **fields: Any) -> bool:
        """Save an SAE named s, and have it recorded below a run."""
        path = self.folder / "trained" / "s.safetensors"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        known = identity(TensorFile.from_bytes(content, "s").header)
        at = {"file": str(path), "identity": known, "experiment": self.experiment}
        return self.recorder.do("sae", run_id, sae_id="s", **at, **fields)

    def history(self, run_id: str, key: str) -> list[tuple[float, int]]:
        points = self.recorder.client.get_metric_history(run_id, key)
        return [(point.value, point.step) for point in points]


@pytest.fixture
def store(tmp_path: Path, empty_mlflow: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    return Store(tmp_path, monkeypatch)


@pytest.fixture
def server() -> Iterator[Callable[[int, bytes], str]]:
    """A server that gives one answer to everything."""
    said: dict[str, Any] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(said["status"])
            self.send_header("Content-Length", str(len(said["body"])))
            self.end_headers()
            self.wfile.write(said["body"])

        do_POST = do_PUT = do_GET

        def log_message(self, format: str, *arguments: Any) -> None:
            """Log nothing."""

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()

    def says(status: int, body: bytes = b"") -> str:
        said.update(status=status, body=body)
        return f"http://127.0.0.1:{running.server_port}"

    yield says
    running.shutdown()
    running.server_close()
