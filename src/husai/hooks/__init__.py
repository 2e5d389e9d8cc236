"""Kedro hooks that check a run before it starts and report its errors."""

from husai.errors import needs

needs("kedro", "project")
