"""Parameters of a campaign."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from husai.campaign.plan import PlanConfig
from husai.config import Config


class ComputeConfig(Config):
    """What carries the campaign out."""

    backend: Literal["local"] = Field(
        default="local", description="local: bank after bank in this process, with all its threads"
    )


class CampaignConfig(Config):
    """Which SAEs are trained, and by what."""

    plan: PlanConfig
    compute: ComputeConfig = ComputeConfig()
