"""Activations: extraction by hook name, statistics, and the file they are kept in."""

from husai.activations.extraction import ExtractionConfig, extract_activations
from husai.activations.rows import (
    Activations,
    activation_key,
    check_activations,
    load_activations,
    load_all,
)
from husai.activations.statistics import activation_statistics

__all__ = [
    "Activations",
    "ExtractionConfig",
    "activation_key",
    "activation_statistics",
    "check_activations",
    "extract_activations",
    "load_activations",
    "load_all",
]
