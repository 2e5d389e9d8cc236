"""Scripts by which MLflow loads the project's models: weights are safetensors, code is here."""
