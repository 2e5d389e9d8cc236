from .config import BudgetConfig, CampaignConfig, ComputeConfig
from .cost.dry_run import estimate_campaign
from .folders import CampaignFolders
from .plan import ArchitectureGrid, PlanConfig, Variant, plan_saes, row_config, row_training
from .random_search import Distribution, RandomSearch, draw_samples
from .results_table import ledger_totals, read_ledger, results
from .runner import run_campaign

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
    "ledger_totals",
    "plan_saes",
    "read_ledger",
    "results",
    "row_config",
    "row_training",
    "run_campaign",
]
