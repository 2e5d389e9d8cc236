"""The sparse engine: calls the kernels in order, each SAE on one thread at a time."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import scipy.linalg.cython_blas  # noqa: F401  (numba's products use it: load before its threads are set)
import torch
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from husai.sae.bank import SAEBank
from husai.sae.config import BankTrainingConfig
from husai.sae.engines.memory import block_memory, blocks_of_rows, empty_codes
from husai.sae.engines.products import Products
from husai.sae.engines.turns import Turns
from husai.sae.kernels.adam import update_biases, update_latents, update_vector
from husai.sae.kernels.dead import (
    count_since_fired,
    ghost_gradients,
    list_dead,
    reconstruct_residual,
)
from husai.sae.kernels.few import group_memory, select_side_by_side
from husai.sae.kernels.gradients import (
    add_ghost,
    latent_gradients,
    order_by_latent,
    square_sum,
    sum_errors,
    summed_gradients,
)
from husai.sae.kernels.reconstruct import (
    reconstruct,
    reconstruct_jump,
    reconstruct_nested,
    set_edges,
    set_norms,
)
from husai.sae.kernels.select import (
    FEW,
    encoder_bias,
    gather_rows,
    list_for_batch,
    list_positive,
    select_in_batch,
    select_in_rows,
)
from husai.sae.kernels.step import step_latents, step_summed
from husai.sae.kernels.sums import sum_over_rows
from husai.sae.kernels.types import (
    BLOCK_VALUES,
    DENSE_FROM,
    F32,
    F64,
    I32,
    I64,
    LATENT_BLOCK,
    AdamStep,
    AuxK,
    Batch,
    BatchMeans,
    Calls,
    GhostGradients,
    Gradients,
    GradientSums,
    Held,
    JumpReLU,
    Loss,
    Parameters,
    SAEState,
    checked_array,
)
from husai.sae.kernels.vectors import LANES
from husai.sae.schedule import StepTable, threshold_decay

SUMMED_VALUES = 2**16
"""SAEs with at most as many weights add gradients up row by row: the sums stay in cache."""

ALIGNED = 16
"""Numbers in 64 bytes, the alignment of torch's memory."""

FIRST_LOOK = 64
"""Rows by which relu and jumprelu choose between a list of active latents and dense products."""

SUMMED_DENSE_FROM = 3
"""For such SAEs what :data:`DENSE_FROM` is for larger ones."""


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread for each call meanwhile."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Worker:
    """One thread's working memory, and the steps it makes with it."""

    def __init__(self, engine: SparseEngine) -> None:
        self.engine = engine
        self.call = Calls()
        bank, training = engine.bank, engine.training
        B, F, d = training.batch_size, bank.d_sae, bank.d_in
        P = len(bank.prefixes)
        block_rows = min(B, max(2 * d, BLOCK_VALUES // F))
        selection = bank.architecture.selection
        self.summed = F * d <= SUMMED_VALUES and selection != "threshold" and P == 1
        factor = training.k_anneal_factor if training.k_anneal_steps else 1.0
        max_k = max(min(F, round((c.k or 1) * factor)) for c in bank.configs)
        if selection == "row":
            capacity = B * max_k + 1
        elif selection == "batch":
            # a margin over the B·k that stay, and room for a row
            capacity = 2 * B * max_k + F
        else:
            # and room for a row
            capacity = B * F // (SUMMED_DENSE_FROM if self.summed else DENSE_FROM) + F
        auxk, ghost = engine.method == "auxk", engine.method == "ghost"
        # tensors, because torch's memory is aligned and a product may depend on that
        dense = selection in ("all", "threshold")
        x, error = torch.empty(B, d), torch.empty(P, B, d)
        pre = torch.empty(block_rows * F + LANES)
        self.blocks = blocks_of_rows(x, pre, F, block_rows, FIRST_LOOK if dense else 0)
        self.batch = Batch(x.numpy(), error.numpy())
        whole = F * d % ALIGNED == 0
        self.aligned = None if whole else (torch.empty(F, d), torch.empty(F, d))
        self.memory = block_memory(pre.numpy(), F)
        self.bias: F32 = np.empty(F, np.float32)
        self.codes = empty_codes(B, F, capacity)
        self.dead: I32 = np.empty(F + 1, np.int32)
        self.auxk = AuxK(
            dead=self.dead[:0],
            k=engine.k_aux,
            codes=empty_codes(B, F, B * engine.k_aux if auxk else 1),
            error=np.empty((1, B if auxk else 1, d), np.float32),
        )
        self.norms: F32 = np.ones(F, np.float32)
        self.edge: F32 = np.zeros(F, np.float32)
        self.g_threshold: F32 = np.zeros(F, np.float32)
        self.group: F32 = np.empty((P, d), np.float32)
        block = F if training.clip_grad_norm or ghost else min(F, LATENT_BLOCK)
        self.gradients = self._gradients(block)
        self.few = group_memory()
        if dense:
            self.products = Products(self.call, x, error[0], pre, F, block_rows)
            self.sums = self.products.sums
        elif self.summed:
            self.sums = GradientSums(
                f=np.empty(1, np.float32),
                W_enc=np.empty((F, d), np.float32),
                W_dec=np.empty((F, d), np.float32),
                activations=np.empty(F, np.float32),
            )
        if ghost:
            self.ghost = GhostGradients(
                W_enc=np.empty((F, d), np.float32),
                W_dec=np.empty((F, d), np.float32),
                b_enc=np.empty(F, np.float32),
                place=np.empty(F, np.int32),
            )

    def _gradients(self, block: int) -> Gradients:
        F, d = self.engine.bank.d_sae, self.engine.bank.d_in
        return Gradients(
            W_enc=np.empty((block, d), np.float32),
            W_dec=np.empty((block, d), np.float32),
            b_enc=np.empty(F, np.float32),
            b_dec=np.empty(d, np.float32),
            fired=np.empty(F, np.int64),
        )

    def advance(
        self, together: list[int], batches: I64, table: StepTable, offset: int, sums: F64
    ) -> None:
        """Make the steps of ``batches [n, B]``, which start ``offset`` steps into the table.

        The SAEs take turns at each batch, so that its rows are gathered once.
        """
        e = self.engine
        for t in range(len(batches)):
            training = [i for i in together if e.stopped_at[i] < 0]
            if not training:
                return
            at = offset + t
            self.call(gather_rows, e.rows, batches[t], self.batch.x)
            for i in training:
                self.step(
                    i,
                    table.first_step + at,
                    float(table.learning_rate[at, i]),
                    float(table.penalty[at, i]),
                    int(table.k[at, i]),
                    sums,
                )

    def weights(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        """SAE ``i``'s encoder and decoder ``[F, d]``, aligned whatever its place in the bank.

        The bits of a product depend on the alignment of what it reads.
        """
        W_enc, W_dec = self.engine.weights[i]
        if self.aligned is None:
            return W_enc, W_dec
        return self.aligned[0].copy_(W_enc), self.aligned[1].copy_(W_dec)

    def encode(self, i: int, k: int, auxk: AuxK) -> bool:
        """List SAE ``i``'s active latents on ``x``; ``False`` where a list would be too long."""
        e = self.engine
        W_enc, _ = self.weights(i)
        W_enc_T = W_enc.T
        few = e.selection == "row" and k <= FEW
        call, memory, codes, bias = self.call, self.memory, self.codes, self.bias
        memory.state[:] = 0
        if e.selection == "batch":
            memory.state[2] = e.level[i]
        for block in self.blocks:
            r0, n = block.first, block.rows
            if few:
                torch.mm(W_enc, block.x_T, out=block.pre_T)
                call(select_side_by_side, r0, n, bias, k, memory, codes, auxk, self.few)
                continue
            torch.mm(block.x, W_enc_T, out=block.pre)
            if e.selection == "row":
                call(select_in_rows, r0, n, bias, k, memory, codes, auxk)
            elif e.selection == "batch":
                call(list_for_batch, r0, n, bias, k, memory, codes, auxk)
            else:
                jump = e.selection == "threshold"
                if not call(list_positive, r0, n, bias, self.edge, jump, memory, codes, auxk):
                    return False
        if e.selection == "batch":
            complete, e.level[i] = call(select_in_batch, k, memory.state, codes)
            if not complete:
                return self.encode(i, k, auxk)
        return True

    def step(self, i: int, step: int, rate: float, penalty: float, k: int, sums: F64) -> None:
        """Make one step of SAE ``i`` on the rows in ``x``."""
        e = self.engine
        training, state = e.training, e.states[i]
        call, sae, batch, codes = self.call, state.parameters, self.batch, self.codes
        B, d = batch.x.shape
        jumps = e.selection == "threshold"
        n_dead = 0
        if e.method in ("auxk", "ghost"):
            n_dead = call(list_dead, state.since_fired, e.dead_rows, self.dead)
        auxk = self.auxk._replace(dead=self.dead[: n_dead if e.method == "auxk" else 0])
        call(encoder_bias, sae, self.bias)
        bandwidth = float(e.bandwidth[i]) if jumps else 0.0
        if jumps:
            call(set_edges, e.log_threshold[0][i], bandwidth, self.edge)
        jump = JumpReLU(self.edge, bandwidth, penalty, self.g_threshold)
        if not training.unit_norm_decoder:
            call(set_norms, sae.W_dec, self.norms)
        l1 = 0.0 if jumps else penalty
        loss = Loss(l1, self.norms, training.unit_norm_decoder, e.prefixes)
        with_ghost = e.method == "ghost" and n_dead > 0
        dense = not self.encode(i, k, auxk)
        summed = dense or self.summed
        if dense:
            means = self.products.reconstruct(
                *(self.weights(i), sae, batch, self.bias, loss, jump),
                *(self.memory, self.gradients, auxk),
            )
        elif jumps:
            means = call(reconstruct_jump, sae, batch, jump, codes)
        elif self.summed:
            keep = len(auxk.dead) > 0 or with_ghost
            means = call(sum_over_rows, sae, batch, loss, codes, keep, self.sums, self.gradients)
        elif len(e.prefixes) > 1:
            means = call(reconstruct_nested, sae, batch, loss, codes, self.group)
        else:
            means = call(reconstruct, sae, batch, loss, codes)
        found = BatchMeans(*means)
        auxiliary, aux_scale = 0.0, 0.0
        if len(auxk.dead):
            auxiliary, variance = call(reconstruct_residual, sae.W_dec, batch.error, auxk)
            if variance > 0:
                aux_scale = 2 * training.aux_coefficient / (B * variance)
        if with_ghost:
            auxiliary = call(
                ghost_gradients,
                *(sae, batch, self.bias, self.dead[:n_dead]),
                *(training.aux_coefficient, self.ghost),
            )
        total = found.reconstruction + penalty * found.cost / d
        total += training.aux_coefficient * auxiliary
        if not math.isfinite(total):
            e.stopped_at[i] = step
            return
        sums[:, i] += (total, found.reconstruction, auxiliary, found.l0)
        adam = AdamStep(
            rate=rate / (1 - training.beta1 ** (step + 1)),
            correction=1 / math.sqrt(1 - training.beta2 ** (step + 1)),
            beta1=training.beta1,
            beta2=training.beta2,
            epsilon=training.epsilon,
            decay=rate * training.weight_decay if training.optimizer == "adamw" else 0.0,
        )
        factor = 1.0
        if with_ghost or training.clip_grad_norm:
            factor = self._step_apart(i, loss, auxk, aux_scale, summed, with_ghost, adam)
        elif summed:
            call(
                step_summed,
                *(state, batch, loss, self.sums, auxk, aux_scale),
                *(self.gradients, adam, e.held[i]),
            )
        else:
            call(
                step_latents,
                *(state, batch, loss, codes, auxk, aux_scale),
                *(self.gradients, adam, e.held[i]),
            )
        if jumps:
            parameter, m, v = (array[i] for array in e.log_threshold)
            call(update_vector, parameter, m, v, self.g_threshold, factor, adam)
        if e.selection == "batch" and found.smallest < math.inf:
            old = e.running_threshold[i]
            beta = threshold_decay(step)
            mixed = beta * old + (1 - beta) * found.smallest
            e.running_threshold[i] = found.smallest if old < 0 else mixed

    def _step_apart(
        self,
        i: int,
        loss: Loss,
        auxk: AuxK,
        aux_scale: float,
        summed: bool,
        with_ghost: bool,
        adam: AdamStep,
    ) -> float:
        """Do as :func:`.step_latents`, where all gradients are needed before any update.

        Gives the factor that clips them.
        """
        state, held = self.engine.states[i], self.engine.held[i]
        call, sae, batch, F = self.call, state.parameters, self.batch, self.engine.d_sae
        if len(self.gradients.W_enc) < F:
            # sums over rows have filled the vectors
            kept = self.gradients
            self.gradients = self._gradients(F)._replace(
                b_enc=kept.b_enc, b_dec=kept.b_dec, fired=kept.fired
            )
        gradients = self.gradients
        if len(auxk.dead):
            call(order_by_latent, auxk.codes, aux_scale)
        if summed:
            call(summed_gradients, 0, F, sae, batch, loss, self.sums, auxk, gradients)
        else:
            call(sum_errors, batch.error, gradients.b_dec)
            call(order_by_latent, self.codes, 1.0)
            call(latent_gradients, 0, F, sae, batch, loss, self.codes, auxk, gradients)
        if with_ghost:
            call(add_ghost, sae, loss.unit_norm, self.ghost, gradients)
        factor = 1.0
        limit = self.engine.training.clip_grad_norm
        if limit:
            total = 0.0
            if not held.encoder:
                total += call(square_sum, gradients.W_enc)
            if not held.decoder:
                total += call(square_sum, gradients.W_dec)
            vectors = [gradients.b_enc, gradients.b_dec]
            if self.engine.selection == "threshold":
                vectors.append(self.g_threshold)
            total += sum(call(square_sum, vector[None]) for vector in vectors)
            factor = min(1.0, limit / max(math.sqrt(total), 1e-30))
        call(update_latents, 0, F, state, gradients, factor, adam, loss.unit_norm, held)
        call(update_biases, state, gradients, factor, adam)
        call(count_since_fired, state.since_fired, gradients.fired, len(batch.x))
        return factor


def by_sae(
    tensors: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> list[Parameters]:
    """Give a bank's parameters, or a moment of them, SAE by SAE as views of the bank's memory."""
    checked: dict[str, F32] = {
        name: checked_array(tensor, name, torch.float32, shapes[name])
        for name, tensor in tensors.items()
    }
    parts = [checked[name] for name in Parameters._fields]
    return [Parameters(*(part[i] for part in parts)) for i in range(len(parts[0]))]


class SparseEngine:
    """Trains a bank on the CPU with the kernels."""

    def __init__(
        self,
        bank: SAEBank,
        rows: torch.Tensor,
        training: BankTrainingConfig,
        n_rows: int | None = None,
    ) -> None:
        self.bank = bank
        self.training = training
        self.d_sae = bank.d_sae
        if rows.shape[1] != bank.d_in:
            raise ValueError(f"rows: width {rows.shape[1]}, but the bank's is {bank.d_in}")
        self.rows: F32 = rows.detach().cpu().float().contiguous().numpy()
        self.selection = bank.architecture.selection
        self.method = training.dead_latent_method(bank.architecture.name)
        self.prefixes: I64 = np.array(bank.prefixes, dtype=np.int64)
        # rows may be a buffer for more of them
        self.dead_rows = float(training.dead_after_passes * (n_rows or len(rows)))
        self.k_aux = min(training.aux_k or max(1, bank.d_in // 2), bank.d_sae)
        self.bandwidth: F64 = np.array([c.jumprelu_bandwidth for c in bank.configs])
        # arrays that share the tensors' memory
        self.weights = list(zip(bank.parameters["W_enc"], bank.parameters["W_dec"], strict=True))
        n, F, d = len(bank), bank.d_sae, bank.d_in
        shapes = {
            "W_enc": (n, F, d),
            "b_enc": (n, F),
            "W_dec": (n, F, d),
            "b_dec": (n, d),
            "log_threshold": (n, F),
        }
        kinds = (bank.parameters, bank.first_moment, bank.second_moment)
        parameters, first, second = (by_sae(kind, shapes) for kind in kinds)
        since_fired: I64 = checked_array(bank.since_fired, "since_fired", torch.int64, (n, F))
        self.states = [
            SAEState(parameters[i], first[i], second[i], since_fired[i]) for i in range(n)
        ]
        start: F32 = checked_array(bank.W_dec_init, "W_dec_init", torch.float32, (n, F, d))
        self.held = [
            Held(start[i], c.freezes_encoder, c.freezes_decoder, c.least_cosine)
            for i, c in enumerate(bank.configs)
        ]
        if self.selection == "threshold":
            self.log_threshold = [
                checked_array(kind["log_threshold"], "log_threshold", torch.float32, (n, F))
                for kind in kinds
            ]
        self.running_threshold: F64 = bank.running_threshold.numpy()
        self.stopped_at: I64 = bank.stopped_at.numpy()
        self.level: I64 = np.zeros(n, np.int64)
        threads = training.threads or torch.get_num_threads()
        self.workers = [_Worker(self) for _ in range(min(threads, len(bank)))]
        self.blas = ThreadpoolController()

    def _row_numbers(self, chosen: torch.Tensor, n_steps: int) -> I64:
        """Row numbers ``[n_steps, B]`` that the kernels may read: they do not look at bounds."""
        shape = (n_steps, self.training.batch_size)
        numbers: I64 = checked_array(chosen, "batches", torch.int64, shape)
        if numbers.size and (numbers.min() < 0 or numbers.max() >= len(self.rows)):
            raise ValueError(
                f"batches: row numbers {numbers.min()} to {numbers.max()}, but there are "
                f"{len(self.rows)} rows"
            )
        return numbers

    def run(self, table: StepTable, batches: dict[int, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Advance every SAE still training; see :meth:`husai.sae.engines.dense.DenseEngine.run`."""
        n_steps = len(table.learning_rate)
        sums = np.zeros((4, len(self.bank)))
        numbers = {seed: self._row_numbers(chosen, n_steps) for seed, chosen in batches.items()}
        seeds = {i: self.bank.configs[i].data_seed for i in self.bank.active()}
        turns = Turns(seeds, n_steps, len(self.workers))

        def work(worker: _Worker) -> None:
            # the products run on our threads; threads of their own would get in the way
            torch.set_num_threads(1)
            while (turn := turns.take()) is not None:
                batches = numbers[turn.seed][turn.begin : turn.end]
                worker.advance(turn.saes, batches, table, turn.begin, sums)
                turns.give_back(turn)

        before = self.bank.stopped_at.clone()
        with one_thread(), self.blas.limit(limits=1, user_api="blas"):
            if len(self.workers) == 1:
                work(self.workers[0])
            else:
                with ThreadPoolExecutor(len(self.workers)) as pool:
                    for future in [pool.submit(work, worker) for worker in self.workers]:
                        future.result()
        failed = (before < 0) & (self.bank.stopped_at >= 0)
        self.bank.failed |= failed
        means = torch.from_numpy(sums / n_steps)
        means[:, failed] = torch.nan
        names = ("loss", "train_fvu", "auxiliary", "train_l0")
        return dict(zip(names, means, strict=True))
