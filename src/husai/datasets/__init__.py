"""The project's Kedro datasets."""
