"""sparsify: topk, signed, groupmax, transcoders, and a run's folder of hook points and seeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.sae.formats.made import (
    D,
    F,
    K,
    close,
    linear,
    numbers,
    pre,
    same_directions,
    tensor,
    tensors,
    topk,
    write,
)

from husai.errors import InputError
from husai.sae.formats import export_sae, find_saes, load_dictionary, load_sae, read

SAE = numbers()
ROWS = tensor(SAE.rows)
CFG = {"expansion_factor": F // D, "num_latents": 0, "k": K, "d_in": D}


def content() -> dict[str, torch.Tensor]:
    found = linear(SAE) | tensors(SAE, "W_dec", "b_dec")
    del found["decoder.weight"]
    return found


def folder(path: Path, cfg: dict[str, Any], more: dict[str, torch.Tensor] | None = None) -> Path:
    return write(path, "cfg.json", CFG | cfg, "sae.safetensors", content() | (more or {}))


def largest_by_size(values: np.ndarray) -> np.ndarray:
    out = np.zeros_like(values)
    for row, line in enumerate(values):
        kept = np.argsort(-np.abs(line))[:K]
        out[row, kept] = line[kept]
    return out


def largest_of_groups(values: np.ndarray) -> np.ndarray:
    out = np.zeros_like(values)
    width = F // K
    for row, line in enumerate(values):
        for start in range(0, F, width):
            best = start + int(np.argmax(line[start : start + width]))
            out[row, best] = max(line[best], 0)
    return out


KINDS: dict[str, tuple[dict[str, Any], Any]] = {
    "topk": ({"activation": "topk"}, topk),
    "before activations had names": ({"normalize_decoder": True}, topk),
    "signed": ({"signed": True}, largest_by_size),
    "groupmax": ({"activation": "groupmax"}, largest_of_groups),
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_codes_are_those_of_the_formula(kind: str, tmp_path: Path) -> None:
    cfg, codes = KINDS[kind]
    sae = load_sae(folder(tmp_path, cfg))
    close(sae.encode(ROWS), codes(pre(SAE)))


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_is_written_again(kind: str, tmp_path: Path) -> None:
    sae = load_sae(folder(tmp_path / "a", KINDS[kind][0]))
    export_sae(sae, tmp_path / "b", "sparsify")
    assert torch.equal(load_sae(tmp_path / "b").encode(ROWS), sae.encode(ROWS))


def test_a_run_has_a_folder_for_every_hook_point_and_seed(tmp_path: Path) -> None:
    for hook in ("layers.6", "layers.10"):
        for seed in (0, 1):
            folder(tmp_path / hook / f"seed{seed}", {})
    (tmp_path / "config.json").write_text(json.dumps({"model": "EleutherAI/pythia-160m"}))
    found = find_saes(tmp_path)
    names = [str(path.relative_to(tmp_path)) for path in found]
    assert names == ["layers.6/seed0", "layers.6/seed1", "layers.10/seed0", "layers.10/seed1"]
    contract = read(found[2]).contract
    assert (contract.model, contract.hook, contract.layer) == (
        "EleutherAI/pythia-160m",
        "layers.10",
        10,
    )
    with pytest.raises(InputError, match="has 4 SAEs"):
        load_dictionary(tmp_path)


@pytest.mark.parametrize(
    ("cfg", "words", "space"),
    [
        ({"transcode": True}, "transcoder", "output"),
        ({"transcode": True, "skip_connection": True}, "transcoder", "output"),
        ({"skip_connection": True}, "skip connection", "input"),
    ],
)
def test_files_that_are_not_autoencoders_are_read_by_their_decoders(
    cfg: dict[str, Any], words: str, space: str, tmp_path: Path
) -> None:
    more = {"W_skip": torch.zeros(D, D)} if "skip_connection" in cfg else None
    path = folder(tmp_path / "layers.3.mlp", cfg, more)
    found = read(path)
    same_directions(found.W_dec, SAE.W_dec)
    assert found.contract.space == space
    with pytest.raises(InputError, match=words):
        load_sae(path)


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        ({"activation": "softmax"}, "activation: 'softmax'"),
        ({"signed": "false"}, "signed: 'false'; expected true or false"),
        ({"k": True}, "k: True"),
        ({"k": None}, "do not say k"),
        ({"k": 5, "activation": "groupmax"}, "k 5 does not divide 12"),
        ({"num_latents": F + 1}, "num_latents 13, but the tensors have 12"),
        ({"expansion_factor": 3}, "expansion_factor 3 of 6 does not give the 12 latents"),
        ({"d_in": D + 1}, "d_in 7, but the tensors have 6"),
    ],
)
def test_invalid_settings_are_named(cfg: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        load_sae(folder(tmp_path, cfg))
