"""The node that reads the user's own activation rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from husai.activations import (
    OWN_HOOK,
    Activations,
    ExtractionConfig,
    prepare_labels,
    read_rows,
)
from husai.errors import InputError
from husai.storage import TensorFile


def read_own_rows(activations: ExtractionConfig) -> tuple[dict[str, TensorFile], pd.DataFrame]:
    """Read the rows, and the labels beside them, from the file in the parameters."""
    import torch

    if activations.file is None:
        raise InputError(
            "activations: give the file of your rows, for example "
            "kedro run --env=own --params activations=rows.npy"
        )
    found = read_rows(activations.file)
    rows = Activations(
        values=torch.from_numpy(np.array(found.values, dtype=np.float32)),
        split=torch.zeros(len(found.values), dtype=torch.int64),
        hook_name=OWN_HOOK,
        position=-1,
        model={"file": Path(activations.file).name},
    )
    return {rows.key: TensorFile(*rows.to_tensors())}, prepare_labels(found.labels)
