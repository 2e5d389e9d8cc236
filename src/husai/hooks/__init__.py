"""Kedro hooks that check a run and tell its errors."""
