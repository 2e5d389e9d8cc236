"""What is recorded of a run in MLflow."""
