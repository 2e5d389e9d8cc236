from .config import BudgetConfig, CampaignConfig, ComputeConfig
from .database import read_ledger, results
from .estimate import estimate_campaign
from .plan import ArchitectureGrid, PlanConfig, Variant, plan_saes, row_config, row_training
from .run import CampaignFolders, run_campaign
from .search import Distribution, RandomSearch, draw_samples

__all__ = [
    "ArchitectureGrid",
    "BudgetConfig",
    "CampaignConfig",
    "CampaignFolders",
    "ComputeConfig",
    "Distribution",
    "PlanConfig",
    "RandomSearch",
    "Variant",
    "draw_samples",
    "estimate_campaign",
    "plan_saes",
    "read_ledger",
    "results",
    "row_config",
    "row_training",
    "run_campaign",
]
