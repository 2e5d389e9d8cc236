"""The sparse engine: runs the kernels on threads, a team of SAEs at a time."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from threadpoolctl import ThreadpoolController

from husai.sae import kernels
from husai.sae.bank import SAEBank
from husai.sae.config import BankTrainingConfig
from husai.sae.kernels import Codes, Ordered, Scratch, Settings, State
from husai.sae.schedule import BATCH_TOPK_BETA, StepTable

TEAM_WIDTH = 512
"""Latents in a team at most (a wider SAE is a team of its own): what a block of rows × latents
needs then stays in a core's cache."""

STRETCH_STEPS = 10
"""Steps a thread advances a team before it takes the team that is furthest behind."""

SELECTIONS = {
    "all": kernels.ALL,
    "row": kernels.ROW,
    "batch": kernels.BATCH,
    "threshold": kernels.THRESHOLD,
}
METHODS = {
    "none": kernels.NONE,
    "resample": kernels.NONE,
    "auxk": kernels.AUXK,
    "ghost": kernels.GHOST,
}


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


def make_scratch(
    settings: Settings, batch_size: int, d_in: int, d_sae: int, team_size: int, max_k: int
) -> Scratch:
    """Working memory of one thread."""
    B, F, G, d = batch_size, d_sae, team_size, d_in
    R, P = min(kernels.ROW_BLOCK, B), len(settings.prefixes)
    selection = settings.selection
    if selection == kernels.ROW:
        capacity = B * max_k
    elif selection == kernels.BATCH:
        # lists hold a margin over the B·k that stay, and the row that is being added
        capacity = min(B * F, 2 * B * max_k + F)
    else:
        capacity = max(B * F // kernels.DENSE_FROM, 1)
    aux_capacity = B * settings.k_aux if settings.method == kernels.AUXK else 1
    dense = selection in (kernels.ALL, kernels.THRESHOLD)
    ghost = settings.method == kernels.GHOST

    def codes(size: int) -> Codes:
        value = np.empty((G, size), np.float32)
        return Codes(
            np.zeros((G, B + 1), np.int64),
            np.empty((G, size), np.int32),
            value,
            value.view(np.int32),
            np.empty(size, np.float32),
        )

    def ordered(size: int) -> Ordered:
        return Ordered(
            np.zeros(F + 1, np.int64),
            np.empty(size, np.int32),
            np.empty(size, np.float32),
            np.empty(size, np.float32),
        )

    pre = np.empty(R * G * F, np.float32)
    block = F if settings.clip > 0 else min(F, kernels.LATENT_BLOCK)
    return Scratch(
        x=np.empty((B, d), np.float32),
        pre=pre,
        bits=pre.view(np.int32),
        bias=np.empty((G, F), np.float32),
        edge=np.empty((G, F), np.float32),
        main=codes(capacity),
        aux=codes(aux_capacity),
        row_of=np.empty((G, 1 if selection == kernels.ROW else capacity), np.int32),
        error=np.empty((P, B, d), np.float32),
        aux_error=np.empty((B if settings.method == kernels.AUXK else 1, d), np.float32),
        chunk_max=np.empty(F, np.int32),
        chosen=np.empty(F + 1, np.int32),
        candidate_bits=np.empty(F + 1, np.int32),
        candidate=np.empty(F + 1, np.int32),
        dead=np.empty((G, F + 1), np.int32),
        dead_slot=np.empty(F, np.int32),
        ordered=ordered(capacity),
        aux_ordered=ordered(aux_capacity),
        g_enc=np.empty((block, d), np.float32),
        g_dec=np.empty((block, d), np.float32),
        g_b=np.empty(F, np.float32),
        g_threshold=np.empty(F, np.float32),
        g_b_dec=np.empty(d, np.float32),
        norms=np.empty(F, np.float32),
        fired=np.empty(F, np.int64),
        group=np.empty((P, d), np.float32),
        dense_f=np.empty(R * F if dense else 1, np.float32),
        dense_enc=np.empty((F, d) if dense else (1, 1), np.float32),
        dense_dec=np.empty((F, d) if dense else (1, 1), np.float32),
        dense_sum=np.empty(F, np.float32),
        ghost_enc=np.empty((F, d) if ghost else (1, 1), np.float32),
        ghost_dec=np.empty((F, d) if ghost else (1, 1), np.float32),
        ghost_b=np.empty(F, np.float32),
    )


class SparseEngine:
    """Trains a bank with the kernels, one team a thread."""

    def __init__(self, bank: SAEBank, rows: torch.Tensor, training: BankTrainingConfig) -> None:
        self.bank = bank
        self.rows = rows.numpy()
        n, d_sae, d_in = len(bank), bank.d_sae, bank.d_in
        self.threads = training.threads or torch.get_num_threads()
        self.teams = make_teams(bank, self.threads)
        self.threads = min(self.threads, len(self.teams))

        def arrays(named: dict[str, torch.Tensor]) -> list[kernels.F32]:
            empty = torch.zeros(1, 1)
            names = ("W_enc", "b_enc", "W_dec", "b_dec", "log_threshold")
            return [named.get(name, empty).numpy() for name in names]

        self.state = State(
            *arrays(bank.parameters),
            *arrays(bank.first_moment),
            *arrays(bank.second_moment),
            running_threshold=bank.running_threshold.numpy(),
            since_fired=bank.since_fired.numpy(),
            stopped_at=bank.stopped_at.numpy(),
            level=np.zeros(n, np.int64),
        )
        self.settings = Settings(
            selection=SELECTIONS[bank.architecture.selection],
            method=METHODS[training.dead_latents],
            prefixes=np.array(bank.prefixes, dtype=np.int64),
            dead_rows=float(training.dead_after_passes * len(rows)),
            aux_coefficient=training.aux_coefficient,
            k_aux=min(training.aux_k or max(1, d_in // 2), d_sae),
            beta1=training.beta1,
            beta2=training.beta2,
            epsilon=training.epsilon,
            weight_decay=training.weight_decay if training.optimizer == "adamw" else 0.0,
            clip=training.clip_grad_norm or 0.0,
            unit_norm=training.unit_norm_decoder,
            threshold_beta=BATCH_TOPK_BETA,
            bandwidth=np.array([c.jumprelu_bandwidth for c in bank.configs]),
        )
        factor = training.k_anneal_factor if training.k_anneal_steps else 1.0
        max_k = max(min(d_sae, round((c.k or 1) * factor)) for c in bank.configs)
        team_size = max(team.end - team.begin for team in self.teams)
        self.scratch = [
            make_scratch(self.settings, training.batch_size, d_in, d_sae, team_size, max_k)
            for _ in range(self.threads)
        ]
        self.blas = ThreadpoolController()

    def run(self, table: StepTable, batches: dict[int, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Advance every SAE still training; see :meth:`husai.sae.dense.DenseEngine.run`."""
        n_steps = len(table.learning_rate)
        sums = np.zeros((4, len(self.bank)))
        rows_of = {seed: numbers.numpy() for seed, numbers in batches.items()}
        lock = threading.Lock()
        waiting = [team for team in self.teams if self._any_active(team)]
        for team in waiting:
            team.done = 0

        def work(scratch: Scratch) -> None:
            while True:
                with lock:
                    if not waiting:
                        return
                    team = min(waiting, key=lambda t: t.done)
                    waiting.remove(team)
                begin, end = team.done, min(team.done + STRETCH_STEPS, n_steps)
                kernels.run_team(
                    self.state,
                    self.settings,
                    scratch,
                    self.rows,
                    rows_of[team.data_seed][begin:end],
                    team.begin,
                    team.end,
                    table.first_step + begin,
                    table.learning_rate[begin:end],
                    table.penalty[begin:end],
                    table.k[begin:end],
                    sums,
                )
                team.done = end
                if end < n_steps:
                    with lock:
                        waiting.append(team)

        before = self.bank.stopped_at.clone()
        # threads of their own would fight with ours
        with self.blas.limit(limits=1, user_api="blas"):
            if self.threads == 1:
                work(self.scratch[0])
            else:
                with ThreadPoolExecutor(self.threads) as pool:
                    for future in [pool.submit(work, scratch) for scratch in self.scratch]:
                        future.result()
        failed = (before < 0) & (self.bank.stopped_at >= 0)
        self.bank.failed |= failed
        names = ("loss", "train_fvu", "auxiliary", "train_l0")
        means = torch.from_numpy(sums / n_steps)
        means[:, failed] = torch.nan
        return dict(zip(names, means, strict=True))

    def _any_active(self, team: Team) -> bool:
        return bool((self.bank.stopped_at[team.begin : team.end] < 0).any())
