"""Parameters of an SAE, and the training parameters that all SAEs of a bank share."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from husai.config import Config, Count, CountFromZero, Latents, Seed, Threads
from husai.sae.architectures import DeadLatentMethod, architecture

Baseline = Literal["none", "frozen_decoder", "soft_frozen_decoder", "frozen_encoder"]

SOFT_FROZEN_COSINE = 0.8
"""Smallest cosine of a soft-frozen decoder's rows to their initial values (arXiv 2602.14111)."""

NEUTRAL_FIELDS = frozenset({"threads", "checkpoint_interval", "keep_checkpoints"})
"""Fields of BankTrainingConfig that do not change the result of training."""


class SAEConfig(Config):
    """The parameters of one SAE, in which the SAEs of a campaign may differ."""

    architecture: str = Field(
        "topk",
        description="Kind of SAE: relu, topk, batch_topk, jumprelu, matryoshka_batch_topk or "
        "matryoshka_topk.",
    )
    d_sae: Latents = Field(description="Number of latents.")
    k: Latents | None = Field(
        None, description="Active latents per row, for the architectures that need it."
    )
    l1_coefficient: float | None = Field(
        None,
        ge=0,
        description="λ of the L1 penalty λ·Σ f_i ‖W_dec_i‖ (per row, squared error summed over "
        "d_in). Required for relu, optional for the topk family.",
    )
    l0_coefficient: float | None = Field(
        None, ge=0, description="λ of jumprelu's L0 penalty, on the same scale; jumprelu only."
    )
    jumprelu_bandwidth: float = Field(
        0.05,
        gt=0,
        description="Width ε of the kernel in jumprelu's straight-through gradient.",
    )
    jumprelu_threshold: float = Field(
        0.05, gt=0, description="Threshold of jumprelu's latents at the start, in scaled units."
    )
    matryoshka_fractions: tuple[float, ...] = Field(
        (0.0625, 0.125, 0.25, 0.5, 1.0),
        description="Nested prefixes of the dictionary, as fractions of d_sae; only for the "
        "matryoshka architectures.",
    )
    init: Literal["random", "data", "random_in_span"] = Field(
        "random",
        description="Initial decoder rows. random: isotropic directions; data: centred data rows; "
        "random_in_span: isotropic directions projected on the data's span.",
    )
    baseline: Baseline = Field(
        "none",
        description="A baseline to compare trained SAEs with (arXiv 2602.14111): the decoder "
        "keeps its random initial value, stays within a cosine of "
        f"{SOFT_FROZEN_COSINE} of it (soft), or the weights of the encoder keep theirs. Biases and "
        "thresholds are trained; dead latents are not resampled.",
    )
    init_seed: Seed = Field(0, description="Seed of the initial weights only.")
    data_seed: Seed = Field(
        0,
        description="Seed of the order of the rows; SAEs with the same value see the same batches.",
    )
    learning_rate: float = Field(2e-3, gt=0, description="Adam's step size after warm-up.")
    warmup_steps: CountFromZero | None = Field(
        None, description="Steps of linear warm-up of the learning rate; left out: the bank's."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        entry = architecture(self.architecture)
        if entry.needs_k and self.k is None:
            raise ValueError(f"k: {self.architecture} needs one; give 0 < k <= d_sae")
        if not entry.needs_k and self.k is not None:
            raise ValueError(f"k: {self.architecture} has no k, got {self.k}; leave it out")
        if self.k is not None and self.k > self.d_sae:
            raise ValueError(f"k: {self.k} is more than d_sae = {self.d_sae}; lower k")
        if entry.name == "relu" and self.l1_coefficient is None:
            raise ValueError("l1_coefficient: relu needs one; give it (5 is common)")
        if entry.penalty == "l0" and self.l0_coefficient is None:
            raise ValueError(f"l0_coefficient: {self.architecture} needs one; give it")
        if entry.penalty == "l0" and self.l1_coefficient is not None:
            raise ValueError(f"l1_coefficient: {self.architecture} needs l0_coefficient instead")
        if entry.penalty != "l0" and self.l0_coefficient is not None:
            raise ValueError(f"l0_coefficient: {self.architecture} has none; leave it out")
        fractions = self.matryoshka_fractions
        if list(fractions) != sorted(set(fractions)) or not fractions or fractions[-1] != 1.0:
            raise ValueError(f"matryoshka_fractions: {fractions} must increase and end with 1.0")
        if fractions[0] <= 0:
            raise ValueError(f"matryoshka_fractions: {fractions[0]} must be above 0")
        return self

    @property
    def prefixes(self) -> tuple[int, ...]:
        """Sizes of the nested prefixes that are trained; ``(d_sae,)`` without nesting."""
        if not architecture(self.architecture).nested:
            return (self.d_sae,)
        sizes = sorted({max(1, round(f * self.d_sae)) for f in self.matryoshka_fractions})
        return tuple(sizes)

    @property
    def freezes_encoder(self) -> bool:
        """Whether ``W_enc`` keeps its initial value."""
        return self.baseline == "frozen_encoder"

    @property
    def freezes_decoder(self) -> bool:
        """Whether ``W_dec`` keeps its initial value."""
        return self.baseline == "frozen_decoder"

    @property
    def least_cosine(self) -> float:
        """Smallest allowed cosine of a decoder row to its initial value; −1 if any is allowed."""
        return SOFT_FROZEN_COSINE if self.baseline == "soft_frozen_decoder" else -1.0

    @property
    def shape_key(self) -> tuple[str, int, tuple[int, ...]]:
        """The settings that all SAEs of a bank must share."""
        return (self.architecture, self.d_sae, self.prefixes)


class BankTrainingConfig(Config):
    """How the SAEs of a bank are trained: the parameters that all of them share."""

    steps: Count = Field(4000, description="Most optimiser steps.")
    batch_size: Count = Field(2048, description="Rows per step.")

    optimizer: Literal["adam", "adamw"] = Field(
        "adam", description="adamw: Adam with weight decay of the encoder."
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="Adam's decay of the first moment.")
    beta2: float = Field(
        0.99,
        ge=0,
        lt=1,
        description="Adam's decay of the second moment. With 0.999 the large gradients of the "
        "first steps would make the next thousand steps too small.",
    )
    epsilon: float = Field(1e-8, gt=0, description="Adam's ε.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled decay of W_enc; adamw only.")
    warmup_steps: CountFromZero = Field(
        100, description="Steps of linear warm-up of the learning rate."
    )
    decay_fraction: float = Field(
        0.2,
        ge=0,
        le=1,
        description="Share of the steps, at the end, in which the learning rate falls linearly "
        "to 0.",
    )
    sparsity_warmup_steps: CountFromZero = Field(
        0, description="Steps of linear warm-up of l1_coefficient and l0_coefficient."
    )
    k_anneal_steps: CountFromZero = Field(
        0, description="Steps over which k falls from k_anneal_factor·k to k."
    )
    k_anneal_factor: float = Field(
        4.0, ge=1, description="Initial k as a multiple of the final k (at most d_sae)."
    )
    clip_grad_norm: float | None = Field(
        None, gt=0, description="Largest gradient norm of each SAE; left out: no limit."
    )
    unit_norm_decoder: bool = Field(
        True,
        description="Keep decoder rows at norm 1 and remove the gradient along them.",
    )

    normalize: Literal["centred", "rms", "none"] = Field(
        "centred",
        description="How the rows are scaled. centred: the mean squared distance of the rows to "
        "their mean becomes d_in. rms: their mean squared norm becomes d_in, as in SAEs of earlier "
        "versions; rows far from 0 then vary so little that ReLU never fires. none: not at all.",
    )
    b_dec_init: Literal["geometric_median", "mean", "zeros"] = Field(
        "geometric_median", description="Initial value of b_dec."
    )

    dead_latents: DeadLatentMethod | Literal["auto"] = Field(
        "auto",
        description="Method for dead latents; none only counts them. auto: resample under an L1 "
        "penalty, auxk otherwise.",
    )
    dead_after_passes: float = Field(
        20.0,
        gt=0,
        description="A latent is dead after so many passes over the rows without firing.",
    )
    aux_coefficient: float = Field(
        1 / 32, gt=0, description="Weight of the auxiliary loss of auxk and ghost."
    )
    aux_k: Latents | None = Field(
        None, description="Dead latents per row in auxk; left out: d_in / 2."
    )
    resample_every_passes: float = Field(
        100.0, gt=0, description="Passes over the rows between two resamplings."
    )
    resample_until_fraction: float = Field(
        0.6, gt=0, le=1, description="No resampling after this share of the steps."
    )

    rows_memory_gb: float = Field(
        2.0,
        gt=0,
        description="Memory for the rows of a store, in 10⁹ bytes of float32. If all rows fit, "
        "they are held in memory; if not, they are read in a shuffled order into a buffer of this "
        "size.",
    )
    eval_fraction: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Share of the rows held out for the metrics when no eval_rows are given; 0: "
        "train on all rows and measure on the same rows.",
    )
    eval_interval: Count = Field(200, description="Steps between entries of the history.")
    snapshot_interval: Count | None = Field(
        None, description="Steps between kept copies of W_dec; left out: no copies."
    )
    checkpoint_interval: Count = Field(1000, description="Steps between checkpoints.")
    keep_checkpoints: Count = Field(2, description="Number of checkpoints kept, the newest ones.")

    stop_when_converged: bool = Field(
        False, description="Stop an SAE when the slope of its held-out loss is small."
    )
    convergence_slope: float = Field(
        0.01,
        gt=0,
        description="An SAE is converged when its held-out loss changes by less than this "
        "fraction per 1,000 steps.",
    )
    convergence_window: Count = Field(
        5, ge=2, description="Entries of the history over which the slope is fitted."
    )

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: cuda if there is a CUDA device, otherwise cpu."
    )
    engine: Literal["auto", "sparse", "dense", "cuda"] = Field(
        "auto",
        description="sparse: the numba kernels, cpu only; cuda: the Triton kernels, a CUDA device "
        "only; dense: stacked torch with autograd. auto: sparse on a CPU; cuda on a CUDA device, "
        "or dense if triton is not installed or the SAEs have ghost gradients.",
    )
    precision: Literal["float32", "tf32", "bf16"] = Field(
        "float32",
        description="Precision of matrix products on a CUDA device; sums and weights are float32.",
    )
    threads: Threads | None = Field(None, description="CPU threads; left out: torch's setting.")

    def dead_latent_method(self, name: str) -> DeadLatentMethod:
        """Return the configured method; for auto, the default of the architecture."""
        if self.dead_latents == "auto":
            return architecture(name).dead_latents
        return self.dead_latents

    def decisive(self) -> dict[str, Any]:
        """Return the fields on which the result depends, as JSON data."""
        return self.model_dump(mode="json", exclude=set(NEUTRAL_FIELDS))
