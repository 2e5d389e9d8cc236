"""Parameters of the feature pages, of the measures on them, and of the consensus dictionary."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from husai.config import Config, Count, Listed, Seed, Threads


class FeaturesConfig(Config):
    """What is measured and shown for each feature."""

    max_features: Count = Field(
        default=2000,
        description="most features on one page; if there are more, a random part is shown",
    )
    max_megabytes: float = Field(
        default=15.0,
        gt=0,
        description="largest size of a page; fewer features are shown to stay below it",
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
        description="a feature may also take another partner if the sum of all similarities falls "
        "by at most this",
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
        description="most rows on which ablations are measured; if there are more, a random part",
    )
    substitution_rows: Count = Field(
        default=32,
        description="most rows per pair of features on which one replaces the other",
    )
    function_features: Count = Field(
        default=16,
        description="features of each SAE whose function in a language model is sampled",
    )
    sampled_rows: Count = Field(default=8, description="rows on which each latent is then ablated")
    strata: Count = Field(
        default=4,
        description="number of groups, equally large, into which features are divided by how often "
        "they fire",
    )
    seed: Seed = Field(default=0, description="seed of the random partners and samples")
    workers: Threads = Field(default=1, description="number of threads")


class ConsensusConfig(Config):
    """Which features enter the consensus, and how its encoder is fitted."""

    threshold: float = Field(
        default=0.7, gt=0, le=1, description="least |cosine| of a member to the medoid of its track"
    )
    min_share: float = Field(
        default=0.75, gt=0, le=1, description="share of the SAEs in which a feature must be found"
    )
    shares: Listed[float] = Field(
        default=(),
        description="further such shares: a consensus for each is measured too, at its size",
    )
    direction: Literal["mean", "medoid"] = Field(
        default="mean", description="direction of a track: mean or medoid of its members"
    )
    k: Count | None = Field(
        default=None, description="active latents per row; None takes the SAEs' mean L0"
    )
    compared: Count = Field(
        default=1, description="SAEs whose subsets and whole are measured beside the consensus"
    )
    steps: Count = Field(default=600, description="number of steps that fit the encoder")
    batch_size: Count = Field(default=1024, description="rows per step")
    learning_rate: float = Field(default=2e-3, gt=0, description="learning rate of Adam")
    held_out: float = Field(
        default=0.2, gt=0, lt=1, description="share of the rows on which dictionaries are measured"
    )
    seed: Seed = Field(
        default=0, description="seed of the held-out rows, the batches and the random subsets"
    )
