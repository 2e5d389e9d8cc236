"""Scripts with which MLflow loads the project's models from safetensors files."""
