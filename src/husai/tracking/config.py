"""Parameters of tracking: where and how runs are recorded."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from husai.config import Config


class TrackingConfig(Config):
    """Where and how runs are tracked (``conf/<env>/mlflow.yml``)."""

    enabled: bool = Field(default=True, description="whether runs are tracked")
    tracking_uri: str | None = Field(
        default=None, description="URI of a server; None: a SQLite file in data_dir"
    )
    tracking_uri_variable: str | None = Field(
        default=None, description="environment variable with the server's URI"
    )
    artifact_location: str | None = Field(
        default=None, description="folder or URI of artifacts; None: beside the SQLite file"
    )
    data_dir: str = Field(default="data", description="folder of the SQLite file and artifacts")
    experiment: str = Field(default="husai", min_length=1, description="experiment of all runs")
    system_metrics: bool = Field(
        default=True, description="whether to log CPU, memory and GPU load"
    )
    register_saes: Literal["none", "best", "all"] = Field(
        default="best",
        description="SAEs that become versions of a registered model, one model per group: none, "
        "the best of each group (lowest FVU), or all",
    )
