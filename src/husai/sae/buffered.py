"""Training rows that do not fit in memory: read in a shuffled order into a buffer of fixed size."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray

from husai.activations.store import RowsReader
from husai.errors import InputError

BLOCK_ROWS = 1024
"""Number of rows that are read at once."""

SAMPLE_BLOCKS = 32
"""Number of evenly spaced blocks whose rows are used for initial weights."""

PIECE_ROWS = 32
"""Number of neighbouring rows that are drawn together; mostly they are of one or two documents."""

FLOAT_BYTES = 4


def is_reader(rows: Any) -> TypeGuard[RowsReader]:
    """Whether the rows are those of a store, which are read by range."""
    return callable(getattr(rows, "read", None)) and hasattr(rows, "mean_square")


class BufferedRows:
    """Training rows in an order that depends only on the data seed and the size of the buffer.

    A pass goes over all blocks of rows in a random order. The blocks that fill half of the buffer
    are a window, and the rows of a window are permuted. The next window is read in the background
    while the engine uses the present one. The step determines the position in the pass, so that
    resuming is exact. Rows after the last whole block are left out.

    Parameters
    ----------
    reader
        The rows, and how to read them.
    n_train
        Number of training rows, which come first.
    held_out
        Rows for the metrics ``[n, d_in]``, not scaled.
    scale
        Factor for the training rows.
    fingerprint
        Fingerprint of all rows.
    batch_size
        Rows per step.
    memory_gb
        Size of the buffer of one data seed, in 10⁹ bytes.

    Raises
    ------
    InputError
        When a window would hold less than a batch.
    """

    def __init__(
        self,
        reader: RowsReader,
        n_train: int,
        held_out: torch.Tensor,
        scale: float,
        fingerprint: str,
        batch_size: int,
        memory_gb: float,
    ) -> None:
        self.reader, self.held_out, self.scale = reader, held_out, scale
        self.fingerprint, self.batch_size = fingerprint, batch_size
        self.n_blocks = n_train // BLOCK_ROWS
        self.n_train = self.n_blocks * BLOCK_ROWS
        most = int(memory_gb * 1e9 / (2 * FLOAT_BYTES * reader.d_in * BLOCK_ROWS))
        self.n_windows = max(1, -(-self.n_blocks // max(1, most)))
        # the windows of a pass differ by one block at most
        self.sizes = [
            BLOCK_ROWS * len(part)
            for part in np.array_split(np.arange(self.n_blocks), self.n_windows)
        ]
        if most < 1 or min(self.sizes) < batch_size:
            raise InputError(
                f"rows_memory_gb: {memory_gb:g} is enough for two windows of {most * BLOCK_ROWS} "
                f"rows of width {reader.d_in}, fewer than batch_size = {batch_size}; raise it"
            )
        self.ends = np.cumsum(self.sizes).tolist()
        self._streams: dict[int, _Stream] = {}
        self._memory = torch.empty(0)

    @cached_property
    def sample(self) -> torch.Tensor:
        """Return the scaled rows of evenly spaced blocks, 32,768 rows.

        They are enough for the initial value of ``b_dec``, which training changes: their mean is
        within 1/180 of the rows' spread of the mean of all rows, or a few times that if neighbours
        are similar. ``init="data"`` takes its directions from them too, the same rows for all
        seeds. If a dictionary is not much narrower than the sample, its seeds share many initial
        directions, so use ``init="random"`` to compare seeds.
        """
        chosen = np.unique(np.linspace(0, self.n_blocks - 1, SAMPLE_BLOCKS).round().astype(int))
        rows = torch.empty(len(chosen) * BLOCK_ROWS, self.reader.d_in)
        for number, block in enumerate(chosen.tolist()):
            begin = number * BLOCK_ROWS
            self.read_block(block, rows[begin : begin + BLOCK_ROWS])
        return rows.mul_(self.scale)

    def draw(self, generator: np.random.Generator, n: int) -> torch.Tensor:
        """Draw scaled rows from all over the store, in pieces of :data:`PIECE_ROWS`."""
        n_pieces = min(-(-n // PIECE_ROWS), self.n_train // PIECE_ROWS)
        pieces = generator.choice(self.n_train // PIECE_ROWS, size=n_pieces, replace=False)
        rows = torch.empty(n_pieces * PIECE_ROWS, self.reader.d_in)
        for number, piece in enumerate(np.sort(pieces).tolist()):
            out = rows[number * PIECE_ROWS : (number + 1) * PIECE_ROWS]
            self.reader.read(piece * PIECE_ROWS, (piece + 1) * PIECE_ROWS, out)
        return rows[: max(1, n)].mul_(self.scale)

    def read_block(self, block: int, out: torch.Tensor) -> None:
        """Read one block, not scaled."""
        self.reader.read(block * BLOCK_ROWS, (block + 1) * BLOCK_ROWS, out)

    def memory(self, seeds: Collection[int], device: torch.device) -> torch.Tensor:
        """Allocate two windows for every data seed, on the device."""
        size = 2 * max(self.sizes)
        self._memory = torch.empty(len(seeds) * size, self.reader.d_in, device=device)
        self._streams = {
            seed: _Stream(self, seed, self._memory[i * size : (i + 1) * size], i * size)
            for i, seed in enumerate(sorted(seeds))
        }
        return self._memory

    def batches(
        self, seeds: Collection[int], first: int, last: int
    ) -> tuple[int, dict[int, torch.Tensor]]:
        """Return the batches up to the end of the window, or one batch that lies in two windows."""
        begin = first * self.batch_size
        window, end = self.window_at(begin)
        until = min(last, end // self.batch_size)
        straddles = until <= first
        until = first + 1 if straddles else until
        found = {}
        for seed in seeds:
            stream = self._streams[seed]
            numbers = [stream.ready(window)]
            if straddles:
                numbers.append(stream.ready(window + 1))
            else:
                stream.prefetch(window + 1)
            joined = np.concatenate(numbers)
            at = begin - (end - len(numbers[0]))
            part = joined[at : at + (until - first) * self.batch_size]
            found[seed] = torch.from_numpy(part.reshape(until - first, self.batch_size))
        return until, found

    def window_at(self, row: int) -> tuple[int, int]:
        """Return the number of the window that has a row, counted over all passes, and its end."""
        number, within = divmod(row, self.n_train)
        window = int(np.searchsorted(self.ends, within, side="right"))
        return number * self.n_windows + window, number * self.n_train + self.ends[window]


class _Stream:
    """The windows of one data seed, which use the two halves of its buffer in turn."""

    def __init__(
        self, rows: BufferedRows, seed: int, memory: torch.Tensor, first_number: int
    ) -> None:
        self.rows, self.seed, self.memory, self.first_number = rows, seed, memory, first_number
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="rows")
        self.waiting: dict[int, Future[None]] = {}

    def prefetch(self, window: int) -> None:
        """Start to read a window into the half that is not in use."""
        if window in self.waiting:
            return
        self.waiting = {n: f for n, f in self.waiting.items() if n == window - 1}
        self.waiting[window] = self.pool.submit(self._load, window)

    def ready(self, window: int) -> NDArray[np.int64]:
        """Wait for a window and return the numbers of its rows in the order of the stream."""
        self.prefetch(window)
        self.waiting[window].result()
        _, order = self._drawn(window)
        return order + self.first_number + self._half(window)

    def _half(self, window: int) -> int:
        return window % 2 * (len(self.memory) // 2)

    def _drawn(self, window: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draw the blocks of a window, ascending, and the order of their rows."""
        rows = self.rows
        number, within = divmod(window, rows.n_windows)
        order = np.random.default_rng([self.seed, number]).permutation(rows.n_blocks)
        blocks = np.sort(np.array_split(order, rows.n_windows)[within])
        generator = np.random.default_rng([self.seed, number, within])
        return blocks, generator.permutation(len(blocks) * BLOCK_ROWS)

    def _load(self, window: int) -> None:
        blocks, _ = self._drawn(window)
        on_cpu = self.memory.device.type == "cpu"
        half = self.memory[self._half(window) :]
        block_memory = torch.empty(BLOCK_ROWS, self.memory.shape[1])
        for number, block in enumerate(blocks.tolist()):
            target = half[number * BLOCK_ROWS : (number + 1) * BLOCK_ROWS]
            read = target if on_cpu else block_memory
            self.rows.read_block(block, read)
            read.mul_(self.rows.scale)
            if not on_cpu:
                target.copy_(read)
