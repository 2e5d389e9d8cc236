"""Kedro pipelines: thin nodes over the library."""

from husai.errors import needs

needs("kedro", "project")
