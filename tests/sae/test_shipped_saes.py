"""Shipped SAEs: their cards say what the files are, and the scores are those of the study."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard

from husai.compare.files import load_one
from husai.errors import InputError
from husai.matching.match import match_features
from husai.sae import BankTrainingConfig, load_sae, shipped_saes
from husai.sae.rows import prepare_rows
from husai.sae.shipped import FOLDER, shipped_path
from husai.sae.trained import read_sae, save_sae
from husai.storage import read_tensors
from husai.tasks import ModularTaskConfig, modular_dataset
from husai.transformer import TransformerChoice, answer_activations, load_shipped

ROOT = Path(__file__).parents[2]
EVERY = shipped_saes()
SETTINGS = sorted({one.rpartition("/")[0] for one in EVERY})
# the tables of the study are rounded to five digits
ROUNDED = 1e-5


def shipping() -> Any:
    spec = importlib.util.spec_from_file_location("ship", ROOT / "docs" / "ship.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CARDS: dict[Path, str] = shipping().cards()
CARD = next(text for path, text in CARDS.items() if path.parent == FOLDER)


def study_of(address: str) -> dict[str, Any]:
    found: dict[str, Any] = read_sae(shipped_path(address)).provenance["study"]
    return found


def table(name: str) -> pd.DataFrame:
    return pd.read_csv(ROOT / "docs" / "results" / "home" / f"{name}.csv")


@pytest.fixture(scope="module")
def held_out() -> torch.Tensor:
    """The rows that the SAEs were measured on, from the shipped transformer."""
    task = ModularTaskConfig()
    identity = study_of(EVERY[0])["transformer"]
    model = load_shipped(TransformerChoice(seed=identity["seed"]), modular_dataset(task))
    assert model.fingerprint == identity["fingerprint"]
    a, b = torch.cartesian_prod(torch.arange(task.modulus), torch.arange(task.modulus)).T
    with torch.no_grad():
        found = answer_activations(model.state_dict, a, b, model.vocabulary, model.model_config)
    training = read_sae(shipped_path(EVERY[0])).provenance["training"]
    return prepare_rows(found.resid_post, None, BankTrainingConfig(**training)).held_out


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.parents[1].name)
def test_a_card_is_the_one_that_the_files_and_tables_give(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == CARDS[path], "run python docs/ship.py"


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.parents[1].name)
def test_a_card_has_the_checksum_of_every_file(path: Path) -> None:
    files = sorted(path.parent.rglob("*.safetensors"))
    sums = {hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    assert set(re.findall(r"\b[0-9a-f]{64}\b", CARDS[path])) == sums
    assert len(sums) == len(files)


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.parents[1].name)
def test_the_hub_reads_the_head_of_a_card(path: Path) -> None:
    about = ModelCard(CARDS[path]).data.to_dict()
    assert (about["license"], about["library_name"]) == ("mit", "husai")
    assert len(about["tags"]) >= 4


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.parents[1].name)
def test_the_example_of_a_card_runs(path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", CARDS[path], re.DOTALL)
    found: dict[str, Any] = {}
    exec(example, found)
    if "codes" in found:
        shape = re.search(r"# \[(\d+), (\d+)\]", example)
        assert shape is not None
        assert found["codes"].shape == tuple(map(int, shape.groups()))
        assert found["codes"].any(dim=1).all()


def test_the_files_hold_what_is_needed_and_no_more() -> None:
    assert len(EVERY) == len(list(FOLDER.rglob("*.safetensors")))
    for address in EVERY:
        tensors, header = read_tensors(shipped_path(address))
        wanted = {"W_enc", "b_enc", "W_dec", "b_dec", "density", "history"}
        assert set(tensors) - {"threshold"} == wanted
        assert {str(t.dtype) for n, t in tensors.items() if n[1] == "_"} == {"torch.float32"}
        assert str(ROOT) not in json.dumps(header)
        assert "worker" not in json.dumps(header)


@pytest.mark.parametrize("setting", SETTINGS)
def test_seeds_agree_as_the_card_says(setting: str) -> None:
    """PW-MCC and the matched fraction, computed here from the shipped files."""
    saes = [load_sae(address) for address in EVERY if address.startswith(f"{setting}/")]
    decoders = [sae.W_dec[sae.density > 0].numpy() for sae in saes]
    matches = [match_features(A, B).similarity for A, B in combinations(decoders, 2)]
    smaller = [min(len(A), len(B)) for A, B in combinations(decoders, 2)]
    groups = table("groups")
    group = study_of(f"{setting}/seed0")["group"]
    groups = groups[(groups["group"] == group) & (groups["space"] == "full") & ~groups["signed"]]
    expected = groups.set_index("score")["mean"]
    found = np.mean([match.sum() / n for match, n in zip(matches, smaller, strict=True)])
    assert found == pytest.approx(expected["pw_mcc"], abs=ROUNDED)
    shares = [(match >= 0.7).sum() / n for match, n in zip(matches, smaller, strict=True)]
    assert np.mean(shares) == pytest.approx(expected["matched_fraction"], abs=ROUNDED)
    (line,) = [one for one in CARD.splitlines() if f"| `{setting}` | {found:.3f} [" in one]
    assert f"{expected['matched_fraction']:.2f} [" in line


@pytest.mark.parametrize("address", EVERY)
def test_an_sae_reads_the_rows_of_the_shipped_transformer(
    address: str, held_out: torch.Tensor
) -> None:
    sae = load_sae(address)
    codes = sae.encode(held_out.double())
    residual = held_out - sae.decode(codes)
    centred = held_out - held_out.mean(dim=0)
    fvu = float(residual.square().sum() / centred.square().sum())
    assert fvu == pytest.approx(sae.metrics["fvu"], rel=1e-4)
    l0 = float((codes > 0).sum(dim=1).double().mean())
    assert l0 == pytest.approx(sae.metrics["l0"], rel=1e-3)
    assert torch.allclose((codes > 0).double().mean(dim=0), sae.density, atol=2e-3)
    saes = table("saes").set_index("id").loc[study_of(address)["sae_id"]]
    assert sae.metrics["fvu"] == pytest.approx(saes["fvu"], abs=ROUNDED)
    assert int((sae.density > 0).sum()) == saes["n_live"]
    record = load_one(shipped_path(address), "one")
    assert record.converged == saes["converged"]
    assert record.motion == pytest.approx(saes["motion"], abs=ROUNDED)


@pytest.mark.parametrize("address", ["husai://nothing", "husai://", f"{SETTINGS[0]}/seed99"])
def test_an_unknown_address_is_one_line_with_those_that_exist(address: str) -> None:
    with pytest.raises(InputError, match=f"{address}: no such SAE is shipped") as caught:
        load_sae(address)
    assert "\n" not in str(caught.value)
    assert SETTINGS[0] in str(caught.value)


def test_unknown_initial_weights_are_not_in_the_file(tmp_path: Path) -> None:
    sae = load_sae(EVERY[0])
    assert sae.W_dec_init.isnan().all()
    known = replace(sae, W_dec_init=sae.W_dec / 2)
    save_sae(known, tmp_path / "known.safetensors")
    again = read_sae(tmp_path / "known.safetensors")
    assert torch.equal(again.W_dec_init, known.W_dec_init)
    save_sae(replace(again, W_dec_init=sae.W_dec_init), tmp_path / "unknown.safetensors")
    tensors, _ = read_tensors(tmp_path / "unknown.safetensors")
    assert set(tensors) == set(read_tensors(shipped_path(EVERY[0]))[0])


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"settled": False, "motion": 0.5}, (False, 0.5)),
        ({"settled": "yes", "motion": [1]}, (None, None)),
        ([], (None, None)),
    ],
)
def test_what_a_file_states_of_the_gate_is_checked(
    stated: Any, expected: tuple[Any, Any], tmp_path: Path
) -> None:
    sae = load_sae(EVERY[0])
    path = tmp_path / "one.safetensors"
    save_sae(replace(sae, provenance={**sae.provenance, "gate": stated}), path)
    record = load_one(path, "one")
    assert (record.converged, record.motion) == expected
