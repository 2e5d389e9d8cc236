"""Names of the formats of SAE files. It imports nothing, so that ``husai --help`` is fast."""

from typing import Literal

Format = Literal[
    "husai",
    "saelens",
    "dictionary_learning",
    "sparsify",
    "gemma_scope",
    "llama_scope",
    "qwen_scope",
    "openai",
    "goodfire",
    "safetensors",
    "npy",
    "npz",
    "pt",
]
"""The kinds of files that are read; the last four are plain matrices."""

PLAIN: tuple[Format, ...] = ("safetensors", "npy", "npz", "pt")

WrittenFormat = Literal["husai", "saelens", "dictionary_learning", "sparsify"]
"""The kinds of files that are written."""
