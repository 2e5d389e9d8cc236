"""Parameters of a campaign."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from husai.campaign.plan import PlanConfig
from husai.config import HOME_STUDY, Config, CountFromZero, Name, Seed, Threads


class ComputeConfig(Config):
    """Where and how the campaign runs."""

    backend: Literal["local", "ray"] = Field(
        default="local",
        description="local: this machine; ray: a Ray cluster (pip install ray)",
    )
    processes: CountFromZero | None = Field(
        default=None,
        le=1024,
        description="local: worker processes; 0 trains in this process, bank after bank. Left "
        "out: one for every core or GPU, or 0 if there is little work",
    )
    threads: Threads | None = Field(
        default=None,
        description="CPU threads of a bank; left out: the cores divided among the processes; with "
        "ray, cpus_per_bank",
    )
    address: str | None = Field(
        default=None,
        description="ray: address of a running cluster; left out: RAY_ADDRESS, or a cluster is "
        "started on this machine",
    )
    cpus_per_bank: float = Field(
        default=1.0, gt=0, le=1024, description="ray: CPUs reserved for a bank"
    )
    gpus_per_bank: float = Field(
        default=0.0,
        ge=0,
        le=1024,
        description="ray: GPUs reserved for a bank; with a fraction several banks share one",
    )
    queued_banks: CountFromZero = Field(
        default=2, description="ray: banks submitted beyond those that can run at once"
    )
    bank_memory_gb: float = Field(
        default=2.0, gt=0, description="largest bank, in GB of state and working memory"
    )
    measure_again: bool = Field(
        default=False,
        description="whether a dry run or a budget measures the cost of banks again and forgets "
        "earlier measurements, which may come from a busy machine",
    )
    max_retries: CountFromZero = Field(
        default=3,
        description="how often a bank is started again after its worker or node was lost; an SAE "
        "whose loss is not finite is never trained again, and a bank that raises an error is "
        "divided until the SAE that causes it fails alone",
    )


class BudgetConfig(Config):
    """What a campaign may cost. A device is a GPU if banks train on one, else a CPU thread."""

    rate: float = Field(default=0.0, ge=0, description="price of one device-hour")
    currency: str = Field(default="EUR", description="currency of the rate; it is only shown")
    max_cost: float | None = Field(
        default=None, gt=0, description="limit on the cost of the campaign, earlier starts included"
    )
    max_hours: float | None = Field(
        default=None, gt=0, description="limit on the hours of wall-clock time from this start"
    )

    @model_validator(mode="after")
    def _cost_needs_a_rate(self) -> BudgetConfig:
        if self.max_cost is not None and self.rate == 0:
            raise ValueError(f"max_cost: {self.max_cost} needs a rate above 0; set rate")
        return self


class CampaignConfig(Config):
    """Which SAEs are trained, where, and within which budget."""

    name: Name = Field(default=HOME_STUDY, description="name under which its results are found")
    plan: PlanConfig
    compute: ComputeConfig = ComputeConfig()
    budget: BudgetConfig = BudgetConfig()
    max_failures: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="share of the SAEs that may fail (with a loss that is not finite); with more "
        "the campaign ends with an error",
    )


class LongerConfig(Config):
    """Which SAEs are trained again, and for how long."""

    share: float = Field(default=0.1, gt=0, le=1, description="share of the trained model's SAEs")
    factor: float = Field(
        default=2.0, gt=1, le=1000, description="their steps, as a multiple of the plan's"
    )
    seed: Seed = Field(default=0, description="seed of the random choice")
