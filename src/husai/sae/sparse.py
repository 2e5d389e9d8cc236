"""The sparse engine: strings the kernels together, a team of SAEs a thread."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import scipy.linalg.cython_blas  # noqa: F401  (numba's products use it: load before its threads are set)
import torch
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from husai.sae import kernels
from husai.sae.bank import SAEBank
from husai.sae.config import BankTrainingConfig
from husai.sae.kernels import F32, I32, I64
from husai.sae.schedule import BATCH_TOPK_BETA, StepTable

TEAM_WIDTH = 512
"""Latents in a team at most (a wider SAE is a team of its own): what a block of rows × latents
needs then stays in a core's cache."""

STRETCH_STEPS = 10
"""Steps a thread advances a team before it takes the team that is furthest behind."""


@dataclass
class Team:
    """SAEs ``begin … end − 1``, which see the same batches, and how far they are."""

    begin: int
    end: int
    data_seed: int
    done: int = 0


def make_teams(bank: SAEBank, threads: int) -> list[Team]:
    """Cut the bank into teams of neighbours with the same data seed.

    Narrow SAEs share an encoder product as wide as :data:`TEAM_WIDTH`, but no thread is left
    without a team where there are SAEs enough.
    """
    n = len(bank)
    size = max(1, min(TEAM_WIDTH // bank.d_sae, -(-n // threads)))
    teams: list[Team] = []
    for index, config in enumerate(bank.configs):
        last = teams[-1] if teams else None
        if last and last.data_seed == config.data_seed and last.end - last.begin < size:
            last.end = index + 1
        else:
            teams.append(Team(index, index + 1, config.data_seed))
    return teams


class _Codes:
    """Active latents of a batch, row by row per SAE of a team, and in latent order for one."""

    def __init__(self, team_size: int, batch_size: int, d_sae: int, capacity: int) -> None:
        self.start: I64 = np.zeros((team_size, batch_size + 1), np.int64)
        self.latent: I32 = np.empty((team_size, capacity), np.int32)
        self.value: F32 = np.empty((team_size, capacity), np.float32)
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

    def __init__(self, engine: SparseEngine, team_size: int) -> None:
        self.engine = engine
        bank, training = engine.bank, engine.training
        B, F, G, d = training.batch_size, bank.d_sae, team_size, bank.d_in
        R, P = min(kernels.ROW_BLOCK, B), len(bank.prefixes)
        selection = bank.architecture.selection
        factor = training.k_anneal_factor if training.k_anneal_steps else 1.0
        max_k = max(min(F, round((c.k or 1) * factor)) for c in bank.configs)
        if selection == "row":
            capacity = B * max_k
        elif selection == "batch":
            # a margin over the B·k that stay, and room for a row
            capacity = 2 * B * max_k + F
        else:
            capacity = max(B * F // kernels.DENSE_FROM, F)
        self.listed = selection in ("all", "threshold")
        auxk, ghost = engine.method == "auxk", engine.method == "ghost"
        self.x: F32 = np.empty((B, d), np.float32)
        self.pre: F32 = np.empty(R * G * F, np.float32)
        self.bits: I32 = self.pre.view(np.int32)
        self.bias: F32 = np.empty((G, F), np.float32)
        self.edge: F32 = np.zeros((G, F), np.float32)
        self.main = _Codes(G, B, F, capacity)
        self.aux = _Codes(G, B, F, B * engine.k_aux if auxk else 1)
        self.row_of: I32 = np.empty((G, capacity if selection == "batch" else 1), np.int32)
        self.error: F32 = np.empty((P, B, d), np.float32)
        self.aux_error: F32 = np.empty((1, B if auxk else 1, d), np.float32)
        self.row_memory = tuple(np.empty(F + 1, np.int32) for _ in range(4))
        self.dead: I32 = np.empty((G, F + 1), np.int32)
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
            self.dense_f: F32 = np.empty(R * F, np.float32)
            self.dense_enc: F32 = np.empty((F, d), np.float32)
            self.dense_dec: F32 = np.empty((F, d), np.float32)
            self.dense_sum: F32 = np.empty(F, np.float32)
        if ghost:
            self.ghost_enc: F32 = np.empty((F, d), np.float32)
            self.ghost_dec: F32 = np.empty((F, d), np.float32)
            self.ghost_b: F32 = np.empty(F, np.float32)
            self.dead_slot: I32 = np.empty(F, np.int32)

    def advance(
        self, team: Team, batches: I64, table: StepTable, offset: int, sums: kernels.F64
    ) -> None:
        """Make the steps of ``batches [n, B]``, which start ``offset`` steps into the table."""
        for t in range(len(batches)):
            if not self.step(
                team,
                batches[t],
                table.first_step + offset + t,
                table.learning_rate[offset + t],
                table.penalty[offset + t],
                table.k[offset + t],
                sums,
            ):
                return

    def step(
        self,
        team: Team,
        batch: I64,
        step: int,
        rate: kernels.F64,
        penalty: kernels.F64,
        k: I64,
        sums: kernels.F64,
    ) -> bool:
        """Make one step of a team; ``False`` when none of its SAEs trains any more."""
        e = self.engine
        i0, i1 = team.begin, team.end
        G = i1 - i0
        pending = (e.stopped_at[i0:i1] < 0).astype(np.int64)
        if not pending.any():
            return False
        bias, edge = self.bias[:G], self.edge[:G]
        p = e.parameters
        kernels.prepare_team(e.rows, batch, i0, p["W_enc"], p["b_enc"], p["b_dec"], self.x, bias)
        n_dead = np.zeros(G, np.int64)
        if e.method in ("auxk", "ghost"):
            for g in range(G):
                n_dead[g] = kernels.list_dead(e.since_fired, i0 + g, e.dead_rows, self.dead, g)
        stacked = p["W_enc"][i0:i1].reshape(G * e.d_sae, -1)
        collected = n_dead if e.method == "auxk" else np.zeros(G, np.int64)
        dense = np.zeros(G, np.int64)
        selection = e.selection
        common = (
            self.pre,
            self.bits,
            *self.row_memory,
            *(self.main.start, self.main.latent, self.main.bits),
            *(self.dead, collected, e.k_aux),
            *(self.aux.start, self.aux.latent, self.aux.bits),
        )
        if selection == "row":
            kernels.encode_row(self.x, stacked, bias, pending, k[i0:i1], *common)
        elif selection == "batch":
            kernels.encode_batch(
                self.x, stacked, bias, pending, k[i0:i1], *common, self.row_of, e.level, i0
            )
        else:
            jump = selection == "threshold"
            if jump:
                kernels.set_edges(p["log_threshold"], i0, e.bandwidth, edge)
            kernels.encode_positive(self.x, stacked, bias, pending, edge, jump, dense, *common)
        for g in range(G):
            if pending[g]:
                i = i0 + g
                self.step_sae(
                    i,
                    g,
                    step,
                    float(rate[i]),
                    float(penalty[i]),
                    int(n_dead[g]),
                    bool(dense[g]),
                    sums,
                )
        return True

    def step_sae(
        self,
        i: int,
        g: int,
        step: int,
        rate: float,
        penalty: float,
        n_dead: int,
        dense: bool,
        sums: kernels.F64,
    ) -> None:
        """Make the rest of a step for SAE ``i`` of the bank, ``g`` of its team."""
        e = self.engine
        training = e.training
        p = e.parameters
        x, error, main, aux = self.x, self.error, self.main, self.aux
        bandwidth = float(e.bandwidth[i]) if e.selection == "threshold" else 0.0
        if not training.unit_norm_decoder:
            kernels.set_norms(p["W_dec"], i, self.norms)
        if dense:
            found = kernels.dense_pass(
                *(i, g, x, p["W_enc"], self.bias, p["W_dec"], p["b_dec"], self.norms, self.edge),
                *(bandwidth, penalty, self.pre, self.bits, self.dense_f, error),
                *(self.dense_enc, self.dense_dec, self.dense_sum, self.g_b, self.g_threshold),
                *(self.fired, self.row_memory[2], self.row_memory[3], self.dead),
                *(n_dead if e.method == "auxk" else 0, e.k_aux),
                *(aux.start, aux.latent, aux.bits),
            )
        elif e.selection == "threshold":
            found = kernels.reconstruct_jump(
                *(i, g, x, p["W_dec"], p["b_dec"], self.edge, bandwidth, penalty),
                *(*main.by_row, error, self.g_threshold),
            )
        elif len(e.prefixes) > 1:
            found = kernels.reconstruct_nested(
                *(i, g, x, p["W_dec"], p["b_dec"], self.norms, penalty),
                *(*main.by_row, error, e.prefixes, self.group),
            )
        else:
            found = kernels.reconstruct(
                i, g, x, p["W_dec"], p["b_dec"], self.norms, penalty, *main.by_row, error
            )
        reconstruction, cost, l0, smallest = found
        auxiliary, aux_scale = 0.0, 0.0
        with_aux = e.method == "auxk" and n_dead > 0
        with_ghost = e.method == "ghost" and n_dead > 0
        B, d = x.shape
        if with_aux:
            auxiliary, variance = kernels.auxk(i, g, p["W_dec"], error, *aux.by_row, self.aux_error)
            if variance > 0:
                aux_scale = 2 * training.aux_coefficient / (B * variance)
        if with_ghost:
            auxiliary = kernels.ghost(
                *(i, g, x, p["W_enc"], self.bias, p["W_dec"], error, self.dead, n_dead),
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
            self._step_latents_apart(i, g, dense, with_aux, aux_scale, with_ghost, l1, adam, decay)
        else:
            kernels.step_latents(
                *(i, g, x),
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
            mixed = BATCH_TOPK_BETA * old + (1 - BATCH_TOPK_BETA) * smallest
            e.running_threshold[i] = smallest if old < 0 else mixed

    def _step_latents_apart(
        self,
        i: int,
        g: int,
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
            kernels.order_by_latent(g, *aux.by_row, aux_scale, *aux.by_latent)
        kernels.sum_errors(error, self.g_b_dec)
        place = (0, F, i, x, p["W_enc"], p["W_dec"], p["b_dec"], self.norms, l1, unit_norm)
        of_aux = (with_aux, self.aux_error, *aux.by_latent)
        into = (self.g_enc, self.g_dec, self.g_b, self.g_b_dec)
        if dense:
            sums = (self.dense_enc, self.dense_dec, self.dense_sum)
            kernels.dense_gradients(*place, *sums, *of_aux, *into)
        else:
            kernels.order_by_latent(g, *self.main.by_row, 1.0, *self.main.by_latent)
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
        self.method = training.dead_latents
        self.prefixes: I64 = np.array(bank.prefixes, dtype=np.int64)
        self.dead_rows = float(training.dead_after_passes * len(rows))
        self.k_aux = min(training.aux_k or max(1, bank.d_in // 2), bank.d_sae)
        self.bandwidth: kernels.F64 = np.array([c.jumprelu_bandwidth for c in bank.configs])
        # arrays that share the tensors' memory
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
        self.teams = make_teams(bank, threads)
        team_size = max(team.end - team.begin for team in self.teams)
        self.workers = [_Worker(self, team_size) for _ in range(min(threads, len(self.teams)))]
        self.blas = ThreadpoolController()

    def run(self, table: StepTable, batches: dict[int, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Advance every SAE still training; see :meth:`husai.sae.dense.DenseEngine.run`."""
        n_steps = len(table.learning_rate)
        sums = np.zeros((4, len(self.bank)))
        numbers = {seed: chosen.numpy() for seed, chosen in batches.items()}
        lock = threading.Lock()
        waiting = list(self.teams)
        for team in waiting:
            team.done = 0

        def work(worker: _Worker) -> None:
            while True:
                with lock:
                    if not waiting:
                        return
                    team = min(waiting, key=lambda candidate: candidate.done)
                    waiting.remove(team)
                begin, end = team.done, min(team.done + STRETCH_STEPS, n_steps)
                worker.advance(team, numbers[team.data_seed][begin:end], table, begin, sums)
                team.done = end
                if end < n_steps:
                    with lock:
                        waiting.append(team)

        before = self.bank.stopped_at.clone()
        # the products run on our threads; threads of their own would get in the way
        with self.blas.limit(limits=1, user_api="blas"):
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
