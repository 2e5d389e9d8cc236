"""Comparison of files: every format of an SAE and of rows gives the same SAE and the same rows."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from husai.cli import main
from husai.compare.document import schema
from husai.compare.files import describe_files, load_one, load_saes, short_names
from husai.errors import InputError
from husai.sae import BankTrainingConfig, SAEConfig, export_sae, train_bank


@pytest.fixture(scope="module")
def one_sae_in_all_formats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One SAE written in every format, its decoder alone, and activation rows."""
    folder = tmp_path_factory.mktemp("saes")
    rows = torch.randn(400, 12, generator=torch.Generator().manual_seed(0))
    config = SAEConfig(architecture="topk", d_sae=24, k=3)
    training = BankTrainingConfig(
        steps=20, batch_size=64, warmup_steps=0, snapshot_interval=4, device="cpu", threads=1
    )
    (sae,) = train_bank(rows, [config], training)
    for name in ("saelens", "dictionary_learning", "sparsify"):
        export_sae(sae, folder / name, name)
    export_sae(sae, folder / "husai.safetensors", "husai")
    np.save(folder / "plain.npy", sae.W_dec.numpy())
    np.save(folder / "rows.npy", rows.numpy())
    return folder


def test_every_format_of_one_sae_reads_as_the_same_sae(
    one_sae_in_all_formats: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = one_sae_in_all_formats
    names = ["husai.safetensors", "saelens", "dictionary_learning", "sparsify"]
    out = folder / "out.json"
    command = ["compare", *(str(folder / name) for name in names), "--json", str(out)]
    assert main([*command, "--activations", str(folder / "rows.npy"), "--null-draws", "2"]) == 0
    document = json.loads(out.read_text())
    jsonschema.validate(document, schema())
    assert [sae["format"] for sae in document["saes"]] == [
        "husai",
        "saelens",
        "dictionary_learning",
        "sparsify",
    ]
    # only the own format keeps the decoders that the gate looks at
    assert document["saes"][0]["converged"] is False
    assert document["saes"][1]["converged"] is None
    for pair in document["pairs"]:
        value = {(s["score"], s["signed"]): s["value"] for s in pair["scores"]}
        for name in ("pw_mcc", "mmcs"):
            assert value[name, True] == pytest.approx(1.0, abs=1e-6)
        for name in ("shared_fraction", "activation_mcc"):
            assert value[name, True] == pytest.approx(1.0, abs=1e-5)
        assert value["code_jaccard", False] == pytest.approx(1.0)
    assert "NOT CONVERGED" in capsys.readouterr().out


def test_a_format_can_be_forced(one_sae_in_all_formats: Path) -> None:
    folder = one_sae_in_all_formats
    assert load_one(folder / "saelens", "x", "saelens").W_enc is not None
    with pytest.raises(InputError):
        load_one(folder / "saelens", "x", "sparsify")
    weights = load_one(folder / "saelens" / "sae_weights.safetensors", "x", "safetensors")
    assert weights.W_enc is None
    np.testing.assert_array_equal(weights.W_dec, np.load(folder / "plain.npy"))


def test_nan_in_a_peers_weights_is_named(one_sae_in_all_formats: Path, tmp_path: Path) -> None:
    source = one_sae_in_all_formats / "saelens"
    for spoiled, word in (("W_dec", "decoder"), ("W_enc", "encoder")):
        folder = tmp_path / spoiled
        folder.mkdir()
        (folder / "cfg.json").write_text((source / "cfg.json").read_text())
        tensors = load_file(source / "sae_weights.safetensors")
        tensors[spoiled][5, 5] = torch.nan
        save_file(tensors, folder / "sae_weights.safetensors")
        with pytest.raises(InputError, match=rf"{spoiled}\S*: 1 of the 24 features of its {word}"):
            load_one(folder, "x")


def test_names_are_the_shortest_that_differ(tmp_path: Path) -> None:
    assert short_names([Path("a/x/sae"), Path("a/y/sae")]) == ["x/sae", "y/sae"]
    assert short_names([Path("a/x"), Path("b/y")]) == ["x", "y"]
    with pytest.raises(InputError, match="given twice"):
        short_names([Path("a"), Path("./a")])
    with pytest.raises(InputError, match="no such file"):
        load_saes([tmp_path / "a", tmp_path / "b"])


def test_files_are_described_by_their_hashes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"abc")
    (tmp_path / ".hidden").write_bytes(b"x")
    assert describe_files(tmp_path) == [
        {
            "name": "a.txt",
            "bytes": 3,
            # of "abc", from FIPS 180-2
            "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        }
    ]
