"""Figures: one function per figure, data in, Figure out."""

from husai.errors import needs

needs("matplotlib", "project")
