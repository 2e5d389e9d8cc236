"""Train a bank of SAEs on rows of activations: :func:`train_bank`, the entry point of training."""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
import torch

from husai.errors import InputError
from husai.progress import progress_bar
from husai.sae.bank import build_bank, check_one_shape, geometric_median
from husai.sae.checkpoint import Checkpoint, read_latest, write_checkpoint
from husai.sae.config import BankTrainingConfig, SAEConfig
from husai.sae.dead import resample_dead_latents
from husai.sae.engines.dense import DenseEngine
from husai.sae.engines.sparse import SparseEngine, one_thread
from husai.sae.metrics import LossWith, evaluate
from husai.sae.rows import Rows, prepare_rows
from husai.sae.schedule import StepTable, step_table
from husai.sae.trained import TrainedSAE

OnFinish = Callable[[int, TrainedSAE], None]

EngineName = Literal["sparse", "dense", "cuda"]

TRAINING_MEANS = ("loss", "train_fvu", "auxiliary", "train_l0")
"""Means over steps that the engines return, in the order of the history."""

CHUNK_STEPS = 100
"""Number of steps whose batches are drawn at once."""


class Engine(Protocol):
    """Trains a bank for some steps; all engines compute the same function."""

    def run(self, table: StepTable, batches: dict[int, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Train every SAE that has not stopped; return the means of the losses over the steps."""
        ...


def initial_b_dec(rows: torch.Tensor, training: BankTrainingConfig) -> torch.Tensor:
    """Compute the initial value of every ``b_dec`` from scaled rows ``[n, d]``."""
    if training.b_dec_init == "geometric_median":
        return geometric_median(rows).float()
    if training.b_dec_init == "mean":
        return rows.double().mean(0).float()
    return torch.zeros(rows.shape[1])


def loss_slope(history: pd.DataFrame, window: int) -> float:
    """Compute the change of the held-out fvu per 1,000 steps, as a fraction of the fvu.

    Least-squares slope over the last ``window`` entries, divided by their mean; NaN with fewer
    than two.
    """
    tail = history.tail(window)
    if len(tail) < 2:
        return float("nan")
    step = tail["step"].to_numpy(dtype=np.float64)
    value = tail["fvu"].to_numpy(dtype=np.float64)
    if not np.isfinite(value).all() or value.mean() <= 0:
        return float("nan")
    return float(np.polyfit(step, value, 1)[0] * 1000 / value.mean())


def choose_device(training: BankTrainingConfig) -> torch.device:
    """Choose the device.

    Raises
    ------
    InputError
        When cuda is configured and there is none, or the engine does not run on the device.
    """
    if training.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device: cuda, but this machine has no CUDA device; use auto or cpu")
    if training.device == "cpu" or not torch.cuda.is_available():
        if training.engine == "cuda":
            raise InputError("engine: cuda needs a CUDA device; use auto, sparse or dense")
        return torch.device("cpu")
    if training.engine == "sparse":
        raise InputError("engine: sparse runs on the cpu only; use device cpu, or engine dense")
    return torch.device("cuda")


def choose_engine(
    training: BankTrainingConfig, configs: Sequence[SAEConfig], device: torch.device
) -> EngineName:
    """Choose the engine for the SAEs of one bank on a device.

    Raises
    ------
    InputError
        When cuda is configured, but triton is not installed or it cannot train these SAEs.
    """
    if training.engine in ("sparse", "dense"):
        return training.engine
    if device.type == "cpu":
        return "sparse"
    reason = "triton is not installed; pip install triton"
    if importlib.util.find_spec("triton") is not None:
        from husai.sae.gpu.plan import supports

        if supports(training, configs):
            return "cuda"
        reason = "it has no ghost gradients, and no k above a sixteenth of over 32,768 latents"
    if training.engine == "cuda":
        raise InputError(f"engine: cuda cannot train these SAEs: {reason}; or use engine dense")
    return "dense"


class _Run:
    """One call of :func:`train_bank`."""

    def __init__(
        self,
        rows: Rows,
        configs: Sequence[SAEConfig],
        training: BankTrainingConfig,
        checkpoint_dir: Path | None,
        loss_with: LossWith | None,
        on_finish: OnFinish | None,
    ) -> None:
        self.rows = rows
        self.training = training
        self.checkpoint_dir = checkpoint_dir
        self.dead_latents = training.dead_latent_method(configs[0].architecture)
        self.loss_with = loss_with
        self.on_finish = on_finish
        self.device = choose_device(training)
        self.engine_name = choose_engine(training, configs, self.device)
        # on one thread, because the rounding of sums depends on the number of threads
        with one_thread():
            self.bank = build_bank(configs, rows.sample, initial_b_dec(rows.sample, training))
        self.bank = self.bank.to(self.device)
        self.seeds = {config.data_seed for config in configs}
        self.step = 0
        self.seconds = 0.0
        self.records: list[list[dict[str, float]]] = [[] for _ in configs]
        self.snapshots: list[dict[int, torch.Tensor]] = [{} for _ in configs]
        self.pending: dict[str, torch.Tensor] = {}
        self.pending_steps = 0
        self.identity = {
            "configs": [config.model_dump(mode="json") for config in configs],
            # a checkpoint may be continued with other threads, or with checkpoints at other steps
            "training": training.decisive(),
            "rows": rows.fingerprint,
        }

    def provenance(self) -> dict[str, Any]:
        """How the weights were made, as JSON data."""
        return {
            "training": self.training.model_dump(mode="json"),
            "rows": {
                "fingerprint": self.rows.fingerprint,
                "n_train": self.rows.n_train,
                "n_held_out": len(self.rows.held_out),
                "scale": self.rows.scale,
            },
            "torch": torch.__version__,
            "device": str(self.device),
            "engine": self.engine_name,
        }

    def resume(self) -> None:
        """Continue from the newest checkpoint, if there is one."""
        if self.checkpoint_dir is None:
            return
        checkpoint = read_latest(self.checkpoint_dir, self.identity)
        if checkpoint is None:
            return
        self.bank.load_tensors(checkpoint.bank)
        self.step = checkpoint.step
        self.seconds = checkpoint.seconds
        self.records = checkpoint.records
        self.snapshots = checkpoint.snapshots
        self.pending = checkpoint.pending
        self.pending_steps = checkpoint.pending_steps

    def save(self) -> None:
        """Write a checkpoint of this step."""
        if self.checkpoint_dir is None:
            return
        write_checkpoint(
            self.checkpoint_dir,
            Checkpoint(
                step=self.step,
                seconds=self.seconds,
                bank=self.bank.tensors(),
                records=self.records,
                snapshots=self.snapshots,
                pending=self.pending,
                pending_steps=self.pending_steps,
            ),
            self.identity,
            keep=self.training.keep_checkpoints,
        )

    def exported(self, index: int) -> TrainedSAE:
        """Return SAE ``index`` as it is now, without metrics."""
        failure = None
        if bool(self.bank.failed[index]):
            failure = (
                f"the loss was not finite at step {int(self.bank.stopped_at[index])}; "
                "lower learning_rate"
            )
        history = pd.DataFrame(self.records[index])
        if len(history):
            history["step"] = history["step"].astype(int)
        weights = self.bank.exported(index, self.rows.scale)
        return TrainedSAE(
            config=self.bank.configs[index],
            **weights,
            metrics={},
            history=history,
            density=torch.zeros(self.bank.d_sae, dtype=torch.float64),
            snapshots=self.snapshots[index],
            failure=failure,
            provenance=self.provenance(),
        )

    def dead_fraction(self, index: int) -> float:
        """Share of latents that are dead."""
        dead_rows = self.training.dead_after_passes * self.rows.n_train
        return float((self.bank.since_fired[index] >= dead_rows).double().mean())

    def record(self, means: dict[str, torch.Tensor], trained: list[int]) -> None:
        """Add an entry to the history of the SAEs that trained since the last entry."""
        window = self.training.convergence_window
        for index in trained:
            metrics, _ = evaluate(self.exported(index), self.rows.held_out)
            entry = {"step": float(self.step)}
            entry |= {name: float(means[name][index]) for name in TRAINING_MEANS}
            entry |= {
                name: metrics[name]
                for name in ("fvu", "explained_variance", "l0", "l1", "cosine_to_init")
            }
            entry["dead_fraction"] = self.dead_fraction(index)
            entry["inactive_fraction"] = metrics["dead_fraction"]
            self.records[index].append(entry)
            if self.training.stop_when_converged and int(self.bank.stopped_at[index]) < 0:
                recent = self.records[index][-window:]
                slope = loss_slope(pd.DataFrame(recent), window)
                if len(recent) == window and abs(slope) < self.training.convergence_slope:
                    self.bank.stopped_at[index] = self.step

    def finish(self, index: int) -> TrainedSAE:
        """Measure SAE ``index`` at the end of its training."""
        sae = self.exported(index)
        metrics, density = evaluate(sae, self.rows.held_out, self.loss_with)
        window = self.training.convergence_window
        slope = loss_slope(sae.history, window)
        metrics["inactive_fraction"] = metrics.pop("dead_fraction")
        metrics["dead_fraction"] = self.dead_fraction(index)
        metrics["loss"] = float(sae.history["loss"].iloc[-1]) if len(sae.history) else math.nan
        metrics["loss_slope"] = slope
        metrics["converged"] = float(abs(slope) < self.training.convergence_slope)
        stopped = int(self.bank.stopped_at[index])
        metrics["steps"] = float(self.step if stopped < 0 else stopped)
        metrics["train_seconds"] = self.seconds / len(self.bank)
        return TrainedSAE(**{**sae.__dict__, "metrics": metrics, "density": density})

    def engine(self) -> Engine:
        """Make the chosen engine."""
        rows = self.rows.memory(self.seeds, self.device)
        n_rows = self.rows.n_train
        if self.engine_name == "sparse":
            return SparseEngine(self.bank, rows, self.training, n_rows)
        if self.engine_name == "dense":
            return DenseEngine(self.bank, rows, self.training, self.device, n_rows)
        # imported here, because triton may not be installed
        from husai.sae.engines.cuda import CudaEngine, CudaRows

        with one_thread():
            centre = self.rows.sample.mean(0, dtype=torch.float64).float()
        held = CudaRows(rows, centre, n_rows)
        return CudaEngine(self.bank, held, self.training, self.device)

    def boundaries(self) -> list[int]:
        """Steps at which training pauses, ascending."""
        training = self.training
        intervals = [training.eval_interval, training.checkpoint_interval]
        if training.snapshot_interval:
            intervals.append(training.snapshot_interval)
        if self.dead_latents == "resample":
            intervals.append(self.resample_interval())
        steps = {step for size in intervals for step in range(size, training.steps, size)}
        return sorted({s for s in steps if s > self.step} | {training.steps})

    def resample_interval(self) -> int:
        """Steps between two resamplings."""
        passes = self.training.resample_every_passes
        return max(1, round(passes * self.rows.n_train / self.training.batch_size))

    def take_snapshots(self) -> None:
        """Keep a copy of every decoder."""
        for index in range(len(self.bank)):
            W_dec = self.bank.parameters["W_dec"][index]
            self.snapshots[index][self.step] = W_dec.detach().cpu().clone()

    def run(self, progress: bool) -> list[TrainedSAE]:
        """Train to the end."""
        training, bank = self.training, self.bank
        engine = self.engine()
        bar = progress_bar(
            training.steps * len(bank),
            f"SAEs {bank.configs[0].architecture} {bank.d_sae} × {len(bank)}",
            unit="SAE·step",
            initial=self.step * len(bank),
            disable=not progress,
        )
        if training.snapshot_interval and self.step == 0:
            self.take_snapshots()
        for boundary in self.boundaries():
            trained = bank.active()
            while self.step < boundary and bank.active():
                until = min(boundary, self.step + CHUNK_STEPS)
                started = time.perf_counter()
                until, batches = self.rows.batches(self.seeds, self.step, until)
                table = step_table(bank.configs, training, self.step, until)
                means = engine.run(table, batches)
                self.seconds += time.perf_counter() - started
                for name, value in means.items():
                    weighted = value * (until - self.step)
                    so_far = self.pending.get(name, torch.zeros_like(value))
                    self.pending[name] = so_far + weighted
                self.pending_steps += until - self.step
                bar.update((until - self.step) * len(bank))
                self.step = until
            if not bank.active():
                self.step = boundary
            last = boundary == training.steps
            if self.dead_latents == "resample" and not last:
                self.resample_if_due()
            if training.snapshot_interval and boundary % training.snapshot_interval == 0:
                self.take_snapshots()
            if (boundary % training.eval_interval == 0 or last) and self.pending_steps:
                means = {name: v / self.pending_steps for name, v in self.pending.items()}
                self.record(means, trained)
                self.pending, self.pending_steps = {}, 0
            if boundary % training.checkpoint_interval == 0 or last:
                self.save()
        bar.close()
        saes = []
        for index in range(len(bank)):
            saes.append(self.finish(index))
            if self.on_finish is not None:
                self.on_finish(index, saes[-1])
        return saes

    def resample_if_due(self) -> None:
        """Resample dead latents if this step is one at which it is done."""
        due = self.step % self.resample_interval() == 0
        if due and self.step <= self.training.resample_until_fraction * self.training.steps:
            with one_thread():
                resample_dead_latents(
                    self.bank, self.rows.draw, self.rows.n_train, self.training, self.step
                )


def train_bank(
    rows: Any,
    configs: Sequence[SAEConfig],
    training: BankTrainingConfig,
    *,
    eval_rows: Any | None = None,
    checkpoint_dir: str | Path | None = None,
    progress: bool = False,
    loss_with: LossWith | None = None,
    on_finish: OnFinish | None = None,
) -> list[TrainedSAE]:
    """Train SAEs of one shape together.

    Each SAE is the same as if it were trained alone. An SAE whose loss is no longer finite stops
    and has a ``failure``; the others continue.

    Parameters
    ----------
    rows
        Training activations ``[n, d_in]``: a tensor, an array, an object with ``values``, or a
        store (:class:`husai.activations.ActivationStore`), which may be larger than the memory.
    configs
        One for each SAE; architecture, d_sae and prefixes must be the same
        (:func:`group_into_banks`).
    training
        The training parameters that all SAEs share.
    eval_rows
        Rows for the metrics; without them ``training.eval_fraction`` of ``rows`` is held out.
    checkpoint_dir
        Folder of the checkpoints. If it already has one, training continues from there and ends
        with the same bits as without the interruption.
    progress
        Show a progress bar.
    loss_with
        For ``loss_recovered``; see :func:`husai.sae.metrics.evaluate`.
    on_finish
        Called with the index and the SAE when an SAE has been measured at the end.

    Returns
    -------
    list of TrainedSAE
        In the order of ``configs``.

    Raises
    ------
    InputError
        Before any work: when the rows cannot be used for training, the configurations cannot share
        a bank, or the checkpoint is of other data or another configuration.
    """
    check_one_shape(configs)
    prepared = prepare_rows(rows, eval_rows, training)
    if training.aux_k is not None and training.aux_k > configs[0].d_sae:
        raise InputError(f"aux_k: {training.aux_k} is above d_sae = {configs[0].d_sae}; lower it")
    directory = None if checkpoint_dir is None else Path(checkpoint_dir)
    run = _Run(prepared, configs, training, directory, loss_with, on_finish)
    run.resume()
    return run.run(progress)
