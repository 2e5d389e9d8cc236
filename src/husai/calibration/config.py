"""Parameters of the planted-truth study; importing them loads no library that runs it."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from husai.campaign.config import CampaignConfig, ComputeConfig
from husai.campaign.plan import ArchitectureGrid, PlanConfig
from husai.config import Config, Count, Latents, Listed, Name, Seed
from husai.sae.architectures import DeadLatentMethod
from husai.sae.config import BankTrainingConfig
from husai.tasks import PlantedConfig

EVALUATIONS = 20
"""Evaluations during the training of every SAE; the slope of the loss is fitted to them."""

Regime = Literal["compressive", "matched", "redundant"]


class WorldStudy(Config):
    """A planted world and the widths trained on it."""

    world: PlantedConfig
    d_sae: Listed[Latents] = Field(min_length=1, description="widths of the SAEs")


class PlantedTruthConfig(Config):
    """Worlds x draws x architectures x sparsity x dead-latent method x lengths x seeds."""

    worlds: dict[Name, WorldStudy] = Field(
        min_length=1, description="planted worlds by name; a null removes one"
    )
    draws: Count = Field(
        2,
        description="independent draws of every world: its dictionary and its rows; their seeds "
        "are made from the world's name, its dictionary_seed and the number of the draw",
    )
    architectures: dict[Name, ArchitectureGrid] = Field(
        min_length=1, description="a null removes one"
    )
    dead_latents: tuple[DeadLatentMethod | Literal["auto"], ...] = Field(
        ("auto",), min_length=1, description="methods for dead latents; one setting for each"
    )
    seeds: Listed[Seed] = Field(
        (0, 1, 2), min_length=2, description="seeds of the initial weights, one SAE for each"
    )
    lengths: Listed[Count] = Field(
        (400, 1600, 6400),
        min_length=1,
        description="steps of training, each a separate run with its own learning-rate decay; all "
        "are compared with the longest",
    )
    learning_rate: float = Field(5e-3, gt=0, description="Adam's step size")
    n_rows: Count = Field(20_000, description="training rows of every world")
    n_eval_rows: Count = Field(3_000, description="further rows, on which the scores are computed")
    training: BankTrainingConfig = Field(
        BankTrainingConfig(batch_size=256, checkpoint_interval=5000),
        description="shared by all SAEs, except for steps, the intervals and dead_latents, which "
        "the study sets",
    )
    compute: ComputeConfig = Field(ComputeConfig(), description="where they are trained")
    gate_tolerance: float = Field(0.02, ge=0, description="change of GT-MCC that counts as none")
    threshold: float = Field(
        0.9, gt=0, le=1, description="least cosine at which two features count as the same"
    )
    n_resamples: Count = Field(1000, ge=10, description="resamples of the cluster bootstrap")
    level: float = Field(0.95, gt=0, lt=1, description="confidence level of intervals")

    @field_validator("worlds", "architectures", mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        # an environment or --params can only add to a mapping, so a null removes an entry
        if isinstance(value, Mapping):
            return {name: entry for name, entry in value.items() if entry is not None}
        return value

    @model_validator(mode="after")
    def _no_value_twice(self) -> PlantedTruthConfig:
        for field in ("seeds", "dead_latents"):
            values = getattr(self, field)
            if len(set(values)) != len(values):
                raise ValueError(f"{field}: {list(values)} has a value twice; remove one")
        return self

    @model_validator(mode="after")
    def _lengths_rise(self) -> PlantedTruthConfig:
        if list(self.lengths) != sorted(set(self.lengths)) or self.lengths[0] < EVALUATIONS:
            raise ValueError(
                f"lengths: {list(self.lengths)}; give increasing numbers of steps, each at least "
                f"{EVALUATIONS}"
            )
        return self

    @model_validator(mode="after")
    def _study_sets_the_rest(self) -> PlantedTruthConfig:
        default = BankTrainingConfig()
        for field, instead in (
            ("steps", "lengths"),
            ("eval_interval", f"{EVALUATIONS} evaluations of every length"),
            ("dead_latents", "dead_latents of the study"),
            ("snapshot_interval", f"{EVALUATIONS} decoders of every length"),
            ("stop_when_converged", "lengths"),
        ):
            if getattr(self.training, field) != getattr(default, field):
                raise ValueError(f"training.{field}: leave it out; the study uses {instead}")
        if self.training.convergence_window > EVALUATIONS:
            raise ValueError(
                f"training.convergence_window: {self.training.convergence_window} is more than the "
                f"{EVALUATIONS} evaluations of a run; lower it"
            )
        return self

    def drawn(self, name: str, draw: int) -> PlantedConfig:
        """Return one draw of a world, with seeds that no other draw of any world has.

        Without this, worlds of equal size and seed would have the same dictionary; the intervals
        need independent draws.
        """
        world = self.worlds[name].world
        content = f"{name} {world.dictionary_seed} {draw}"
        seed = zlib.crc32(content.encode())
        rows = zlib.crc32(f"{content} {world.data_seed} rows".encode())
        return world.model_copy(update={"dictionary_seed": seed, "data_seed": rows})

    def regime(self, name: str, d_sae: int) -> Regime:
        """Whether there are fewer latents than true features, as many, or more."""
        n_features = self.worlds[name].world.n_features
        if d_sae == n_features:
            return "matched"
        return "compressive" if d_sae < n_features else "redundant"

    def campaign(self) -> CampaignConfig:
        """Return the parameters of the campaign, for :func:`husai.campaign.run_campaign`."""
        widths = sorted({width for study in self.worlds.values() for width in study.d_sae})
        return CampaignConfig(
            name="planted_truth",
            plan=PlanConfig(
                architectures=self.architectures, d_sae=tuple(widths), seeds=self.seeds
            ),
            compute=self.compute,
            # an SAE whose loss is not finite does not stop the study; it is left out of its group
            max_failures=1.0,
        )
