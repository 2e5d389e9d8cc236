"""A store of activation rows on disk, for more rows than fit in memory: memory-mapped shards."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from husai.errors import InputError
from husai.storage import atomic_path, read_header, write_tensors

if TYPE_CHECKING:
    import torch

KIND = "husai.activation_store"
VERSION = 1
HEADER = "store.json"
INDEX = "index.json"
SUFFIX = ".safetensors"

StoreDtype = Literal["float32", "float16", "bfloat16"]
BYTES: Mapping[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2}


class RowsReader(Protocol):
    """Rows that are read by range: a store on disk, or a model that computes them again."""

    @property
    def n_rows(self) -> int:
        """Number of training rows, which come first."""
        ...

    @property
    def n_held_out(self) -> int:
        """Number of held-out rows for the metrics, which come after them; may be 0."""
        ...

    @property
    def d_in(self) -> int:
        """Width of the rows."""
        ...

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits: equal rows, equal fingerprint."""
        ...

    @property
    def mean(self) -> torch.Tensor:
        """Mean of the rows ``[d_in]`` float64."""
        ...

    @property
    def mean_square(self) -> float:
        """Mean squared norm of the rows."""
        ...

    def read(self, start: int, stop: int, out: torch.Tensor) -> None:
        """Copy rows ``start … stop − 1`` to ``out [stop − start, d_in]``, float32."""
        ...


class ActivationStore:
    """A folder of shards, each a safetensors file of rows with their sums in its header.

    Shards are written whole or not at all, in any order; :meth:`finish` counts them and makes the
    store readable. Writing a shard again gives the same bytes, so that an interrupted extraction
    only writes the missing shards. To add rows later, write further shards and call :meth:`finish`.

    Parameters
    ----------
    folder
        Of a store that :meth:`create` made.

    Raises
    ------
    InputError
        When there is no store in the folder, or it has another version.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        header = _read_json(self.folder / HEADER, "no store of activations; extract them first")
        if header.get("kind") != KIND or header.get("version") != VERSION:
            raise InputError(
                f"{self.folder / HEADER}: kind {header.get('kind')!r}, version "
                f"{header.get('version')!r}; this release reads {KIND!r}, version {VERSION}"
            )
        self.d_in = int(header["d_in"])
        self.dtype: StoreDtype = header["dtype"]
        self.about: dict[str, Any] = header["about"]

    @classmethod
    def create(
        cls, folder: str | Path, d_in: int, dtype: StoreDtype, about: Mapping[str, Any]
    ) -> ActivationStore:
        """Make an empty store, or open the existing one if it is about the same rows.

        Parameters
        ----------
        folder
            The folder of the store.
        d_in, dtype
            Width of the rows, and the type in which they are stored.
        about
            What the rows are, as JSON data: model and revision, hook, tokenizer, text.

        Raises
        ------
        InputError
            When the folder has a store of other rows.
        """
        folder = Path(folder)
        header = {"kind": KIND, "version": VERSION, "d_in": d_in, "dtype": dtype}
        header["about"] = json.loads(json.dumps(dict(about)))
        if (folder / HEADER).is_file():
            found = _read_json(folder / HEADER, "")
            if found != header:
                differs = sorted(k for k in header if found.get(k) != header[k])
                raise InputError(
                    f"{folder}: holds other activations ({', '.join(differs)} differs); delete the "
                    "folder, or use another data folder (HUSAI_DATA_DIR)"
                )
        else:
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_path(folder / HEADER) as temporary:
                temporary.write_text(json.dumps(header, indent=1, sort_keys=True))
        return cls(folder)

    def check_space(self, n_rows: int) -> None:
        """Raise an error if the disk has too little space for some number of rows.

        Raises
        ------
        InputError
            When it has; the message gives both numbers.
        """
        needed = n_rows * self.d_in * BYTES[self.dtype] - self._bytes_there()
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise InputError(
                f"{self.folder}: {n_rows:,} rows of {self.d_in} need {needed / 1e9:,.1f} GB more "
                f"as {self.dtype}, and the disk has {free / 1e9:,.1f} GB; lower text.n_tokens, "
                "read fewer hooks, or choose float16"
            )

    def has(self, number: int) -> bool:
        """Whether shard ``number`` exists and is complete."""
        path = self._shard(number)
        if not path.is_file():
            return False
        try:
            self._check_size(path, int(_shard_header(path)["rows"]))
        except (InputError, KeyError):
            return False
        return True

    def write(self, number: int, rows: torch.Tensor) -> None:
        """Write shard ``number``; the rows of the store are in the order of these numbers.

        Parameters
        ----------
        number
            From 0.
        rows
            ``[n, d_in]``, finite.

        Raises
        ------
        InputError
            When the width differs, or a value is not finite or is too large for the store's type.
        """
        import torch

        if rows.dim() != 2 or rows.shape[1] != self.d_in:
            raise InputError(
                f"{self.folder}: rows of shape {list(rows.shape)}, but d_in is {self.d_in}"
            )
        kept = rows.detach().cpu().to(getattr(torch, self.dtype)).contiguous()
        if not bool(kept.isfinite().all()):
            hint = "choose bfloat16 or float32" if bool(rows.isfinite().all()) else "fix the model"
            raise InputError(
                f"{self.folder}: shard {number} has NaN or infinity as {self.dtype}; {hint}"
            )
        # float64, because these are sums over millions of rows
        wide = kept.double()
        header = {
            "rows": len(kept),
            "sum": wide.sum(0).tolist(),
            "square_sum": float(wide.square().sum()),
            "digest": hashlib.sha256(kept.view(torch.uint8).numpy().tobytes()).hexdigest(),
        }
        write_tensors(self._shard(number), {"rows": kept}, header)

    def finish(self, n_held_out: int = 0) -> None:
        """Count the shards and make the store readable.

        Parameters
        ----------
        n_held_out
            Number of rows at the end that are kept for the metrics.

        Raises
        ------
        InputError
            When a shard is missing or incomplete.
        """
        paths = sorted(self.folder.glob(f"rows-*{SUFFIX}"))
        shards = []
        for number, path in enumerate(paths):
            if path != self._shard(number):
                raise InputError(f"{self._shard(number)}: no such shard; run the extraction again")
            header = _shard_header(path)
            self._check_size(path, int(header["rows"]))
            shards.append(header)
        content = {
            "shards": [{name: shard[name] for name in ("rows", "digest")} for shard in shards],
            "sum": np.sum([shard["sum"] for shard in shards], axis=0).tolist(),
            "square_sum": sum(shard["square_sum"] for shard in shards),
            "held_out": n_held_out,
        }
        if sum(int(shard["rows"]) for shard in shards) <= n_held_out:
            raise InputError(f"{self.folder}: no rows to train on; read more text")
        with atomic_path(self.folder / INDEX) as temporary:
            temporary.write_text(json.dumps(content))
        self.__dict__.pop("_index", None)

    @property
    def finished(self) -> bool:
        """Whether the store can be read."""
        return (self.folder / INDEX).is_file()

    @cached_property
    def _index(self) -> dict[str, Any]:
        return _read_json(
            self.folder / INDEX, "the extraction has not finished; run it again to continue it"
        )

    @cached_property
    def _starts(self) -> list[int]:
        """First row of every shard, and the number of rows in all."""
        counts = [int(shard["rows"]) for shard in self._index["shards"]]
        for number, count in enumerate(counts):
            self._check_size(self._shard(number), count)
        return [0, *np.cumsum(counts).tolist()]

    @property
    def n_held_out(self) -> int:
        """Rows at the end, kept for the metrics."""
        return int(self._index["held_out"])

    @property
    def n_rows(self) -> int:
        """Number of training rows, which come first."""
        return self._starts[-1] - self.n_held_out

    def __len__(self) -> int:
        return self.n_rows

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits of the digests of all shards."""
        digests = [shard["digest"] for shard in self._index["shards"]]
        content = json.dumps([self.d_in, self.dtype, digests, self.n_held_out])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def mean(self) -> torch.Tensor:
        """Mean of the rows ``[d_in]`` float64, the held-out ones included."""
        import torch

        return torch.tensor(self._index["sum"], dtype=torch.float64) / self._starts[-1]

    @property
    def mean_square(self) -> float:
        """Mean squared norm of the rows, the held-out ones included."""
        return float(self._index["square_sum"]) / self._starts[-1]

    def read(self, start: int, stop: int, out: torch.Tensor) -> None:
        """Copy rows ``start … stop − 1`` to ``out [stop − start, d_in]``, as its type.

        Raises
        ------
        InputError
            When a shard is incomplete.
        """
        import torch

        starts = self._starts
        if not 0 <= start <= stop <= starts[-1]:
            raise ValueError(f"rows {start} to {stop}, but there are {starts[-1]}")
        number = int(np.searchsorted(starts, start, side="right")) - 1
        while start < stop:
            end = min(stop, starts[number + 1])
            path = self._shard(number)
            width = self.d_in * BYTES[self.dtype]
            offset = self._offset(path, starts[number + 1] - starts[number])
            # mapped only for this range, so that the memory is released with the array
            mapped = np.memmap(
                path,
                np.uint8,
                "c",
                offset + (start - starts[number]) * width,
                (end - start) * width,
            )
            rows = torch.from_numpy(mapped).view(getattr(torch, self.dtype)).view(-1, self.d_in)
            out[: end - start].copy_(rows)
            out, start, number = out[end - start :], end, number + 1

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Return rows ``start … stop − 1`` as float32 ``[stop − start, d_in]``."""
        import torch

        out = torch.empty(stop - start, self.d_in)
        self.read(start, stop, out)
        return out

    def verify(self) -> None:
        """Read every shard and compare it with the digest in its header.

        Raises
        ------
        InputError
            When a shard is incomplete or changed; the message names it.
        """
        import torch

        for number, shard in enumerate(self._index["shards"]):
            path = self._shard(number)
            kept = torch.empty(int(shard["rows"]), self.d_in, dtype=getattr(torch, self.dtype))
            self.read(self._starts[number], self._starts[number + 1], kept)
            found = hashlib.sha256(kept.view(torch.uint8).numpy().tobytes()).hexdigest()
            if found != shard["digest"]:
                raise InputError(
                    f"{path}: its content has changed since it was written; delete it and run the "
                    "extraction again"
                )

    def delete(self) -> None:
        """Remove the store's files, and its folder when nothing else is in it."""
        for path in (*self.folder.glob(f"rows-*{SUFFIX}"), self.folder / INDEX):
            path.unlink(missing_ok=True)
        (self.folder / HEADER).unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _shard(self, number: int) -> Path:
        return self.folder / f"rows-{number:06d}{SUFFIX}"

    def _bytes_there(self) -> int:
        return sum(path.stat().st_size for path in self.folder.glob(f"rows-*{SUFFIX}"))

    def _offset(self, path: Path, n_rows: int) -> int:
        """Byte at which the rows of a shard start: after its header. Nothing comes after them."""
        return path.stat().st_size - n_rows * self.d_in * BYTES[self.dtype]

    def _check_size(self, path: Path, n_rows: int) -> None:
        if not path.is_file():
            raise InputError(f"{path}: no such shard; run the extraction again")
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        whole = 8 + length + n_rows * self.d_in * BYTES[self.dtype]
        if path.stat().st_size != whole:
            raise InputError(
                f"{path}: incomplete: {path.stat().st_size} bytes of {whole}; delete it and run "
                "the extraction again"
            )


def _shard_header(path: Path) -> dict[str, Any]:
    try:
        return read_header(path)
    except InputError as error:
        raise InputError(f"{error}; delete this shard and run the extraction again") from error


def _read_json(path: Path, missing: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path.parent}: {missing}") from None
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: it cannot be read ({error}); run the extraction again"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a JSON object; run the extraction again")
    return content
