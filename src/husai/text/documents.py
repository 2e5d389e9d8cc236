"""Read documents from files, packages and data sets, each with its source and label."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from husai.boundary import reading
from husai.errors import InputError, needs
from husai.text.config import TextConfig

TEXT_COLUMNS = ("text", "prompt")
BLOCK_BYTES = 1 << 20


class Document(NamedTuple):
    """One document: its text, the file it comes from, its row there, and its label or ''."""

    text: str
    source: str
    row: int
    label: str = ""


def read_documents(config: TextConfig) -> Iterator[Document]:
    """Yield the documents of a text, shuffled by ``config.seed``.

    Parameters
    ----------
    config
        The text.

    Raises
    ------
    InputError
        When the text or a column of it does not exist, or it cannot be read.
    """
    documents = _in_order(config)
    if not config.shuffle_documents:
        yield from documents
        return
    generator = np.random.default_rng(config.seed)
    drawn: list[Document] = []
    for document in documents:
        drawn.append(document)
        if len(drawn) >= config.shuffle_documents:
            yield from (drawn[i] for i in generator.permutation(len(drawn)))
            drawn.clear()
    yield from (drawn[i] for i in generator.permutation(len(drawn)))


def _in_order(config: TextConfig) -> Iterator[Document]:
    if config.source.startswith("hf://"):
        yield from _rows(_from_hub(config), config.source.removeprefix("hf://"), config)
        return
    path = find_path(config.source, "text.source")
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        yield from _rows(_saved(path, config), path.name, config)
        return
    for file in _files(path, config):
        with reading(file):
            yield from _rows(_READERS[_kind(file)](file), file.name.split(".")[0], config)


def find_path(name: str, field: str) -> Path:
    """Find a path, or ``PACKAGE:FOLDER`` inside an installed package without importing it.

    Parameters
    ----------
    name
        The path.
    field
        Name of the parameter that gave it, for the message.

    Raises
    ------
    InputError
        When the path does not exist, or the package is not installed.
    """
    package, colon, inside = name.partition(":")
    if colon and package.isidentifier() and not Path(name).exists():
        found = importlib.util.find_spec(package)
        if found is None or not found.submodule_search_locations:
            raise InputError(
                f"{field}: the package {package} is not installed; run "
                f"pip install --no-deps {package.replace('_', '-')}"
            )
        path = Path(next(iter(found.submodule_search_locations))) / inside
    else:
        path = Path(name)
    if not path.exists():
        raise InputError(f"{field}: {name}: no such file or folder; check the path")
    return path


def _kind(path: Path) -> str:
    endings = [ending for ending in path.suffixes if ending not in (".zst", ".gz")]
    return endings[-1].lower() if endings else ""


def _files(path: Path, config: TextConfig) -> list[Path]:
    if path.is_file():
        if _kind(path) not in _READERS:
            raise InputError(
                f"{path}: text can be read from {', '.join(sorted(_READERS))}; give such a file"
            )
        return [path]
    found = {
        one.name.split(".")[0]: one
        for one in sorted(path.iterdir())
        if one.is_file() and _kind(one) in _READERS
    }
    if not found:
        raise InputError(f"{path}: no file in this folder ends in {', '.join(sorted(_READERS))}")
    missing = [name for name in config.files if name not in found]
    if missing:
        raise InputError(
            f"text.files: {missing[0]} is not in {path}; a file there is {next(iter(found))}"
        )
    return [found[name] for name in config.files] if config.files else list(found.values())


def _rows(rows: Iterator[Mapping[str, Any]], source: str, config: TextConfig) -> Iterator[Document]:
    column = ""
    for number, row in enumerate(rows):
        column = column or _text_column(row, source, config)
        text = row.get(column)
        if isinstance(text, str) and text.strip():
            label = "" if config.label is None else str(row.get(config.label, ""))
            yield Document(text, source, number, label)


def _text_column(row: Mapping[str, Any], source: str, config: TextConfig) -> str:
    for name in (config.column, config.label):
        if name is not None and name not in row:
            raise InputError(
                f"text.column: {source} has no column '{name}'; it has: {', '.join(row)}"
            )
    if config.column is not None:
        return config.column
    named = [name for name in TEXT_COLUMNS if name in row]
    strings = [name for name, value in row.items() if isinstance(value, str)]
    if not named and len(strings) != 1:
        raise InputError(
            f"text.column: give the column of {source} that holds the text; it has: "
            f"{', '.join(row)}"
        )
    return named[0] if named else strings[0]


def _opened(path: Path) -> Any:
    """Open a file as a stream of bytes, decompressed if its name ends in .zst or .gz."""
    import pyarrow as pa

    compression = {".zst": "zstd", ".gz": "gzip"}.get(path.suffix)
    return pa.input_stream(str(path), compression=compression)


def _lines(path: Path) -> Iterator[str]:
    rest = b""
    with _opened(path) as stream:
        while block := stream.read(BLOCK_BYTES):
            *whole, rest = (rest + block).split(b"\n")
            for line in whole:
                yield line.decode("utf-8", "replace")
    if rest:
        yield rest.decode("utf-8", "replace")


def _txt(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the paragraphs of a file; an empty line ends a paragraph."""
    paragraph: list[str] = []
    for line in (*_lines(path), ""):
        if line.strip():
            paragraph.append(line.rstrip("\r"))
        elif paragraph:
            yield {"text": "\n".join(paragraph)}
            paragraph = []


def _jsonl(path: Path) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}: line {number} is not JSON ({error})") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}: line {number} is not a JSON object")
        yield row


def _csv(path: Path) -> Iterator[Mapping[str, Any]]:
    import pyarrow as pa
    from pyarrow import csv

    try:
        with _opened(path) as stream:
            table = csv.read_csv(stream, parse_options=csv.ParseOptions(newlines_in_values=True))
    except pa.ArrowInvalid as error:
        raise InputError(
            f"{path}: cannot be read as a CSV table ({str(error).splitlines()[0][:200]})"
        ) from error
    yield from table.to_pylist()


def _parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(path).iter_batches():
        yield from batch.to_pylist()


def _saved(path: Path, config: TextConfig) -> Iterator[Mapping[str, Any]]:
    needs("datasets", "lm")
    from datasets import DatasetDict, load_from_disk

    found = load_from_disk(str(path))
    if isinstance(found, DatasetDict):
        if config.split not in found:
            raise InputError(
                f"text.split: {path} has no split '{config.split}'; it has: {', '.join(found)}"
            )
        found = found[config.split]
    yield from found


def _from_hub(config: TextConfig) -> Iterator[Mapping[str, Any]]:
    needs("datasets", "lm")
    from datasets import load_dataset

    name = config.source.removeprefix("hf://")
    try:
        yield from load_dataset(name, config.subset, split=config.split, streaming=True)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"text.source: {config.source} cannot be read ({reason})") from error


_READERS: Mapping[str, Callable[[Path], Iterator[Mapping[str, Any]]]] = {
    ".txt": _txt,
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
}
