"""Activations of one hook and position: the rows, with their split, model and true planes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from husai.activations.store import ActivationStore
from husai.config import Position, as_position
from husai.errors import InputError
from husai.storage import TensorFiles

if TYPE_CHECKING:
    import torch

SPLITS = ("train", "val", "test")


def activation_key(hook_name: str, position: Position, model: str = "trained") -> str:
    """Write a hook and a position as one name: ``blocks.0.hook_resid_post@-1``.

    Names for the model at its initial weights end in ``@untrained``.
    """
    return f"{hook_name}@{position}" + ("" if model == "trained" else f"@{model}")


@dataclass(frozen=True)
class Activations:
    """Activations of one hook at one position.

    Attributes
    ----------
    values
        Float32 tensor ``[n_rows, d_in]``, finite.
    split
        Integer tensor ``[n_rows]``: 0 train, 1 val, 2 test of the model's own training.
    hook_name, position
        Where in the model they were read; for the user's own rows, the name that the user gave.
    model
        Anything that identifies the model: its configuration, a name, a fingerprint.
    planes
        ``[n_planes, 2, d_in]`` orthonormal axes of the planes in which the true features are
        known to lie at this hook, or None.
    plane_names
        Their names.
    trained
        False for activations of the model at its initial weights.
    store
        The store with the training rows, if there is one: ``values`` are then its held-out rows.
    """

    values: torch.Tensor
    split: torch.Tensor
    hook_name: str
    position: Position
    model: Mapping[str, Any] = field(default_factory=dict)
    planes: torch.Tensor | None = None
    plane_names: tuple[str, ...] = ()
    trained: bool = True
    store: ActivationStore | None = None

    @property
    def training_rows(self) -> torch.Tensor | ActivationStore:
        """Rows that SAEs are trained on: those of the store if there is one, else ``values``."""
        return self.values if self.store is None else self.store

    @property
    def key(self) -> str:
        """Hook and position as one name, see :func:`activation_key`."""
        return activation_key(
            self.hook_name, self.position, "trained" if self.trained else "untrained"
        )

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits of the SHA-256 of the values: equal rows, equal fingerprint."""
        return hashlib.sha256(self.values.contiguous().numpy().tobytes()).hexdigest()[:16]

    def to_tensors(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return the tensors and the header for a file of these activations."""
        counts = {name: int((self.split == index).sum()) for index, name in enumerate(SPLITS)}
        header: dict[str, Any] = {
            "kind": "activations",
            "hook_name": self.hook_name,
            "position": self.position,
            "split": counts,
            "dtype": str(self.values.dtype).removeprefix("torch."),
            "shape": list(self.values.shape),
            "model": dict(self.model),
            "trained": self.trained,
        }
        if self.store is not None:
            header["store"] = self.store.fingerprint
        import torch

        tensors = {"activations": self.values, "split": self.split.to(torch.uint8)}
        if self.planes is not None:
            tensors["planes"] = self.planes
            header["plane_names"] = list(self.plane_names)
        return tensors, header

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any], origin: str
    ) -> Activations:
        """Build from a file's tensors and header, checking them.

        A file without the header keys is accepted if it has a tensor ``activations``
        ``[n_rows, d_in]``: users can bring such files.

        Parameters
        ----------
        tensors, header
            What :func:`husai.storage.read_tensors` returns.
        origin
            Where they came from, for the messages.

        Raises
        ------
        InputError
            When the tensor is missing, is not a finite matrix, or the split does not fit it.
        """
        import torch

        if "activations" not in tensors:
            raise InputError(
                f"{origin}: no tensor named 'activations' (it holds {sorted(tensors)}); "
                "store your rows under that name, shape [n_rows, d_in]"
            )
        values = tensors["activations"].to(torch.float32)
        split = tensors.get("split", torch.zeros(len(values), dtype=torch.uint8))
        activations = cls(
            values=values,
            split=split.to(torch.int64),
            hook_name=str(header.get("hook_name", origin)),
            position=as_position(header.get("position", -1)),
            model=header.get("model", {}),
            planes=tensors.get("planes"),
            plane_names=tuple(header.get("plane_names", ())),
            trained=bool(header.get("trained", True)),
        )
        return check_activations(activations, origin)


def check_activations(activations: Activations, origin: str) -> Activations:
    """Return the activations if they are a finite, non-empty matrix with a split per row.

    Raises
    ------
    InputError
        When they are not; the message names ``origin``, the fault, and for non-finite values the
        first row that has one.
    """
    import torch

    values, split = activations.values, activations.split
    if values.ndim != 2 or not values.numel():
        raise InputError(
            f"{origin}: activations must be a non-empty matrix [n_rows, d_in], "
            f"got shape {list(values.shape)}"
        )
    if split.shape != values.shape[:1]:
        raise InputError(
            f"{origin}: {len(values)} rows of activations, but split has shape {list(split.shape)}"
        )
    planes = activations.planes
    if planes is not None and (planes.ndim != 3 or planes.shape[1:] != (2, values.shape[1])):
        raise InputError(
            f"{origin}: planes must be [n_planes, 2, {values.shape[1]}], "
            f"got shape {list(planes.shape)}"
        )
    finite = torch.isfinite(values).all(dim=1)
    if not bool(finite.all()):
        bad = np.flatnonzero(~finite.numpy())
        raise InputError(
            f"{origin}: {len(bad)} of {len(values)} rows have NaN or infinite values, "
            f"the first is row {bad[0]}"
        )
    return activations


def load_activations(files: TensorFiles, key: str, stores: Path | None = None) -> Activations:
    """Load the activations of one hook.

    Parameters
    ----------
    files, key
        The files, and the name of one of them.
    stores
        Folder of the stores, by key; without it only the held-out rows of a store are returned.

    Raises
    ------
    InputError
        When there are no activations of that name, or when the held-out rows are not those of the
        store.
    """
    if key not in files:
        raise InputError(f"no activations of '{key}'; there are: {', '.join(sorted(files))}")
    file = files[key]()
    rows = Activations.from_tensors(file.tensors, file.header, key)
    if "store" not in file.header or stores is None:
        return rows
    store = ActivationStore(stores / key)
    if store.fingerprint != file.header["store"]:
        raise InputError(
            f"{store.folder}: its rows do not belong to the held-out rows in the file; run the "
            "extraction again"
        )
    return replace(rows, store=store)


def load_all(files: TensorFiles) -> list[Activations]:
    """Load the activations of every hook, sorted by name."""
    return [load_activations(files, key) for key in sorted(files)]
