"""Trained transformers that are shipped with the project, so that everybody can start from one.

Rounding differs between processors and numbers of threads, and training amplifies the differences:
the same seed reaches different solutions on different machines. The files in the folder ``shipped``
have the same bits everywhere. Each is an ordinary file of
:func:`husai.transformer.save_transformer`, with its learning curves; ``manifest.json``, written by
``benchmarks/ship_transformers.py``, describes each of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from husai.config import Config, Seed
from husai.errors import InputError
from husai.storage import TensorFile, read_header
from husai.tasks.modular import ModularDataset, ModularTaskConfig
from husai.transformer.config import (
    TransformerChoice,
    TransformerConfig,
    TransformerTrainingConfig,
)
from husai.transformer.evaluation import evaluate_transformer
from husai.transformer.model import TrainedTransformer
from husai.transformer.training import dataset_digest

FOLDER = Path(__file__).parent / "shipped"
MANIFEST = "manifest.json"
SUFFIX = ".safetensors"

OTHERWISE = "or set transformer.start to train"

# Rounding on another machine may decide ties between two answers: up to ten of 5,108 test rows.
_ACCURACY_TOLERANCE = 0.002
# These parameters do not change what is learned.
_FREE_FIELDS = frozenset({"device", "fast_path"})
# A transformer that was cleaned up was trained for longer than the early stop allows.
_LENGTH_FIELDS = frozenset({"early_stopping", "max_epochs"})


class Shipped(Config):
    """The entry of one shipped transformer in the manifest."""

    name: str = Field(description="name of the file, without its suffix")
    seed: Seed = Field(description="seed of the initial weights")
    shipped: Literal["early_stop", "cleaned_up"] = Field(description="as TransformerChoice says")
    epochs: int = Field(ge=1, description="epochs trained")
    stopped: str = Field(description="why the training ended")
    train_accuracy: float = Field(ge=0, le=1)
    test_accuracy: float = Field(ge=0, le=1)
    train_loss: float = Field(ge=0, description="mean cross-entropy in nats")
    test_loss: float = Field(ge=0, description="mean cross-entropy in nats")
    sum_squared_weights: float = Field(gt=0)
    frequency_shares: dict[int, float] = Field(
        description="key frequency to its share of the variance of the last residual stream"
    )
    frequency_balance: float = Field(
        gt=0, le=1, description="effective number of key frequencies over their number"
    )
    fingerprint: str = Field(pattern="^[0-9a-f]{16}$", description="fingerprint of the weights")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of the file")
    bytes: int = Field(ge=1, description="size of the file")
    dataset_sha256: str = Field(
        pattern="^[0-9a-f]{64}$", description="digest of tokens, answers and split"
    )
    task: ModularTaskConfig = Field(description="the task that it was trained on")
    made_by: dict[str, Any] = Field(description="command, commit, versions, hardware, threads")

    def fits(self, shipped: str, seed: int) -> bool:
        """Whether this is the transformer of a seed and a stage of training."""
        return self.shipped == shipped and self.seed == seed


def shipped_transformers(folder: Path = FOLDER) -> list[Shipped]:
    """Read the manifest: every transformer that is shipped.

    Raises
    ------
    InputError
        When it is missing or damaged.
    """
    path = folder / MANIFEST
    try:
        return TypeAdapter(list[Shipped]).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{path}: cannot be read ({reason}); install the project again {OTHERWISE}"
        ) from error


def check_shipped(
    choice: TransformerChoice,
    training: TransformerTrainingConfig | None = None,
    task: ModularTaskConfig | None = None,
    folder: Path = FOLDER,
) -> Shipped:
    """Find the chosen transformer, and check that it was trained with these parameters.

    Parameters
    ----------
    choice, training, task
        The parameters; groups that are None are not checked.
    folder
        Where the files are.

    Raises
    ------
    InputError
        When no transformer of this seed is shipped, or it was trained with another parameter.
    """
    every = shipped_transformers(folder)
    entry = next((one for one in every if one.fits(choice.shipped, choice.seed)), None)
    if entry is None:
        seeds = sorted(one.seed for one in every if one.shipped == choice.shipped)
        raise InputError(
            f"transformer.seed: no transformer of seed {choice.seed} ({choice.shipped}) is "
            f"shipped; use one of {', '.join(map(str, seeds)) or 'another transformer.shipped'} "
            f"{OTHERWISE}"
        )
    header = read_header(folder / f"{entry.name}{SUFFIX}")
    free = _FREE_FIELDS | (_LENGTH_FIELDS if choice.shipped == "cleaned_up" else set())
    differences = [
        *_differences("transformer", TransformerConfig, header["model_config"], choice),
        *_differences(
            "transformer_training",
            TransformerTrainingConfig,
            header["training_config"],
            training,
            free,
        ),
        *_differences("task", ModularTaskConfig, entry.task.model_dump(mode="json"), task),
    ]
    if differences:
        raise InputError(
            f"{'; '.join(differences)}: the shipped transformer {entry.name} was trained with "
            "another value; use its value or set transformer.start to train"
        )
    return entry


def _differences(
    group: str,
    model: type[Config],
    there: Mapping[str, Any],
    here: Config | None,
    free: frozenset[str] = frozenset(),
) -> Iterator[str]:
    if here is None:
        return
    found = model.model_validate(there)
    for name in model.model_fields:
        was, wanted = getattr(found, name), getattr(here, name)
        if name not in free and was != wanted:
            yield f"{group}.{name} is {wanted} here, {was} there"


def load_shipped(
    choice: TransformerChoice,
    dataset: ModularDataset,
    training: TransformerTrainingConfig | None = None,
    task: ModularTaskConfig | None = None,
    folder: Path = FOLDER,
) -> TrainedTransformer:
    """Load a shipped transformer and check that its accuracy is that of the manifest.

    Parameters
    ----------
    choice, training, task
        As in :func:`check_shipped`.
    dataset
        The examples of the study, which must be those of the transformer's task.
    folder
        Where the files are.

    Raises
    ------
    InputError
        As :func:`check_shipped`; and when the file is damaged, the examples or their split differ,
        or the accuracy on them is not that of the manifest.
    """
    entry = check_shipped(choice, training, task, folder)
    path = folder / f"{entry.name}{SUFFIX}"
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise InputError(
            f"{path}: not the shipped file (its SHA-256 differs from the manifest's); "
            f"install the project again {OTHERWISE}"
        )
    file = TensorFile.from_bytes(content, str(path))
    trained = TrainedTransformer.from_parts(file.tensors, file.header)
    if dataset_digest(dataset) != entry.dataset_sha256:
        raise InputError(
            f"task: the examples or their split are not those that the shipped transformer "
            f"{entry.name} was trained on; run data_generation again with the task of conf/base "
            f"{OTHERWISE}"
        )
    found = evaluate_transformer(trained, dataset)
    for split, expected in (("train", entry.train_accuracy), ("test", entry.test_accuracy)):
        accuracy = found[f"{split}_accuracy"]
        if accuracy is None or abs(accuracy - expected) > _ACCURACY_TOLERANCE:
            raise InputError(
                f"{path}: its accuracy on the {split} split is {accuracy} here, but "
                f"{expected:.4f} in the manifest; install the project again {OTHERWISE}"
            )
    return trained
