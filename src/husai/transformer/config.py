"""Parameters of the transformer and of its training; the defaults are those of Nanda et al."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from husai.config import Config, Count, CountFromZero, ModelWidth, Seed


class TransformerConfig(Config):
    """Shape of the transformer and the seed of its weights.

    The defaults are the one-layer model of Nanda et al., arXiv 2301.05217: d_model 128, four heads
    of 32, d_mlp 512, ReLU, no layer norm, learned positions, embedding and unembedding untied.
    """

    d_model: ModelWidth = Field(128, description="width of the residual stream")
    n_layers: int = Field(1, ge=1, le=1024, description="number of blocks")
    n_heads: ModelWidth = Field(4, description="attention heads per block; must divide d_model")
    d_head: ModelWidth | None = Field(
        None, description="width of a head; n_heads * d_head = d_model. None: computed from that"
    )
    d_mlp: ModelWidth = Field(512, description="neurons of a block's MLP")
    act_fn: Literal["relu", "gelu", "gelu_new", "silu"] = Field(
        "relu", description="nonlinearity of the MLP"
    )
    normalization: Literal["none", "LN", "LNPre", "RMS", "RMSPre"] = Field(
        "none", description="layer norm; the Pre kinds have no learned scale"
    )
    biases: Literal["none", "mlp", "all"] = Field(
        "mlp",
        description="which biases are trained; the others stay 0. 'mlp' is the paper's model. The "
        "unembedding never has a bias",
    )
    initializer_range: float | None = Field(
        None,
        gt=0,
        description="standard deviation of the initial weights; None: 0.8 / sqrt(d_model)",
    )
    d_vocab: Count | None = Field(
        None,
        ge=2,
        description="number of token ids; None: that of the dataset, which a number must match",
    )
    seed: Seed = Field(0, description="seed of the initial weights")

    @model_validator(mode="after")
    def _heads_fill_the_model(self) -> TransformerConfig:
        if self.d_model % self.n_heads:
            raise ValueError(
                f"n_heads = {self.n_heads} does not divide d_model = {self.d_model}; "
                "choose a divisor"
            )
        if self.d_head is not None and self.n_heads * self.d_head != self.d_model:
            raise ValueError(
                f"d_head = {self.d_head} with n_heads = {self.n_heads} gives "
                f"{self.n_heads * self.d_head}, not d_model = {self.d_model}; set d_head to "
                f"{self.d_model // self.n_heads} or leave it out"
            )
        return self

    @property
    def head_width(self) -> int:
        """Width of a head, given or derived."""
        return self.d_head if self.d_head is not None else self.d_model // self.n_heads


class TransformerChoice(TransformerConfig):
    """Which transformer a study is about: one that is shipped with the project, or a new one.

    Rounding differs between machines, and so the same seed can reach another solution on another
    machine; the shipped transformers have the same bits everywhere.
    """

    start: Literal["shipped", "train"] = Field(
        "shipped", description="take the shipped transformer of this seed, or train one here"
    )
    shipped: Literal["early_stop", "cleaned_up"] = Field(
        "early_stop",
        description="early_stop: training stopped when the model had grokked; cleaned_up: trained "
        "for longer, until its weights had settled",
    )

    def shape(self) -> TransformerConfig:
        """Return only the model's shape and seed."""
        return TransformerConfig.model_validate(
            self.model_dump(include=set(TransformerConfig.model_fields))
        )


class TransformerTrainingConfig(Config):
    """How the transformer is trained. An epoch is one pass over the training rows.

    With ``batch_size`` None (the default) an epoch is one optimiser step on all training rows. The
    defaults are those of Nanda et al., arXiv 2301.05217: AdamW, learning rate 1e-3, weight decay
    1, betas (0.9, 0.98), ten warm-up steps, full batch.
    """

    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate of AdamW")
    weight_decay: float = Field(
        1.0, ge=0, description="AdamW's decoupled weight decay, on all trained parameters"
    )
    betas: tuple[float, float] = Field(
        (0.9, 0.98), description="AdamW's decay rates of the two moments"
    )
    batch_size: Count | None = Field(None, description="rows per step; None: the full batch")
    schedule: Literal["constant", "cosine", "linear", "step"] = Field(
        "constant",
        description="learning rate after the warm-up: cosine and linear fall to "
        "final_learning_rate_fraction at max_epochs, step multiplies by decay_factor every "
        "decay_every epochs",
    )
    warm_up_steps: CountFromZero = Field(
        10, description="optimiser steps over which the learning rate rises linearly"
    )
    final_learning_rate_fraction: float = Field(
        0.0,
        ge=0,
        le=1,
        description="learning rate at the end of the cosine and linear schedules, as a share of "
        "learning_rate",
    )
    decay_every: Count = Field(1000, description="epochs between drops of the step schedule")
    decay_factor: float = Field(
        0.1, gt=0, le=1, description="factor of each drop of the step schedule"
    )
    max_epochs: Count = Field(5000, description="most epochs")
    early_stopping: bool = Field(
        True, description="stop once the model has grokked and stayed so for `patience` epochs"
    )
    grokking_threshold: float = Field(
        0.99, gt=0, le=1, description="accuracy on stopping_split that counts as grokked"
    )
    stopping_split: Literal["val", "test"] = Field(
        "test", description="the held-out split that early stopping watches"
    )
    patience: CountFromZero = Field(
        200,
        description="epochs for which the accuracy must stay at grokking_threshold or above before "
        "training stops",
    )
    evaluate_every: Count = Field(10, description="epochs between rows of the history")
    checkpoint_every: Count = Field(
        100, description="epochs between checkpoints, if there is a checkpoint folder"
    )
    fast_path: bool = Field(
        True, description="use the faster functional forward pass if the model's shape allows it"
    )
    seed: Seed = Field(0, description="seed of the order of the mini-batches")
    device: str = Field(
        "cpu", pattern=r"^(cpu|auto|cuda(:\d+)?)$", description="cpu, cuda, cuda:N or auto"
    )

    @model_validator(mode="after")
    def _betas_are_rates(self) -> TransformerTrainingConfig:
        for beta in self.betas:
            if not 0 <= beta < 1:
                raise ValueError(f"betas = {self.betas}: each must be in [0, 1)")
        return self
