"""Checkpoints of a transformer's training, which can stop at any moment and continue from them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from husai.errors import InputError
from husai.storage import read_header, read_tensors, write_tensors
from husai.transformer.config import TransformerConfig

_RESUME = "resume.safetensors"
_EPOCH = re.compile(r"epoch_(\d+)\.safetensors")


class CheckpointStore:
    """A handle on a folder of checkpoints.

    ``epoch_00000100.safetensors`` holds the weights after epoch 100, one file per checkpoint, for
    progress measures. ``resume.safetensors`` holds what is needed to continue from the latest one:
    weights, optimiser moments, random state and history. Every file is written under another name
    and renamed, weights first, so that an interruption never damages the previous checkpoint.

    Parameters
    ----------
    directory
        The folder; made when the first checkpoint is written.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)

    def epochs(self) -> list[int]:
        """Epochs that have a checkpoint, ascending."""
        if not self.directory.is_dir():
            return []
        matches = (_EPOCH.fullmatch(path.name) for path in self.directory.iterdir())
        return sorted(int(match.group(1)) for match in matches if match)

    def path(self, epoch: int) -> Path:
        """File of the weights after ``epoch`` epochs."""
        return self.directory / f"epoch_{epoch:08d}.safetensors"

    def load(self, epoch: int) -> dict[str, Tensor]:
        """Read the weights after ``epoch`` epochs: a state dict on the CPU."""
        return read_tensors(self.path(epoch))[0]

    def model_config(self) -> TransformerConfig:
        """Shape of the model whose checkpoints these are."""
        epochs = self.epochs()
        if not epochs:
            raise InputError(f"{self.directory}: no checkpoint in this folder; train first")
        identity = read_header(self.path(epochs[-1]))["identity"]
        return TransformerConfig.model_validate(identity["transformer"])

    def __iter__(self) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Yield (epoch, state dict) in the order of training, one in memory at a time."""
        for epoch in self.epochs():
            yield epoch, self.load(epoch)

    def save(
        self,
        epoch: int,
        weights: Mapping[str, Tensor],
        resume: Mapping[str, Tensor],
        identity: Mapping[str, Any],
        header: Mapping[str, Any],
    ) -> None:
        """Write the checkpoint of an epoch.

        Parameters
        ----------
        epoch
            Number of epochs done.
        weights
            The model's state dict.
        resume
            All tensors from which training continues (weights among them).
        identity
            What is trained: the configurations and the data's digest, as JSON.
        header
            Further JSON that resuming needs.
        """
        write_tensors(self.path(epoch), weights, {"epoch": epoch, "identity": dict(identity)})
        write_tensors(
            self.directory / _RESUME,
            resume,
            {**header, "epoch": epoch, "identity": dict(identity)},
        )

    def load_resume(
        self, identity: Mapping[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Read what the latest checkpoint needs to continue, or None when there is none.

        Raises
        ------
        InputError
            When the folder's checkpoints were written with another configuration or dataset; the
            message names the first differences.
        """
        path = self.directory / _RESUME
        if not path.is_file():
            others = self.epochs()
            if others and read_header(self.path(others[0])).get("identity") != dict(identity):
                self._refuse(read_header(self.path(others[0])).get("identity", {}), identity)
            return None
        header = read_header(path)
        if header.get("identity") != dict(identity):
            self._refuse(header.get("identity", {}), identity)
        return read_tensors(path)

    def finish(self) -> None:
        """Delete the resume file and keep the weights: the next training starts at epoch 0."""
        (self.directory / _RESUME).unlink(missing_ok=True)

    def _refuse(self, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        differences = sorted(_differences(found, wanted))
        raise InputError(
            f"{self.directory}: its checkpoints were written with another configuration "
            f"({'; '.join(differences[:4])}). Use another folder, empty this one, or train with "
            "the old values"
        )


def _differences(
    found: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = ""
) -> Iterator[str]:
    for key in sorted({*found, *wanted}):
        old, new = found.get(key), wanted.get(key)
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differences(old, new, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key} = {_short(old)} there, {_short(new)} here"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "…"
