"""Train the transformer: AdamW on the answer's cross-entropy, with curves and exact resume."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from husai.errors import InputError
from husai.progress import progress_bar
from husai.tasks.modular import SPLITS, ModularDataset
from husai.transformer.checkpoints import CheckpointStore
from husai.transformer.config import TransformerConfig, TransformerTrainingConfig
from husai.transformer.device import hardware_name, resolve_device
from husai.transformer.evaluation import (
    EVALUATION_ROWS,
    grokking_summary,
    split_metrics,
)
from husai.transformer.functional import functional_logits, has_functional_form
from husai.transformer.kernel import compiled_loss, has_compiled_form, torch_threads
from husai.transformer.model import TrainedTransformer, build_transformer, named_parameters

HISTORY_COLUMNS = (
    "epoch",
    *(f"{split}_loss" for split in SPLITS),
    *(f"{split}_accuracy" for split in SPLITS),
    "weight_norm",
    "learning_rate",
    "seconds",
)


def answer_loss(logits: Tensor, answers: Tensor) -> Tensor:
    """Mean cross-entropy in nats, through a float64 log-softmax.

    Near the end of training the probability of the correct answer rounds to 1 in float32, and its
    logarithm would be noise (Nanda et al., arXiv 2301.05217, appendix on numerics).

    Parameters
    ----------
    logits
        [n, d_vocab].
    answers
        int64 [n].
    """
    return F.nll_loss(logits.to(torch.float64).log_softmax(-1), answers)


def learning_rate_factor(
    step: int, steps_per_epoch: int, config: TransformerTrainingConfig
) -> float:
    """Compute the learning rate of an optimiser step, as a share of ``config.learning_rate``.

    Parameters
    ----------
    step
        Number of steps before this one.
    steps_per_epoch
        Optimiser steps in an epoch.
    config
        Schedule, warm-up and ``max_epochs``.
    """
    if step < config.warm_up_steps:
        return (step + 1) / config.warm_up_steps
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "step":
        return config.decay_factor ** (step // (steps_per_epoch * config.decay_every))
    last = steps_per_epoch * config.max_epochs - 1
    progress = (step - config.warm_up_steps) / max(1, last - config.warm_up_steps)
    floor = config.final_learning_rate_fraction
    if config.schedule == "linear":
        return floor + (1 - floor) * (1 - progress)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def train_transformer(
    dataset: ModularDataset,
    model_config: TransformerConfig,
    training_config: TransformerTrainingConfig,
    *,
    checkpoint_dir: Path | None = None,
    progress: bool = True,
) -> TrainedTransformer:
    """Train a transformer on the train rows of a dataset.

    Parameters
    ----------
    dataset
        Examples and vocabulary.
    model_config, training_config
        Shape and seed of the model; how it is trained.
    checkpoint_dir
        Folder of checkpoints. If it has checkpoints of the same run, training continues from the
        last one, and the result has the same bits as that of an uninterrupted run on the same
        machine with the same number of threads. None: no checkpoints.
    progress
        Show a progress bar.

    Returns
    -------
    TrainedTransformer
        Weights, curves and summary.

    Raises
    ------
    InputError
        When ``d_vocab`` does not match, the device is not available, the split that early stopping
        watches is empty, the checkpoints are of another run, or the loss is no longer finite.
    """
    run = _Run(dataset, model_config, training_config)
    store = CheckpointStore(checkpoint_dir) if checkpoint_dir is not None else None
    if store is not None:
        run.resume(store)
    run.train(store, progress)
    return run.result()


def dataset_digest(dataset: ModularDataset) -> str:
    """SHA-256 of a dataset's tokens, answers and split."""
    return hashlib.sha256(
        np.ascontiguousarray(dataset.tokens()).tobytes()
        + dataset.answers().tobytes()
        + "\n".join(dataset.examples["split"]).encode()
    ).hexdigest()


class _Run:
    """State of one training run."""

    def __init__(
        self,
        dataset: ModularDataset,
        model_config: TransformerConfig,
        training_config: TransformerTrainingConfig,
    ) -> None:
        self.model_config = model_config
        self.config = training_config
        self.vocabulary = dataset.vocabulary
        self.device = resolve_device(training_config.device)
        rows = {split: dataset.rows(split) for split in SPLITS}
        if not rows["train"].size:
            raise InputError("dataset: no row has the split 'train'")
        if training_config.early_stopping and not rows[training_config.stopping_split].size:
            raise InputError(
                f"early_stopping watches stopping_split = {training_config.stopping_split!r}, "
                "which has no rows in the dataset; give that split a fraction, choose the other "
                "split or set early_stopping to false"
            )
        self.digest = dataset_digest(dataset)
        self.tokens = torch.tensor(dataset.tokens()).to(self.device)
        self.answers = torch.tensor(dataset.answers()).to(self.device)
        self.a = self.tokens[:, self.vocabulary.position_a].contiguous()
        self.b = self.tokens[:, self.vocabulary.position_b].contiguous()
        self.rows = {split: torch.tensor(r).to(self.device) for split, r in rows.items()}

        self.model = build_transformer(
            model_config, self.vocabulary.d_vocab, self.vocabulary.n_ctx, self.device
        )
        self.parameters = named_parameters(self.model)
        self.trained = {n: p for n, p in self.parameters.items() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            list(self.trained.values()),
            lr=training_config.learning_rate,
            betas=training_config.betas,
            weight_decay=training_config.weight_decay,
            fused=True,
        )
        self.order = torch.Generator().manual_seed(training_config.seed)
        self.epoch = 0
        self.step = 0
        self.seconds = 0.0
        self.last_learning_rate = 0.0
        self.history: list[dict[str, float]] = []
        self.stopped: str | None = None
        self.forward = self._choose_forward()
        self.threads = torch.get_num_threads()

    def _choose_forward(self) -> str:
        """Choose how losses are computed: compiled, functional, or hooked."""
        if not (self.config.fast_path and has_functional_form(self.model_config)):
            return "hooked"
        return "compiled" if has_compiled_form(self.model_config, self.device) else "functional"

    def logits(self, rows: Tensor) -> Tensor:
        """Answer logits of some rows, [n, d_vocab]."""
        if self.forward == "hooked":
            logits: Tensor = self.model(self.tokens[rows])
            return logits[:, self.vocabulary.answer_position]
        return functional_logits(
            self.parameters, self.a[rows], self.b[rows], self.vocabulary, self.model_config
        )

    def loss(self, rows: Tensor) -> Tensor:
        """Mean cross-entropy over some rows."""
        if self.forward == "compiled":
            return compiled_loss(
                self.parameters,
                self.a[rows],
                self.b[rows],
                self.answers[rows],
                self.vocabulary,
                self.model_config,
                self.threads,
            )
        return answer_loss(self.logits(rows), self.answers[rows])

    # --- the loop -------------------------------------------------------------------------

    def train(self, store: CheckpointStore | None, progress: bool) -> None:
        config = self.config
        started = time.perf_counter() - self.seconds
        if not self.history:
            self._record()
            if store is not None:
                self._save(store)
        bar = progress_bar(
            config.max_epochs, "transformer", "epoch", initial=self.epoch, disable=not progress
        )
        with bar:
            while self.stopped is None:
                self._train_epoch()
                self.epoch += 1
                bar.update()
                self.seconds = time.perf_counter() - started
                if self.epoch == config.max_epochs or self.epoch % config.evaluate_every == 0:
                    self._record()
                    bar.set_postfix(
                        train=f"{self.history[-1]['train_loss']:.2e}",
                        test=f"{self.history[-1]['test_accuracy']:.3f}",
                    )
                    self.stopped = self._reason_to_stop()
                if store is not None and (
                    self.stopped is not None or self.epoch % config.checkpoint_every == 0
                ):
                    self._save(store)

    def _train_epoch(self) -> None:
        for batch in self._batches():
            factor = learning_rate_factor(self.step, self._steps_per_epoch(), self.config)
            self.last_learning_rate = self.config.learning_rate * factor
            for group in self.optimizer.param_groups:
                group["lr"] = self.last_learning_rate
            # the compiled loss shares its rows among threads itself; the rest is too small to
            with torch_threads(1) if self.forward == "compiled" else nullcontext():
                self.optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(self.loss(batch))
                self.optimizer.step()
            self.step += 1

    def _steps_per_epoch(self) -> int:
        n = self.rows["train"].shape[0]
        return math.ceil(n / min(n, self.config.batch_size or n))

    def _batches(self) -> Iterator[Tensor]:
        rows = self.rows["train"]
        if self.config.batch_size is None or self.config.batch_size >= rows.shape[0]:
            yield rows
            return
        # drawn on the CPU, so that a seed gives the same order on every device
        order = torch.randperm(rows.shape[0], generator=self.order).to(self.device)
        # (a, b) order within a batch makes the compiled loss faster
        yield from (b.sort().values for b in torch.split(rows[order], self.config.batch_size))

    @torch.no_grad()
    def _record(self) -> None:
        everything = torch.arange(self.tokens.shape[0], device=self.device)
        logits = torch.cat([self.logits(rows) for rows in torch.split(everything, EVALUATION_ROWS)])
        row = {"epoch": float(self.epoch), **split_metrics(logits, self.answers, self.rows)}
        squares = sum(float(p.to(torch.float64).square().sum()) for p in self.trained.values())
        row["weight_norm"] = math.sqrt(squares)
        row["learning_rate"] = self.last_learning_rate
        row["seconds"] = self.seconds
        if not math.isfinite(row["train_loss"]):
            raise InputError(
                f"train loss is {row['train_loss']} after epoch {self.epoch}; lower learning_rate "
                f"({self.config.learning_rate})"
            )
        self.history.append(row)

    def _reason_to_stop(self) -> str | None:
        config = self.config
        if config.early_stopping:
            since = self.epoch + 1.0
            for row in reversed(self.history):
                if not row[f"{config.stopping_split}_accuracy"] >= config.grokking_threshold:
                    break
                since = row["epoch"]
            if self.epoch - since >= config.patience:
                return (
                    f"{config.stopping_split} accuracy at or above {config.grokking_threshold} "
                    f"for {config.patience} epochs"
                )
        if self.epoch >= config.max_epochs:
            return f"max_epochs = {config.max_epochs}"
        return None

    # --- checkpoints ----------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        return {
            "transformer": self.model_config.model_dump(mode="json"),
            "training": self.config.model_dump(mode="json"),
            "vocabulary": self.vocabulary.model_dump(mode="json"),
            "dataset_sha256": self.digest,
        }

    def _weights(self) -> dict[str, Tensor]:
        return {n: v.detach().to("cpu", copy=True) for n, v in self.model.state_dict().items()}

    def _save(self, store: CheckpointStore) -> None:
        weights = self._weights()
        resume = {f"model.{name}": value for name, value in weights.items()}
        for name, parameter in self.trained.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                resume[f"optimizer.{key}.{name}"] = value
        resume["rng.order"] = self.order.get_state()
        # float64 tensors, so that the curves come back exactly
        table = pd.DataFrame(self.history, columns=list(HISTORY_COLUMNS))
        resume["history"] = torch.tensor(table.to_numpy(dtype=np.float64))
        store.save(
            self.epoch,
            weights,
            resume,
            self._identity(),
            {
                "step": self.step,
                "seconds": self.seconds,
                "learning_rate": self.last_learning_rate,
                "stopped": self.stopped,
            },
        )

    def resume(self, store: CheckpointStore) -> None:
        found = store.load_resume(self._identity())
        if found is None:
            return
        tensors, header = found
        prefix = "model."
        self.model.load_state_dict(
            {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}
        )
        for name, parameter in self.trained.items():
            # torch keeps the step counter of a CPU optimiser on the CPU, of a CUDA one on the GPU
            state = {
                key: tensors[f"optimizer.{key}.{name}"].to(self.device)
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"optimizer.{key}.{name}" in tensors
            }
            if state:
                self.optimizer.state[parameter] = state
        self.order.set_state(tensors["rng.order"])
        rows = tensors["history"].tolist()
        self.history = [dict(zip(HISTORY_COLUMNS, row, strict=True)) for row in rows]
        self.epoch = int(header["epoch"])
        self.step = int(header["step"])
        self.seconds = float(header["seconds"])
        self.last_learning_rate = float(header["learning_rate"])
        self.stopped = header["stopped"]

    # --- result ---------------------------------------------------------------------------

    def result(self) -> TrainedTransformer:
        history = pd.DataFrame(self.history, columns=list(HISTORY_COLUMNS))
        history["epoch"] = history["epoch"].astype(np.int64)
        summary = grokking_summary(history) | {
            "seconds": self.seconds,
            "epochs": self.epoch,
            "stopped": self.stopped,
            "forward": self.forward,
            "device": str(self.device),
            "hardware": hardware_name(self.device),
            "threads": self.threads,
            "n_parameters": sum(p.numel() for p in self.trained.values()),
        }
        return TrainedTransformer(
            state_dict=self._weights(),
            model_config=self.model_config,
            training_config=self.config,
            vocabulary=self.vocabulary,
            history=history,
            summary=summary,
        )
