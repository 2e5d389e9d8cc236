"""A bank: the parameters, optimiser state and counters of many SAEs of one shape, stacked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from husai.errors import InputError
from husai.sae.architectures import Architecture, architecture
from husai.sae.config import SAEConfig

SPAN_VARIANCE = 0.999
"""Share of the variance in the principal directions that are called "the data's span"."""


@dataclass
class SAEBank:
    """The state of N SAEs of one shape while they train, in scaled units.

    The encoder is stored latent by latent, ``[N, d_sae, d_in]`` like the decoder, so that the
    gradient of one latent changes one row. The SAEs do not depend on each other.

    Attributes
    ----------
    configs
        One per SAE.
    parameters
        ``W_enc [N, F, d]``, ``b_enc [N, F]``, ``W_dec [N, F, d]``, ``b_dec [N, d]``, and
        ``log_threshold [N, F]`` for jumprelu.
    first_moment, second_moment
        Adam's moments, by parameter name.
    W_dec_init
        Decoders before the first step ``[N, F, d]``.
    running_threshold
        BatchTopK's inference threshold ``[N]`` float64; −1 before the first step.
    since_fired
        Rows seen since each latent last fired ``[N, F]`` int64.
    stopped_at
        Last step of each SAE ``[N]``; −1 while it still trains.
    failed
        Whether an SAE was stopped because its loss was not finite ``[N]``.
    """

    configs: tuple[SAEConfig, ...]
    parameters: dict[str, torch.Tensor]
    first_moment: dict[str, torch.Tensor]
    second_moment: dict[str, torch.Tensor]
    W_dec_init: torch.Tensor
    running_threshold: torch.Tensor
    since_fired: torch.Tensor
    stopped_at: torch.Tensor
    failed: torch.Tensor

    @property
    def architecture(self) -> Architecture:
        """The architecture of all SAEs of the bank."""
        return architecture(self.configs[0].architecture)

    @property
    def prefixes(self) -> tuple[int, ...]:
        """Nested prefix sizes, ``(d_sae,)`` without nesting."""
        return self.configs[0].prefixes

    @property
    def d_sae(self) -> int:
        """Latents per SAE."""
        return int(self.parameters["W_dec"].shape[1])

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return int(self.parameters["W_dec"].shape[2])

    def __len__(self) -> int:
        return len(self.configs)

    def active(self) -> list[int]:
        """Indices of the SAEs that still train."""
        return [int(i) for i in torch.nonzero(self.stopped_at < 0).flatten()]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all state by name, as a checkpoint stores it."""
        named = {f"parameters.{name}": tensor for name, tensor in self.parameters.items()}
        named |= {f"first_moment.{name}": tensor for name, tensor in self.first_moment.items()}
        named |= {f"second_moment.{name}": tensor for name, tensor in self.second_moment.items()}
        return named | {
            "W_dec_init": self.W_dec_init,
            "running_threshold": self.running_threshold,
            "since_fired": self.since_fired,
            "stopped_at": self.stopped_at,
            "failed": self.failed,
        }

    def load_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        """Copy the tensors of :meth:`tensors` into the bank's own memory."""
        for name, mine in self.tensors().items():
            mine.copy_(tensors[name])

    def exported(self, index: int, scale: float) -> dict[str, Any]:
        """Return one SAE's weights in the space of the activations, named as in `TrainedSAE`.

        Training uses rows ``scale·x``, so ``b_enc``, ``b_dec`` and the threshold are divided by
        ``scale``. Decoder rows keep norm 1, and features are in units of the activations.
        """
        p = {name: tensor[index].detach().cpu() for name, tensor in self.parameters.items()}
        selection = self.architecture.selection
        threshold = None
        if selection == "batch":
            value = max(float(self.running_threshold[index]), 0.0)
            threshold = torch.full((self.d_sae,), value / scale)
        elif selection == "threshold":
            threshold = p["log_threshold"].exp() / scale
        return {
            "W_enc": p["W_enc"].T.contiguous(),
            "b_enc": p["b_enc"] / scale,
            "W_dec": p["W_dec"].clone(),
            "b_dec": p["b_dec"] / scale,
            "threshold": threshold,
            "W_dec_init": self.W_dec_init[index].clone(),
        }

    def to(self, device: torch.device) -> SAEBank:
        """Move all state to a device."""

        def moved(named: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {name: tensor.to(device) for name, tensor in named.items()}

        return SAEBank(
            self.configs,
            moved(self.parameters),
            moved(self.first_moment),
            moved(self.second_moment),
            self.W_dec_init,
            self.running_threshold.to(device),
            self.since_fired.to(device),
            self.stopped_at,
            self.failed,
        )


def check_one_shape(configs: Sequence[SAEConfig]) -> None:
    """Raise an error if configurations cannot share a bank.

    Raises
    ------
    InputError
        When the list is empty, or two configurations differ in architecture, d_sae or prefixes.
    """
    if not configs:
        raise InputError("configs: empty; give at least one SAEConfig")
    keys = {config.shape_key for config in configs}
    if len(keys) > 1:
        raise InputError(
            f"configs: SAEs of different shapes {sorted(keys)} cannot share a bank; "
            "split them with group_into_banks"
        )


def group_into_banks(configs: Sequence[SAEConfig]) -> list[list[int]]:
    """Group the indices of configurations by shape, in order of first appearance."""
    groups: dict[tuple[str, int, tuple[int, ...]], list[int]] = {}
    for index, config in enumerate(configs):
        groups.setdefault(config.shape_key, []).append(index)
    return list(groups.values())


def geometric_median(
    rows: torch.Tensor, tolerance: float = 1e-6, max_iterations: int = 200
) -> torch.Tensor:
    """Compute the point with the least sum of distances to the rows, by Weiszfeld's iteration.

    Parameters
    ----------
    rows
        ``[n, d]``.
    tolerance
        Stop when the point moves less than this, relative to the spread of the rows.
    max_iterations
        Most iterations.

    Returns
    -------
    torch.Tensor
        ``[d]`` float64.
    """
    x = rows.double()
    point = x.mean(0)
    spread = float((x - point).norm(dim=1).mean())
    for _ in range(max_iterations):
        # a row equal to the point would get infinite weight
        weight = 1 / (x - point).norm(dim=1).clamp_min(1e-9 * spread + 1e-30)
        new = (weight[:, None] * x).sum(0) / weight.sum()
        moved = float((new - point).norm())
        point = new
        if moved <= tolerance * spread:
            break
    return point


def span_projection(rows: torch.Tensor) -> torch.Tensor:
    """Compute the projector ``[d, d]`` on the leading principal directions of the centred rows.

    They are the fewest directions that hold :data:`SPAN_VARIANCE` of the variance.
    """
    x = rows.double() - rows.double().mean(0)
    variance, directions = torch.linalg.eigh(x.T @ x)
    variance, directions = variance.flip(0).clamp_min(0), directions.flip(1)
    part = variance.cumsum(0) / variance.sum()
    rank = int((part < SPAN_VARIANCE).sum()) + 1
    basis = directions[:, :rank]
    return basis @ basis.T


def initial_decoder(
    config: SAEConfig, rows: torch.Tensor, b_dec: torch.Tensor, projection: torch.Tensor | None
) -> torch.Tensor:
    """Draw unit decoder rows ``[d_sae, d_in]`` float32, from ``init_seed`` and the data.

    Parameters
    ----------
    config
        Its ``init`` chooses the method.
    rows
        Scaled training rows ``[n, d_in]``.
    b_dec
        ``[d_in]``, subtracted from the rows for ``init="data"``.
    projection
        From :func:`span_projection`, for ``init="random_in_span"``.
    """
    generator = torch.Generator().manual_seed(config.init_seed)
    d_in = rows.shape[1]
    if config.init == "data":
        chosen = torch.randperm(len(rows), generator=generator)
        repeats = -(-config.d_sae // len(rows))
        directions = rows[chosen.repeat(repeats)[: config.d_sae]].double() - b_dec.double()
        # with a tiny isotropic part, repeated or zero rows give no equal or empty latents
        noise = torch.randn(config.d_sae, d_in, generator=generator, dtype=torch.float64)
        directions = directions + 1e-3 * directions.norm(dim=1).mean() * noise / d_in**0.5
    else:
        directions = torch.randn(config.d_sae, d_in, generator=generator, dtype=torch.float64)
        if config.init == "random_in_span":
            assert projection is not None
            directions = directions @ projection
    return (directions / directions.norm(dim=1, keepdim=True)).float()


def build_bank(configs: Sequence[SAEConfig], rows: torch.Tensor, b_dec: torch.Tensor) -> SAEBank:
    """Build the SAEs at step 0: encoder tied to the decoder, zero moments and counters.

    Parameters
    ----------
    configs
        SAEs of one shape.
    rows
        Scaled training rows ``[n, d_in]``, for the data-dependent initialisations.
    b_dec
        Initial value of every ``b_dec`` ``[d_in]``.
    """
    check_one_shape(configs)
    needs_span = any(config.init == "random_in_span" for config in configs)
    projection = span_projection(rows) if needs_span else None
    W_dec = torch.stack([initial_decoder(c, rows, b_dec, projection) for c in configs])
    n, d_sae, _ = W_dec.shape
    parameters = {
        "W_enc": W_dec.clone(),
        "b_enc": torch.zeros(n, d_sae),
        "W_dec": W_dec.clone(),
        "b_dec": b_dec.float().repeat(n, 1),
    }
    if architecture(configs[0].architecture).selection == "threshold":
        start = torch.tensor([config.jumprelu_threshold for config in configs])
        parameters["log_threshold"] = start.log()[:, None].repeat(1, d_sae)
    return SAEBank(
        configs=tuple(configs),
        parameters=parameters,
        first_moment={name: torch.zeros_like(p) for name, p in parameters.items()},
        second_moment={name: torch.zeros_like(p) for name, p in parameters.items()},
        W_dec_init=W_dec,
        running_threshold=torch.full((n,), -1.0, dtype=torch.float64),
        since_fired=torch.zeros(n, d_sae, dtype=torch.int64),
        stopped_at=torch.full((n,), -1, dtype=torch.int64),
        failed=torch.zeros(n, dtype=torch.bool),
    )
