"""One pass over all cosines of two dictionaries, which keeps the best partners of each feature.

Exact matching costs at least this pass: ``n_a n_b d`` multiply-adds. It can stop after any block
of rows and continue later, from a checkpoint file.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from husai.errors import InputError
from husai.matching.blocked import (
    Float32,
    TopLists,
    UnitRows,
    update_column_lists,
    update_row_lists,
)

# A block of 2,048 x 4,096 float32 cosines is 32 MB: big enough for the product to run at full
# speed, small enough to stay near the cache while it is scanned.
BLOCK_ROWS = 2048
BLOCK_COLUMNS = 4096
# The most work that an interruption may lose, in seconds.
_SECONDS_BETWEEN_SAVES = 60.0
_CHECKPOINT_KIND = "husai.matching_pass"


@dataclass
class Candidates:
    """The best partners of every row of A (``rows``) and of every row of B (``columns``)."""

    rows: TopLists
    columns: TopLists


class Products(Protocol):
    """Cosines of two dictionaries, on the CPU or on another device."""

    def multiply(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Float32:
        """Float32 cosines ``[len(rows), len(columns)]`` of these rows of A and of B."""
        ...

    def offer(self, found: Sequence[Candidates], signed: Sequence[bool], a: int, z: int) -> None:
        """Add the cosines of A's rows ``a`` to ``z`` with all of B to the lists of both sides."""
        ...


class HostProducts:
    """Products by numpy's BLAS on this machine's cores.

    Parameters
    ----------
    a, b
        The two dictionaries.
    """

    def __init__(self, a: UnitRows, b: UnitRows) -> None:
        self._a, self._b = a, b
        self._block = np.empty((min(BLOCK_ROWS, a.n), min(BLOCK_COLUMNS, b.n)), np.float32)

    def multiply(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Float32:
        """Float32 cosines ``[len(rows), len(columns)]`` of these rows of A and of B."""
        return self._a.unit[rows] @ self._b.unit[columns].T

    def offer(self, found: Sequence[Candidates], signed: Sequence[bool], a: int, z: int) -> None:
        """Add the cosines of A's rows ``a`` to ``z`` with all of B to the lists of both sides."""
        for start in range(0, self._b.n, BLOCK_COLUMNS):
            stop = min(start + BLOCK_COLUMNS, self._b.n)
            block = self._block[: z - a, : stop - start]
            np.matmul(self._a.unit[a:z], self._b.unit[start:stop].T, out=block)
            for lists, sign in zip(found, signed, strict=True):
                update_row_lists(block, not sign, lists.rows.part(a, z), start)
                update_column_lists(block, not sign, lists.columns.part(start, stop), a)


def check_device(device: str) -> None:
    """Raise InputError unless ``device`` is ``"cpu"`` or a torch device that works here."""
    if device == "cpu":
        return
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device: {device!r} cannot be used here ({reason})") from error


class DeviceProducts:
    """Products, and the choice of the best partners, on a torch device such as ``cuda``.

    TF32 is switched off during the products, as its error is larger than the certificate allows.

    Parameters
    ----------
    a, b
        The two dictionaries; B's unit rows stay on the device.
    device
        A torch device.

    Raises
    ------
    InputError
        When the device does not exist.
    """

    def __init__(self, a: UnitRows, b: UnitRows, device: str) -> None:
        import torch

        check_device(device)
        self._device = torch.device(device)
        self._b_unit = torch.from_numpy(b.unit).to(self._device)
        self._a = a

    def _product(self, rows: Any, columns: Any) -> Any:
        import torch

        cuda = torch.backends.cuda.matmul
        before, cuda.allow_tf32 = cuda.allow_tf32, False
        try:
            return rows @ columns.T
        finally:
            cuda.allow_tf32 = before

    def multiply(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Float32:
        """Float32 cosines ``[len(rows), len(columns)]`` of these rows of A and of B."""
        import torch

        part_a = torch.from_numpy(self._a.unit[rows]).to(self._device)
        part_b = self._b_unit[torch.from_numpy(columns).to(self._device)]
        product: Float32 = self._product(part_a, part_b).cpu().numpy()
        return product

    def offer(self, found: Sequence[Candidates], signed: Sequence[bool], a: int, z: int) -> None:
        """Add the cosines of A's rows ``a`` to ``z`` with all of B to the lists of both sides."""
        import torch

        part_a = torch.from_numpy(self._a.unit[a:z]).to(self._device)
        names = torch.arange(a, z, dtype=torch.int32, device=self._device)
        for start in range(0, len(self._b_unit), 4 * BLOCK_COLUMNS):
            part_b = self._b_unit[start : start + 4 * BLOCK_COLUMNS]
            stop = start + len(part_b)
            block = self._product(part_a, part_b)
            columns = torch.arange(start, stop, dtype=torch.int32, device=self._device)
            for lists, sign in zip(found, signed, strict=True):
                scores = block if sign else block.abs()
                _merge_best(lists.rows.part(a, z), scores, columns)
                _merge_best(lists.columns.part(start, stop), scores.T, names)


def _merge_best(lists: TopLists, scores: Any, names: Any) -> None:
    """Merge device ``scores`` ``[r, c]`` of partners ``names`` ``[c]`` into the lists of r rows."""
    import torch

    k = lists.key.shape[1]
    value, place = scores.topk(min(k, scores.shape[1]), dim=1)
    key = torch.cat([torch.from_numpy(lists.key).to(value.device), value], dim=1)
    index = torch.cat([torch.from_numpy(lists.index).to(value.device), names[place]], dim=1)
    key, kept = key.topk(k, dim=1)
    # a list in ascending order is also a heap with the least on top
    lists.key[:] = key.flip(1).cpu().numpy()
    lists.index[:] = index.gather(1, kept).flip(1).cpu().numpy()


def products_on(a: UnitRows, b: UnitRows, device: str) -> Products:
    """Products of two dictionaries on ``"cpu"`` (numpy) or another torch device."""
    return HostProducts(a, b) if device == "cpu" else DeviceProducts(a, b, device)


class Checkpoint:
    """The file that keeps the state of a pass, so that an interrupted one can continue.

    Parameters
    ----------
    path
        A safetensors file.
    a, b, k, signed
        The dictionaries and options of the pass; a file written for others is refused.
    """

    def __init__(
        self, path: Path, a: UnitRows, b: UnitRows, k: int, signed: Sequence[bool]
    ) -> None:
        self._path = path
        self._signed = list(signed)
        digest = hashlib.sha256(repr((a.raw.shape, b.raw.shape, k, self._signed)).encode())
        for rows in (a, b):
            digest.update(np.ascontiguousarray(rows.raw).data)
        self._about = digest.hexdigest()
        self._saved = time.monotonic()

    def load(self, found: Sequence[Candidates]) -> int:
        """Fill ``found`` from the file; return the first row still to do (0 without a file).

        Raises
        ------
        InputError
            When the file is damaged or belongs to other dictionaries or options.
        """
        from husai.storage import read_tensors

        if not self._path.exists():
            return 0
        tensors, header = read_tensors(self._path)
        if header.get("about") != self._about:
            raise InputError(
                f"{self._path}: this checkpoint belongs to other dictionaries or options; remove "
                "it or give another file"
            )
        for lists, sign in zip(found, self._signed, strict=True):
            for side, kept in (("rows", lists.rows), ("columns", lists.columns)):
                kept.key[:] = tensors[f"{side}_key_{int(sign)}"].numpy()
                kept.index[:] = tensors[f"{side}_index_{int(sign)}"].numpy()
        return int(header["next_row"])

    def save(self, found: Sequence[Candidates], next_row: int, *, force: bool = False) -> None:
        """Write the state of the pass, if the last write was a minute ago or with ``force``."""
        if not force and time.monotonic() - self._saved < _SECONDS_BETWEEN_SAVES:
            return
        import torch

        from husai.storage import write_tensors

        tensors = {}
        for lists, sign in zip(found, self._signed, strict=True):
            for side, kept in (("rows", lists.rows), ("columns", lists.columns)):
                tensors[f"{side}_key_{int(sign)}"] = torch.from_numpy(kept.key)
                tensors[f"{side}_index_{int(sign)}"] = torch.from_numpy(kept.index)
        header = {"kind": _CHECKPOINT_KIND, "about": self._about, "next_row": next_row}
        write_tensors(self._path, tensors, header)
        self._saved = time.monotonic()


def remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints in a folder, and the folder itself if that leaves it empty."""
    from husai.storage import read_header

    if not folder.is_dir():
        return
    for path in folder.glob("*.safetensors"):
        if read_header(path).get("kind") == _CHECKPOINT_KIND:
            path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def find_candidates(
    a: UnitRows,
    b: UnitRows,
    k: int,
    signed: Sequence[bool],
    products: Products,
    *,
    checkpoint: Checkpoint | None = None,
    advance: Callable[[float], None] = lambda share: None,
) -> list[Candidates]:
    """Keep the ``k`` best partners of every row and every column, in one pass of the product.

    Parameters
    ----------
    a, b
        The two dictionaries.
    k
        How many partners to keep for each feature; all of them where there are fewer.
    signed
        Scores to rank by, each the cosine (True) or its absolute value (False); all are ranked
        in the same pass.
    products
        Where the products run.
    checkpoint
        Where to resume from, and to save to about once a minute and when interrupted.
    advance
        Called with the share of the pass that was done since the last call.
    """
    found = [
        Candidates(TopLists.empty(a.n, min(k, b.n)), TopLists.empty(b.n, min(k, a.n)))
        for _ in signed
    ]
    next_row = checkpoint.load(found) if checkpoint else 0
    advance(next_row / a.n)
    while next_row < a.n:
        stop = min(next_row + BLOCK_ROWS, a.n)
        # After an interruption inside a block, some columns have already got its rows, and would
        # get them again on resuming; so only whole blocks are saved.
        before = (
            [TopLists(c.columns.key.copy(), c.columns.index.copy()) for c in found]
            if checkpoint
            else []
        )
        try:
            products.offer(found, signed, next_row, stop)
        except KeyboardInterrupt:
            if checkpoint:
                for lists, columns in zip(found, before, strict=True):
                    lists.columns = columns
                    lists.rows.key[next_row:stop] = -np.inf
                    lists.rows.index[next_row:stop] = -1
                checkpoint.save(found, next_row, force=True)
            raise
        advance((stop - next_row) / a.n)
        next_row = stop
        if checkpoint:
            checkpoint.save(found, next_row, force=next_row == a.n)
    return found
