"""A trained SAE as an MLflow model: activations in, codes out."""

from __future__ import annotations

from typing import Any

import mlflow
import numpy as np
import numpy.typing as npt
from mlflow.pyfunc import PythonModel


class SAEModel(PythonModel):
    """Gives the codes of activations."""

    def load_context(self, context: Any) -> None:
        """Read the SAE's file."""
        from husai.sae import load_sae

        self.sae = load_sae(context.artifacts["weights"])

    # MLflow reads hints of the input as a schema; the signature is logged beside the model instead
    def predict(  # type: ignore[no-untyped-def]
        self, context, model_input, params=None
    ) -> npt.NDArray[np.float32]:
        """Give codes ``[n, d_sae]`` for activations ``[n, d_in]``."""
        import torch

        rows = torch.as_tensor(np.array(model_input, dtype=np.float32))
        with torch.no_grad():
            codes: npt.NDArray[np.float32] = self.sae.encode(rows).numpy()
        return codes


mlflow.models.set_model(SAEModel())
