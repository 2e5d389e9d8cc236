"""Two users start on a new server at once: each uses what the other has made."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_ALREADY_EXISTS

from husai.tracking.config import TrackingConfig
from husai.tracking.hook import MlflowHook
from husai.tracking.operations import _make_registered


class Server:
    """A server on which another user makes what is asked for just before it is made."""

    def __init__(self, code: int = RESOURCE_ALREADY_EXISTS) -> None:
        self.code = code
        self.made: list[str] = []

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id="7") if name in self.made else None

    def search_registered_models(self, _: str) -> list[str]:
        return []

    def create_experiment(self, name: str, _: Any) -> str:
        if self.code == RESOURCE_ALREADY_EXISTS:
            self.made.append(name)
        raise MlflowException("exists", self.code)

    def create_registered_model(self, _: str) -> None:
        raise MlflowException("exists", self.code)


def experiment_of(server: Server) -> str:
    hook = MlflowHook()
    hook._tracking = TrackingConfig()
    recorder: Any = SimpleNamespace(client=server)
    return hook._experiment(recorder, None)


def test_what_another_user_makes_meanwhile_is_used() -> None:
    assert experiment_of(Server()) == "7"
    client: Any = Server()
    _make_registered(client, "husai-topk-d8-k3")


def test_errors_of_a_server_are_not_hidden() -> None:
    with pytest.raises(MlflowException):
        experiment_of(Server(INVALID_PARAMETER_VALUE))
    client: Any = Server(INVALID_PARAMETER_VALUE)
    with pytest.raises(MlflowException):
        _make_registered(client, "husai-topk-d8-k3")
