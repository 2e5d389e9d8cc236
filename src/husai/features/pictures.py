"""Show a latent's activations on its card: maps over (a, b), histograms, rows with context."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from husai.errors import InputError

LEVELS = 16
"""Number of shades of a map: at four bits per pixel, two thousand dense maps fit on one page."""

# matplotlib's cividis in sixteen steps: readable in grey and with every kind of colour vision
PALETTE = (
    *("00224e", "002e6c", "1e3a6f", "35456c", "47516c", "575d6d", "666970", "757575"),
    *("848279", "948e77", "a59c74", "b7a96e", "c8b866", "dbc75a", "eed649", "fee838"),
)
HISTOGRAM_BINS = 24


class TopRows(NamedTuple):
    """Rows on which latents are most active, ``[n_latents, k]`` each; unused places have row -1."""

    row: NDArray[np.int64]
    value: NDArray[np.float64]


def palette_png(index: NDArray[np.integer[Any]]) -> bytes:
    """Encode an image as PNG.

    Parameters
    ----------
    index
        ``[height, width]`` indices into :data:`PALETTE`.

    Raises
    ------
    InputError
        When it is not a matrix of indices below 16.
    """
    shades = np.asarray(index, dtype=np.uint8)
    if shades.ndim != 2 or not shades.size or shades.max() >= LEVELS:
        raise InputError(f"image: shape {shades.shape}; give a matrix of indices below {LEVELS}")
    height, width = shades.shape
    padded = np.zeros((height, width + width % 2), dtype=np.uint8)
    padded[:, :width] = shades
    lines = np.zeros((height, 1 + padded.shape[1] // 2), dtype=np.uint8)  # filter byte 0 first
    lines[:, 1:] = (padded[:, ::2] << 4) | padded[:, 1::2]

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 4, 3, 0, 0, 0)),
            chunk(b"PLTE", bytes.fromhex("".join(PALETTE))),
            chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)),
            chunk(b"IEND", b""),
        )
    )


def activation_map(codes: sparse.csc_array, latent: int, modulus: int) -> bytes:
    """Draw a latent's code on all pairs (a, b): a downwards, b to the right, as PNG.

    The shades go from 0 to the largest activation. Every row on which the latent fires is at least
    one shade above 0, so that a weak activation differs from none.

    Parameters
    ----------
    codes
        ``[modulus², n_latents]``, not negative; rows are sorted by a and then b.
    latent
        Column of the latent.
    modulus
        p.
    """
    fires = slice(codes.indptr[latent], codes.indptr[latent + 1])
    shades = np.zeros(modulus**2, dtype=np.uint8)
    value = np.asarray(codes.data[fires], dtype=np.float64)
    if len(value) and value.max() > 0:
        scaled = np.ceil(value / value.max() * (LEVELS - 1))
        shades[codes.indices[fires]] = scaled.astype(np.uint8)
    return palette_png(shades.reshape(modulus, modulus))


def histogram(codes: sparse.csc_array, latent: int, n_bins: int = HISTOGRAM_BINS) -> list[int]:
    """Count the rows on which a latent fires, in ``n_bins`` bins from 0 to its largest activation.

    Parameters
    ----------
    codes
        ``[n_rows, n_latents]``.
    latent
        Column of the latent.
    n_bins
        Number of bins.
    """
    value = codes.data[codes.indptr[latent] : codes.indptr[latent + 1]]
    top = float(value.max()) if len(value) else 0.0
    if top <= 0:
        return [0] * n_bins
    counts, _ = np.histogram(value, bins=n_bins, range=(0.0, top))
    return [int(n) for n in counts]


def top_rows(codes: sparse.csc_array, k: int) -> TopRows:
    """Find the k rows of ``[n_rows, n_latents]`` codes on which each latent is most active.

    The strongest row is first.
    """
    n = codes.shape[1]
    row, value = np.full((n, k), -1, dtype=np.int64), np.zeros((n, k))
    for j in range(n):
        fires = slice(codes.indptr[j], codes.indptr[j + 1])
        data, where = codes.data[fires], codes.indices[fires]
        order = np.lexsort((where, -data))[:k]
        row[j, : len(order)], value[j, : len(order)] = where[order], data[order]
    return TopRows(row, value)


def check_contexts(contexts: pd.DataFrame, n_rows: int) -> pd.DataFrame:
    """Check a table of contexts: a row for each activation row, in the same order.

    Parameters
    ----------
    contexts
        ``token``: the text of the row's token. ``document``: the text that it comes from; the rows
        of one document follow one another in reading order. Without this column all rows are one
        document.
    n_rows
        Number of activation rows.

    Returns
    -------
    pandas.DataFrame
        The table with both columns and a new index from 0.

    Raises
    ------
    InputError
        When a column or rows are missing.
    """
    if "token" not in contexts:
        raise InputError(
            f"contexts: columns {list(contexts.columns)}; give 'token' (text), and 'document' "
            "where rows come from several texts"
        )
    if len(contexts) != n_rows:
        raise InputError(
            f"contexts: {len(contexts)} rows, but {n_rows} rows of activations; give one row for "
            "each"
        )
    if "document" not in contexts:
        contexts = contexts.assign(document=0)
    return contexts.reset_index(drop=True)


def context_of(contexts: pd.DataFrame, row: int, tokens: int) -> tuple[str, str, str]:
    """Return the text before a row's token, the token, and the text after it, in one document."""
    near = contexts.iloc[max(0, row - tokens) : row + tokens + 1]
    same = near["document"] == contexts["document"].iloc[row]
    words: Sequence[str] = near["token"].astype(str).tolist()
    here = row - max(0, row - tokens)
    before = "".join(w for w, ok in zip(words[:here], same[:here], strict=True) if ok)
    after = "".join(w for w, ok in zip(words[here + 1 :], same[here + 1 :], strict=True) if ok)
    return before, words[here], after
