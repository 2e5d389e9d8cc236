from .config import CampaignConfig, ComputeConfig
from .plan import ArchitectureGrid, PlanConfig, Variant, plan_saes, row_config, row_training
from .run import train_plan
from .search import Distribution, RandomSearch, draw_samples

__all__ = [
    "ArchitectureGrid",
    "CampaignConfig",
    "ComputeConfig",
    "Distribution",
    "PlanConfig",
    "RandomSearch",
    "Variant",
    "draw_samples",
    "plan_saes",
    "row_config",
    "row_training",
    "train_plan",
]
