"""SAELens of every age: what its formulas give, from files that its versions wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.sae.formats.made import (
    D,
    F,
    K,
    close,
    codes_in_unit_rows,
    jump,
    norms,
    numbers,
    pre,
    same_directions,
    tensor,
    tensors,
    topk,
    write,
)

from husai.errors import InputError
from husai.sae.formats import load_dictionary, load_sae, read

SAE = numbers()
PLAIN = ("W_enc", "b_enc", "W_dec", "b_dec")
BASE = {"d_in": D, "d_sae": F, "dtype": "float32", "device": "cpu"}
NEW = BASE | {
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "metadata": {"sae_lens_version": "6.20.0", "hook_name": "blocks.3.hook_resid_post"},
}
SCALE = 0.375


def saelens(folder: Path, cfg: dict[str, Any], content: dict[str, Any] | None = None) -> Path:
    content = tensors(SAE, *PLAIN) if content is None else content
    return write(folder, "cfg.json", cfg, "sae_weights.safetensors", content)


def layer_norm(rows: np.ndarray) -> np.ndarray:
    centred = rows - rows.mean(axis=1, keepdims=True)
    return np.asarray(centred / (rows.std(axis=1, ddof=1, keepdims=True) + 1e-5))


def unit_norm(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows * np.sqrt(D) / np.sqrt((rows**2).sum(axis=1, keepdims=True)))


def gated() -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """Tensors of a gated SAE and its codes: a gate beside a magnitude with shared weights."""
    other = numbers(1)
    b_gate, b_mag, r_mag = other.b_enc, other.W_enc[0], other.W_enc[1] / 4
    content = tensors(SAE, "W_enc", "W_dec", "b_dec")
    content |= {"b_gate": tensor(b_gate), "b_mag": tensor(b_mag), "r_mag": tensor(r_mag)}
    projected = (SAE.rows - SAE.b_dec) @ SAE.W_enc
    codes = (projected + b_gate > 0) * np.maximum(projected * np.exp(r_mag) + b_mag, 0)
    return content, codes


def cases() -> dict[str, tuple[dict[str, Any], dict[str, Any] | None, np.ndarray]]:
    """Name to configuration, tensors (the plain ones when None) and codes per unit decoder row."""
    plain, size = tensors(SAE, *PLAIN), norms(SAE)
    weighed = pre(SAE) * size
    batch = {"topk_threshold": torch.tensor(0.7, dtype=torch.float64)}
    jumprelu = plain | {"threshold": tensor(SAE.threshold)}
    gates, gated_codes = gated()
    return {
        "standard": (NEW | {"architecture": "standard"}, None, np.maximum(pre(SAE), 0) * size),
        "v3": (
            BASE
            | {
                "hook_point": "blocks.2.attn.hook_z",
                "hook_point_layer": 2,
                "activation_fn": "relu",
                "normalize_activations": False,
            },
            plain | {"scaling_factor": torch.ones(F)},
            np.maximum(pre(SAE), 0) * size,
        ),
        "v5 topk called standard": (
            BASE
            | {
                "architecture": "standard",
                "activation_fn_str": "topk",
                "activation_fn_kwargs": {"k": K},
            },
            None,
            topk(pre(SAE)) * size,
        ),
        "topk": (NEW | {"architecture": "topk", "k": K}, None, topk(pre(SAE)) * size),
        "topk by weighed latents": (
            NEW | {"architecture": "topk", "k": K, "rescale_acts_by_decoder_norm": True},
            None,
            topk(weighed),
        ),
        "jumprelu": (
            NEW | {"architecture": "jumprelu"},
            jumprelu,
            jump(pre(SAE), SAE.threshold) * size,
        ),
        "jumprelu checkpoint with log thresholds": (
            NEW | {"architecture": "jumprelu"},
            plain | {"log_threshold": tensor(np.log(SAE.threshold))},
            jump(pre(SAE), SAE.threshold) * size,
        ),
        "jumprelu reads raw rows": (
            NEW | {"architecture": "jumprelu", "apply_b_dec_to_input": False},
            jumprelu,
            jump(pre(SAE, subtract=False), SAE.threshold) * size,
        ),
        "gated": (NEW | {"architecture": "gated"}, gates, gated_codes * size),
        "batchtopk checkpoint": (
            NEW | {"architecture": "batchtopk", "k": 3.0, "rescale_acts_by_decoder_norm": True},
            plain | batch,
            jump(weighed, 0.7),
        ),
        "batchtopk checkpoint, k no whole number, latents as they are": (
            NEW | {"architecture": "batchtopk", "k": 2.5, "rescale_acts_by_decoder_norm": False},
            plain | batch,
            jump(pre(SAE), 0.7) * size,
        ),
        "matryoshka checkpoint": (
            NEW | {"architecture": "matryoshka_batchtopk", "k": 3, "matryoshka_widths": [3, 6, F]},
            plain | batch,
            jump(weighed, 0.7),
        ),
        "signed topk": (
            NEW | {"architecture": "abstopk", "k": K},
            None,
            np.where(np.abs(pre(SAE)) >= np.sort(np.abs(pre(SAE)), axis=1)[:, [-K]], pre(SAE), 0)
            * size,
        ),
        "rows layer-normalised": (
            NEW | {"architecture": "standard", "normalize_activations": "layer_norm"},
            None,
            np.maximum(pre(SAE, layer_norm(SAE.rows)), 0) * size,
        ),
        "rows of constant norm": (
            NEW
            | {"architecture": "topk", "k": K, "normalize_activations": "constant_norm_rescale"},
            None,
            topk(pre(SAE, unit_norm(SAE.rows))) * size,
        ),
    }


@pytest.mark.parametrize("name", list(cases()))
def test_codes_are_those_of_the_formula(name: str, tmp_path: Path) -> None:
    cfg, content, codes = cases()[name]
    path = saelens(tmp_path / "sae", cfg, content)
    sae = load_sae(path)
    close(codes_in_unit_rows(sae, SAE.rows), codes)
    matrix, info = load_dictionary(path)
    same_directions(matrix, SAE.W_dec)
    assert info["format"] == "saelens"


def test_a_matryoshka_keeps_its_prefixes(tmp_path: Path) -> None:
    cfg, content, _ = cases()["matryoshka checkpoint"]
    assert load_sae(saelens(tmp_path, cfg, content)).config.prefixes == (3, 6, F)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_precision_are_read(dtype: torch.dtype, tmp_path: Path) -> None:
    content = {name: t.to(dtype) for name, t in tensors(SAE, *PLAIN).items()}
    cfg = NEW | {"architecture": "standard", "dtype": str(dtype).removeprefix("torch.")}
    sae = load_sae(saelens(tmp_path, cfg, content))
    assert torch.equal(sae.W_enc, content["W_enc"].float())
    assert torch.equal(sae.W_dec, content["W_dec"].float())


@pytest.mark.parametrize("where", ["hint", "beside", "in the configuration"])
def test_an_input_scale_is_folded_in_from_where_it_is_known(where: str, tmp_path: Path) -> None:
    cfg = NEW | {"architecture": "standard", "normalize_activations": "expected_average_only_in"}
    if where == "in the configuration":
        cfg |= {
            "normalize_activations": "constant_scalar_rescale",
            "activation_normalization_factor": SCALE,
        }
    path = saelens(tmp_path, cfg)
    if where == "beside":
        (path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": SCALE}))
    sae = load_sae(path, input_scale=SCALE if where == "hint" else None)
    codes = np.maximum(pre(SAE, SAE.rows * SCALE), 0)
    close(sae.encode(tensor(SAE.rows)), codes)
    reconstruction = (codes @ SAE.W_dec + SAE.b_dec) / SCALE
    close(sae.decode(sae.encode(tensor(SAE.rows))), reconstruction)
    known = read(path).contract.scale
    assert known == ("unknown" if where == "hint" else "0.375")


def test_a_scale_that_is_not_known_is_asked_for_by_name(tmp_path: Path) -> None:
    for told in (True, "expected_average_only_in"):
        path = saelens(tmp_path, NEW | {"normalize_activations": told})
        with pytest.raises(InputError, match="--input-scale"):
            load_sae(path)
        matrix, info = load_dictionary(path)
        same_directions(matrix, SAE.W_dec)
        assert "input_scale" in info["left_out"]


def test_whitened_rows_are_read_with_their_whitening_map(tmp_path: Path) -> None:
    cfg = NEW | {"architecture": "standard", "normalize_activations": "covariance_whitening"}
    path = saelens(tmp_path, cfg)
    with pytest.raises(InputError, match=r"activation_whitening\.safetensors"):
        load_dictionary(path)
    M = numbers(3).W_enc[:, :D] + 3 * np.eye(D)
    mean = numbers(4).b_dec
    maps = {"mean": mean, "matrix": M, "inverse_matrix": np.linalg.inv(M)}
    content = {name: tensor(value, torch.float64) for name, value in maps.items()}
    save_file(content, path / "activation_whitening.safetensors")
    sae = load_sae(path)
    codes = np.maximum(pre(SAE, (SAE.rows - mean) @ M), 0)
    close(sae.encode(tensor(SAE.rows)), codes)
    close(sae.decode(tensor(codes)), (codes @ SAE.W_dec + SAE.b_dec) @ np.linalg.inv(M) + mean)


def test_a_dead_row_does_not_break_a_file(tmp_path: Path) -> None:
    content = tensors(SAE, *PLAIN)
    content["W_dec"][4] = 0
    cfg = NEW | {"architecture": "topk", "k": K, "rescale_acts_by_decoder_norm": True}
    sae = load_sae(saelens(tmp_path, cfg, content))
    size = norms(SAE)
    size[4] = 0
    close(codes_in_unit_rows(sae, SAE.rows), topk(pre(SAE) * size))
    assert not sae.W_dec[4].any()


def test_a_finetuned_scale_changes_reconstructions_only(tmp_path: Path) -> None:
    stretch = np.linspace(0.5, 1.5, F)
    content = tensors(SAE, *PLAIN) | {"finetuning_scaling_factor": tensor(stretch)}
    cfg = BASE | {"architecture": "standard", "finetuning_scaling_factor": True}
    sae = load_sae(saelens(tmp_path, cfg, content))
    codes = np.maximum(pre(SAE), 0)
    close(sae.encode(tensor(SAE.rows)), codes)
    close(sae.decode(tensor(codes)), (codes * stretch) @ SAE.W_dec + SAE.b_dec)
    path = saelens(tmp_path, BASE | {"architecture": "standard"}, content)
    with pytest.raises(InputError, match="scaling_factor that its configuration does not mention"):
        load_sae(path)


@pytest.mark.parametrize(
    "kind", ["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"]
)
def test_transcoders_are_read_by_their_decoders(kind: str, tmp_path: Path) -> None:
    content = tensors(SAE, *PLAIN)
    content |= {"W_enc": torch.zeros(D + 2, F), "W_skip": torch.zeros(D, D + 2)}
    cfg = BASE | {"architecture": kind, "d_in": D + 2, "d_out": D, "apply_b_dec_to_input": False}
    path = saelens(tmp_path, cfg, content)
    found = read(path)
    same_directions(found.W_dec, SAE.W_dec)
    assert found.contract.space == "output"
    with pytest.raises(InputError, match="writes other activations than it reads"):
        load_sae(path)


def test_files_without_an_sae_of_single_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="temporal"):
        load_dictionary(saelens(tmp_path, NEW | {"architecture": "temporal"}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"activation_fn": "tanh-relu"}, "tanh-relu"),
        ({"activation_fn_str": "identity"}, "identity"),
        ({"architecture": "matching_pursuit"}, "matching_pursuit"),
        ({"architecture": "batchtopk", "k": 3}, "not measured yet"),
    ],
)
def test_unknown_codes_are_left_out_with_a_reason(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    content = tensors(SAE, *PLAIN)
    if change.get("architecture") == "batchtopk":
        content["topk_threshold"] = torch.tensor(0.0, dtype=torch.float64)
    path = saelens(tmp_path, BASE | change, content)
    with pytest.raises(InputError, match=words):
        load_sae(path)
    same_directions(load_dictionary(path)[0], SAE.W_dec)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"apply_b_dec_to_input": "false"}, "apply_b_dec_to_input: 'false'; expected true or"),
        ({"architecture": "topk", "k": True}, "k: True; expected a number"),
        ({"architecture": "topk", "k": 2.5}, "k: 2.5; expected a whole number"),
        ({"architecture": "topk"}, "do not say k; give it"),
        ({"architecture": "topk", "k": F + 1}, "is more than d_sae"),
        ({"architecture": 3}, "architecture: 3; expected text"),
        ({"d_sae": F + 1}, f"d_sae {F + 1}, but the tensors have {F}"),
        ({"d_in": D + 1}, f"d_in {D + 1}, but the tensors have {D}"),
        ({"reshape_activations": "heads"}, "reshape_activations: 'heads'"),
        (
            {"reshape_activations": "hook_z", "hook_name": "blocks.1.hook_mlp_out"},
            "has no heads",
        ),
        ({"normalize_activations": "mystery"}, "normalize_activations: 'mystery'"),
        ({"metadata": [1]}, "metadata"),
    ],
)
def test_invalid_settings_are_named(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = saelens(tmp_path, BASE | {"architecture": "standard"} | change)
    with pytest.raises(InputError, match=words) as caught:
        load_sae(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("threshold", torch.tensor([0.5]), r"threshold is \(1,\), expected"),
        ("threshold", torch.tensor(0.5), r"threshold is \(\), expected"),
        ("threshold", torch.full((F,), torch.nan), "threshold has NaN or infinity"),
        ("threshold", torch.full((F,), torch.inf), "threshold has NaN or infinity"),
        ("W_dec", torch.zeros(F, D, dtype=torch.complex64), "complex64; give real"),
        ("W_dec", torch.zeros(F, D, dtype=torch.int64), "give floating-point"),
        ("W_dec", torch.zeros(F, D, 1), r"W_dec is \(12, 6, 1\)"),
        ("W_dec", torch.full((F, D), 1e300, dtype=torch.float64), "12 of the 12 features"),
        ("W_dec", torch.zeros(F, D), "all zero"),
        ("W_enc", torch.zeros(D, F + 1), r"W_enc is \(6, 13\)"),
        ("b_dec", torch.zeros(D + 1), "expected"),
        ("b_enc", torch.zeros(0), r"\(0,\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    name: str, value: torch.Tensor, words: str, tmp_path: Path
) -> None:
    content = tensors(SAE, *PLAIN, "threshold") | {name: value}
    path = saelens(tmp_path, BASE | {"architecture": "jumprelu"}, content)
    with pytest.raises(InputError, match=words):
        load_sae(path)


def test_biases_determine_the_orientation_of_a_matrix(tmp_path: Path) -> None:
    content = tensors(SAE, *PLAIN)
    content |= {"W_enc": content["W_enc"].T, "W_dec": content["W_dec"].T}
    sae = load_sae(saelens(tmp_path, BASE | {"architecture": "standard"}, content))
    close(sae.encode(tensor(SAE.rows)), np.maximum(pre(SAE), 0))


def test_model_and_hook_are_read_from_the_configuration(tmp_path: Path) -> None:
    meta = {"model_name": "gpt2", "hook_name": "blocks.5.attn.hook_z"}
    new = read(saelens(tmp_path, NEW | {"metadata": meta, "reshape_activations": "hook_z"}))
    old = read(
        saelens(
            tmp_path,
            BASE | {"model_name": "gpt2", "hook_point": "blocks.5.attn.hook_z", "hook_layer": 5},
        )
    )
    for found in (new.contract, old.contract):
        assert (found.model, found.hook, found.layer) == ("gpt2", "blocks.5.attn.hook_z", 5)
        assert (found.reshape, found.scale, found.space) == ("hook_z", "none", "input")
