"""Published suites: Gemma Scope 1 and 2, Llama Scope, Qwen Scope, OpenAI, Goodfire."""

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
    codes_in_unit_rows,
    jump,
    linear,
    norms,
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
from husai.sae.formats import load_dictionary, load_sae, read

SAE = numbers()
ROWS = tensor(SAE.rows)
RAW = pre(SAE, subtract=False)
NORM = 3.5


def npz(folder: Path, **change: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: getattr(SAE, name).astype(np.float32) for name in SAE._fields[:-1]}
    np.savez(folder / "params.npz", **(arrays | change))
    return folder


# -- Gemma Scope ---------------------------------------------------------------------------------


def test_gemma_scope_does_not_subtract_its_decoder_bias(tmp_path: Path) -> None:
    path = npz(tmp_path / "gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82")
    for place in (path, path / "params.npz", tmp_path):
        close(load_sae(place).encode(ROWS), jump(RAW, SAE.threshold))
    contract = read(path).contract
    assert (contract.model, contract.hook) == ("gemma-2-2b-pt", "blocks.12.hook_resid_post")


def test_gemma_scope_transcoders_are_read_by_their_decoders(tmp_path: Path) -> None:
    path = npz(
        tmp_path / "gemma-scope-2b-pt-transcoders/layer_3/width_16k/average_l0_8",
        W_enc=np.zeros((D + 3, F), np.float32),
    )
    found = read(path)
    same_directions(found.W_dec, SAE.W_dec)
    assert found.contract.space == "output"
    with pytest.raises(InputError, match="transcoder"):
        load_sae(path)


def test_names_of_the_users_own_folders_are_ignored(tmp_path: Path) -> None:
    mine = tmp_path / "transcoder-embeddings" / "clt" / "gemma-scope-2b-pt-res" / "layer_1" / "w"
    assert read(npz(mine)).contract.space == "input"
    far = tmp_path / "transcoders" / "embedding" / "a" / "b" / "layer_1"
    close(load_sae(npz(far)).encode(ROWS), jump(RAW, SAE.threshold))


def gemma_2(folder: Path, cfg: dict[str, Any], more: dict[str, Any] | None = None) -> Path:
    names = {"w_enc": "W_enc", "w_dec": "W_dec"} | {
        name: name for name in ("b_enc", "b_dec", "threshold")
    }
    content = {theirs: tensor(getattr(SAE, ours)) for theirs, ours in names.items()}
    cfg = {"architecture": "jump_relu", "model_name": "google/gemma-3-1b-pt", "width": F} | cfg
    return write(folder, "config.json", cfg, "params.safetensors", content | (more or {}))


def test_gemma_scope_2(tmp_path: Path) -> None:
    path = gemma_2(tmp_path / "resid_post/layer_7_width_16k_l0_small", {})
    close(load_sae(path).encode(ROWS), jump(RAW, SAE.threshold))
    contract = read(path).contract
    assert (contract.model, contract.hook) == ("google/gemma-3-1b-pt", "blocks.7.hook_resid_post")
    skips = gemma_2(
        tmp_path / "transcoder/layer_7_width_16k_l0_small",
        {"hf_hook_point_in": "a.0.in", "hf_hook_point_out": "a.0.out"},
        {"affine_skip_connection": torch.zeros(D, D)},
    )
    assert read(skips).contract.hook_out == "a.0.out"
    with pytest.raises(InputError, match="transcoder"):
        load_sae(skips)
    with pytest.raises(InputError, match="width 9, but the tensors have 12"):
        load_sae(gemma_2(tmp_path / "bad", {"width": 9}))


def test_cross_layer_transcoders_are_read_by_all_their_decoders(tmp_path: Path) -> None:
    layers = np.stack([numbers(i).W_dec for i in range(2)], axis=1)
    path = gemma_2(tmp_path / "clt/layer_0", {}, {"w_dec": tensor(layers)})
    same_directions(read(path).W_dec, layers.reshape(F, -1))


# -- Llama Scope ---------------------------------------------------------------------------------


def llama(folder: Path, change: dict[str, Any]) -> Path:
    cfg = {
        "d_model": D,
        "d_sae": F,
        "hook_point_in": "blocks.15.hook_resid_post",
        "hook_point_out": "blocks.15.hook_resid_post",
        "act_fn": "jumprelu",
        "jump_relu_threshold": 0.4,
        "top_k": K,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": NORM, "out": NORM},
        "apply_decoder_bias_to_pre_encoder": False,
        "sparsity_include_decoder_norm": True,
    }
    content = linear(SAE) | {"decoder.bias": tensor(SAE.b_dec)}
    return write(folder, "hyperparams.json", cfg | change, "checkpoints/final.safetensors", content)


def llama_codes(subtract: bool = False) -> np.ndarray:
    """Pre-activations of rows scaled to the data's norm, weighed by decoder norms."""
    return pre(SAE, SAE.rows * np.sqrt(D) / NORM, subtract) * norms(SAE)


@pytest.mark.parametrize(
    ("change", "codes"),
    [
        ({}, jump(llama_codes(), 0.4)),
        ({"act_fn": "topk"}, topk(llama_codes())),
        ({"apply_decoder_bias_to_pre_encoder": True}, jump(llama_codes(True), 0.4)),
        (
            {"sparsity_include_decoder_norm": False},
            jump(llama_codes() / norms(SAE), 0.4) * norms(SAE),
        ),
        ({"norm_activation": "none"}, jump(RAW * norms(SAE), 0.4)),
    ],
)
def test_llama_scope(change: dict[str, Any], codes: np.ndarray, tmp_path: Path) -> None:
    sae = load_sae(llama(tmp_path, change))
    found = sae.encode(ROWS).double().numpy()
    # codes are in the units of scaled rows: take those of the scale away from the decoder
    scale = 1 if change.get("norm_activation") == "none" else np.sqrt(D) / NORM
    close(codes_in_unit_rows(sae, SAE.rows) * scale, codes)
    assert found.shape == codes.shape
    same_directions(sae.W_dec, SAE.W_dec)


def test_llama_scope_asks_for_a_norm_that_is_not_stated(tmp_path: Path) -> None:
    path = llama(tmp_path, {"dataset_average_activation_norm": None})
    with pytest.raises(InputError, match="input-scale"):
        load_sae(path)
    sae = load_sae(path, input_scale=float(np.sqrt(D) / NORM))
    close(codes_in_unit_rows(sae, SAE.rows) * np.sqrt(D) / NORM, jump(llama_codes(), 0.4))
    elsewhere = llama(tmp_path / "tc", {"hook_point_out": "blocks.15.hook_mlp_out"})
    with pytest.raises(InputError, match="transcoder"):
        load_sae(elsewhere)


def test_later_files_of_the_same_library(tmp_path: Path) -> None:
    content = {
        "W_E": tensor(SAE.W_enc),
        "b_E": tensor(SAE.b_enc),
        "W_D": tensor(SAE.W_dec),
        "b_D": tensor(SAE.b_dec),
        "activation_function.log_jumprelu_threshold": tensor(np.log(SAE.threshold)),
    }
    cfg = {"d_model": D, "act_fn": "jumprelu", "norm_activation": "inference"}
    path = write(tmp_path, "config.json", cfg, "sae_weights.safetensors", content)
    sae = load_sae(path)
    close(codes_in_unit_rows(sae, SAE.rows), jump(RAW * norms(SAE), SAE.threshold))


# -- one file each -------------------------------------------------------------------------------


def test_qwen_scope_takes_k_from_the_repository(tmp_path: Path) -> None:
    content = tensors(SAE, "b_enc", "b_dec")
    content |= {"W_enc": tensor(SAE.W_enc.T), "W_dec": tensor(SAE.W_dec.T)}
    path = save_weights(tmp_path / f"SAE-Res-Qwen3-1B-W1K-L0_{K}" / "layer3.sae.pt", content)
    close(load_sae(path).encode(ROWS), topk(RAW))
    contract = read(path).contract
    assert (contract.model, contract.hook) == ("Qwen/Qwen3-1B", "blocks.3.hook_resid_post")
    alone = save_weights(tmp_path / "elsewhere" / "layer3.sae.pt", content)
    with pytest.raises(InputError, match="do not say k"):
        load_sae(alone)
    close(load_sae(alone, k=K).encode(ROWS), topk(RAW))


def test_goodfire(tmp_path: Path) -> None:
    content = {
        "encoder_linear.weight": tensor(SAE.W_enc.T, torch.bfloat16),
        "encoder_linear.bias": tensor(SAE.b_enc),
        "decoder_linear.weight": tensor(SAE.W_dec.T),
        "decoder_linear.bias": tensor(SAE.b_dec),
    }
    path = save_weights(tmp_path / "Llama-3.1-8B-Instruct-SAE-l19.pth", content)
    rounded = content["encoder_linear.weight"].double().numpy().T
    close(load_sae(path).encode(ROWS), np.maximum(SAE.rows @ rounded + SAE.b_enc, 0))
    assert read(path).contract.layer == 19


def openai(path: Path, activation: str, state: dict[str, Any] | None) -> Path:
    content: dict[str, Any] = {
        "pre_bias": tensor(SAE.b_dec),
        "latent_bias": tensor(SAE.b_enc),
        "encoder.weight": tensor(SAE.W_enc.T),
        "decoder.weight": tensor(SAE.W_dec.T),
        "stats_last_nonzero": torch.zeros(F, dtype=torch.long),
        "activation": activation,
    }
    if state is not None:
        content["activation_state_dict"] = state
    return save_weights(path, content)


def test_openai_topk_normalises_each_row_first(tmp_path: Path) -> None:
    path = openai(tmp_path / "8.pt", "TopK", {"k": K, "postact_fn": "ReLU"})
    mean = SAE.rows.mean(axis=1, keepdims=True)
    scale = SAE.rows.std(axis=1, ddof=1, keepdims=True) + 1e-5
    codes = topk(pre(SAE, (SAE.rows - mean) / scale))
    sae = load_sae(path)
    close(sae.encode(ROWS), codes)
    assert read(path).contract.scale == "layer_norm"
    # a reconstruction needs the rows
    with pytest.raises(InputError, match="use reconstruct"):
        sae.decode(sae.encode(ROWS))
    close(sae.reconstruct(ROWS), (codes @ SAE.W_dec + SAE.b_dec) * scale + mean)  # type: ignore[attr-defined]


def test_openai_relu_reads_rows_as_they_are(tmp_path: Path) -> None:
    close(load_sae(openai(tmp_path / "1.pt", "ReLU", None)).encode(ROWS), np.maximum(pre(SAE), 0))
    odd = openai(tmp_path / "2.pt", "TopK", {"k": K, "postact_fn": "Identity"})
    with pytest.raises(InputError, match="Identity"):
        load_sae(odd)
    same_directions(load_dictionary(odd)[0], SAE.W_dec)
    with pytest.raises(InputError, match="k: True"):
        load_sae(openai(tmp_path / "3.pt", "TopK", {"k": True, "postact_fn": "ReLU"}))
