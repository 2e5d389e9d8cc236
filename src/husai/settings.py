"""Kedro project settings."""

from __future__ import annotations

import os

from kedro.config import OmegaConfigLoader

from husai.checks import StudyChecks
from husai.tracking import MlflowHook


def data_dir(default: str) -> str:
    """Give the folder of all data: ``HUSAI_DATA_DIR`` when set, or the environment's own."""
    return os.environ.get("HUSAI_DATA_DIR", default)


def tracking_uri(variable: str) -> str:
    """Give the address of the tracking server that an environment variable holds."""
    uri = os.environ.get(variable)
    if not uri:
        raise ValueError(
            f"environment variable {variable} is not set: this environment tracks to a server, "
            "give its address, for example http://127.0.0.1:5000"
        )
    return uri


HOOKS = (StudyChecks(), MlflowHook())

CONFIG_LOADER_CLASS = OmegaConfigLoader
CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    "config_patterns": {"mlflow": ["mlflow*", "mlflow*/**"]},
    # an environment changes the fields it names and leaves the rest of a group as it is in base
    "merge_strategy": {"parameters": "soft", "mlflow": "soft"},
    "custom_resolvers": {"data_dir": data_dir, "tracking_uri": tracking_uri},
}
