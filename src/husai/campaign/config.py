"""Parameters of a campaign."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from husai.campaign.plan import PlanConfig
from husai.config import HOME_STUDY, Config, CountFromZero, Name, Seed, Threads


class ComputeConfig(Config):
    """Where the campaign runs."""

    backend: Literal["local", "ray"] = Field(
        default="local",
        description="local: this machine; ray: a Ray cluster (pip install ray)",
    )
    processes: CountFromZero | None = Field(
        default=None,
        le=1024,
        description="local: worker processes; 0 trains in this process, bank after bank. Left "
        "out: one for every core or GPU, or 0 where the work is too little to start any",
    )
    threads: Threads | None = Field(
        default=None,
        description="CPU threads of a bank; left out: the cores shared among the processes, and "
        "with ray cpus_per_bank",
    )
    address: str | None = Field(
        default=None,
        description="ray: address of a running cluster; left out: RAY_ADDRESS, or one is started "
        "on this machine",
    )
    cpus_per_bank: float = Field(default=1.0, gt=0, le=1024, description="ray: CPUs a bank holds")
    gpus_per_bank: float = Field(
        default=0.0, ge=0, le=1024, description="ray: GPUs a bank holds; a fraction shares one"
    )
    queued_banks: CountFromZero = Field(
        default=2, description="ray: banks handed over beyond those that can run at once"
    )
    bank_memory_gb: float = Field(
        default=2.0, gt=0, description="largest bank, in GB of state and working memory"
    )
    measure_again: bool = Field(
        default=False,
        description="measure what banks cost anew, where a dry run or a budget asks for it: what "
        "was measured before, perhaps on a busy machine, is forgotten",
    )
    max_retries: CountFromZero = Field(
        default=3,
        description="times a bank is started again after its worker or node was lost; a NaN is "
        "never tried twice, and a bank that raises is divided until the SAE at fault fails alone",
    )


class BudgetConfig(Config):
    """What a campaign may cost. Device: a GPU where a bank holds one, else a CPU thread."""

    rate: float = Field(default=0.0, ge=0, description="price of one device-hour")
    currency: str = Field(default="EUR", description="of the rate; only shown")
    max_cost: float | None = Field(
        default=None, gt=0, description="of the whole campaign, earlier starts included"
    )
    max_hours: float | None = Field(
        default=None, gt=0, description="hours of wall-clock time from this start"
    )

    @model_validator(mode="after")
    def _cost_needs_a_rate(self) -> BudgetConfig:
        if self.max_cost is not None and self.rate == 0:
            raise ValueError(f"max_cost: {self.max_cost} needs a rate above 0; set rate")
        return self


class CampaignConfig(Config):
    """Which SAEs are trained, where, and at what cost at most."""

    name: Name = Field(default=HOME_STUDY, description="by which its results are found afterwards")
    plan: PlanConfig
    compute: ComputeConfig = ComputeConfig()
    budget: BudgetConfig = BudgetConfig()
    max_failures: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="part of the SAEs that may fail (a loss that is not finite) before the "
        "campaign ends with an error",
    )


class LongerConfig(Config):
    """Which SAEs are trained again, and for how long."""

    share: float = Field(default=0.1, gt=0, le=1, description="part of the trained model's SAEs")
    factor: float = Field(
        default=2.0, gt=1, le=1000, description="their steps, as a multiple of the plan's"
    )
    seed: Seed = Field(default=0, description="of the choice")
