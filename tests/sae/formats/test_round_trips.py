"""Directories of other projects, plain dictionaries, and files that are none of these."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from husai.errors import InputError
from husai.sae import (
    BankTrainingConfig,
    SAEConfig,
    TrainedSAE,
    detect_format,
    export_sae,
    load_dictionary,
    load_sae,
    save_sae,
    train_bank,
)

SETTINGS: dict[str, dict[str, Any]] = {
    "topk": {"k": 3},
    "batch_topk": {"k": 3},
    "relu": {"l1_coefficient": 2.0},
    "jumprelu": {"l0_coefficient": 0.5},
    "matryoshka_batch_topk": {"k": 3},
    "matryoshka_topk": {"k": 3},
}


def rows() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(600, 12, generator=generator) + 1


def trained(architecture: str) -> TrainedSAE:
    config = SAEConfig(architecture=architecture, d_sae=20, **SETTINGS[architecture])
    return train_bank(rows(), [config], BankTrainingConfig(steps=30, batch_size=128))[0]


CASES = [
    ("saelens", "relu", "relu"),
    ("saelens", "topk", "topk"),
    ("saelens", "batch_topk", "jumprelu"),
    ("saelens", "matryoshka_batch_topk", "jumprelu"),
    ("saelens", "jumprelu", "jumprelu"),
    # what a nested SAE was trained with is not in its codes: read back, it is a TopK
    *[
        ("dictionary_learning", name, "topk" if name == "matryoshka_topk" else name)
        for name in SETTINGS
    ],
    ("sparsify", "topk", "topk"),
    ("sparsify", "matryoshka_topk", "topk"),
    ("saelens", "matryoshka_topk", "topk"),
]


@pytest.mark.parametrize(("kind", "architecture", "read_as"), CASES)
def test_round_trip_keeps_codes_and_reconstructions(
    kind: Any, architecture: str, read_as: str, tmp_path: Path
) -> None:
    sae = trained(architecture)
    export_sae(sae, tmp_path / "out", kind)
    assert detect_format(tmp_path / "out") == kind
    back = load_sae(tmp_path / "out")
    assert back.config.architecture == read_as
    assert back.config.prefixes == sae.config.prefixes or read_as != architecture
    x = rows()
    torch.testing.assert_close(back.encode(x), sae.encode(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        back.decode(back.encode(x)), sae.decode(sae.encode(x)), rtol=1e-5, atol=1e-5
    )
    matrix, info = load_dictionary(tmp_path / "out")
    assert np.array_equal(matrix, sae.W_dec.numpy())
    assert (info["format"], info["d_sae"], info["d_in"]) == (kind, 20, 12)


def test_settings_of_saelens_are_folded_into_the_weights(tmp_path: Path) -> None:
    """A topk whose choice depends on decoder norms, and whose encoder reads x itself."""
    generator = torch.Generator().manual_seed(1)
    W_enc, b_enc = torch.randn(6, 10, generator=generator), torch.randn(10, generator=generator)
    W_dec, b_dec = torch.randn(10, 6, generator=generator), torch.randn(6, generator=generator)
    tensors = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    save_file(tensors, tmp_path / "sae_weights.safetensors")
    cfg = {
        "architecture": "topk",
        "k": 2,
        "apply_b_dec_to_input": False,
        "rescale_acts_by_decoder_norm": True,
    }
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    x = torch.randn(50, 6, generator=generator)
    scaled = torch.relu(x @ W_enc + b_enc) * W_dec.norm(dim=1)
    top = scaled.topk(2)
    f = torch.zeros_like(scaled).scatter(1, top.indices, top.values)
    expected = (f / W_dec.norm(dim=1)) @ W_dec + b_dec
    sae = load_sae(tmp_path)
    torch.testing.assert_close(sae.decode(sae.encode(x)), expected, rtol=1e-5, atol=1e-5)
    (tmp_path / "cfg.json").write_text(json.dumps(cfg | {"normalize_activations": "by_hand"}))
    with pytest.raises(InputError, match="normalize_activations: 'by_hand'"):
        load_sae(tmp_path)


def test_sparsify_knows_topk_only(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist in sparsify"):
        export_sae(trained("relu"), tmp_path, "sparsify")


def test_plain_dictionaries_are_read(tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    np.save(tmp_path / "a.npy", matrix)
    save_file({"anything": torch.from_numpy(matrix)}, tmp_path / "b.safetensors")
    linear = {"decoder.weight": torch.from_numpy(matrix.T.copy()), "x": torch.zeros(2, 2)}
    save_file(linear, tmp_path / "c.safetensors")
    for name in ("a.npy", "b.safetensors", "c.safetensors"):
        found, info = load_dictionary(tmp_path / name)
        assert np.array_equal(found, matrix)
        assert info["d_sae"] == 5
    save_file({"p": torch.zeros(2, 2), "q": torch.zeros(2, 2)}, tmp_path / "d.safetensors")
    with pytest.raises(InputError, match="the name W_dec"):
        load_dictionary(tmp_path / "d.safetensors")
    np.save(tmp_path / "e.npy", np.full((2, 2), np.nan))
    with pytest.raises(InputError, match="NaN"):
        load_dictionary(tmp_path / "e.npy")
    with pytest.raises(InputError, match="has no encoder or activation function"):
        load_sae(tmp_path / "a.npy")


def test_incomplete_and_foreign_files_are_named(tmp_path: Path) -> None:
    sae = trained("topk")
    whole = tmp_path / "sae.safetensors"
    save_sae(sae, whole)
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"torn\.safetensors"):
        load_sae(torn)
    export_sae(sae, tmp_path / "dl", "dictionary_learning")
    weights = tmp_path / "dl" / "ae.pt"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(InputError, match=r"ae\.pt"):
        load_sae(tmp_path / "dl")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    for name in ("notes.txt", "missing", "empty"):
        with pytest.raises(InputError, match=str(tmp_path)):
            detect_format(tmp_path / name)


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harmed"),))


def test_a_pickle_that_runs_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    export_sae(trained("topk"), tmp_path / "dl", "dictionary_learning")
    torch.save({"encoder.weight": Harmful()}, tmp_path / "dl" / "ae.pt")
    with pytest.raises(InputError, match=r"ae\.pt"):
        load_sae(tmp_path / "dl")
    assert not (tmp_path / "harmed").exists()
