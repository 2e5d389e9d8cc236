"""Kedro hooks: checks before a run, names of studies, records of inputs, and errors in one line."""

from husai.errors import needs

needs("kedro", "project")
