"""A trained SAE as an MLflow model: activations in, codes out."""

from __future__ import annotations

from typing import Any

import mlflow
import numpy as np
import numpy.typing as npt
from mlflow.pyfunc import PythonModel


class SAEModel(PythonModel):
    """Computes the codes of activations."""

    def load_context(self, context: Any) -> None:
        """Read the SAE's file."""
        from husai.sae import load_sae

        self.sae = load_sae(context.artifacts["weights"])

    # no type hints: MLflow would take them as a schema, but a signature is logged with the model
    def predict(  # type: ignore[no-untyped-def]
        self, context, model_input, params=None
    ) -> npt.NDArray[np.float32]:
        """Return codes ``[n, d_sae]`` of activations ``[n, d_in]``."""
        import torch

        rows = torch.as_tensor(np.array(model_input, dtype=np.float32))
        with torch.no_grad():
            codes: npt.NDArray[np.float32] = self.sae.encode(rows).numpy()
        return codes


mlflow.models.set_model(SAEModel())
