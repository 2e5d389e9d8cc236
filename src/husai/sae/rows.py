"""Training rows: check them, hold some out, scale the others, and give batches to the engine."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from husai.activations.store import RowsReader
from husai.errors import InputError
from husai.sae.buffered import BufferedRows, is_reader
from husai.sae.config import BankTrainingConfig
from husai.sae.schedule import batch_rows

FLOAT_BYTES = 4


class Rows(Protocol):
    """The rows that a bank is trained on."""

    @property
    def held_out(self) -> torch.Tensor:
        """Rows for the metrics ``[n, d_in]``, not scaled."""
        ...

    @property
    def scale(self) -> float:
        """Factor by which the training rows were multiplied."""
        ...

    @property
    def fingerprint(self) -> str:
        """Fingerprint of all rows: sixteen hex digits."""
        ...

    @property
    def n_train(self) -> int:
        """Number of training rows."""
        ...

    @property
    def sample(self) -> torch.Tensor:
        """Scaled training rows for initial weights: all of them, or a sample."""
        ...

    def draw(self, generator: np.random.Generator, n: int) -> torch.Tensor:
        """Draw scaled training rows ``[n, d_in]``, or all of them if there are fewer."""
        ...

    def memory(self, seeds: Collection[int], device: torch.device) -> torch.Tensor:
        """Scaled rows ``[m, d_in]`` in the engine's memory; batches are numbers of these rows."""
        ...

    def batches(
        self, seeds: Collection[int], first: int, last: int
    ) -> tuple[int, dict[int, torch.Tensor]]:
        """Return the end ``until``, at most ``last``, and the batches of ``first … until − 1``.

        For every data seed these are the numbers ``[n_steps, batch_size]`` of rows in
        :meth:`memory`, which keeps these rows until the next call.
        """
        ...


def draw_rows(rows: torch.Tensor, generator: np.random.Generator, n: int) -> torch.Tensor:
    """Draw ``n`` of the rows without repeats; if there are fewer, all of them in random order."""
    chosen = generator.choice(len(rows), size=min(n, len(rows)), replace=False)
    return rows[torch.from_numpy(chosen)]


@dataclass(frozen=True)
class HeldRows:
    """Rows that are all in memory; see :class:`Rows`."""

    train: torch.Tensor
    held_out: torch.Tensor
    scale: float
    fingerprint: str
    batch_size: int

    @property
    def n_train(self) -> int:
        """Number of training rows."""
        return len(self.train)

    @property
    def sample(self) -> torch.Tensor:
        """All training rows."""
        return self.train

    def draw(self, generator: np.random.Generator, n: int) -> torch.Tensor:
        """Draw scaled training rows, none twice."""
        return draw_rows(self.train, generator, n)

    def memory(self, seeds: Collection[int], device: torch.device) -> torch.Tensor:
        """All training rows."""
        return self.train

    def batches(
        self, seeds: Collection[int], first: int, last: int
    ) -> tuple[int, dict[int, torch.Tensor]]:
        """Return the batches of all steps from ``first`` to ``last − 1``."""
        size = self.batch_size
        found = {
            seed: torch.from_numpy(batch_rows(seed, len(self.train), size, first, last))
            for seed in seeds
        }
        return last, found


def as_matrix(rows: Any, name: str) -> torch.Tensor:
    """Convert rows to a tensor, from a tensor, an array, or an object with ``values``.

    Raises
    ------
    InputError
        When they are not a finite matrix ``[n, d_in]``.
    """
    # a tensor has a method with the name "values"
    values = rows if isinstance(rows, torch.Tensor) else getattr(rows, "values", rows)
    if isinstance(values, np.ndarray):
        values = torch.from_numpy(values)
    if not isinstance(values, torch.Tensor):
        raise InputError(
            f"{name}: {type(rows).__name__} is not a matrix of activations; give [n_rows, d_in]"
        )
    if values.dim() != 2 or not values.numel():
        raise InputError(f"{name}: shape {tuple(values.shape)}; give a matrix [n_rows, d_in]")
    values = values.detach().cpu().float().contiguous()
    finite = values.isfinite().all(1)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        first = int(torch.nonzero(~finite)[0])
        raise InputError(
            f"{name}: {bad} of {len(values)} rows have NaN or infinity, the first is row {first}; "
            "remove them or fix the extraction"
        )
    return values


def count_held_out(n_rows: int, training: BankTrainingConfig) -> int:
    """Number of rows that are held out, of a number of rows."""
    return max(1, round(training.eval_fraction * n_rows)) if training.eval_fraction > 0 else 0


def rows_fingerprint(rows: Any, training: BankTrainingConfig) -> str:
    """Return the same fingerprint as :func:`prepare_rows`, without reading a store."""
    if is_reader(rows):
        return _reader_fingerprint(rows, training)
    return prepare_rows(rows, None, training).fingerprint


def fits(rows: RowsReader, training: BankTrainingConfig) -> bool:
    """Whether the rows of a store fit in memory; if not, they are read through a buffer."""
    return FLOAT_BYTES * rows.n_rows * rows.d_in <= training.rows_memory_gb * 1e9


def _reader_fingerprint(rows: RowsReader, training: BankTrainingConfig) -> str:
    # the order of the rows depends on the buffer
    buffer = None if fits(rows, training) else training.rows_memory_gb
    held_out = None if rows.n_held_out else training.eval_fraction
    content = f"{rows.fingerprint} {buffer} {held_out}"
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _read_rows(rows: RowsReader, training: BankTrainingConfig) -> Rows:
    """Read the rows of a store into memory if they fit, or else through a buffer."""
    n_held_out = rows.n_held_out or max(1, round(training.eval_fraction * rows.n_rows))
    n_train = rows.n_rows + rows.n_held_out - n_held_out
    held_out = torch.empty(n_held_out, rows.d_in)
    rows.read(n_train, n_train + n_held_out, held_out)
    _check_varied(held_out, "the held-out rows")
    scale = 1.0
    if training.normalize != "none":
        offset = float(rows.mean.square().sum()) if training.normalize == "centred" else 0.0
        scale = math.sqrt(rows.d_in / (rows.mean_square - offset))
    fingerprint = _reader_fingerprint(rows, training)
    if fits(rows, training):
        train = torch.empty(n_train, rows.d_in)
        rows.read(0, n_train, train)
        _check_batch(training, n_train)
        return HeldRows(train.mul_(scale), held_out, scale, fingerprint, training.batch_size)
    return BufferedRows(
        rows, n_train, held_out, scale, fingerprint, training.batch_size, training.rows_memory_gb
    )


def _check_varied(rows: torch.Tensor, name: str) -> None:
    if bool((rows == rows[0]).all()):
        raise InputError(f"{name}: all {len(rows)} are equal; give rows that vary")


def _check_batch(training: BankTrainingConfig, n_train: int) -> None:
    if training.batch_size > n_train:
        raise InputError(
            f"batch_size: {training.batch_size} is more than the {n_train} training rows; lower it"
        )


def prepare_rows(rows: Any, eval_rows: Any | None, training: BankTrainingConfig) -> Rows:
    """Check the rows, hold some out if no ``eval_rows`` are given, and scale the others.

    Rows of a store are read into memory if they fit into ``training.rows_memory_gb``, or else
    through a buffer of that size. The held-out rows of the store are used for the metrics.

    Raises
    ------
    InputError
        When rows are not finite, do not vary, are fewer than a batch, or differ in width.
    """
    if is_reader(rows):
        if eval_rows is not None:
            raise InputError("eval_rows: a store has held-out rows of its own; leave them out")
        return _read_rows(rows, training)
    values = as_matrix(rows, "rows")
    if eval_rows is not None:
        train, held_out = values, as_matrix(eval_rows, "eval_rows")
        if held_out.shape[1] != train.shape[1]:
            raise InputError(
                f"eval_rows: width {held_out.shape[1]}, but the training rows have {train.shape[1]}"
            )
    elif training.eval_fraction > 0:
        # the same held-out rows for all seeds of the SAEs, so that their metrics can be compared
        order = torch.from_numpy(np.random.default_rng(len(values)).permutation(len(values)))
        n_held_out = count_held_out(len(values), training)
        train = values[order[n_held_out:].sort().values]
        held_out = values[order[:n_held_out].sort().values]
    else:
        train = held_out = values
    _check_batch(training, len(train))
    if bool((train == train[0]).all()):
        raise InputError(f"rows: all {len(train)} training rows are equal; give rows that vary")
    if bool((held_out == held_out[0]).all()):
        raise InputError(f"eval_rows: all {len(held_out)} rows are equal; give rows that vary")
    scale = 1.0
    if training.normalize != "none":
        x = train.double()
        # b_dec learns the mean, so that latents see only the differences from it
        measured = x - x.mean(0) if training.normalize == "centred" else x
        scale = math.sqrt(train.shape[1] / float(measured.square().sum(1).mean()))
    digest = hashlib.sha256(train.numpy().tobytes())
    digest.update(held_out.numpy().tobytes())
    fingerprint = digest.hexdigest()[:16]
    return HeldRows(train * scale, held_out, scale, fingerprint, training.batch_size)
