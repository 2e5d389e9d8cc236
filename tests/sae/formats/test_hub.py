"""The Hugging Face hub, from a cache in its own layout; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
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

from husai.compare.files import load_saes
from husai.errors import InputError
from husai.sae.formats import load_dictionary, load_sae

SAE = numbers()
COMMIT = "a" * 40
REPO = "me/saes"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An offline cache with one repository: two seeds of sparsify, and an unfolded SAELens."""
    from huggingface_hub import constants

    folder = tmp_path / "hub" / "models--me--saes"
    snapshot, blobs = folder / "snapshots" / COMMIT, folder / "blobs"
    blobs.mkdir(parents=True)
    content = linear(SAE) | tensors(SAE, "W_dec", "b_dec")
    del content["decoder.weight"]
    for seed in (0, 1):
        rolled = content | {"W_dec": torch.roll(content["W_dec"], seed, 0)}
        cfg = {"k": K, "d_in": D, "num_latents": F}
        write(snapshot / f"layers.6/seed{seed}", "cfg.json", cfg, "sae.safetensors", rolled)
    cfg = {"architecture": "standard", "normalize_activations": "expected_average_only_in"}
    plain = tensors(SAE, "W_enc", "b_enc", "W_dec", "b_dec")
    write(snapshot / "unfolded", "cfg.json", cfg, "sae_weights.safetensors", plain)
    # files of a snapshot are links to blobs
    for i, path in enumerate(sorted(p for p in snapshot.rglob("*") if p.is_file())):
        path.rename(blobs / str(i))
        path.symlink_to(blobs / str(i))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def test_a_folder_of_a_repository_is_read(cache: Path) -> None:
    sae = load_sae(f"hf://{REPO}/layers.6/seed0")
    close(sae.encode(tensor(SAE.rows)), topk(pre(SAE)))
    again = load_sae(f"hf://{REPO}@{COMMIT}/layers.6/seed0")
    assert torch.equal(again.W_enc, sae.W_enc)


def test_a_folder_with_several_saes_gives_all_of_them(cache: Path) -> None:
    first, second = load_saes([f"hf://{REPO}/layers.6"])
    assert (first.id, second.id) == ("seed0", "seed1")
    same_directions(second.W_dec, np.roll(SAE.W_dec, 1, axis=0))
    assert first.origin["source"] == f"hf://{REPO}/layers.6"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (f"hf://{REPO}", "expected hf://OWNER/REPO/FOLDER"),
        ("hf://saes/", "expected hf://OWNER/REPO/FOLDER"),
        (f"hf://{REPO}/../../x", "leads out of the repository"),
        (f"hf://{REPO}/layers.9", "no layers.9 in the cache, and HF_HUB_OFFLINE is set"),
        ("hf://me/other/layers.6", "not downloaded"),
    ],
)
def test_a_missing_repository_or_file_gives_an_error_of_one_line(
    address: str, words: str, cache: Path
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        load_dictionary(address)
    assert "\n" not in str(caught.value)


def test_releases_of_saelens_have_their_input_scale(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = {"id": "blocks.6", "path": "unfolded", "norm_scaling_factor": 0.25}
    directory = cache / "pretrained_saes.yaml"
    directory.write_text(yaml.safe_dump({"mine-res": {"repo_id": REPO, "saes": [entry]}}))
    monkeypatch.setenv("HUSAI_SAELENS_DIRECTORY", str(directory))
    with pytest.raises(InputError, match="input-scale"):
        load_sae(f"hf://{REPO}/unfolded")
    codes = np.maximum(pre(SAE, SAE.rows * 0.25), 0)
    close(load_sae("saelens://mine-res/blocks.6").encode(tensor(SAE.rows)), codes)
    with pytest.raises(InputError, match=r"has the ids blocks\.6"):
        load_sae("saelens://mine-res/blocks.7")
    with pytest.raises(InputError, match="no release 'yours'"):
        load_sae("saelens://yours/blocks.6")
    monkeypatch.delenv("HUSAI_SAELENS_DIRECTORY")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="install sae-lens"):
        load_sae("saelens://mine-res/blocks.6")
