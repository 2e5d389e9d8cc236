"""Read and write SAEs in any format: the functions that the rest of the project calls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from husai.boundary import reading
from husai.errors import InputError
from husai.sae.format_names import PLAIN, Format, WrittenFormat
from husai.sae.formats import (
    dictionary_learning,
    gemma_scope,
    goodfire,
    llama_scope,
    openai,
    own,
    plain,
    qwen_scope,
    saelens,
    sparsify,
)
from husai.sae.formats.detect import detect_format, find_saes, only_sae
from husai.sae.formats.hub import resolve
from husai.sae.formats.reading import Hints, Reading
from husai.sae.formats.writing import refuse_foreign
from husai.sae.trained import TrainedSAE, save_sae

READERS: dict[Format, Callable[[Path, Hints], Reading]] = {
    "husai": own.read,
    "saelens": saelens.read,
    "dictionary_learning": dictionary_learning.read,
    "sparsify": sparsify.read,
    "gemma_scope": gemma_scope.read,
    "llama_scope": llama_scope.read,
    "qwen_scope": qwen_scope.read,
    "openai": openai.read,
    "goodfire": goodfire.read,
}
"""The reader of each project."""


def read(path: str | Path, format: Format | None = None, hints: Hints | None = None) -> Reading:
    """Read everything that the files at ``path`` contain about an SAE.

    Parameters
    ----------
    path
        A file or folder of any project, a folder with one SAE somewhere below,
        ``hf://OWNER/REPO/FOLDER``, ``saelens://RELEASE/ID``, or ``husai://SETTING/SEED`` for one
        that is shipped (:func:`husai.sae.shipped_saes`).
    format
        If left out, :func:`detect_format` finds it.
    hints
        Facts that its files may not contain.

    Raises
    ------
    InputError
        When not even a decoder can be read: one line that names the file.
    """
    place, hints = resolved(path, hints)
    with reading(place):
        if format in PLAIN:
            return plain.read(place, format, hints)
        if format is None or place.is_file():
            # a file in the folder of an SAE means the folder
            place = only_sae(place)
        return _by(format or detect_format(place))(place, hints)


def resolved(path: str | Path, hints: Hints | None = None) -> tuple[Path, Hints]:
    """Return the path on this machine, and the hints that are known about it.

    Raises
    ------
    InputError
        When it is an address, and cannot be downloaded or is not shipped.
    """
    place, stated = resolve(path)
    given = hints or Hints()
    return place, Hints(
        stated.k if given.k is None else given.k,
        stated.input_scale if given.input_scale is None else given.input_scale,
    )


def _by(format: Format) -> Callable[[Path, Hints], Reading]:
    if format in PLAIN:
        return lambda path, hints: plain.read(path, format, hints)
    return READERS[format]


def read_all(path: str | Path, hints: Hints | None = None) -> list[Reading]:
    """Read every SAE at or below ``path``, in the order of their names.

    Raises
    ------
    InputError
        When there is none, or one cannot be read.
    """
    root, hints = resolved(path, hints)
    return [read(place, None, hints) for place in find_saes(root)]


def load_sae(
    path: str | Path,
    format: Format | None = None,
    *,
    k: int | None = None,
    input_scale: float | None = None,
) -> TrainedSAE:
    """Read an SAE of this project, SAELens, dictionary_learning, sparsify, Gemma Scope, and more.

    Parameters
    ----------
    path, format
        See :func:`read`.
    k
        Active latents per row, if the files do not say.
    input_scale
        Factor by which rows are multiplied before the SAE reads them, if the files do not say.

    Returns
    -------
    TrainedSAE
        In the space of the activations. For an SAE of another project, ``metrics`` and ``history``
        are empty, ``W_dec_init`` is NaN, and an unknown penalty is 0 in ``config``.

    Raises
    ------
    InputError
        When the file is incomplete or of another format, or does not contain all of an SAE.
    """
    return read(path, format, Hints(k, input_scale)).whole()


def load_dictionary(
    path: str | Path, format: Format | None = None
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Read the decoder of an SAE, or a plain dictionary, for a comparison.

    Parameters
    ----------
    path, format
        See :func:`read`. Rows of a plain matrix are features.

    Returns
    -------
    W_dec
        ``[d_sae, d_in]`` float32.
    info
        ``path``, ``format``, ``d_sae``, ``d_in``, ``contract``; ``left_out``, why only the decoder
        is known, or for complete SAEs ``config`` and ``metrics``.

    Raises
    ------
    InputError
        When it cannot be read or is not a finite matrix.
    """
    found = read(path, format)
    matrix: NDArray[np.float32] = found.W_dec.numpy()
    info: dict[str, Any] = {
        "path": str(path),
        "format": found.format,
        "d_sae": matrix.shape[0],
        "d_in": matrix.shape[1],
        "contract": found.contract.as_dict(),
    }
    if found.sae is None:
        return matrix, info | {"left_out": found.left_out}
    config = found.sae.config.model_dump(mode="json")
    return matrix, info | {"config": config, "metrics": dict(found.sae.metrics)}


def export_sae(sae: TrainedSAE, path: str | Path, format: WrittenFormat) -> None:
    """Write an SAE for another project's loader; activations and reconstructions stay the same.

    Parameters
    ----------
    sae
        The SAE to write.
    path
        A directory, which is made if it does not exist; for ``husai`` a file.
    format
        ``saelens`` (relu as standard, topk, all others as jumprelu with their thresholds),
        ``dictionary_learning`` (every architecture), ``sparsify`` (topk only) or ``husai``.

    Raises
    ------
    InputError
        When the format cannot express the architecture.
    """
    path = Path(path)
    if format == "husai":
        refuse_foreign(sae, "husai")
        save_sae(sae, path)
    elif format == "saelens":
        saelens.write(sae, path)
    elif format == "dictionary_learning":
        dictionary_learning.write(sae, path)
    elif format == "sparsify":
        sparsify.write(sae, path)
    else:
        raise InputError(
            f"format: {format!r} cannot be written; use saelens, dictionary_learning, sparsify or "
            "husai"
        )
