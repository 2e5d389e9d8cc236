"""A trained transformer as an MLflow model: tokens in, the answer's logits out."""

from __future__ import annotations

from typing import Any

import mlflow
import numpy as np
import numpy.typing as npt
from mlflow.pyfunc import PythonModel


class TransformerModel(PythonModel):
    """Computes the logits at the answer's position."""

    def load_context(self, context: Any) -> None:
        """Build the model from its safetensors file."""
        from husai.transformer import load_transformer

        self.model = load_transformer(context.artifacts["weights"]).build()

    # no type hints: MLflow would take them as a schema, but a signature is logged with the model
    def predict(  # type: ignore[no-untyped-def]
        self, context, model_input, params=None
    ) -> npt.NDArray[np.float32]:
        """Return logits ``[n, d_vocab]`` for tokens ``[n, n_ctx]``."""
        import torch

        tokens = torch.as_tensor(np.array(model_input, dtype=np.int64))
        with torch.no_grad():
            logits: npt.NDArray[np.float32] = self.model(tokens)[:, -1].numpy()
        return logits


mlflow.models.set_model(TransformerModel())
