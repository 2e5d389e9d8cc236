"""dictionary_learning: every dict_class, k in its places, a trainer's parent, crosscoders."""

from __future__ import annotations

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
    jump,
    linear,
    numbers,
    pre,
    same_directions,
    save_weights,
    tensor,
    tensors,
    topk,
    write,
)

from husai.errors import InputError
from husai.sae.formats import find_saes, load_dictionary, load_sae, read

SAE = numbers()
ROWS = tensor(SAE.rows)
NAMED = ("W_enc", "b_enc", "W_dec", "b_dec")


def folder(path: Path, kind: str, content: dict[str, Any], **trainer: Any) -> Path:
    told = {"dict_class": kind, "activation_dim": D, "dict_size": F, "lm_name": "m", "layer": 4}
    settings = {"trainer": told | trainer, "buffer": {"ctx_len": 128}}
    return write(path, "config.json", settings, "ae.pt", content)


def buffers(k: int | None = K, threshold: float = 0.6) -> dict[str, torch.Tensor]:
    kept = {} if k is None else {"k": torch.tensor(k, dtype=torch.int)}
    return kept | {"threshold": torch.tensor(threshold)}


def gated() -> tuple[dict[str, torch.Tensor], np.ndarray]:
    other = numbers(1)
    gate, mag, r = other.b_enc, other.W_enc[0], other.W_enc[1] / 4
    content = {
        "encoder.weight": tensor(SAE.W_enc.T),
        "decoder.weight": tensor(SAE.W_dec.T),
        "decoder_bias": tensor(SAE.b_dec),
        "r_mag": tensor(r),
        "gate_bias": tensor(gate),
        "mag_bias": tensor(mag),
    }
    projected = (SAE.rows - SAE.b_dec) @ SAE.W_enc
    return content, (projected + gate > 0) * np.maximum(np.exp(r) * projected + mag, 0)


def classes() -> dict[str, tuple[dict[str, Any], np.ndarray, dict[str, Any]]]:
    """Return for each class its tensors, its codes and the other settings of its trainer."""
    b_dec = {"b_dec": tensor(SAE.b_dec)}
    named = tensors(SAE, *NAMED)
    groups = {"group_sizes": torch.tensor([2, 4, F - 6])}
    relu, raw = np.maximum(pre(SAE), 0), pre(SAE, subtract=False)
    gates, gated_codes = gated()
    return {
        "AutoEncoder": (linear(SAE) | {"bias": tensor(SAE.b_dec)}, relu, {}),
        "AutoEncoderNew": (
            linear(SAE) | {"decoder.bias": tensor(SAE.b_dec)},
            np.maximum(raw, 0),
            {},
        ),
        "AutoEncoderTopK": (linear(SAE) | b_dec | buffers(threshold=-1.0), topk(pre(SAE)), {}),
        "BatchTopKSAE": (linear(SAE) | b_dec | buffers(), jump(pre(SAE), 0.6), {"k": K}),
        "MatryoshkaBatchTopKSAE": (named | buffers() | groups, jump(pre(SAE), 0.6), {"k": K}),
        "JumpReluAutoEncoder": (
            named | {"threshold": tensor(SAE.threshold)},
            jump(raw, SAE.threshold),
            {},
        ),
        "GatedAutoEncoder": (gates, gated_codes, {}),
    }


@pytest.mark.parametrize("kind", list(classes()))
def test_every_class_gives_the_codes_of_its_formula(kind: str, tmp_path: Path) -> None:
    content, codes, trainer = classes()[kind]
    path = folder(tmp_path / "trainer_0", kind, content, **trainer)
    # the run's folder stands for its one trainer
    for place in (path, tmp_path, path / "ae.pt"):
        sae = load_sae(place)
        close(sae.encode(ROWS), codes)
        close(sae.decode(tensor(codes)), codes @ SAE.W_dec + SAE.b_dec)
    contract = read(path).contract
    assert (contract.model, contract.layer, contract.scale) == ("m", 4, "none")


def test_a_matryoshka_keeps_its_groups(tmp_path: Path) -> None:
    content, _, trainer = classes()["MatryoshkaBatchTopKSAE"]
    sae = load_sae(folder(tmp_path, "MatryoshkaBatchTopKSAE", content, **trainer))
    assert sae.config.prefixes == (2, 6, F)
    content["group_sizes"] = torch.tensor([2, 4, F])
    with pytest.raises(InputError, match="do not add up to 12"):
        load_sae(folder(tmp_path, "MatryoshkaBatchTopKSAE", content, **trainer))


def test_k_is_read_from_the_buffer_or_the_configuration_or_asked_for(tmp_path: Path) -> None:
    content = linear(SAE) | {"b_dec": tensor(SAE.b_dec)}
    places = {
        "buffer": folder(tmp_path / "a", "AutoEncoderTopK", content | buffers()),
        "configuration": folder(tmp_path / "b", "AutoEncoderTopK", content, k=K),
    }
    for path in places.values():
        assert load_sae(path).config.k == K
    nowhere = folder(tmp_path / "c", "AutoEncoderTopK", content)
    with pytest.raises(InputError, match="do not say k"):
        load_sae(nowhere)
    assert load_sae(nowhere, k=2).config.k == 2
    torn = folder(tmp_path / "d", "AutoEncoderTopK", content | buffers(), k=K + 1)
    with pytest.raises(InputError, match=r"k is 3, but 4 in config\.json"):
        load_sae(torn)


def test_a_threshold_that_was_not_measured_is_ignored(tmp_path: Path) -> None:
    content = linear(SAE) | {"b_dec": tensor(SAE.b_dec)} | buffers(threshold=-1.0)
    path = folder(tmp_path, "BatchTopKSAE", content, k=K)
    with pytest.raises(InputError, match="before one was measured"):
        load_sae(path)
    same_directions(load_dictionary(path)[0], SAE.W_dec)
    for value in (torch.tensor([0.5]), torch.tensor(torch.nan)):
        spoiled = content | {"threshold": value}
        with pytest.raises(InputError, match="threshold"):
            load_sae(folder(tmp_path, "BatchTopKSAE", spoiled, k=K))


def test_a_run_with_several_trainers_gives_all_its_saes(tmp_path: Path) -> None:
    content = linear(SAE) | {"bias": tensor(SAE.b_dec)}
    for i in (0, 1, 2, 10):
        path = folder(tmp_path / "run" / f"trainer_{i}", "AutoEncoder", content)
        save_weights(path / "checkpoints" / "ae_1000.pt", content)
    found = find_saes(tmp_path)
    assert [p.name for p in found] == ["trainer_0", "trainer_1", "trainer_2", "trainer_10"]
    with pytest.raises(InputError, match=r"has 4 SAEs.*trainer_10"):
        load_sae(tmp_path)
    checkpoint = load_sae(found[0] / "checkpoints" / "ae_1000.pt")
    close(checkpoint.encode(ROWS), np.maximum(pre(SAE), 0))


def test_crosscoders_are_compared_by_all_their_layers(tmp_path: Path) -> None:
    layers = [numbers(i).W_dec for i in range(3)]
    content = {
        "encoder.weight": torch.zeros(3, D, F),
        "encoder.bias": torch.zeros(F),
        "decoder.weight": tensor(np.stack(layers)),
        "decoder.bias": torch.zeros(3, D),
    }
    path = folder(tmp_path, "BatchTopKCrossCoder", content)
    found = read(path)
    same_directions(found.W_dec, np.concatenate(layers, axis=1))
    assert found.contract.space == "layers"
    with pytest.raises(InputError, match="several layers at once"):
        load_sae(path)


@pytest.mark.parametrize(
    ("trainer", "words"),
    [
        ({"dict_class": "IdentityDict"}, "'IdentityDict' is not one of"),
        ({"dict_class": None}, "no trainer.dict_class"),
        ({"dict_size": F + 1}, "dict_size 13, but the tensors have 12"),
        ({"activation_dim": D - 1}, "activation_dim 5, but the tensors have 6"),
        ({"layer": "four"}, "layer: 'four'; expected a number"),
    ],
)
def test_invalid_settings_are_named(trainer: dict[str, Any], words: str, tmp_path: Path) -> None:
    content = linear(SAE) | {"bias": tensor(SAE.b_dec)}
    with pytest.raises(InputError, match=words):
        load_sae(folder(tmp_path, "AutoEncoder", content, **trainer))
