"""Detect the format of the SAE at a path, and find all SAEs in a folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from husai.boundary import check_file, read_pt, reading, safetensors_header
from husai.errors import InputError
from husai.sae.format_names import Format
from husai.sae.formats import (
    dictionary_learning,
    gemma_scope,
    goodfire,
    llama_scope,
    openai,
    qwen_scope,
    saelens,
    sparsify,
)
from husai.sae.trained import FILE_KIND
from husai.storage import read_header

FOLDERS: dict[Format, Callable[[Path], bool]] = {
    "saelens": saelens.found_in,
    "dictionary_learning": dictionary_learning.found_in,
    "sparsify": sparsify.found_in,
    "gemma_scope": gemma_scope.found_in,
    "llama_scope": llama_scope.found_in,
}
"""The test that recognises a folder of each project, in the order of use."""

SUFFIXES = (".safetensors", ".npy", ".npz", ".pt", ".pth")
"""Suffixes of files that may hold an SAE or a dictionary."""

DEEPEST = 6
"""Levels of folders that are searched."""

_BESIDE = re.compile(
    r"(sparsity|activations_store_state|activation_whitening)\.safetensors"
    r"|(trainer_state|lr_scheduler.*|optimizer.*|rank_.*|log_feature_sparsity)\.(pt|pth|safetensors)"
)
"""Files of the training that may be in the folder of an SAE."""


def detect_format(path: str | Path) -> Format:
    """Detect from its files which project wrote the SAE at ``path``.

    Raises
    ------
    InputError
        When there is no file, no known format, or more than one SAE.
    """
    return _format(only_sae(Path(path)))


def only_sae(path: Path) -> Path:
    """Find the only SAE at or below a path: its folder, or its file.

    Raises
    ------
    InputError
        When there is none, or more than one; the message names them.
    """
    found = find_saes(path)
    if len(found) == 1:
        return found[0]
    names = [str(one.relative_to(path)) for one in found]
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    raise InputError(f"{path}: has {len(found)} SAEs ({shown}); give the path of one of them")


def find_saes(path: Path) -> list[Path]:
    """Find all SAEs at or below a path, in the order of their names (2 before 10).

    The content of a folder that is an SAE is not searched. Single files count only if no folder is
    an SAE.

    Raises
    ------
    InputError
        When there is none.
    """
    with reading(path):
        if path.is_dir():
            found = list(_folders(path, DEEPEST)) or list(_files(path, DEEPEST))
            if found:
                return sorted(found, key=_natural)
            raise InputError(
                f"{path}: no SAE here or below; expected cfg.json with sae_weights.safetensors "
                "(SAELens) or sae.safetensors (sparsify), ae.pt with config.json "
                "(dictionary_learning), params.npz or params.safetensors (Gemma Scope), "
                f"hyperparams.json (Llama Scope), or a file {', '.join(SUFFIXES)}"
            )
        if not path.exists():
            raise InputError(f"{path}: no such file or directory; check the path")
        return [_owner(path)]


def files_of(path: Path) -> list[Path]:
    """List the files that an SAE's reader may read: its own file, or the files of its folder."""
    if not path.is_dir():
        return [path]
    below = [path / weights for _, weights in llama_scope.LAYOUTS if "/" in weights]
    files = [f for f in (*path.iterdir(), *below) if f.is_file() and not f.name.startswith(".")]
    return sorted(files)


def _owner(path: Path) -> Path:
    """Return the folder of the SAE that a file belongs to, or the file itself."""
    parts = {
        saelens.WEIGHTS: ("saelens", path.parent),
        dictionary_learning.WEIGHTS: ("dictionary_learning", path.parent),
        sparsify.WEIGHTS: ("sparsify", path.parent),
        gemma_scope.FIRST: ("gemma_scope", path.parent),
        gemma_scope.SECOND: ("gemma_scope", path.parent),
        Path(llama_scope.LAYOUTS[0][1]).name: ("llama_scope", path.parent.parent),
    }
    format, folder = parts.get(path.name, (None, path))
    return folder if format is not None and FOLDERS[format](folder) else path  # type: ignore[index]


def _folders(path: Path, depth: int) -> Iterator[Path]:
    if any(known(path) for known in FOLDERS.values()):
        yield path
        return
    if depth:
        for below in path.iterdir():
            if below.is_dir() and not below.name.startswith("."):
                yield from _folders(below, depth - 1)


def _files(path: Path, depth: int) -> Iterator[Path]:
    for below in path.iterdir():
        if below.name.startswith("."):
            continue
        if below.is_dir() and depth:
            yield from _files(below, depth - 1)
        elif below.suffix in SUFFIXES and below.is_file() and not _BESIDE.fullmatch(below.name):
            yield below


def _natural(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _format(path: Path) -> Format:
    if path.is_dir():
        return next(name for name, known in FOLDERS.items() if known(path))
    if path.suffix in (".npy", ".npz"):
        return "npy" if path.suffix == ".npy" else "npz"
    if path.suffix in (".pt", ".pth"):
        return _pt_format(path)
    if path.suffix == ".safetensors":
        with reading(path):
            safetensors_header(path)
            return "husai" if read_header(path).get("kind") == FILE_KIND else "safetensors"
    check_file(path)
    raise InputError(
        f"{path}: {path.suffix or 'no suffix'} is not a known format; give a file "
        f"{', '.join(SUFFIXES)}, or a folder of SAELens, dictionary_learning, sparsify, "
        "Gemma Scope or Llama Scope"
    )


def _pt_format(path: Path) -> Format:
    if path.name == dictionary_learning.WEIGHTS or dictionary_learning.is_checkpoint(path):
        return "dictionary_learning"
    if qwen_scope.named(path):
        return "qwen_scope"
    content = read_pt(path)
    if openai.holds(content):
        return "openai"
    return "goodfire" if goodfire.holds(content) else "pt"
