"""Check the tensors of a file against the declaration of its format.

A declaration maps a tensor's name to its sizes: ``d`` the width of the activations, ``o`` that of
the decoder's output (if it may differ), ``F`` the features, ``L`` layers; ``""`` is one number.
Vectors are read first: the biases give the sizes of ``F`` and ``d``, and so whether a matrix has to
be transposed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from husai.errors import InputError

REAL = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
WHOLE = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)

_PARTS = {"F": "features", "d": "d_in", "o": "d_out", "L": "layers"}


def take(
    path: Path,
    tensors: Mapping[str, Any],
    declared: Mapping[str, str],
    optional: Collection[str] = (),
) -> dict[str, torch.Tensor]:
    """Select the declared tensors of a file, in float32 and the declared orientation.

    Parameters
    ----------
    path
        The file, for errors.
    tensors
        Its tensors; other names are ignored.
    declared
        Name to sizes.
    optional
        Names that may be missing.

    Returns
    -------
    dict
        Contiguous float32; whole numbers stay whole.

    Raises
    ------
    InputError
        When one is missing, is not real, is not finite, or its sizes do not fit the others.
    """
    missing = [name for name in declared if name not in tensors and name not in optional]
    if missing:
        raise InputError(f"{path}: tensors missing: {', '.join(missing)}")
    found = {name: tensors[name] for name in declared if name in tensors}
    for name, tensor in found.items():
        if not isinstance(tensor, torch.Tensor) or tensor.dtype not in REAL + WHOLE:
            kind = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise InputError(f"{path}: {name} holds {kind}; give real numbers")
        if tensor.dtype in WHOLE and len(declared[name]) > 1:
            raise InputError(f"{path}: {name} holds {tensor.dtype}; give floating-point weights")
    sizes: dict[str, int] = {}
    named: dict[str, str] = {}
    # vectors first: they cannot be transposed
    for name in sorted(found, key=lambda name: (len(declared[name]), found[name].dim())):
        found[name] = _orient(path, name, found[name], declared[name], sizes, named)
    return {name: _finite(path, name, tensor, declared[name]) for name, tensor in found.items()}


def _orient(
    path: Path,
    name: str,
    tensor: torch.Tensor,
    letters: str,
    sizes: dict[str, int],
    named: dict[str, str],
) -> torch.Tensor:
    shape = tuple(tensor.shape)
    if len(shape) != len(letters) or 0 in shape:
        raise InputError(f"{path}: {name} is {shape}, expected {_expected(letters, sizes)}")
    known = [sizes.get(letter) for letter in letters]
    if len(letters) == 2 and None not in known and shape != tuple(known) == shape[::-1]:
        tensor, shape = tensor.T, shape[::-1]
    for letter, size in zip(letters, shape, strict=True):
        if sizes.setdefault(letter, size) != size:
            because = f" by {named[letter]}" if letter in named else ""
            raise InputError(
                f"{path}: {name} is {shape}, expected {_expected(letters, sizes)}{because}"
            )
        named.setdefault(letter, name)
    return tensor


def _expected(letters: str, sizes: Mapping[str, int]) -> str:
    if not letters:
        return "one number"
    parts = [str(sizes.get(letter, _PARTS.get(letter, letter))) for letter in letters]
    return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"


def _finite(path: Path, name: str, tensor: torch.Tensor, letters: str) -> torch.Tensor:
    if tensor.dtype in WHOLE:
        return tensor.contiguous()
    # a number that is finite in float64 may not be finite in float32
    values = tensor.to(torch.float32).contiguous()
    bad = ~torch.isfinite(values)
    if not bad.any():
        return values
    if "F" in letters and values.dim() > 1:
        axis = letters.index("F")
        spoiled = torch.nonzero(bad.movedim(axis, 0).flatten(1).any(1))
        part = "encoder" if "enc" in name.lower() else "decoder"
        raise InputError(
            f"{path}: {len(spoiled)} of the {values.shape[axis]} features of its "
            f"{part} have NaN or infinity (the first is {int(spoiled[0])}); the SAE is broken: "
            "train it again or repair those rows"
        )
    raise InputError(f"{path}: {name} has NaN or infinity; repair the SAE or train it again")
