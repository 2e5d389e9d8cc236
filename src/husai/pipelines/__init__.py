"""The Kedro pipelines: nodes of a few lines that call the library, and how they are connected."""

from husai.errors import needs

needs("kedro", "project")
