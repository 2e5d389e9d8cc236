"""Shipped transformers: each file agrees with the manifest; a file that does not is refused."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from husai.errors import InputError
from husai.storage import read_tensors, tensors_digest
from husai.tasks import ModularDataset, ModularTaskConfig, modular_dataset
from husai.transformer import (
    Shipped,
    TransformerChoice,
    TransformerTrainingConfig,
    fourier_structure,
    frequency_balance,
    frequency_shares,
    load_shipped,
    progress_measures,
    shipped_transformers,
)
from husai.transformer.shipped import FOLDER, MANIFEST, check_shipped

# those of conf/base
TRAINING = TransformerTrainingConfig(checkpoint_every=50)
EVERY = shipped_transformers()
FIRST = EVERY[0]


@pytest.fixture(scope="module")
def dataset() -> ModularDataset:
    return modular_dataset(ModularTaskConfig())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the first transformer and its manifest, to be spoiled."""
    shutil.copy(FOLDER / f"{FIRST.name}.safetensors", tmp_path)
    (tmp_path / MANIFEST).write_text(json.dumps([FIRST.model_dump(mode="json")]))
    return tmp_path


def choice_of(entry: Shipped, **changes: Any) -> TransformerChoice:
    return TransformerChoice.model_validate(
        {"start": "shipped", "shipped": entry.shipped, "seed": entry.seed, **changes}
    )


def refusal(*arguments: Any, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_shipped(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert "set transformer.start to train" in message
    return message


def test_files_and_manifest_are_the_same_set() -> None:
    assert {one.name for one in EVERY} == {path.stem for path in FOLDER.glob("*.safetensors")}
    assert len({one.fingerprint for one in EVERY}) == len(EVERY)
    assert {one.seed for one in EVERY if one.shipped == "early_stop"} == set(range(8))


@pytest.mark.parametrize("entry", EVERY, ids=lambda entry: entry.name)
def test_each_file_is_what_the_manifest_says(entry: Shipped, dataset: ModularDataset) -> None:
    path = FOLDER / f"{entry.name}.safetensors"
    content = path.read_bytes()
    assert len(content) == entry.bytes < 1_000_000
    assert hashlib.sha256(content).hexdigest() == entry.sha256
    tensors, _ = read_tensors(path)
    assert tensors_digest(tensors)[:16] == entry.fingerprint
    assert {str(tensor.dtype) for tensor in tensors.values()} == {"torch.float32"}
    # loading measures the accuracy on both splits
    trained = load_shipped(choice_of(entry), dataset, TRAINING, ModularTaskConfig())
    assert trained.identity() == {
        "name": entry.name,
        "seed": entry.seed,
        "fingerprint": entry.fingerprint,
    }
    assert entry.train_accuracy == 1.0
    assert entry.test_accuracy >= 0.99
    # it grokked: the test set was learned long after the training set
    assert trained.summary["grokking_delay_ratio"] > 1.5
    assert trained.history["epoch"].iloc[-1] == entry.epochs
    assert trained.history["test_accuracy"].iloc[-1] == pytest.approx(entry.test_accuracy, abs=2e-3)
    # cleaned up: over the last 500 epochs neither the weights nor the two losses moved any more
    if entry.shipped == "cleaned_up":
        assert trained.progress is not None
        measured = trained.progress.set_index("epoch")
        columns = ["sum_squared_weights", "restricted_loss", "excluded_loss"]
        last, before = measured.loc[entry.epochs], measured.loc[entry.epochs - 500]
        assert (last[columns] / before[columns] - 1).abs().max() < 0.05


def test_shipped_measures_equal_those_computed_from_the_weights(dataset: ModularDataset) -> None:
    trained = load_shipped(choice_of(FIRST), dataset)
    parts = trained.state_dict, trained.vocabulary, trained.model_config
    key = fourier_structure(*parts).key_frequencies
    shares = frequency_shares(*parts, key)
    assert shares == pytest.approx(FIRST.frequency_shares, rel=1e-4)
    assert frequency_balance(list(shares.values())) == pytest.approx(FIRST.frequency_balance)
    assert trained.progress is not None
    again = progress_measures(
        [(FIRST.epochs, trained.state_dict)], dataset, trained.model_config
    ).iloc[0]
    last = trained.progress.iloc[-1]
    for name in again.index:
        assert last[name] == pytest.approx(again[name], rel=1e-3), name


def test_balance_is_1_for_equal_shares_and_low_for_one_dominant_share() -> None:
    assert frequency_balance([0.2] * 5) == pytest.approx(1.0)
    assert frequency_balance([0.5, 0.5, 0.0, 0.0]) == pytest.approx(0.5)
    assert frequency_balance([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
    with pytest.raises(InputError):
        frequency_balance([0.0])


@pytest.mark.parametrize(
    ("changes", "task", "training", "named"),
    [
        ({"d_model": 64}, {}, {}, "transformer.d_model is 64 here, 128 there"),
        ({}, {"modulus": 97}, {}, "task.modulus is 97 here, 113 there"),
        (
            {},
            {"train_fraction": 0.4, "test_fraction": 0.5},
            {},
            "task.train_fraction is 0.4 here, 0.5 there",
        ),
        ({}, {"seed": 1}, {}, "task.seed is 1 here, 0 there"),
        (
            {},
            {},
            {"weight_decay": 0.5},
            "transformer_training.weight_decay is 0.5 here, 1.0 there",
        ),
        ({"seed": 4321}, {}, {}, "transformer.seed: no transformer of seed 4321"),
    ],
)
def test_parameters_that_differ_are_named(
    changes: dict[str, Any], task: dict[str, Any], training: dict[str, Any], named: str
) -> None:
    chosen = ModularTaskConfig(**task)
    message = refusal(
        choice_of(FIRST, **changes),
        modular_dataset(chosen),
        TRAINING.model_copy(update=training),
        chosen,
    )
    assert named in message


def test_parameters_that_change_no_result_may_differ() -> None:
    other = TRAINING.model_copy(update={"device": "auto", "fast_path": False})
    assert check_shipped(choice_of(FIRST), other) == FIRST


def test_another_split_of_the_same_task_is_refused(dataset: ModularDataset) -> None:
    examples = dataset.examples.copy()
    examples["split"] = examples["split"].to_numpy()[::-1]
    other = ModularDataset(examples, dataset.vocabulary)
    assert "the examples or their split" in refusal(choice_of(FIRST), other)


def test_a_damaged_or_foreign_file_is_refused(dataset: ModularDataset, folder: Path) -> None:
    path = folder / f"{FIRST.name}.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "not the shipped file" in refusal(choice_of(FIRST), dataset, folder=folder)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="not a complete safetensors file"):
        load_shipped(choice_of(FIRST), dataset, folder=folder)
    shutil.copy(FOLDER / f"{EVERY[-1].name}.safetensors", path)
    assert "there" in refusal(choice_of(FIRST), dataset, folder=folder)


def test_a_model_that_does_not_do_what_the_manifest_says_is_refused(
    dataset: ModularDataset, folder: Path
) -> None:
    wrong = {**FIRST.model_dump(mode="json"), "test_accuracy": FIRST.test_accuracy - 0.01}
    (folder / MANIFEST).write_text(json.dumps([wrong]))
    assert "its accuracy on the test split is" in refusal(choice_of(FIRST), dataset, folder=folder)
    (folder / MANIFEST).write_text("[{]")
    assert "cannot be read" in refusal(choice_of(FIRST), dataset, folder=folder)


def test_loading_needs_no_model_with_hooks(
    dataset: ModularDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*_: Any) -> None:
        raise InputError("transformer_lens is not installed")

    monkeypatch.setattr("husai.transformer.model.build_transformer", absent)
    trained = load_shipped(choice_of(FIRST), dataset)
    with pytest.raises(InputError, match="not installed"):
        trained.build()
