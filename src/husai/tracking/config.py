"""Where and how runs are tracked."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from husai.config import Config


class TrackingConfig(Config):
    """Where and how runs are tracked (``conf/<env>/mlflow.yml``)."""

    enabled: bool = Field(default=True, description="off: nothing is tracked")
    tracking_uri: str | None = Field(
        default=None, description="a server's URI; None: a SQLite file in data_dir"
    )
    tracking_uri_variable: str | None = Field(
        default=None, description="environment variable that holds the server's URI"
    )
    artifact_location: str | None = Field(
        default=None, description="where artifacts go; None: beside the SQLite file"
    )
    data_dir: str = Field(default="data", description="folder of the SQLite file and artifacts")
    experiment: str = Field(default="husai", min_length=1, description="experiment of all runs")
    system_metrics: bool = Field(default=True, description="log CPU, memory and GPU load")
    register_saes: Literal["none", "best", "all"] = Field(
        default="best",
        description="SAEs that become versions of a registered model, one model per group: none, "
        "the best of each group (lowest FVU), or all",
    )
