"""The dense engine: the whole bank as stacked torch operations with autograd.

It defines what a training step is: the kernels for the CPU and for CUDA are tested against it. It
is used where these kernels cannot be.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from husai.sae.architectures import DeadLatentMethod
from husai.sae.bank import SAEBank
from husai.sae.config import BankTrainingConfig
from husai.sae.schedule import StepTable, threshold_decay
from husai.sae.selection import active_latents


@dataclass(frozen=True)
class StepSettings:
    """Settings of one step: tensors ``[N]`` on the bank's device."""

    penalty: torch.Tensor
    k: torch.Tensor
    bandwidth: torch.Tensor


@dataclass(frozen=True)
class DenseLoss:
    """Results of a step's forward pass: per SAE ``[N]``, unless another shape is given."""

    total: torch.Tensor
    reconstruction: torch.Tensor
    auxiliary: torch.Tensor
    fired: torch.Tensor
    """``[N, F]`` bool."""
    l0: torch.Tensor
    smallest_active: torch.Tensor
    """Smallest positive activation of the batch; NaN if there is none."""


class _JumpReLU(torch.autograd.Function):
    """f = pre·H(pre − θ) and H(pre − θ), with the rectangle kernel's gradients for θ.

    arXiv 2407.14435, eqs. 11 and 12.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        pre: torch.Tensor,
        threshold: torch.Tensor,
        bandwidth: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(pre, threshold, bandwidth)
        f = active_latents("threshold", pre, threshold=threshold)
        return f, (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx, to_f, to_step):  # type: ignore[no-untyped-def]
        pre, threshold, bandwidth = ctx.saved_tensors
        near = ((pre - threshold) / bandwidth).abs() < 0.5
        to_threshold = near * (threshold * to_f + to_step) / -bandwidth
        return to_f * (pre > threshold), to_threshold.sum(0, keepdim=True), None


def dense_loss(
    bank: SAEBank,
    parameters: dict[str, torch.Tensor],
    x: torch.Tensor,
    settings: StepSettings,
    dead: torch.Tensor,
    training: BankTrainingConfig,
) -> DenseLoss:
    """Compute the loss of every SAE of the bank on a batch.

    With squared error summed over d_in and divided by d_in (so that it starts near 1 on scaled
    rows): ``L = mean_b [‖x̂ − x‖² + λ·Σ_i f_i‖W_dec_i‖] / d_in + α·L_aux``. jumprelu has λ·L0
    instead of the L1 term. Matryoshka uses the mean of the reconstruction term over its prefixes.
    ``L_aux`` is the squared error with which the dead latents reconstruct the residual, divided by
    the residual's variance; 0 if no latent is dead (AuxK: Gao et al. §2.3; ghost gradients:
    Anthropic, January 2024).

    Parameters
    ----------
    bank, parameters
        The bank and its parameters, as leaves that require a gradient.
    x
        Scaled rows ``[B, d]``, shared, or ``[N, B, d]``.
    settings
        λ, k and bandwidth of this step.
    dead
        ``[N, F]`` bool.
    training
        The dead-latent method and its coefficients.
    """
    W_enc, b_enc = parameters["W_enc"], parameters["b_enc"]
    W_dec, b_dec = parameters["W_dec"], parameters["b_dec"]
    n, d_sae, d_in = W_dec.shape
    rule = bank.architecture.selection
    x_B1D = x[:, None, :] if x.dim() == 2 else x.transpose(0, 1)
    batch = x_B1D.shape[0]
    bias = b_enc - torch.einsum("nfd,nd->nf", W_enc, b_dec)
    if x.dim() == 2:
        # one product for the whole bank
        pre = (x @ W_enc.reshape(n * d_sae, d_in).T).view(batch, n, d_sae) + bias
    else:
        pre = torch.einsum("bnd,nfd->bnf", x_B1D, W_enc) + bias
    if rule == "threshold":
        threshold = parameters["log_threshold"].exp()[None]
        width = settings.bandwidth[None, :, None].to(pre)
        f, step = _JumpReLU.apply(pre, threshold, width)  # type: ignore[no-untyped-call]
        cost = step.sum(2).mean(0)
    else:
        f = active_latents(rule, pre, k=settings.k)
        cost = (f * W_dec.norm(dim=2)).sum(2).mean(0)

    reconstruction = torch.zeros(n, device=x.device, dtype=pre.dtype)
    x_hat = b_dec.expand(batch, n, d_in)
    start = 0
    for end in bank.prefixes:
        x_hat = x_hat + torch.einsum("bnf,nfd->bnd", f[..., start:end], W_dec[:, start:end])
        reconstruction = reconstruction + (x_hat - x_B1D).square().sum(2).mean(0)
        start = end
    reconstruction = reconstruction / (len(bank.prefixes) * d_in)

    auxiliary = torch.zeros_like(reconstruction)
    method = training.dead_latent_method(bank.architecture.name)
    if method in ("auxk", "ghost") and bool(dead.any()):
        residual = (x_B1D - x_hat).detach()
        auxiliary = _auxiliary_loss(method, pre, W_dec, residual, dead, training)
    total = reconstruction + settings.penalty.to(pre) * cost / d_in
    total = total + training.aux_coefficient * auxiliary
    fired = f.detach() > 0
    smallest = torch.where(fired, f.detach(), torch.inf).amin((0, 2)).double()
    return DenseLoss(
        total=total,
        reconstruction=reconstruction.detach(),
        auxiliary=auxiliary.detach(),
        fired=fired.any(0),
        l0=fired.sum(2).double().mean(0),
        smallest_active=torch.where(smallest.isinf(), torch.nan, smallest),
    )


def _auxiliary_loss(
    method: DeadLatentMethod,
    pre: torch.Tensor,
    W_dec: torch.Tensor,
    residual: torch.Tensor,
    dead: torch.Tensor,
    training: BankTrainingConfig,
) -> torch.Tensor:
    d_sae, d_in = W_dec.shape[1:]
    if method == "auxk":
        k_aux = min(training.aux_k or max(1, d_in // 2), d_sae)
        masked = torch.where(dead, pre, -torch.inf)
        top = masked.topk(k_aux, dim=2)
        code = torch.zeros_like(pre).scatter(2, top.indices, torch.relu(top.values))
        guess = torch.einsum("bnf,nfd->bnd", code, W_dec)
    else:
        code = torch.where(dead, pre, -torch.inf).exp()
        guess = torch.einsum("bnf,nfd->bnd", code, W_dec)
        # half of the residual's norm, the scale itself without gradient
        size = guess.detach().norm(dim=2, keepdim=True).clamp_min(1e-30)
        guess = guess * (0.5 * residual.norm(dim=2, keepdim=True) / size)
    error = (residual - guess).square().sum(2).mean(0)
    variance = (residual - residual.mean(0)).square().sum(2).mean(0)
    return torch.where(dead.any(1), error / variance, 0.0).nan_to_num(0.0, 0.0, 0.0)


@contextlib.contextmanager
def matmul_precision(training: BankTrainingConfig) -> Iterator[None]:
    """Use TF32 for float32 products on cuda inside the block, if the configuration says so."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = training.precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@contextlib.contextmanager
def _precision(training: BankTrainingConfig, device: torch.device) -> Iterator[None]:
    half = training.precision == "bf16"
    with matmul_precision(training), torch.autocast(device.type, torch.bfloat16, enabled=half):
        yield


def adam_step(
    bank: SAEBank,
    gradients: dict[str, torch.Tensor],
    learning_rate: torch.Tensor,
    step: int,
    alive: torch.Tensor,
    training: BankTrainingConfig,
) -> None:
    """Do a step of Adam (Kingma & Ba, arXiv 1412.6980) for every SAE that still trains, in place.

    First the decoder's gradient along its rows is removed, then the gradient of each SAE is
    clipped; then the rows get norm 1 again. The frozen part of a baseline does not change.
    """
    gradients = dict(gradients)
    W_dec = bank.parameters["W_dec"]
    trains = {"W_enc": alive, "W_dec": alive}
    if any(config.baseline != "none" for config in bank.configs):
        for name, held in (
            ("W_enc", [config.freezes_encoder for config in bank.configs]),
            ("W_dec", [config.freezes_decoder for config in bank.configs]),
        ):
            trains[name] = alive & ~torch.tensor(held, device=alive.device)
            gradients[name] = torch.where(trains[name][:, None, None], gradients[name], 0.0)
    if training.unit_norm_decoder:
        along = (gradients["W_dec"] * W_dec).sum(2, keepdim=True)
        gradients["W_dec"] = gradients["W_dec"] - along * W_dec
    if training.clip_grad_norm is not None:
        squares = torch.stack([g.flatten(1).double().square().sum(1) for g in gradients.values()])
        factor = (training.clip_grad_norm / squares.sum(0).sqrt().clamp_min(1e-30)).clamp_max(1.0)
        gradients = {
            name: g * factor.to(g).view(-1, *[1] * (g.dim() - 1)) for name, g in gradients.items()
        }
    first_correction = 1 - training.beta1 ** (step + 1)
    second_correction = 1 - training.beta2 ** (step + 1)
    for name, gradient in gradients.items():
        shape = (-1, *[1] * (gradient.dim() - 1))
        keep = trains.get(name, alive).view(shape)
        parameter = bank.parameters[name]
        m, v = bank.first_moment[name], bank.second_moment[name]
        m.copy_(torch.where(keep, m + (1 - training.beta1) * (gradient - m), m))
        v.copy_(torch.where(keep, v + (1 - training.beta2) * (gradient.square() - v), v))
        rate = learning_rate.to(parameter).view(shape)
        change = (m / first_correction) / ((v / second_correction).sqrt() + training.epsilon)
        if training.optimizer == "adamw" and name == "W_enc":
            change = change + training.weight_decay * parameter
        new = parameter - rate * change
        if name == "W_dec" and training.unit_norm_decoder:
            new = new / new.norm(dim=2, keepdim=True).clamp_min(1e-30)
        if name == "W_dec":
            for i, config in enumerate(bank.configs):
                if config.least_cosine > -1:
                    start = bank.W_dec_init[i].to(new)
                    new[i] = turned_back(new[i], start, config.least_cosine)
        parameter.copy_(torch.where(keep, new, parameter))


def turned_back(rows: torch.Tensor, start: torch.Tensor, cosine: float) -> torch.Tensor:
    """Turn rows whose cosine to ``start`` is below ``cosine`` to the nearest direction that has it.

    Parameters
    ----------
    rows, start
        ``[F, d]``; the norms of ``rows`` are kept, those of ``start`` are 1.
    cosine
        Between 0 and 1.
    """
    along = (rows * start).sum(1, keepdim=True)
    norm = rows.norm(dim=1, keepdim=True)
    across = rows - along * start
    across = across / across.norm(dim=1, keepdim=True).clamp_min(1e-30)
    turned = norm * (cosine * start + (1 - cosine**2) ** 0.5 * across)
    return torch.where(along >= cosine * norm, rows, turned)


class DenseEngine:
    """Trains a bank step by step with :func:`dense_loss` and :func:`adam_step`."""

    def __init__(
        self,
        bank: SAEBank,
        rows: torch.Tensor,
        training: BankTrainingConfig,
        device: torch.device,
        n_rows: int | None = None,
    ) -> None:
        self.bank = bank
        self.rows = rows.to(device)
        self.training = training
        self.device = device
        # rows may be a buffer for more of them
        self.dead_rows = training.dead_after_passes * (n_rows or len(rows))
        self.bandwidth = torch.tensor(
            [c.jumprelu_bandwidth for c in bank.configs], device=device, dtype=torch.float64
        )

    def run(self, table: StepTable, batches: dict[int, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Train every SAE that has not stopped, for the steps of the table.

        Parameters
        ----------
        table
            Settings of the steps.
        batches
            Row numbers by data seed, each ``[n_steps, B]``.

        Returns
        -------
        dict
            Means over the steps, ``[N]`` float64: ``loss``, ``train_fvu`` (reconstruction term),
            ``auxiliary``, ``train_l0``.
        """
        bank, device = self.bank, self.device
        n_steps = len(table.learning_rate)
        seeds = [config.data_seed for config in bank.configs]
        shared = len(set(seeds)) == 1
        sums = {
            name: torch.zeros(len(bank), dtype=torch.float64, device=device)
            for name in ("loss", "train_fvu", "auxiliary", "train_l0")
        }
        rates = torch.from_numpy(table.learning_rate).to(device)
        penalties = torch.from_numpy(table.penalty).to(device)
        ks = torch.from_numpy(table.k).to(device)
        alive = (bank.stopped_at < 0).to(device)
        failed_at = torch.full_like(bank.stopped_at, -1, device=device)
        for i in range(n_steps):
            step = table.first_step + i
            if shared:
                x = self.rows[batches[seeds[0]][i].to(device)]
            else:
                x = torch.stack([self.rows[batches[seed][i].to(device)] for seed in seeds])
            leaves = {name: p.detach().requires_grad_() for name, p in bank.parameters.items()}
            dead = bank.since_fired >= self.dead_rows
            settings = StepSettings(penalties[i], ks[i], self.bandwidth)
            with _precision(self.training, device):
                loss = dense_loss(bank, leaves, x, settings, dead, self.training)
            gradients = torch.autograd.grad(loss.total.sum(), list(leaves.values()))
            total = loss.total.detach().double()
            broken = alive & ~total.isfinite()
            failed_at = torch.where(broken, step, failed_at)
            alive = alive & ~broken
            with torch.no_grad():
                adam_step(
                    bank,
                    dict(zip(leaves, gradients, strict=True)),
                    rates[i],
                    step,
                    alive,
                    self.training,
                )
                batch = x.shape[-2]
                since = torch.where(loss.fired, 0, bank.since_fired + batch)
                bank.since_fired.copy_(torch.where(alive[:, None], since, bank.since_fired))
                if bank.architecture.selection == "batch":
                    decay = threshold_decay(step)
                    update_running_threshold(
                        bank.running_threshold, decay, loss.smallest_active, alive
                    )
            for name, value in (
                ("loss", total),
                ("train_fvu", loss.reconstruction.double()),
                ("auxiliary", loss.auxiliary.double()),
                ("train_l0", loss.l0),
            ):
                sums[name] += value / n_steps
        failed_here = failed_at.cpu() >= 0
        bank.stopped_at[failed_here] = failed_at.cpu()[failed_here]
        bank.failed |= failed_here
        return {name: value.cpu() for name, value in sums.items()}


def update_running_threshold(
    running: torch.Tensor,
    decay: float | torch.Tensor,
    smallest: torch.Tensor,
    alive: torch.Tensor,
) -> None:
    """Move BatchTopK's inference threshold ``[N]`` towards the smallest activation, in place."""
    mixed = decay * running + (1 - decay) * smallest
    new = torch.where(running < 0, smallest, mixed)
    running.copy_(torch.where(alive & ~smallest.isnan(), new, running))
