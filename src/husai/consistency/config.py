"""Settings of a comparison of SAEs; importing them loads no numerical library."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from husai.config import Config, Count, CountFromZero, Seed, Threads

LEAST_MOTION = 0.01
"""A settled decoder moves less than this, 1 - |cosine| per 500 steps (docs/results/gate.md)."""

LEAST_CHANGE = 0.02
"""The mean PW-MCC of a settled group changes less than this."""


class ComparisonConfig(Config):
    """Settings of every comparison of SAEs: of a study, of files, of planted truth."""

    dead: Literal["keep", "drop"] = Field(
        default="keep", description="whether latents that never fire take part in the match"
    )
    shared_threshold: float = Field(
        default=0.7,
        gt=0,
        le=1,
        description="least cosine of a matched, shared or reproduced feature",
    )
    encoder_metric: Literal["data", "raw"] = Field(
        default="data",
        description="metric in which encoder rows are compared: data, the covariance of the "
        "activations, if these are given; raw, the plain rows",
    )
    subspace_rank: Count | None = Field(
        default=None,
        description="dimensions of the subspaces compared; None takes half of the largest possible",
    )
    max_similarity_width: Count = Field(
        default=4096,
        description="widest SAE for which CKA and SVCCA of codes are computed (memory: width²)",
    )
    null_draws: CountFromZero | None = Field(
        default=None,
        description="random pairs drawn for each null, five times as many for the permuted one; "
        "None draws for about a minute, 0 computes no null",
    )
    code_null_draws: CountFromZero | None = Field(
        default=None,
        description="row shuffles drawn for the null of matched activations; None draws for about "
        "a minute, 0 computes no null",
    )
    level: float = Field(default=0.95, gt=0, lt=1, description="confidence level of intervals")
    seed: Seed = Field(default=0, description="seed of the nulls")
    workers: Threads = Field(default=1, description="threads")
    max_passes: float = Field(
        default=4.0,
        ge=1,
        description="most products that one exact match may compute, as a multiple of all pairs",
    )
    device: str = Field(default="cpu", description="cpu, or the torch device for the products")


class ConsistencyConfig(ComparisonConfig):
    """How the SAEs of a study are compared."""

    gate_motion: float = Field(
        default=LEAST_MOTION,
        gt=0,
        description="a settled SAE's decoder moves less: 1 - |cosine| per 500 steps, before the "
        "learning rate falls",
    )
    gate_change: float = Field(
        default=LEAST_CHANGE,
        gt=0,
        description="a settled group's mean PW-MCC changed less since half of those steps",
    )
    data_variance: float = Field(
        default=0.99, gt=0, le=1, description="share of variance that the data's subspace holds"
    )
    across_groups: bool = Field(
        default=False, description="whether to score pairs of SAEs of different groups too"
    )
    plane_threshold: float = Field(
        default=0.9, gt=0, le=1, description="least norm of a unit feature's part in its plane"
    )
    code_null_draws: CountFromZero | None = Field(
        default=19, description="row shuffles drawn for the null of matched activations"
    )
    null_draws: CountFromZero | None = Field(
        default=40,
        description="random pairs drawn for each null, five times as many for the permuted one",
    )
    label_r2: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="least share of a latent's variance that its label explains",
    )
    label_f1: float = Field(
        default=0.9,
        gt=0,
        lt=1,
        description="F1, at the best threshold, above which a latent stands for a class",
    )
    symmetry_width: Count = Field(
        default=64, description="widest SAE whose symmetries are searched (time: width²)"
    )
    symmetry_draws: Count = Field(
        default=9, description="random relabellings of the inputs for the null of the symmetries"
    )
