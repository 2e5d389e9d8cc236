"""Parameters of the feature pages and of what is measured for them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from husai.config import Config, Count, Seed, Threads


class FeaturesConfig(Config):
    """What is shown of each feature, and how much of it."""

    max_features: Count = Field(
        default=2000, description="features on one page; past that a random part of them is shown"
    )
    max_megabytes: float = Field(
        default=15.0, gt=0, description="largest page; with more, fewer features are shown"
    )
    top_rows: Count = Field(
        default=8, description="rows of strongest activation on a card, with their contexts"
    )
    context_tokens: Count = Field(
        default=12, description="tokens on either side of the highlighted one"
    )
    epsilon: float = Field(
        default=0.02,
        gt=0,
        description="a partner is exchangeable when the sum of all similarities loses at most this "
        "by taking it",
    )
    threshold: float = Field(
        default=0.7, gt=0, le=1, description="least |cosine| at which a feature counts as found"
    )
    level: float = Field(default=0.95, gt=0, lt=1, description="confidence level of intervals")
    label_r2: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="least share of a latent's variance that its label explains",
    )
    max_function_rows: Count = Field(
        default=20_000,
        description="rows on which ablations are measured; of more rows a random part",
    )
    substitution_rows: Count = Field(
        default=32, description="rows a pair of features on which one is put in place of the other"
    )
    strata: Count = Field(
        default=4, description="groups of equally many features by how often they fire"
    )
    seed: Seed = Field(default=0, description="of the random partners and samples")
    workers: Threads = Field(default=1, description="threads")


class ConsensusConfig(Config):
    """Which features enter the consensus, and how its encoder is fitted."""

    threshold: float = Field(
        default=0.7, gt=0, le=1, description="least |cosine| of a member to the medoid of its track"
    )
    min_share: float = Field(
        default=0.75, gt=0, le=1, description="share of the SAEs in which a feature must be found"
    )
    direction: Literal["mean", "medoid"] = Field(
        default="mean", description="what stands for the members of a track"
    )
    k: Count | None = Field(
        default=None, description="active latents a row; None takes the SAEs' mean L0"
    )
    steps: Count = Field(default=600, description="of fitting the encoder")
    batch_size: Count = Field(default=1024, description="rows a step")
    learning_rate: float = Field(default=2e-3, gt=0, description="Adam's")
    held_out: float = Field(
        default=0.2, gt=0, lt=1, description="share of the rows on which dictionaries are measured"
    )
    seed: Seed = Field(default=0, description="of the order of rows, and of random subsets")
