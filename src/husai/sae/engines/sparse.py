"""The sparse engine: strings the kernels together, a SAE a thread."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import scipy.linalg.cython_blas  # noqa: F401  (numba's products use it: load before its threads are set)
import torch
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from husai.sae import kernels
from husai.sae.bank import SAEBank
from husai.sae.config import BankTrainingConfig
from husai.sae.kernels import F32, I32, I64
from husai.sae.schedule import StepTable, threshold_decay

STRETCH_STEPS = 10
"""Steps a thread advances a SAE before it takes the one that is furthest behind."""


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread for each call meanwhile."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Codes:
    """Active latents of a batch, row by row, and in latent order."""

    def __init__(self, batch_size: int, d_sae: int, capacity: int) -> None:
        self.start: I64 = np.zeros(batch_size + 1, np.int64)
        self.latent: I32 = np.empty(capacity, np.int32)
        self.value: F32 = np.empty(capacity, np.float32)
        self.bits: I32 = self.value.view(np.int32)
        self.gradient: F32 = np.empty(capacity, np.float32)
        self.order_start: I64 = np.zeros(d_sae + 1, np.int64)
        self.order_row: I32 = np.empty(capacity, np.int32)
        self.order_value: F32 = np.empty(capacity, np.float32)
        self.order_gradient: F32 = np.empty(capacity, np.float32)

    @property
    def by_row(self) -> tuple[I64, I32, F32, F32]:
        return self.start, self.latent, self.value, self.gradient

    @property
    def by_latent(self) -> tuple[I64, I32, F32, F32]:
        return self.order_start, self.order_row, self.order_value, self.order_gradient


class _Worker:
    """One thread's working memory, and the steps it makes with it."""

    def __init__(self, engine: SparseEngine) -> None:
        self.engine = engine
        bank, training = engine.bank, engine.training
        B, F, d = training.batch_size, bank.d_sae, bank.d_in
        P = len(bank.prefixes)
        self.block_rows = min(B, max(1, kernels.BLOCK_VALUES // F))
        selection = bank.architecture.selection
        factor = training.k_anneal_factor if training.k_anneal_steps else 1.0
        max_k = max(min(F, round((c.k or 1) * factor)) for c in bank.configs)
        if selection == "row":
            capacity = B * max_k + 1
        elif selection == "batch":
            # a margin over the B·k that stay, and room for a row
            capacity = 2 * B * max_k + F
        else:
            capacity = max(B * F // kernels.DENSE_FROM, F)
        self.listed = selection in ("all", "threshold")
        auxk, ghost = engine.method == "auxk", engine.method == "ghost"
        # tensors, because torch's memory is aligned and a product may depend on that
        self.x_tensor = torch.empty(B, d)
        self.pre_tensor = torch.empty(self.block_rows * F)
        self.x: F32 = self.x_tensor.numpy()
        self.pre: F32 = self.pre_tensor.numpy()
        self.bits: I32 = self.pre.view(np.int32)
        self.bias: F32 = np.empty(F, np.float32)
        self.edge: F32 = np.zeros(F, np.float32)
        self.main = _Codes(B, F, capacity)
        self.aux = _Codes(B, F, B * engine.k_aux if auxk else 1)
        self.row_of: I32 = np.empty(capacity if selection == "batch" else 1, np.int32)
        self.error: F32 = np.empty((P, B, d), np.float32)
        self.aux_error: F32 = np.empty((1, B if auxk else 1, d), np.float32)
        self.chunk_max: F32 = np.empty(F + 1, np.float32)
        self.candidates: tuple[I32, I32, I32] = (
            np.empty(F + 1, np.int32),
            np.empty(F + 1, np.int32),
            np.empty(F + 1, np.int32),
        )
        self.dead: I32 = np.empty(F + 1, np.int32)
        block = F if training.clip_grad_norm or ghost else min(F, kernels.LATENT_BLOCK)
        self.g_enc: F32 = np.empty((block, d), np.float32)
        self.g_dec: F32 = np.empty((block, d), np.float32)
        self.g_b: F32 = np.empty(F, np.float32)
        self.g_b_dec: F32 = np.empty(d, np.float32)
        self.g_threshold: F32 = np.zeros(F, np.float32)
        self.norms: F32 = np.ones(F, np.float32)
        self.fired: I64 = np.empty(F, np.int64)
        self.group: F32 = np.empty((P, d), np.float32)
        if self.listed:
            self.dense_f: F32 = np.empty(self.block_rows * F, np.float32)
            self.dense_enc: F32 = np.empty((F, d), np.float32)
            self.dense_dec: F32 = np.empty((F, d), np.float32)
            self.dense_sum: F32 = np.empty(F, np.float32)
        if ghost:
            self.ghost_enc: F32 = np.empty((F, d), np.float32)
            self.ghost_dec: F32 = np.empty((F, d), np.float32)
            self.ghost_b: F32 = np.empty(F, np.float32)
            self.dead_slot: I32 = np.empty(F, np.int32)

    def advance(
        self, i: int, batches: I64, table: StepTable, offset: int, sums: kernels.F64
    ) -> None:
        """Make the steps of ``batches [n, B]``, which start ``offset`` steps into the table."""
        e = self.engine
        for t in range(len(batches)):
            if e.stopped_at[i] >= 0:
                return
            at = offset + t
            kernels.gather_rows(e.rows, batches[t], self.x)
            self.step(
                i,
                table.first_step + at,
                float(table.learning_rate[at, i]),
                float(table.penalty[at, i]),
                int(table.k[at, i]),
                sums,
            )

    def encode(self, i: int, k: int, n_dead: int) -> bool:
        """List SAE ``i``'s active latents on ``x``; ``False`` where a list would be too long."""
        e = self.engine
        B, F = len(self.x), e.d_sae
        W_enc = e.W_enc[i].T
        state = np.zeros(4, np.int64)
        if e.selection == "batch":
            state[2] = e.level[i]
        memory = (
            *(self.pre, self.bits, self.chunk_max, self.chunk_max.view(np.int32)),
            *(*self.candidates, state, self.main.start, self.main.latent, self.main.bits),
            *(self.dead, n_dead, e.k_aux, self.aux.start, self.aux.latent, self.aux.bits),
        )
        for r0 in range(0, B, self.block_rows):
            n = min(self.block_rows, B - r0)
            out = self.pre_tensor[: n * F].view(n, F)
            torch.mm(self.x_tensor[r0 : r0 + n], W_enc, out=out)
            if e.selection == "row":
                kernels.select_in_rows(r0, n, self.bias, k, *memory)
            elif e.selection == "batch":
                kernels.list_for_batch(r0, n, self.bias, k, *memory, self.row_of)
            else:
                jump = e.selection == "threshold"
                if not kernels.list_positive(r0, n, self.bias, self.edge, jump, *memory):
                    return False
        if e.selection == "batch":
            main = self.main
            complete, e.level[i] = kernels.select_in_batch(
                k, state, main.start, main.latent, main.bits, self.row_of
            )
            if not complete:
                return self.encode(i, k, n_dead)
        return True

    def step(
        self, i: int, step: int, rate: float, penalty: float, k: int, sums: kernels.F64
    ) -> None:
        """Make one step of SAE ``i`` on the rows in ``x``."""
        e = self.engine
        training = e.training
        p = e.parameters
        n_dead = 0
        if e.method in ("auxk", "ghost"):
            n_dead = kernels.list_dead(e.since_fired, i, e.dead_rows, self.dead)
        kernels.encoder_bias(i, p["W_enc"], p["b_enc"], p["b_dec"], self.bias)
        if e.selection == "threshold":
            kernels.set_edges(p["log_threshold"], i, float(e.bandwidth[i]), self.edge)
        dense = not self.encode(i, k, n_dead if e.method == "auxk" else 0)
        x, error, main, aux = self.x, self.error, self.main, self.aux
        bandwidth = float(e.bandwidth[i]) if e.selection == "threshold" else 0.0
        if not training.unit_norm_decoder:
            kernels.set_norms(p["W_dec"], i, self.norms)
        if dense:
            found = kernels.dense_pass(
                *(i, x, p["W_enc"], self.bias, p["W_dec"], p["b_dec"], self.norms, self.edge),
                *(bandwidth, penalty, self.pre, self.bits, self.dense_f, error),
                *(self.dense_enc, self.dense_dec, self.dense_sum, self.g_b, self.g_threshold),
                *(self.fired, *self.candidates[1:], self.dead),
                *(n_dead if e.method == "auxk" else 0, e.k_aux),
                *(aux.start, aux.latent, aux.bits),
            )
        elif e.selection == "threshold":
            found = kernels.reconstruct_jump(
                *(i, x, p["W_dec"], p["b_dec"], self.edge, bandwidth, penalty),
                *(*main.by_row, error, self.g_threshold),
            )
        elif len(e.prefixes) > 1:
            found = kernels.reconstruct_nested(
                *(i, x, p["W_dec"], p["b_dec"], self.norms, penalty),
                *(*main.by_row, error, e.prefixes, self.group),
            )
        else:
            found = kernels.reconstruct(
                i, x, p["W_dec"], p["b_dec"], self.norms, penalty, *main.by_row, error
            )
        reconstruction, cost, l0, smallest = found
        auxiliary, aux_scale = 0.0, 0.0
        with_aux = e.method == "auxk" and n_dead > 0
        with_ghost = e.method == "ghost" and n_dead > 0
        B, d = x.shape
        if with_aux:
            auxiliary, variance = kernels.auxk(i, p["W_dec"], error, *aux.by_row, self.aux_error)
            if variance > 0:
                aux_scale = 2 * training.aux_coefficient / (B * variance)
        if with_ghost:
            auxiliary = kernels.ghost(
                *(i, x, p["W_enc"], self.bias, p["W_dec"], error, self.dead, n_dead),
                *(training.aux_coefficient, self.ghost_enc, self.ghost_dec, self.ghost_b),
                self.dead_slot,
            )
        loss = reconstruction + penalty * cost / d + training.aux_coefficient * auxiliary
        if not math.isfinite(loss):
            e.stopped_at[i] = step
            return
        sums[:, i] += (loss, reconstruction, auxiliary, l0)
        adam = (
            rate / (1 - training.beta1 ** (step + 1)),
            1 / math.sqrt(1 - training.beta2 ** (step + 1)),
            training.beta1,
            training.beta2,
            training.epsilon,
        )
        decay = rate * training.weight_decay if training.optimizer == "adamw" else 0.0
        l1 = penalty if e.selection != "threshold" else 0.0
        if dense or with_ghost or training.clip_grad_norm:
            self._step_latents_apart(i, dense, with_aux, aux_scale, with_ghost, l1, adam, decay)
        else:
            kernels.step_latents(
                *(i, x),
                *(array for name in ("W_enc", "b_enc", "W_dec", "b_dec") for array in e.adam[name]),
                *(self.norms, l1, training.unit_norm_decoder, e.prefixes, error),
                *(*main.by_row, *main.by_latent),
                *(with_aux, aux_scale, self.aux_error, *aux.by_row, *aux.by_latent),
                *(self.g_enc, self.g_dec, self.g_b, self.g_b_dec, self.fired, e.since_fired),
                *(*adam, decay),
            )
            if e.selection == "threshold":
                kernels.update_vector(i, *e.adam["log_threshold"], self.g_threshold, 1.0, *adam)
        if e.selection == "batch" and smallest < math.inf:
            old = e.running_threshold[i]
            beta = threshold_decay(step)
            mixed = beta * old + (1 - beta) * smallest
            e.running_threshold[i] = smallest if old < 0 else mixed

    def _step_latents_apart(
        self,
        i: int,
        dense: bool,
        with_aux: bool,
        aux_scale: float,
        with_ghost: bool,
        l1: float,
        adam: tuple[float, float, float, float, float],
        decay: float,
    ) -> None:
        """Do as `kernels.step_latents`, where all gradients are needed before any update."""
        e = self.engine
        training = e.training
        p = e.parameters
        F = e.d_sae
        unit_norm = training.unit_norm_decoder
        if len(self.g_enc) < F:
            self.g_enc, self.g_dec = np.empty((2, F, self.x.shape[1]), np.float32)
        x, error, aux = self.x, self.error, self.aux
        if with_aux:
            kernels.order_by_latent(*aux.by_row, aux_scale, *aux.by_latent)
        kernels.sum_errors(error, self.g_b_dec)
        place = (0, F, i, x, p["W_enc"], p["W_dec"], p["b_dec"], self.norms, l1, unit_norm)
        of_aux = (with_aux, self.aux_error, *aux.by_latent)
        into = (self.g_enc, self.g_dec, self.g_b, self.g_b_dec)
        if dense:
            sums = (self.dense_enc, self.dense_dec, self.dense_sum)
            kernels.dense_gradients(*place, *sums, *of_aux, *into)
        else:
            kernels.order_by_latent(*self.main.by_row, 1.0, *self.main.by_latent)
            kernels.gradients(
                *place, e.prefixes, error, *self.main.by_latent, *of_aux, *into, self.fired
            )
        if with_ghost:
            kernels.add_ghost(
                *(0, F, i, p["W_enc"], p["W_dec"], p["b_dec"], unit_norm, self.dead_slot),
                *(self.ghost_enc, self.ghost_dec, self.ghost_b, *into),
            )
        factor = 1.0
        thresholds = e.selection == "threshold"
        if training.clip_grad_norm:
            total = kernels.square_sum(self.g_enc) + kernels.square_sum(self.g_dec)
            vectors = [self.g_b, self.g_b_dec] + ([self.g_threshold] if thresholds else [])
            total += sum(kernels.square_sum(vector[None]) for vector in vectors)
            factor = min(1.0, training.clip_grad_norm / max(math.sqrt(total), 1e-30))
        kernels.update_latents(
            *(0, F, i, *e.adam["W_enc"], *e.adam["W_dec"], self.g_enc, self.g_dec),
            *(factor, *adam, decay, unit_norm),
        )
        kernels.update_vector(i, *e.adam["b_enc"], self.g_b, factor, *adam)
        kernels.update_vector(i, *e.adam["b_dec"], self.g_b_dec, factor, *adam)
        if thresholds:
            kernels.update_vector(i, *e.adam["log_threshold"], self.g_threshold, factor, *adam)
        kernels.count_since_fired(e.since_fired, i, self.fired, len(x))


class SparseEngine:
    """Trains a bank on the CPU with the kernels."""

    def __init__(self, bank: SAEBank, rows: torch.Tensor, training: BankTrainingConfig) -> None:
        self.bank = bank
        self.training = training
        self.rows: F32 = rows.numpy()
        self.d_sae = bank.d_sae
        self.selection = bank.architecture.selection
        self.method = training.dead_latent_method(bank.architecture.name)
        self.prefixes: I64 = np.array(bank.prefixes, dtype=np.int64)
        self.dead_rows = float(training.dead_after_passes * len(rows))
        self.k_aux = min(training.aux_k or max(1, bank.d_in // 2), bank.d_sae)
        self.bandwidth: kernels.F64 = np.array([c.jumprelu_bandwidth for c in bank.configs])
        # arrays that share the tensors' memory
        self.W_enc = bank.parameters["W_enc"]
        self.parameters: dict[str, F32] = {n: t.numpy() for n, t in bank.parameters.items()}
        self.adam: dict[str, tuple[F32, F32, F32]] = {
            name: (array, bank.first_moment[name].numpy(), bank.second_moment[name].numpy())
            for name, array in self.parameters.items()
        }
        self.running_threshold: kernels.F64 = bank.running_threshold.numpy()
        self.since_fired: I64 = bank.since_fired.numpy()
        self.stopped_at: I64 = bank.stopped_at.numpy()
        self.level: I64 = np.zeros(len(bank), np.int64)
        threads = training.threads or torch.get_num_threads()
        self.workers = [_Worker(self) for _ in range(min(threads, len(bank)))]
        self.blas = ThreadpoolController()

    def run(self, table: StepTable, batches: dict[int, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Advance every SAE still training; see :meth:`husai.sae.engines.dense.DenseEngine.run`."""
        n_steps = len(table.learning_rate)
        sums = np.zeros((4, len(self.bank)))
        numbers = {seed: chosen.numpy() for seed, chosen in batches.items()}
        lock = threading.Lock()
        done = dict.fromkeys(self.bank.active(), 0)

        def work(worker: _Worker) -> None:
            # the products run on our threads; threads of their own would get in the way
            torch.set_num_threads(1)
            while True:
                with lock:
                    if not done:
                        return
                    i = min(done, key=done.__getitem__)
                    begin = done.pop(i)
                end = min(begin + STRETCH_STEPS, n_steps)
                seed = self.bank.configs[i].data_seed
                worker.advance(i, numbers[seed][begin:end], table, begin, sums)
                if end < n_steps:
                    with lock:
                        done[i] = end

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
