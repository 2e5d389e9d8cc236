"""Rows before training: checked, partly held out, and scaled."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from husai.errors import InputError
from husai.sae.config import BankTrainingConfig


@dataclass(frozen=True)
class Rows:
    """Scaled training rows, held-out rows in their own space, and how they were scaled."""

    train: torch.Tensor
    held_out: torch.Tensor
    scale: float
    fingerprint: str


def as_matrix(rows: Any, name: str) -> torch.Tensor:
    """Take rows from a tensor, an array, or an object that has them as ``values``.

    Raises
    ------
    InputError
        When they are not a finite matrix ``[n, d_in]`` that varies.
    """
    # a tensor has a method of that name
    values = rows if isinstance(rows, torch.Tensor) else getattr(rows, "values", rows)
    if isinstance(values, np.ndarray):
        values = torch.from_numpy(values)
    if not isinstance(values, torch.Tensor):
        raise InputError(f"{name}: {type(rows).__name__} is not a matrix of activations")
    if values.dim() != 2 or not values.numel():
        raise InputError(f"{name}: shape {tuple(values.shape)}; give a matrix [n_rows, d_in]")
    values = values.detach().cpu().float().contiguous()
    finite = values.isfinite().all(1)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        first = int(torch.nonzero(~finite)[0])
        raise InputError(
            f"{name}: {bad} of {len(values)} rows hold NaN or infinity, the first is row {first}; "
            "remove them or fix the extraction"
        )
    return values


def count_held_out(n_rows: int, training: BankTrainingConfig) -> int:
    """Rows of so many that are held out."""
    return max(1, round(training.eval_fraction * n_rows)) if training.eval_fraction > 0 else 0


def prepare_rows(rows: Any, eval_rows: Any | None, training: BankTrainingConfig) -> Rows:
    """Check the rows, hold some out when asked to, and scale the others.

    Raises
    ------
    InputError
        When rows are not finite, do not vary, are fewer than a batch, or differ in width.
    """
    values = as_matrix(rows, "rows")
    if eval_rows is not None:
        train, held_out = values, as_matrix(eval_rows, "eval_rows")
        if held_out.shape[1] != train.shape[1]:
            raise InputError(
                f"eval_rows: width {held_out.shape[1]}, but the training rows have {train.shape[1]}"
            )
    elif training.eval_fraction > 0:
        # the same rows for all seeds of the SAEs, so that their metrics can be compared
        order = torch.from_numpy(np.random.default_rng(len(values)).permutation(len(values)))
        n_held_out = count_held_out(len(values), training)
        train = values[order[n_held_out:].sort().values]
        held_out = values[order[:n_held_out].sort().values]
    else:
        train = held_out = values
    if training.batch_size > len(train):
        raise InputError(
            f"batch_size: {training.batch_size} is more than the {len(train)} training rows; "
            "lower it"
        )
    if bool((train == train[0]).all()):
        raise InputError(f"rows: all {len(train)} training rows are equal; nothing to learn")
    if bool((held_out == held_out[0]).all()):
        raise InputError(f"eval_rows: all {len(held_out)} rows are equal; give rows that vary")
    scale = 1.0
    if training.normalize != "none":
        x = train.double()
        # b_dec takes the mean up: what the latents see are distances to it
        measured = x - x.mean(0) if training.normalize == "centred" else x
        scale = math.sqrt(train.shape[1] / float(measured.square().sum(1).mean()))
    digest = hashlib.sha256(train.numpy().tobytes())
    digest.update(held_out.numpy().tobytes())
    return Rows(train * scale, held_out, scale, digest.hexdigest()[:16])
