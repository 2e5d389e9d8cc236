"""One step of the CUDA engine for SAEs that see the same rows: losses, gradients, the update."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton

from husai.sae.bank import SAEBank
from husai.sae.config import BankTrainingConfig
from husai.sae.gpu import gradients, reconstruct, update
from husai.sae.gpu.codes import (
    PART,
    Codes,
    Pairs,
    largest_of_batch,
    largest_of_rows,
    order_by_latent,
)
from husai.sae.gpu.dead import DeadGradients
from husai.sae.gpu.plan import CHUNK_BYTES, Chunk, largest_k, uses_codes

LATENTS = 8
"""Latents that one program updates."""

UPDATE_TILE, UPDATE_WARPS = 2, 4
"""Codes that it adds up at once, and how many warps it has."""

NAMES = ("W_enc", "b_enc", "W_dec")


class Losses(NamedTuple):
    """What the forward pass of some SAEs gives, per SAE ``[n]`` float64."""

    reconstruction: torch.Tensor
    cost: torch.Tensor
    l0: torch.Tensor
    smallest: torch.Tensor
    auxiliary: torch.Tensor


class Sources(NamedTuple):
    """Where the update finds its gradients: in the codes, or in dense sums."""

    totals: torch.Tensor
    """How often each latent fired ``[n, F]`` int32."""
    pairs: Pairs | None
    sums: torch.Tensor
    scalars: torch.Tensor
    """Sums over the parts of the latents with many codes."""
    dense: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None
    """Gradients of W_enc and W_dec ``[n, F, d]``, not centred nor scaled, and of b_enc."""
    threshold: torch.Tensor | None
    """Gradient of JumpReLU's log threshold ``[n, F]``."""


class Forward(NamedTuple):
    """What a step knows of its SAEs before they change."""

    parameters: dict[str, torch.Tensor]
    b_dec: torch.Tensor
    """Less the centre of the rows ``[n, d]``, as the rows are."""
    bias: torch.Tensor
    """The encoder's, for rows from which ``b_dec`` is not taken off ``[n, F]``."""
    error: torch.Tensor
    """Of each prefix, added up from the last ``[n, P, B, d]``."""
    losses: Losses
    sources: Sources


class CudaStep:
    """The parts of a step, for some SAEs of a bank at a time.

    Attributes
    ----------
    sparse
        Whether gradients are summed over codes, and not dense products.
    """

    def __init__(self, bank: SAEBank, training: BankTrainingConfig, device: torch.device) -> None:
        self.bank = bank
        self.training = training
        self.selection = bank.architecture.selection
        self.jumps = self.selection == "threshold"
        self.most_k = largest_k(training, bank.configs)
        self.sparse = uses_codes(training, bank.configs)
        # an L1 penalty of activations; JumpReLU's is one of latents
        self.pays = any(c.l1_coefficient for c in bank.configs)
        self.half = training.precision == "bf16"
        self.width = triton.next_power_of_2(bank.d_in)
        self.prefixes = torch.tensor(bank.prefixes, dtype=torch.int32, device=device)
        held = [6 - 2 * c.freezes_encoder - 4 * c.freezes_decoder for c in bank.configs]
        self.trainable = torch.tensor(held, dtype=torch.int32, device=device) + update.TRAINS
        self.turns = any(c.least_cosine > -1 for c in bank.configs)
        self.W_dec_init = bank.W_dec_init.to(device) if self.turns else bank.parameters["W_dec"]
        self.level = torch.full((len(bank),), 1 << 30, dtype=torch.int32, device=device)
        self.on_gpu = device.type == "cuda"

    def forward(
        self,
        chunk: Chunk,
        x: torch.Tensor,
        centre: torch.Tensor,
        settings: torch.Tensor,
        k: torch.Tensor,
    ) -> Forward:
        """Encode and reconstruct rows ``[B, d]``; find where the gradients come from."""
        s = slice(chunk.first, chunk.last)
        n, B, F, d = chunk.last - chunk.first, len(x), self.bank.d_sae, self.bank.d_in
        P = len(self.bank.prefixes)
        p = {name: tensor[s] for name, tensor in self.bank.parameters.items()}
        b_dec = p["b_dec"] - centre
        bias = torch.empty_like(p["b_enc"])
        reconstruct.encoder_bias[(triton.cdiv(F, 8), n)](
            p["W_enc"], p["b_enc"], b_dec, bias, F, d, LATENTS=8, WIDTH=self.width, num_warps=4
        )
        # a product reads them in its own format; sums over prefixes are still to be made
        short = self.half and P == 1 and not self.sparse
        kind = torch.bfloat16 if short else torch.float32
        error = torch.empty((n, P, B, d), dtype=kind, device=x.device)
        if self.selection in ("row", "batch"):
            codes = self._codes(chunk, x, bias, k)
            if self.sparse:
                losses = self._reconstruct(p, x, b_dec, codes, error)
                source = self._by_pairs(p, x, codes, error, settings)
            else:
                losses, source = self._by_products(p, x, b_dec, bias, settings, error, codes, None)
        else:
            pre = self._product(chunk, x, 0, B)
            losses, source = self._by_products(p, x, b_dec, bias, settings, error, None, pre)
        return Forward(p, b_dec, bias, error, losses, source)

    def _product(self, chunk: Chunk, x: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """Pre-activations without the bias ``[rows, n, F]``: one product for all SAEs."""
        W = self.bank.parameters["W_enc"][chunk.first : chunk.last]
        n, F, d = W.shape
        W = W.reshape(n * F, d)
        return self._multiply(x[first:last], W.T).view(last - first, n, F)

    def _multiply(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Product of matrices, or of each SAE's, with float32 sums."""
        product = torch.mm if a.dim() == 2 else torch.bmm
        if not self.half:
            return product(a, b)
        a, b = a.bfloat16(), b.bfloat16()
        if self.on_gpu:
            return product(a, b, out_dtype=torch.float32)
        return product(a.float(), b.float())

    def _codes(self, chunk: Chunk, x: torch.Tensor, bias: torch.Tensor, k: torch.Tensor) -> Codes:
        n, F = bias.shape
        B = len(x)
        if self.selection == "batch":
            pre = self._product(chunk, x, 0, B)
            return largest_of_batch(pre, bias, k, self.most_k, self.level[chunk.first : chunk.last])
        rows = min(B, max(1, CHUNK_BYTES // (4 * n * F)))
        return largest_of_rows(
            lambda first, last: self._product(chunk, x, first, last),
            *(bias, k.contiguous(), self.most_k, (B, rows)),
        )

    def _losses(
        self,
        squared: torch.Tensor,
        cost: torch.Tensor,
        active: torch.Tensor,
        smallest: torch.Tensor | None = None,
    ) -> Losses:
        """Means from what the kernels give per row or tile, ``[n, …]``."""
        B, d, P = self.training.batch_size, self.bank.d_in, len(self.bank.prefixes)
        reconstruction = squared.flatten(1).sum(1, dtype=torch.float64) / (B * P * d)
        none = torch.zeros_like(reconstruction)
        least = none if smallest is None else smallest.amin(1).double()
        return Losses(
            reconstruction,
            cost.flatten(1).sum(1, dtype=torch.float64) / B,
            active.flatten(1).sum(1, dtype=torch.float64) / B,
            torch.where(least.isinf(), torch.nan, least),
            none,
        )

    def _reconstruct(
        self,
        p: dict[str, torch.Tensor],
        x: torch.Tensor,
        b_dec: torch.Tensor,
        codes: Codes,
        error: torch.Tensor,
    ) -> Losses:
        n, P, B, d = error.shape
        squared, cost, smallest = (x.new_empty((n, B)) for _ in range(3))
        reconstruct.reconstruct[(B, n)](
            *(x, p["W_dec"], b_dec, self.prefixes, *codes, error, squared, cost, smallest),
            *(codes.capacity, B, self.bank.d_sae, d),
            PREFIXES=P,
            UNIT=self.training.unit_norm_decoder,
            TILE=8,
            WIDTH=self.width,
            num_warps=4,
        )
        return self._losses(squared, cost, codes.active, smallest)

    def _by_pairs(
        self,
        p: dict[str, torch.Tensor],
        x: torch.Tensor,
        codes: Codes,
        error: torch.Tensor,
        settings: torch.Tensor,
    ) -> Sources:
        _, P, B, d = error.shape
        F = self.bank.d_sae
        pairs = order_by_latent(codes, F)
        parts = len(pairs.part_latent)
        sums = torch.empty((parts, 2, d), device=x.device)
        scalars = torch.empty((parts, 2), device=x.device)
        gradients.add_parts[(parts,)](
            *(pairs.parts, pairs.part_latent, pairs.part_begin, pairs.start, pairs.totals),
            *(pairs.row, pairs.value, x, error, p["W_dec"], settings, self.prefixes),
            *(sums, scalars, codes.capacity, B, F, d),
            LENGTH=PART,
            PREFIXES=P,
            UNIT=self.training.unit_norm_decoder,
            TILE=8,
            WIDTH=self.width,
            num_warps=8,
        )
        return Sources(pairs.totals, pairs, sums, scalars, None, None)

    def _by_products(
        self,
        p: dict[str, torch.Tensor],
        x: torch.Tensor,
        b_dec: torch.Tensor,
        bias: torch.Tensor,
        settings: torch.Tensor,
        error: torch.Tensor,
        codes: Codes | None,
        pre: torch.Tensor | None,
    ) -> tuple[Losses, Sources]:
        """Errors and gradients by dense products, from codes or from pre-activations."""
        n, P, B, d = error.shape
        F, rows, latents = self.bank.d_sae, 32, 128
        unit = self.training.unit_norm_decoder
        kind = torch.bfloat16 if self.half else torch.float32
        grid = (triton.cdiv(F, latents), triton.cdiv(B, rows), n)
        norms = torch.ones_like(bias) if unit else p["W_dec"].norm(dim=2)
        threshold = p["log_threshold"].exp() if self.jumps else norms
        sizes = {"ROWS": rows, "LATENTS": latents, "num_warps": 4}
        smallest = None
        if codes is not None:
            f = torch.zeros((n, B, F), dtype=kind, device=x.device)
            reconstruct.scatter_codes[(B, n)](*codes, f, codes.capacity, B, F, TILE=64, num_warps=2)
            active = codes.active
            if self.selection == "batch":
                smallest = torch.where(codes.value > 0, codes.value, torch.inf)
        else:
            f = torch.empty((n, B, F), dtype=kind, device=x.device)
            active = torch.empty((n, grid[1], grid[0]), dtype=torch.int32, device=x.device)
            paid = x.new_empty((n, grid[1], grid[0]))
            reconstruct.activate[grid](
                *(pre, bias, threshold, norms, f, active, paid, B, F, n),
                JUMP=self.jumps,
                **sizes,
            )
        activations = torch.zeros_like(bias)
        if self.pays and (codes is not None or not unit):
            activations = f.sum(1, dtype=torch.float32)
        if codes is not None:
            paid = activations * norms
        W_dec = p["W_dec"].to(kind)
        squared = x.new_zeros((n, B))
        guess, start = None, 0
        for i, end in enumerate(self.bank.prefixes):
            more = self._multiply(f[:, :, start:end], W_dec[:, start:end])
            guess = more if guess is None else guess.add_(more)
            reconstruct.subtract_rows[(B, n)](
                *(guess, x, b_dec, error, squared, i, B, d),
                PREFIXES=P,
                WIDTH=self.width,
                num_warps=4,
            )
            start = end
        for i in range(P - 2, -1, -1):
            error[:, i] += error[:, i + 1]
        short = error.to(kind)
        to_f = torch.empty((n, B, F), dtype=kind, device=x.device) if P > 1 else None
        to_W_dec = x.new_empty((n, F, d)) if P > 1 else None
        start = 0
        for i, end in enumerate(self.bank.prefixes):
            one = torch.bmm(short[:, i], W_dec[:, start:end].transpose(1, 2))
            two = self._multiply(f[:, :, start:end].transpose(1, 2), short[:, i])
            if to_f is None or to_W_dec is None:
                to_f, to_W_dec = one, two
            else:
                to_f[:, :, start:end] = one
                to_W_dec[:, start:end] = two
            start = end
        g = torch.empty_like(f)
        to_bias = x.new_empty((n, grid[1], F))
        to_threshold = x.new_empty((n, grid[1], F)) if self.jumps else to_bias
        fired = torch.empty(to_bias.shape, dtype=torch.int32, device=x.device)
        gradients.mask_gradients[grid](
            *(to_f, f, to_f if pre is None else pre, bias, threshold, norms, settings),
            *(g, to_bias, to_threshold, fired, B, F, n),
            JUMP=self.jumps,
            **sizes,
        )
        del to_f
        to_W_enc = self._multiply(g.transpose(1, 2), x.to(kind).expand(n, -1, -1))
        losses = self._losses(squared, paid, active, smallest)
        slope = to_threshold.sum(1) * threshold if self.jumps else None
        nothing = x.new_empty((1, 2))
        assert to_W_dec is not None
        dense = (to_W_enc, to_W_dec, to_bias.sum(1))
        totals = fired.sum(1, dtype=torch.int32)
        return losses, Sources(totals, None, nothing, activations, dense, slope)

    def update(
        self,
        chunk: Chunk,
        x: torch.Tensor,
        forward: Forward,
        settings: torch.Tensor,
        alive: torch.Tensor,
        extra: DeadGradients | None,
    ) -> None:
        """Move the parameters of the SAEs that are ``alive [n]`` along their gradients."""
        bank, training = self.bank, self.training
        s = slice(chunk.first, chunk.last)
        p, error, source = forward.parameters, forward.error, forward.sources
        trains = torch.where(alive, self.trainable[s], 0)
        n, P, B, d = error.shape
        F = bank.d_sae
        m = {name: tensor[s] for name, tensor in bank.first_moment.items()}
        v = {name: tensor[s] for name, tensor in bank.second_moment.items()}
        programs = triton.cdiv(F, LATENTS)
        left = torch.empty((n, programs, d), device=x.device)
        squares = torch.empty((n, programs), device=x.device)
        pairs, none = source.pairs, source.totals
        if pairs is not None:
            found = (pairs.start, pairs.row, pairs.value, pairs.part_begin)
            parts, dense, activations = (source.sums, source.scalars), (none, none, none), none
            capacity = int(pairs.row.shape[1])
        else:
            assert source.dense is not None
            found, parts, dense = (none, none, none, none), (none, none), source.dense
            activations, capacity = source.scalars, 0
        added = (none, none, none, none) if extra is None else extra
        decay = training.weight_decay if training.optimizer == "adamw" else 0.0
        betas = (training.beta1, training.beta2, training.epsilon)

        def move(really: bool) -> None:
            update.update_latents[(programs, n)](
                *(kind[name] for kind in (p, m, v) for name in NAMES),
                *(self.W_dec_init[s], bank.since_fired[s], trains, settings),
                *(forward.b_dec, source.totals, *found, *parts, x, error, self.prefixes),
                *(*dense, activations, *added, left, squares),
                *(capacity, 0 if extra is None else int(extra.b_enc.shape[1]), B, F, d),
                *(*betas, decay),
                PAIRS=pairs is not None,
                EXTRA=extra is not None,
                UPDATE=really,
                UNIT=training.unit_norm_decoder,
                TURN=self.turns,
                LENGTH=PART,
                PREFIXES=P,
                LATENTS=LATENTS,
                TILE=UPDATE_TILE,
                WIDTH=self.width,
                num_warps=UPDATE_WARPS,
            )

        vectors = {}
        if training.clip_grad_norm:
            move(False)
        else:
            move(True)
        vectors["b_dec"] = settings[:, 4, None] * error[:, 0].sum(
            1, dtype=torch.float32
        ) + left.sum(1)
        if source.threshold is not None:
            vectors["log_threshold"] = source.threshold
        if training.clip_grad_norm:
            total = squares.sum(1, dtype=torch.float64)
            for gradient in vectors.values():
                total = total + gradient.double().square().sum(1)
            limit = training.clip_grad_norm
            settings[:, 3] = (limit / total.sqrt().clamp_min(1e-30)).clamp_max(1.0).float()
            move(True)
        for name, gradient in vectors.items():
            size = int(gradient.shape[1])
            update.update_vectors[(triton.cdiv(size, 256), n)](
                *(p[name], gradient, m[name], v[name], trains, settings, size, *betas),
                WIDTH=256,
                num_warps=2,
            )
