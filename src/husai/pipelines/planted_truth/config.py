"""Parameters of the calibration study, importable without what carries it out."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from husai.campaign.plan import ArchitectureGrid
from husai.config import Config
from husai.sae.architectures import DeadLatentMethod
from husai.sae.config import BankTrainingConfig
from husai.tasks import PlantedConfig


class WorldStudy(Config):
    """A planted world and the widths trained on it."""

    world: PlantedConfig
    d_sae: tuple[int, ...] = Field(min_length=1, description="widths of the SAEs")


class PlantedTruthConfig(Config):
    """Worlds x architectures x sparsity x dead-latent method x seeds."""

    worlds: dict[str, WorldStudy] = Field(min_length=1, description="planted worlds by name")
    architectures: dict[str, ArchitectureGrid] = Field(min_length=1)
    dead_latents: tuple[DeadLatentMethod | Literal["auto"], ...] = Field(("auto",), min_length=1)
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=2, description="initial weights")
    learning_rate: float = Field(5e-3, gt=0, description="Adam's step size")
    n_rows: int = Field(20_000, ge=1, description="training rows of every world")
    n_eval_rows: int = Field(5_000, ge=1, description="further rows for the metrics")
    training: BankTrainingConfig = BankTrainingConfig(
        steps=1000, batch_size=256, eval_interval=100, snapshot_interval=100
    )
    score_steps: tuple[int, ...] = Field(
        (0, 100, 200, 500), description="steps scored besides the last one"
    )
    gate_tolerance: float = Field(0.02, ge=0, description="change of GT-MCC that is called none")
    threshold: float = Field(0.9, gt=0, le=1, description="cosine of a feature that is the same")
    n_resamples: int = Field(500, ge=10, description="of the cluster bootstrap")

    @model_validator(mode="after")
    def _snapshots_are_there(self) -> PlantedTruthConfig:
        interval = self.training.snapshot_interval
        if interval is None or interval != self.training.eval_interval:
            raise ValueError(
                "training.snapshot_interval and training.eval_interval must be given and equal: "
                "the convergence gate is held to the dictionaries of the same steps"
            )
        for step in self.score_steps:
            if step % interval or step >= self.training.steps:
                raise ValueError(
                    f"score_steps: {step} is not a multiple of training.snapshot_interval = "
                    f"{interval} below training.steps = {self.training.steps}"
                )
        if self.training.steps <= interval * self.training.convergence_window:
            raise ValueError(
                f"training.steps = {self.training.steps} leaves no checkpoint to hold the gate to; "
                "it must exceed training.eval_interval x training.convergence_window"
            )
        return self


# ---------------------------------------------------------------------------------------------
# Plan and training
# ---------------------------------------------------------------------------------------------
