"""Parameters of a text: where it comes from, and how it is cut into contexts of tokens."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from husai.config import Config, Count, CountFromZero, Listed, Name, Seed


class TextConfig(Config):
    """Where a text comes from, how many tokens are used, and how it is cut into contexts."""

    source: str = Field(
        min_length=1,
        description="a file (.txt, .jsonl, .csv or .parquet, also compressed as .zst or .gz), a "
        "folder of such files, PACKAGE:FOLDER inside an installed Python package, a folder that "
        "Hugging Face datasets saved, or hf://OWNER/NAME on its hub, read as a stream",
    )
    column: str | None = Field(
        default=None,
        description="column of the text; if unset, text, prompt, or the only column of strings",
    )
    label: str | None = Field(default=None, description="column of the documents' labels")
    split: str = Field(default="train", description="split of a data set that has several")
    subset: str | None = Field(default=None, description="configuration of a data set on the hub")
    files: Listed[Name] = Field(
        default=(),
        description="files of a folder to read, by name without the ending; if empty, all of them",
    )
    n_tokens: Count = Field(
        default=1_500_000, description="tokens to train on, special tokens not counted"
    )
    held_out_tokens: Count = Field(
        default=32_768, description="tokens of other documents, for the metrics and comparisons"
    )
    context: Count = Field(default=128, description="tokens of a context, special tokens included")
    mode: Literal["documents", "packed"] = Field(
        default="documents",
        description="documents: each document is one context, and its end is cut off if it is too "
        "long; packed: every context is full, and a document may begin in the middle of one",
    )
    seed: Seed = Field(default=0, description="seed of the order of the documents")
    shuffle_documents: CountFromZero = Field(
        default=1_000_000,
        description="number of documents that are shuffled at a time; 0 keeps their order",
    )
