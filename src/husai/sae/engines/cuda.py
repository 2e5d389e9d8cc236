"""The CUDA engine: trains a bank with the Triton kernels, SAEs that share rows together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from husai.sae.bank import SAEBank
from husai.sae.config import BankTrainingConfig
from husai.sae.engines.dense import matmul_precision, update_running_threshold
from husai.sae.gpu.dead import Encoder, auxk
from husai.sae.gpu.plan import Chunk, cut_into_chunks, kernel_settings
from husai.sae.gpu.step import CudaStep
from husai.sae.schedule import StepTable, threshold_decay


class CudaRows(NamedTuple):
    """Rows that the engine reads."""

    values: torch.Tensor
    """Scaled rows ``[m, d]``, or a buffer for more of them."""
    centre: torch.Tensor
    """Subtracted from every row ``[d]``: a 16-bit format would lose differences of rows far from 0.

    It changes the result only by rounding; it has to be the same after a resume.
    """
    n_rows: int
    """Rows of a pass."""


class CudaEngine:
    """Trains a bank on a CUDA device with the Triton kernels.

    Tests compare it with the dense engine. Weights are float32; ``training.precision`` is the
    precision of the matrix products. SAEs do not depend on each other, but the bank is one matrix
    product, so their last bits may depend on how many train together.
    """

    def __init__(
        self, bank: SAEBank, rows: CudaRows, training: BankTrainingConfig, device: torch.device
    ) -> None:
        self.bank = bank
        self.training = training
        self.device = device
        self.rows = rows.values.to(device)
        self.centre = rows.centre.to(device)
        self.step = CudaStep(bank, training, device)
        self.method = training.dead_latent_method(bank.architecture.name)
        self.dead_rows = training.dead_after_passes * rows.n_rows
        self.k_aux = min(training.aux_k or max(1, bank.d_in // 2), bank.d_sae)
        n = len(bank)
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
        s = slice(chunk.first, chunk.last)
        mine = settings[s]
        forward = self.step.forward(chunk, x, self.centre, mine, k[s])
        losses, weight = forward.losses, self.training.aux_coefficient
        extra = None
        if dead is not None:
            p = forward.parameters
            sae = Encoder(x, p["W_enc"], forward.bias, p["W_dec"], forward.b_dec)
            last = forward.error[:, -1].float()
            auxiliary, extra = auxk(sae, last, dead, most, self.k_aux, weight)
            losses = losses._replace(auxiliary=auxiliary.double())
        total = losses.reconstruction + mine[:, 5].double() * len(x) * losses.cost
        total = total + weight * losses.auxiliary
        alive = self.alive[s]
        broken = alive & ~total.isfinite()
        self.failed_at[s] = torch.where(broken, self.at, self.failed_at[s])
        alive &= ~broken
        self.step.update(chunk, x, forward, mine, alive, extra)
        if self.step.selection == "batch":
            running = self.bank.running_threshold[s]
            decay = self.tables["decay"].index_select(0, self.at)
            update_running_threshold(running, decay, losses.smallest, alive)
        values = (total, losses.reconstruction, losses.auxiliary, losses.l0)
        self.sums[:, s] += torch.stack(values)
