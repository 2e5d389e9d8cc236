"""Write files for other projects' loaders, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from husai.errors import InputError
from husai.sae.formats.reading import ForeignSAE
from husai.sae.trained import TrainedSAE
from husai.storage import atomic_path


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON object."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2) + "\n")


def write_safetensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors without a header."""
    from safetensors.torch import save

    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_pt(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a state dict."""
    plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        torch.save(plain, temporary)


def refuse_foreign(sae: TrainedSAE, project: str, choices: tuple[str, ...] = ("own",)) -> None:
    """Raise an error if a project's format cannot express an SAE.

    Raises
    ------
    InputError
        When rows are normalised first, or latents are chosen in a way that the project lacks.
    """
    if not isinstance(sae, ForeignSAE):
        return
    if sae.input_norm != "none":
        raise InputError(
            f"{project} cannot normalise rows first ({sae.input_norm}); convert to saelens"
        )
    if sae.choice not in choices:
        raise InputError(
            f"{project} cannot choose latents by {sae.choice}; convert to another format"
        )
