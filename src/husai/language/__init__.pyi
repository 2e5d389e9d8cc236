from .config import LanguageModelConfig, ReadingConfig
from .extraction import (
    RowPlaces,
    extract_stores,
    held_out_activations,
    row_places,
)
from .live import LiveRows
from .model import LanguageModel, check_hooks, load_language_model, load_tokenizer

__all__ = [
    "LanguageModel",
    "LanguageModelConfig",
    "LiveRows",
    "ReadingConfig",
    "RowPlaces",
    "check_hooks",
    "extract_stores",
    "held_out_activations",
    "load_language_model",
    "load_tokenizer",
    "row_places",
]
