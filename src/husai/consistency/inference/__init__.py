"""Chance levels, intervals over seeds, and many seeds together."""
