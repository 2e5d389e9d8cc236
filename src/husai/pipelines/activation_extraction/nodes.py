"""Nodes that read the transformer's activations."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from husai.activations import (
    Activations,
    ExtractionConfig,
    extract_activations,
    load_all,
)
from husai.activations.rows import SPLITS
from husai.errors import InputError
from husai.storage import TensorFile, TensorFiles

if TYPE_CHECKING:
    from husai.transformer import TrainedTransformer

logger = logging.getLogger(__name__)

# variables that the waves of a hook can be functions of; the first of equals is taken
VARIABLES: tuple[Literal["answer", "a", "b"], ...] = ("answer", "a", "b")


def extract(
    transformer: TensorFile, examples: pd.DataFrame, activations: ExtractionConfig
) -> dict[str, TensorFile]:
    """Run the trained transformer over every example and keep the chosen hooks.

    If the parameters ask for it, also those of the same transformer at its initial weights.
    """
    import torch

    from husai.transformer import TrainedTransformer, build_transformer

    trained = TrainedTransformer.from_parts(transformer.tensors, transformer.header)
    tokens = examples.filter(regex=r"^token_\d+$").to_numpy(dtype="int64", copy=True)
    split = examples["split"].map({name: index for index, name in enumerate(SPLITS)})
    frequencies = _key_frequencies(trained)
    vocabulary = trained.vocabulary
    models = {True: trained.build()}
    if activations.untrained:
        # the seed of the configuration decides the initial weights
        models[False] = build_transformer(
            trained.model_config, vocabulary.d_vocab, vocabulary.n_ctx
        ).eval()
    files = {}
    for is_trained, model in models.items():
        for rows in extract_activations(
            model,
            torch.from_numpy(tokens),
            torch.from_numpy(split.to_numpy(dtype="int64", copy=True)),
            activations,
            {
                "config": trained.model_config.model_dump(mode="json"),
                "vocabulary": vocabulary.model_dump(mode="json"),
                # also for the untrained model, whose weights are the initial ones of this one
                "transformer": trained.identity(),
            },
        ):
            kept = _with_planes(replace(rows, trained=is_trained), trained, frequencies)
            files[kept.key] = TensorFile(*kept.to_tensors())
    return files


def _key_frequencies(trained: TrainedTransformer) -> tuple[int, ...]:
    from husai.transformer import fourier_structure

    try:
        structure = fourier_structure(trained.state_dict, trained.vocabulary, trained.model_config)
    except InputError as error:
        logger.warning("no ground truth for these activations: %s", error)
        return ()
    if not structure.key_frequencies:
        logger.warning("no ground truth for these activations: no frequency stands out")
    return structure.key_frequencies


def _with_planes(
    rows: Activations, trained: TrainedTransformer, frequencies: tuple[int, ...]
) -> Activations:
    """Add the planes of the key frequencies, the truth that features are compared with.

    Before the MLP the model has waves of a and of b, after it waves of the answer. The planes are
    those of the variable that explains most of the variance at this hook.
    """
    import torch

    from husai.transformer.fourier import fraction_explained, frequency_planes

    vocabulary = trained.vocabulary
    modulus, operation = vocabulary.modulus, vocabulary.operation
    # in a group of even order the last frequency is an alternating sign: a line and not a plane
    order = modulus - (operation == "multiplication")
    frequencies = tuple(k for k in frequencies if 2 * k != order)
    if not frequencies:
        return rows
    if len(rows.values) != modulus**2:
        logger.warning("no ground truth for %s: the rows are not all pairs (a, b)", rows.key)
        return rows
    values = rows.values.numpy()
    try:
        explained = {
            variable: fraction_explained(values, frequencies, modulus, operation, variable)
            for variable in VARIABLES
        }
        variable = max(VARIABLES, key=lambda name: explained[name])
        planes = frequency_planes(values, frequencies, modulus, operation, variable)
    except InputError as error:
        logger.warning("no ground truth for %s: %s", rows.key, error)
        return rows
    return replace(
        rows,
        planes=torch.from_numpy(planes).float(),
        plane_names=tuple(f"{variable}, k = {k}" for k in frequencies),
    )


def tabulate_waves(transformer: TensorFile, activations: TensorFiles) -> pd.DataFrame:
    """Tabulate the share of each hook's variance that the waves of the key frequencies explain.

    A row for each hook, model, variable (answer, a or b) and frequency: its ``share`` of the
    variance. The rows of the untrained model show the share before training.
    """
    from husai.transformer import TrainedTransformer
    from husai.transformer.fourier import fraction_explained

    trained = TrainedTransformer.from_parts(transformer.tensors, transformer.header)
    vocabulary = trained.vocabulary
    modulus, operation = vocabulary.modulus, vocabulary.operation
    frequencies = _key_frequencies(trained)
    columns = ["hook", "model", "variable", "frequency", "share", "reason"]
    found = []
    for rows in load_all(activations):
        head = {"hook": f"{rows.hook_name}@{rows.position}"}
        head["model"] = "trained" if rows.trained else "untrained"
        values = rows.values.numpy()
        for variable in VARIABLES:
            for k in frequencies:
                line: dict[str, Any] = {**head, "variable": variable, "frequency": k}
                try:
                    share = fraction_explained(values, [k], modulus, operation, variable)
                except InputError as error:
                    found.append({**line, "reason": str(error)})
                    continue
                found.append({**line, "share": share, "reason": ""})
    return pd.DataFrame(found, columns=pd.Index(columns))
