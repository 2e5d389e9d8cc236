"""The files of other projects as their users have asked about them, and what each must give.

``layouts(folder)`` writes nineteen of them below a folder. Every truth is computed by the formulas
of :mod:`tests.sae.formats.made`, never by a reader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from tests.sae.formats.made import (
    LFS,
    Array,
    D,
    F,
    K,
    jump,
    linear,
    norms,
    numbers,
    pre,
    save_weights,
    tensor,
    tensors,
    topk,
    write,
)

SAE = numbers(3)
ROWS = SAE.rows
RAW = pre(SAE, subtract=False)
RELU = np.maximum(pre(SAE), 0)
SIZE = norms(SAE)
PLAIN = ("W_enc", "b_enc", "W_dec", "b_dec")

Must = Literal["codes", "decoder", "many", "warn", "refuse", "rows"]
"""Codes and decoder are the truth; the decoder alone; several SAEs in it; a mismatch is said;
refused in a line; rows of activations."""


class Layout(NamedTuple):
    """A path, what reading it must give, and the true codes where the files say enough.

    Codes are in units of unit decoder rows.
    """

    name: str
    path: Path
    must: Must
    codes: Array | None = None
    W_dec: Array = SAE.W_dec


def saelens(folder: Path, content: dict[str, Any] | None = None, **cfg: Any) -> Path:
    told = {"d_in": D, "d_sae": F, "apply_b_dec_to_input": True, "normalize_activations": "none"}
    weights = tensors(SAE, *PLAIN) if content is None else content
    return write(folder, "cfg.json", told | cfg, "sae_weights.safetensors", weights)


def sparsify(folder: Path, content: dict[str, Any] | None = None, **cfg: Any) -> Path:
    weights = linear(SAE) | tensors(SAE, "W_dec", "b_dec") | (content or {})
    del weights["decoder.weight"]
    told = {"expansion_factor": F // D, "num_latents": 0, "k": K, "d_in": D}
    return write(folder, "cfg.json", told | cfg, "sae.safetensors", weights)


def dictionary_learning(folder: Path, kind: str, content: dict[str, Any]) -> Path:
    trainer = {"dict_class": kind, "activation_dim": D, "dict_size": F}
    told = {"trainer": trainer, "buffer": {"ctx_len": 128}}
    return write(folder, "config.json", told, "ae.pt", linear(SAE) | content)


def signed_topk(values: Array) -> Array:
    cut = np.sort(np.abs(values), axis=1)[:, -K][:, None]
    return np.where(np.abs(values) >= cut, values, 0)


def of_saelens(folder: Path) -> Iterator[Layout]:
    kwargs = {"k": K}
    path = saelens(
        folder / "called standard",
        architecture="standard",
        activation_fn_str="topk",
        activation_fn_kwargs=kwargs,
    )
    yield Layout("a TopK whose config calls it standard", path, "codes", topk(pre(SAE)) * SIZE)

    old = {"hook_point": "blocks.7.attn.hook_z", "activation_fn": "relu"}
    content = tensors(SAE, *PLAIN) | {"scaling_factor": torch.ones(F)}
    path = saelens(folder / "v3", content, normalize_activations=False, **old)
    yield Layout("a config from before architectures had names", path, "codes", RELU * SIZE)

    path = saelens(
        folder / "unscaled",
        architecture="standard",
        normalize_activations="expected_average_only_in",
    )
    yield Layout("a checkpoint whose input scale is in no file", path, "decoder")

    content = tensors(SAE, *PLAIN) | {"topk_threshold": torch.tensor(0.5, dtype=torch.float64)}
    weighed = pre(SAE) * SIZE
    path = saelens(
        folder / "batchtopk",
        content,
        architecture="batchtopk",
        k=float(K),
        rescale_acts_by_decoder_norm=True,
    )
    yield Layout("a BatchTopK checkpoint", path, "codes", jump(weighed, 0.5))

    dead = SAE.W_dec.copy()
    dead[5] = 0
    content = tensors(SAE, *PLAIN) | {"W_dec": tensor(dead)}
    path = saelens(
        folder / "dead", content, architecture="topk", k=K, rescale_acts_by_decoder_norm=True
    )
    weighed = pre(SAE) * np.sqrt((dead**2).sum(axis=1))
    yield Layout("a decoder row of zeros", path, "codes", topk(weighed), dead)

    for layer in (5, 9):
        about = {"hook_name": f"blocks.{layer}.hook_resid_post", "model_name": "gpt2"}
        path = saelens(folder / f"layer {layer}", architecture="standard", metadata=about)
    yield Layout("another layer than its neighbour", path, "warn")

    path = saelens(folder / "pointer", architecture="standard")
    (path / "sae_weights.safetensors").write_text(LFS)
    yield Layout("weights that are a pointer of Git LFS", path, "refuse")


def of_suites(folder: Path) -> Iterator[Layout]:
    arrays = {name: getattr(SAE, name).astype(np.float32) for name in (*PLAIN, "threshold")}
    jumps = jump(RAW, SAE.threshold) * SIZE
    path = folder / "gemma-scope" / "layer_12" / "width_16k" / "average_l0_82"
    path.mkdir(parents=True)
    np.savez(path / "params.npz", **arrays)
    yield Layout("Gemma Scope", path, "codes", jumps)

    small = {name.replace("W", "w"): tensor(array) for name, array in arrays.items()}
    told = {
        "architecture": "jump_relu",
        "model_name": "google/gemma-3-270m",
        "hf_hook_point_in": "model.layers.5.output",
        "width": F,
    }
    path = folder / "gemma-scope-2" / "resid_post" / "layer_5_width_16k_l0_small"
    write(path, "config.json", told, "params.safetensors", small)
    yield Layout("Gemma Scope 2", path, "codes", jumps)

    norm = 12.0
    told = {
        "d_model": D,
        "d_sae": F,
        "hook_point_in": "blocks.15.hook_resid_post",
        "act_fn": "jumprelu",
        "jump_relu_threshold": 0.05,
        "use_decoder_bias": True,
        "dataset_average_activation_norm": {"in": norm, "out": norm},
    }
    content = linear(SAE) | {"decoder.bias": tensor(SAE.b_dec)}
    path = folder / "llama"
    write(path, "hyperparams.json", told, "checkpoints/final.safetensors", content)
    scale = np.sqrt(D) / norm
    # what is selected is weighed by the decoder's norms; codes are those of rows as they come
    weighed = pre(SAE, ROWS * scale, subtract=False) * SIZE
    yield Layout("Llama Scope", path, "codes", jump(weighed, 0.05) / scale)

    centred = ROWS - ROWS.mean(axis=1, keepdims=True)
    normed = centred / (ROWS.std(axis=1, ddof=1, keepdims=True) + 1e-5)
    state: dict[str, Any] = linear(SAE) | {
        "pre_bias": tensor(SAE.b_dec),
        "latent_bias": tensor(SAE.b_enc),
        "stats_last_nonzero": torch.zeros(F, dtype=torch.long),
        "activation": "TopK",
        "activation_state_dict": {"k": K, "postact_fn": "ReLU"},
    }
    del state["encoder.bias"]
    path = save_weights(folder / "openai" / "8.pt", state)
    yield Layout("OpenAI's TopK", path, "codes", topk(pre(SAE, normed)) * SIZE)

    turned = {"W_enc": tensor(SAE.W_enc.T), "W_dec": tensor(SAE.W_dec.T)}
    content = turned | tensors(SAE, "b_enc", "b_dec")
    path = save_weights(folder / "turned" / "layer0.safetensors", content)
    yield Layout("both matrices turned, without a config", path, "decoder")


def of_trainers(folder: Path) -> Iterator[Layout]:
    content = {
        "b_dec": tensor(SAE.b_dec),
        "k": torch.tensor(K, dtype=torch.int),
        "threshold": torch.tensor(-1.0),
    }
    path = dictionary_learning(folder / "buffer" / "trainer_0", "AutoEncoderTopK", content)
    yield Layout("k in a buffer alone", path, "codes", topk(pre(SAE)) * SIZE)

    content = {"decoder.bias": tensor(SAE.b_dec)}
    path = dictionary_learning(folder / "new" / "trainer_0", "AutoEncoderNew", content)
    yield Layout("a bias that is not subtracted", path, "codes", np.maximum(RAW, 0) * SIZE)

    for seed in (0, 1):
        turned = tensor(np.roll(SAE.W_dec, seed, axis=0))
        sparsify(folder / "run" / "layers.6" / f"seed{seed}", {"W_dec": turned}, activation="topk")
    yield Layout("a run's folder of seeds", folder / "run", "many")

    path = sparsify(folder / "signed" / "layers.10", signed=True)
    yield Layout("signed latents", path, "codes", signed_topk(pre(SAE)) * SIZE)

    path = sparsify(
        folder / "transcoder" / "layers.10.mlp",
        {"W_skip": torch.zeros(D, D)},
        skip_connection=True,
        transcode=True,
    )
    yield Layout("a transcoder with a skip", path, "decoder")


def of_rows(folder: Path) -> Iterator[Layout]:
    folder.mkdir(parents=True)
    half = ROWS.astype(np.float16).reshape(8, -1, D)
    np.save(folder / "rows.npy", half)
    yield Layout("rows [batch, position, d] in float16", folder / "rows.npy", "rows")
    torch.save(tensor(ROWS), folder / "rows.pt")
    yield Layout("rows in a .pt file", folder / "rows.pt", "rows")


MAKERS: dict[str, Callable[[Path], Iterator[Layout]]] = {
    "saelens": of_saelens,
    "suites": of_suites,
    "trainers": of_trainers,
    "rows": of_rows,
}


def layouts(folder: Path) -> list[Layout]:
    """Write all nineteen below a folder."""
    return [one for name, make in MAKERS.items() for one in make(folder / name)]
