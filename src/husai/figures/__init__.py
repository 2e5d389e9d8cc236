"""Figures: one function per figure, which takes tables and returns a matplotlib ``Figure``."""

from husai.errors import needs

needs("matplotlib", "project")
