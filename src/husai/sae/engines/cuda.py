"""The CUDA engine: strings the Triton kernels together, SAEs that share rows at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton

from husai.sae.bank import SAEBank
from husai.sae.config import BankTrainingConfig
from husai.sae.engines.dense import matmul_precision, update_running_threshold
from husai.sae.gpu import gradients, reconstruct, update
from husai.sae.gpu.codes import (
    PART,
    Codes,
    Pairs,
    largest_of_batch,
    largest_of_rows,
    order_by_latent,
)
from husai.sae.gpu.dead import DeadGradients, Encoder, auxk
from husai.sae.gpu.plan import (
    CHUNK_BYTES,
    Chunk,
    cut_into_chunks,
    kernel_settings,
    largest_k,
    uses_codes,
)
from husai.sae.schedule import StepTable, threshold_decay

LATENTS = 8
"""Latents that one program updates."""

UPDATE_TILE, UPDATE_WARPS = 2, 4
"""Codes that it adds up at once, and how many warps it has."""

NAMES = ("W_enc", "b_enc", "W_dec")


class CudaRows(NamedTuple):
    """Rows that the engine reads."""

    values: torch.Tensor
    """Scaled rows ``[m, d]``, or a buffer for more of them."""
    centre: torch.Tensor
    """Taken off every row ``[d]``: a short format would lose differences of rows far from 0.

    The result does not depend on it but for rounding; it has to be the same after a resume.
    """
    n_rows: int
    """Rows of a pass."""


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


class CudaEngine:
    """Trains a bank on a CUDA device with the Triton kernels.

    The dense engine is what it is tested against. Weights are float32; ``training.precision`` is
    that of the matrix products. SAEs do not touch each other, but the product of a bank is one
    product, so their bits may depend on how many train together.
    """

    def __init__(
        self, bank: SAEBank, rows: CudaRows, training: BankTrainingConfig, device: torch.device
    ) -> None:
        self.bank = bank
        self.training = training
        self.device = device
        n, F, d = len(bank), bank.d_sae, bank.d_in
        self.rows = rows.values.to(device)
        self.centre = rows.centre.to(device)
        self.selection = bank.architecture.selection
        self.jumps = self.selection == "threshold"
        self.method = training.dead_latent_method(bank.architecture.name)
        self.dead_rows = training.dead_after_passes * rows.n_rows
        self.k_aux = min(training.aux_k or max(1, d // 2), F)
        self.most_k = largest_k(training, bank.configs)
        self.sparse = uses_codes(training, bank.configs)
        # an L1 penalty of activations; JumpReLU's is one of latents
        self.pays = any(c.l1_coefficient for c in bank.configs)
        self.half = training.precision == "bf16"
        self.width = triton.next_power_of_2(d)
        self.prefixes = torch.tensor(bank.prefixes, dtype=torch.int32, device=device)
        held = [6 - 2 * c.freezes_encoder - 4 * c.freezes_decoder for c in bank.configs]
        self.trainable = torch.tensor(held, dtype=torch.int32, device=device) + update.TRAINS
        self.turns = any(c.least_cosine > -1 for c in bank.configs)
        self.W_dec_init = bank.W_dec_init.to(device) if self.turns else bank.parameters["W_dec"]
        self.level = torch.full((n,), 1 << 30, dtype=torch.int32, device=device)
        self.alive = torch.empty(n, dtype=torch.bool, device=device)
        self.failed_at = torch.empty(n, dtype=torch.int64, device=device)
        self.at = torch.zeros(1, dtype=torch.int64, device=device)
        self.sums = torch.zeros((4, n), dtype=torch.float64, device=device)
        self.tables: dict[Any, torch.Tensor] = {}
        self.graph: tuple[Any, Any] | None = None

    # ---- a run of steps ----

    def keep_table(self, name: Any, values: torch.Tensor) -> None:
        """Copy a table to where the steps read it: the same place as before where it fits."""
        kept = self.tables.get(name)
        if kept is None or len(kept) < len(values):
            self.tables[name] = values.to(self.device, copy=True)
            self.graph = None
        else:
            kept[: len(values)].copy_(values)

    def run(self, table: StepTable, batches: dict[int, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Advance every SAE still training; see :meth:`husai.sae.engines.dense.DenseEngine.run`."""
        bank = self.bank
        n_steps = len(table.learning_rate)
        chunks = cut_into_chunks(bank, self.training.batch_size)
        self.keep_table("settings", kernel_settings(bank, self.training, table))
        self.keep_table("k", torch.from_numpy(table.k).int())
        decay = [threshold_decay(table.first_step + i) for i in range(n_steps)]
        self.keep_table("decay", torch.tensor(decay, dtype=torch.float64))
        for seed in {chunk.data_seed for chunk in chunks}:
            self.keep_table(("rows", seed), batches[seed])
        self.alive.copy_(bank.stopped_at < 0)
        self.failed_at.fill_(-1)
        self.at.zero_()
        self.sums.zero_()
        i, safe = 0, self.steps_without_dead()
        with torch.no_grad(), matmul_precision(self.training):
            while i < n_steps and chunks:
                if i < safe:
                    self.replay(chunks)
                else:
                    dead = (bank.since_fired >= self.dead_rows) & self.alive[:, None]
                    numbers = dead.sum(1).tolist()
                    self.advance(chunks, dead, numbers)
                    if not any(numbers):
                        safe = i + 1 + self.steps_without_dead()
                i += 1
        failed_at = self.failed_at.cpu()
        failed = failed_at >= 0
        # the steps counted from 0 on the device
        bank.stopped_at[failed] = failed_at[failed] + table.first_step
        bank.failed |= failed
        names = ("loss", "train_fvu", "auxiliary", "train_l0")
        return dict(zip(names, (self.sums / n_steps).cpu(), strict=True))

    def steps_without_dead(self) -> int:
        """Steps until a latent can be dead, where that matters: none is looked for before."""
        if self.method != "auxk":
            return 2**62
        longest = int((self.bank.since_fired * self.alive[:, None]).max())
        return max(0, math.ceil((self.dead_rows - longest) / self.training.batch_size))

    def replay(self, chunks: list[Chunk]) -> None:
        """Make a step without dead latents: by a captured graph once it has been made before."""
        if self.device.type != "cuda":
            self.advance(chunks, None, [])
            return
        if self.graph is None or self.graph[0] != chunks:
            self.advance(chunks, None, [])
            graph = torch.cuda.CUDAGraph()
            torch.cuda.synchronize()
            with torch.cuda.graph(graph):
                self.advance(chunks, None, [])
            self.graph = (chunks, graph)
            return
        self.graph[1].replay()

    # ---- one step ----

    def advance(
        self,
        chunks: list[Chunk],
        dead: torch.Tensor | None,
        numbers: Sequence[int],
    ) -> None:
        """Make the step that ``self.at`` stands at; ``dead [N, F]`` only where there are any."""
        settings = self.tables["settings"].index_select(0, self.at)[0]
        k = self.tables["k"].index_select(0, self.at)[0]
        rows = {}
        for seed in {chunk.data_seed for chunk in chunks}:
            numbers_of_rows = self.tables["rows", seed].index_select(0, self.at)[0]
            rows[seed] = self.rows.index_select(0, numbers_of_rows) - self.centre
        for chunk in chunks:
            most = max(numbers[chunk.first : chunk.last], default=0) if dead is not None else 0
            part = None if dead is None or not most else dead[chunk.first : chunk.last]
            self._advance(chunk, rows[chunk.data_seed], settings, k, part, most)
        self.at += 1

    def _advance(
        self,
        chunk: Chunk,
        x: torch.Tensor,
        settings: torch.Tensor,
        k: torch.Tensor,
        dead: torch.Tensor | None,
        most: int,
    ) -> None:
        bank, d, P = self.bank, self.bank.d_in, len(self.bank.prefixes)
        s = slice(chunk.first, chunk.last)
        n = chunk.last - chunk.first
        B, F = len(x), bank.d_sae
        p = {name: tensor[s] for name, tensor in bank.parameters.items()}
        mine = settings[s]
        b_dec = p["b_dec"] - self.centre
        bias = torch.empty_like(p["b_enc"])
        reconstruct.encoder_bias[(triton.cdiv(F, 8), n)](
            p["W_enc"], p["b_enc"], b_dec, bias, F, d, LATENTS=8, WIDTH=self.width, num_warps=4
        )
        # a product reads them in its own format; sums over prefixes are still to be made
        short = self.half and P == 1 and not self.sparse
        kind = torch.bfloat16 if short else torch.float32
        error = torch.empty((n, P, B, d), dtype=kind, device=x.device)
        if self.selection in ("row", "batch"):
            codes = self._codes(chunk, x, bias, k[s])
            if self.sparse:
                losses = self._reconstruct(p, x, b_dec, codes, error)
                source = self._by_pairs(p, x, codes, error, mine)
            else:
                losses, source = self._by_products(p, x, b_dec, bias, mine, error, codes, None)
        else:
            pre = self._product(chunk, x, 0, B)
            losses, source = self._by_products(p, x, b_dec, bias, mine, error, None, pre)
        extra = None
        if dead is not None:
            sae = Encoder(x, p["W_enc"], bias, p["W_dec"], b_dec)
            weight = self.training.aux_coefficient
            auxiliary, extra = auxk(sae, error[:, -1].float(), dead, most, self.k_aux, weight)
            losses = losses._replace(auxiliary=auxiliary.double())
        total = losses.reconstruction + mine[:, 5].double() * B * losses.cost
        total = total + self.training.aux_coefficient * losses.auxiliary
        alive = self.alive[s]
        broken = alive & ~total.isfinite()
        self.failed_at[s] = torch.where(broken, self.at, self.failed_at[s])
        alive &= ~broken
        trains = torch.where(alive, self.trainable[s], 0)
        self._update(s, p, x, b_dec, error, mine, trains, source, extra)
        if self.selection == "batch":
            running = bank.running_threshold[s]
            decay = self.tables["decay"].index_select(0, self.at)
            update_running_threshold(running, decay, losses.smallest, alive)
        values = (total, losses.reconstruction, losses.auxiliary, losses.l0)
        self.sums[:, s] += torch.stack(values)

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
        if self.device.type == "cuda":
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

    def _update(
        self,
        s: slice,
        p: dict[str, torch.Tensor],
        x: torch.Tensor,
        b_dec: torch.Tensor,
        error: torch.Tensor,
        settings: torch.Tensor,
        trains: torch.Tensor,
        source: Sources,
        extra: DeadGradients | None,
    ) -> None:
        """Move the parameters along their gradients."""
        bank, training = self.bank, self.training
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
                *(b_dec, source.totals, *found, *parts, x, error, self.prefixes),
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
