"""Campaigns of many SAEs: the plan, and what carries it out."""

from husai.campaign.config import CampaignConfig, ComputeConfig
from husai.campaign.plan import ArchitectureGrid, PlanConfig, plan_saes, row_config
from husai.campaign.run import train_plan

__all__ = [
    "ArchitectureGrid",
    "CampaignConfig",
    "ComputeConfig",
    "PlanConfig",
    "plan_saes",
    "row_config",
    "train_plan",
]
