"""Read plain dictionaries: ``.npy``, ``.npz``, ``.safetensors`` and ``.pt`` files with a matrix.

Rows are features. If the file has biases, they show whether the matrix has to be transposed: the
decoder's bias has the width of the activations, the encoder's the number of features.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from husai.boundary import read_npy, read_npz, read_pt, read_safetensors, real_tensor
from husai.errors import InputError
from husai.sae.format_names import Format
from husai.sae.formats.declared import take
from husai.sae.formats.reading import Contract, Hints, Reading, decoder_only, layer_of

DECODERS = ("W_dec", "w_dec", "W_D", "decoder.weight", "dictionary", "features")
"""Names of the dictionary, in order of preference."""

_LINEAR = ("decoder.weight",)
"""Names of a `torch.nn.Linear` layer's matrix: ``[d, features]``."""

_BIASES = {
    "d": ("b_dec", "bias", "decoder.bias", "b_D", "decoder_bias", "pre_bias"),
    "F": ("b_enc", "encoder.bias", "b_E", "latent_bias", "threshold"),
}
_ALONE = "a plain matrix has no encoder or activation function"


def tensors_in(path: Path, format: Format) -> dict[str, Any]:
    """Read all tensors of a plain file.

    Raises
    ------
    InputError
        When it cannot be read.
    """
    if format == "npy":
        return {"array": real_tensor(path, "the array", read_npy(path))}
    if format == "npz":
        return {name: real_tensor(path, name, array) for name, array in read_npz(path).items()}
    if format == "pt":
        return read_pt(path)
    return dict(read_safetensors(path)[0])


def read(path: Path, format: Format, hints: Hints) -> Reading:
    """Read the dictionary of a plain file.

    Raises
    ------
    InputError
        When it is unclear which matrix is the dictionary, or its shape does not fit the biases.
    """
    tensors = tensors_in(path, format)
    name = _decoder(path, tensors)
    declared = {name: "dF" if name in _LINEAR else "Fd"}
    for letter, names in _BIASES.items():
        present = [bias for bias in names if _is_vector(tensors.get(bias))]
        if present:
            declared[present[0]] = letter
    found = take(path, tensors, declared)
    W_dec = found[name].T if name in _LINEAR else found[name]
    contract = Contract(layer=layer_of(path.stem, path.parent.name), space="unknown")
    return decoder_only(path, format, W_dec, _ALONE, contract)


def _is_vector(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() == 1


def _decoder(path: Path, tensors: Mapping[str, Any]) -> str:
    named = next((name for name in DECODERS if name in tensors), None)
    if named is not None:
        return named
    arrays = {n: t for n, t in tensors.items() if isinstance(t, torch.Tensor)}
    matrices = [name for name, tensor in arrays.items() if tensor.dim() == 2]
    if len(arrays) == 1 and not matrices:
        name, tensor = next(iter(arrays.items()))
        raise InputError(
            f"{path}: {name} has shape {tuple(tensor.shape)}; give a matrix [features, d]"
        )
    if len(matrices) != 1:
        raise InputError(
            f"{path}: {len(matrices)} matrices, and none has the name {' or '.join(DECODERS)}; "
            "give the dictionary the name W_dec"
        )
    return matrices[0]
