"""One small SAE's numbers, and what the formulas of each project give for them.

Nothing here uses a reader: tests write files from these arrays and compare what is read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

D, F, N, K = 6, 12, 40, 3

LFS = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 123\n"
"""A file of weights of which git downloaded the pointer alone."""

Array = NDArray[np.float64]


class Numbers(NamedTuple):
    """An SAE and rows, in float64; the files hold float32 copies of exactly these values."""

    W_enc: Array
    b_enc: Array
    W_dec: Array
    b_dec: Array
    threshold: Array
    rows: Array


def numbers(seed: int = 0) -> Numbers:
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> Array:
        # exact in float32
        return np.asarray(rng.normal(size=shape).astype(np.float32), dtype=np.float64)

    W_dec = draw(F, D) * np.linspace(0.5, 2, F).astype(np.float32)[:, None]
    W_dec = W_dec.astype(np.float32).astype(np.float64)
    threshold = np.abs(draw(F)) + np.float64(np.float32(0.1))
    threshold = threshold.astype(np.float32).astype(np.float64)
    return Numbers(draw(D, F), draw(F), W_dec, draw(D), threshold, draw(N, D) + 0.5)


def pre(sae: Numbers, rows: Array | None = None, subtract: bool = True) -> Array:
    x = sae.rows if rows is None else rows
    return (x - sae.b_dec * subtract) @ sae.W_enc + sae.b_enc


def topk(values: Array, k: int = K) -> Array:
    """The k largest of each row, by sorting; never negative."""
    out = np.zeros_like(values)
    for row, line in enumerate(values):
        for column in np.argsort(-line)[:k]:
            out[row, column] = max(line[column], 0.0)
    return out


def jump(values: Array, threshold: Array | float) -> Array:
    return np.where(values > threshold, np.maximum(values, 0), 0)


def norms(sae: Numbers) -> Array:
    return np.asarray(np.sqrt((sae.W_dec**2).sum(axis=1)))


def tensor(array: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(dtype)


def tensors(sae: Numbers, *names: str) -> dict[str, torch.Tensor]:
    return {name: tensor(getattr(sae, name)) for name in names}


def linear(sae: Numbers) -> dict[str, torch.Tensor]:
    return {
        "encoder.weight": tensor(sae.W_enc.T),
        "encoder.bias": tensor(sae.b_enc),
        "decoder.weight": tensor(sae.W_dec.T),
    }


def write(
    folder: Path, config: str, settings: dict[str, Any], weights: str, content: dict[str, Any]
) -> Path:
    """A configuration and a file of weights, by the suffix of its name."""
    (folder / weights).parent.mkdir(parents=True, exist_ok=True)
    (folder / config).write_text(json.dumps(settings))
    save_weights(folder / weights, content)
    return folder


def save_weights(path: Path, content: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file({name: t.contiguous() for name, t in content.items()}, path)
    else:
        torch.save(content, path)
    return path


def codes_in_unit_rows(sae: Any, rows: Array) -> Array:
    """Return the codes of an SAE that was read, in units of unit decoder rows."""
    f = sae.encode(tensor(rows)).double().numpy()
    return np.asarray(f * np.sqrt((sae.W_dec.double().numpy() ** 2).sum(axis=1)))


def close(found: Any, truth: Any) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(truth), rtol=2e-4, atol=2e-5)


def same_directions(found: Any, truth: Array) -> None:
    found = np.asarray(found, dtype=np.float64)
    assert found.shape == truth.shape

    def unit(rows: Array) -> Array:
        return np.asarray(rows / np.maximum(np.sqrt((rows**2).sum(axis=1, keepdims=True)), 1e-30))

    np.testing.assert_allclose(unit(found), unit(truth), atol=1e-5)
