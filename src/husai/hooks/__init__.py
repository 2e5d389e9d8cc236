"""Kedro hooks that check a run before it starts and report its errors."""
