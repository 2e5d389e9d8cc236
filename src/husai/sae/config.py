"""What one SAE is, and what the SAEs of a bank share."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from husai.config import Config, Count, CountFromZero, Latents, Seed, Threads
from husai.sae.architectures import DeadLatentMethod, architecture

Baseline = Literal["none", "frozen_decoder", "soft_frozen_decoder", "frozen_encoder"]

SOFT_FROZEN_COSINE = 0.8
"""Least cosine of a soft-frozen decoder's rows to their start (arXiv 2602.14111)."""

NEUTRAL_FIELDS = frozenset({"threads", "checkpoint_interval", "keep_checkpoints"})
"""Fields of BankTrainingConfig that change how training runs, and no bit of its result."""


class SAEConfig(Config):
    """One SAE: everything in which it may differ from the others of a campaign."""

    architecture: str = Field(
        "topk",
        description="An entry of the registry: relu, topk, batch_topk, jumprelu, "
        "matryoshka_batch_topk, matryoshka_topk.",
    )
    d_sae: Latents = Field(description="Number of latents.")
    k: Latents | None = Field(
        None, description="Active latents per row; for the architectures that take one."
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
        description="Nested prefixes of the dictionary, as fractions of d_sae; "
        "of the matryoshka kinds only.",
    )
    init: Literal["random", "data", "random_in_span"] = Field(
        "random",
        description="Where decoder rows start: isotropic directions, centred data rows, or "
        "isotropic directions projected on the data's span.",
    )
    baseline: Baseline = Field(
        "none",
        description="What is held at its random start, for an SAE that others are compared with "
        "(arXiv 2602.14111): the decoder, the decoder within a cosine of 0.8 of its start, or the "
        "encoder's weights. Biases and thresholds are trained, and dead latents not resampled.",
    )
    init_seed: Seed = Field(0, description="Seed of the initial weights, and nothing else.")
    data_seed: Seed = Field(
        0,
        description="Seed of the order of the rows. Equal in all SAEs of a bank: they see the same "
        "batches.",
    )
    learning_rate: float = Field(2e-3, gt=0, description="Adam's step size after warm-up.")
    warmup_steps: CountFromZero | None = Field(
        None, description="Linear warm-up of the learning rate; the bank's when not given."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        entry = architecture(self.architecture)
        if entry.needs_k and self.k is None:
            raise ValueError(f"k: {self.architecture} needs one; give 0 < k <= d_sae")
        if not entry.needs_k and self.k is not None:
            raise ValueError(f"k: {self.architecture} takes none, got {self.k}; leave it out")
        if self.k is not None and self.k > self.d_sae:
            raise ValueError(f"k: {self.k} is more than d_sae = {self.d_sae}; lower k")
        if entry.name == "relu" and self.l1_coefficient is None:
            raise ValueError("l1_coefficient: relu needs one (5 is common)")
        if entry.penalty == "l0" and self.l0_coefficient is None:
            raise ValueError(f"l0_coefficient: {self.architecture} needs one; give it")
        if entry.penalty == "l0" and self.l1_coefficient is not None:
            raise ValueError(f"l1_coefficient: {self.architecture} takes l0_coefficient instead")
        if entry.penalty != "l0" and self.l0_coefficient is not None:
            raise ValueError(f"l0_coefficient: {self.architecture} takes none; leave it out")
        fractions = self.matryoshka_fractions
        if list(fractions) != sorted(set(fractions)) or not fractions or fractions[-1] != 1.0:
            raise ValueError(
                f"matryoshka_fractions: {fractions} must rise strictly and end with 1.0"
            )
        if fractions[0] <= 0:
            raise ValueError(f"matryoshka_fractions: {fractions[0]} must be above 0")
        return self

    @property
    def prefixes(self) -> tuple[int, ...]:
        """Sizes of the nested prefixes that reconstruct; ``(d_sae,)`` without nesting."""
        if not architecture(self.architecture).nested:
            return (self.d_sae,)
        sizes = sorted({max(1, round(f * self.d_sae)) for f in self.matryoshka_fractions})
        return tuple(sizes)

    @property
    def freezes_encoder(self) -> bool:
        """Whether ``W_enc`` stays at its start."""
        return self.baseline == "frozen_encoder"

    @property
    def freezes_decoder(self) -> bool:
        """Whether ``W_dec`` stays at its start."""
        return self.baseline == "frozen_decoder"

    @property
    def least_cosine(self) -> float:
        """Least cosine of a decoder row to its start; −1 where any is allowed."""
        return SOFT_FROZEN_COSINE if self.baseline == "soft_frozen_decoder" else -1.0

    @property
    def shape_key(self) -> tuple[str, int, tuple[int, ...]]:
        """The settings that the SAEs of one bank have in common."""
        return (self.architecture, self.d_sae, self.prefixes)


class BankTrainingConfig(Config):
    """How a bank is trained: shared by all its SAEs."""

    steps: Count = Field(4000, description="Optimiser steps at most.")
    batch_size: Count = Field(2048, description="Rows per step.")

    optimizer: Literal["adam", "adamw"] = Field("adam", description="adamw decays the encoder.")
    beta1: float = Field(0.9, ge=0, lt=1, description="Adam's decay of the first moment.")
    beta2: float = Field(
        0.99,
        ge=0,
        lt=1,
        description="Adam's decay of the second moment. The gradient shrinks as the loss falls: "
        "with 0.999 the large ones of the start hold the steps down for a thousand more.",
    )
    epsilon: float = Field(1e-8, gt=0, description="Adam's ε.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled decay of W_enc, adamw only.")
    warmup_steps: CountFromZero = Field(100, description="Linear warm-up of the learning rate.")
    decay_fraction: float = Field(
        0.2, ge=0, le=1, description="Last part of the steps with the rate falling to 0 linearly."
    )
    sparsity_warmup_steps: CountFromZero = Field(
        0, description="Linear warm-up of l1_coefficient and l0_coefficient."
    )
    k_anneal_steps: CountFromZero = Field(
        0, description="Steps over which k falls from k_anneal_factor·k to k."
    )
    k_anneal_factor: float = Field(
        4.0, ge=1, description="Where k starts, as a multiple of the final k (at most d_sae)."
    )
    clip_grad_norm: float | None = Field(
        None, gt=0, description="Largest gradient norm of each SAE by itself; none when absent."
    )
    unit_norm_decoder: bool = Field(
        True,
        description="Keep decoder rows at norm 1 and remove the gradient along them.",
    )

    normalize: Literal["centred", "rms", "none"] = Field(
        "centred",
        description="How the input is scaled. centred: the mean squared distance of the rows to "
        "their mean is d_in. rms: their mean squared norm is, as in SAEs trained before centred "
        "was there; rows far from 0 then vary so little that ReLU never fires.",
    )
    b_dec_init: Literal["geometric_median", "mean", "zeros"] = Field(
        "geometric_median", description="Where b_dec starts."
    )

    dead_latents: DeadLatentMethod | Literal["auto"] = Field(
        "auto",
        description="What is done about dead latents; none only counts them. auto: resample under "
        "an L1 penalty, auxk elsewhere.",
    )
    dead_after_passes: float = Field(
        20.0, gt=0, description="Dataset passes without firing after which a latent is dead."
    )
    aux_coefficient: float = Field(
        1 / 32, gt=0, description="Weight of the auxiliary loss of auxk and ghost."
    )
    aux_k: Latents | None = Field(
        None, description="Dead latents per row in auxk; d_in / 2 when not given."
    )
    resample_every_passes: float = Field(
        100.0, gt=0, description="Dataset passes between two resamplings."
    )
    resample_until_fraction: float = Field(
        0.6, gt=0, le=1, description="No resampling after this part of the steps."
    )

    rows_memory_gb: float = Field(
        2.0,
        gt=0,
        description="Memory for the rows of a store, in 10⁹ bytes of float32: rows that fit are "
        "held, more of them are read in a shuffled order through a buffer of this size.",
    )
    eval_fraction: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Part of the rows held out for the metrics when no eval_rows are given; 0 "
        "trains on every row and measures on the same rows.",
    )
    eval_interval: Count = Field(200, description="Steps between entries of the history.")
    snapshot_interval: Count | None = Field(
        None, description="Steps between kept copies of W_dec; none when absent."
    )
    checkpoint_interval: Count = Field(1000, description="Steps between checkpoints.")
    keep_checkpoints: Count = Field(2, description="Checkpoints kept, the newest ones.")

    stop_when_converged: bool = Field(
        False, description="Stop an SAE once the slope of its held-out loss is small."
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
        "auto", description="auto: cuda where there is one."
    )
    engine: Literal["auto", "sparse", "dense", "cuda"] = Field(
        "auto",
        description="sparse: the numba kernels, cpu only; cuda: the Triton kernels, a CUDA device "
        "only; dense: stacked torch with autograd. auto: sparse on cpu; cuda on a CUDA device, or "
        "dense where triton is not installed or the SAEs have ghost gradients.",
    )
    precision: Literal["float32", "tf32", "bf16"] = Field(
        "float32",
        description="Of the matrix products on a CUDA device; sums and weights are float32.",
    )
    threads: Threads | None = Field(
        None, description="CPU threads; what torch is set to when not given."
    )

    def dead_latent_method(self, name: str) -> DeadLatentMethod:
        """Give the method for an architecture: the one set, or its own where that is auto."""
        if self.dead_latents == "auto":
            return architecture(name).dead_latents
        return self.dead_latents

    def decisive(self) -> dict[str, Any]:
        """Give the fields that decide what comes out, as JSON data."""
        return self.model_dump(mode="json", exclude=set(NEUTRAL_FIELDS))
