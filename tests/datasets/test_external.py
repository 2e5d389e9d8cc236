"""External SAEs in the catalog: read from their paths; mismatches give a warning or an error."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from kedro.io import DatasetError
from tests.sae.formats.made import numbers, tensors, write

from husai.datasets.external import ExternalSAEs


def saelens(folder: Path, seed: int, **cfg: str) -> str:
    content = tensors(numbers(seed), "W_enc", "b_enc", "W_dec", "b_dec")
    told = {"architecture": "standard"} | cfg
    return str(write(folder, "cfg.json", told, "sae_weights.safetensors", content))


def test_a_group_has_a_name_and_mismatches_give_warnings(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for seed in range(3):
        saelens(tmp_path / "same" / f"seed{seed}", seed, hook_name="blocks.1.hook_resid_post")
    other = [
        saelens(tmp_path / f"other{i}", i, hook_name=f"blocks.{i}.hook_resid_post") for i in (1, 2)
    ]
    groups = {"same": [str(tmp_path / "same")], "other": other}
    with caplog.at_level(logging.WARNING, logger="husai"):
        loaded = ExternalSAEs(groups=groups).load()
    assert [sae.id for sae in loaded["same"]] == ["seed0", "seed1", "seed2"]
    (record,) = [r for r in caplog.records if r.name == "husai.datasets.external"]
    assert "external SAEs other: not the same activations: hook differs" in record.getMessage()


def test_directions_of_other_activations_are_refused(tmp_path: Path) -> None:
    sae = saelens(tmp_path / "sae", 0, hook_name="blocks.1.hook_mlp_in")
    writes = saelens(tmp_path / "tc", 1, architecture="transcoder")
    with pytest.raises(DatasetError, match="directions of its output"):
        ExternalSAEs(groups={"mixed": [sae, writes]}).load()


def test_saes_on_the_hub_are_not_searched_on_disk(tmp_path: Path) -> None:
    assert ExternalSAEs(groups={"hub": ["hf://me/saes/layers.6"]}).exists()
    assert not ExternalSAEs(groups={"disk": [str(tmp_path / "none")]}).exists()
