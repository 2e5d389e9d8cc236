"""Which text is read, and how it becomes tokens."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from husai.config import Config, Count, CountFromZero, Listed, Name, Seed


class TextConfig(Config):
    """A text, its length in tokens, and how contexts are cut from it."""

    source: str = Field(
        min_length=1,
        description="a file (.txt, .jsonl, .csv, .parquet; .zst or .gz behind it), a folder of "
        "such files, PACKAGE:FOLDER inside an installed Python package, a folder that Hugging Face "
        "datasets saved, or hf://OWNER/NAME on its hub, read as a stream",
    )
    column: str | None = Field(
        default=None, description="of the text; left out: text, prompt or the only one of strings"
    )
    label: str | None = Field(default=None, description="column of the documents' labels")
    split: str = Field(default="train", description="of a data set that has several")
    subset: str | None = Field(default=None, description="configuration of a data set on the hub")
    files: Listed[Name] = Field(
        default=(), description="names of the files of a folder to read, without their endings"
    )
    n_tokens: Count = Field(
        default=1_500_000, description="tokens to train on, special ones not counted"
    )
    held_out_tokens: Count = Field(
        default=32_768, description="tokens of other documents, for the metrics and comparisons"
    )
    context: Count = Field(default=128, description="tokens of a context, special ones included")
    mode: Literal["documents", "packed"] = Field(
        default="documents",
        description="documents: one context of each, cut at its length; packed: contexts are full, "
        "and a document may begin in the middle of one",
    )
    seed: Seed = Field(default=0, description="of the order of the documents")
    shuffle_documents: CountFromZero = Field(
        default=1_000_000,
        description="documents that are drawn from at a time; all of a smaller text. 0: as they "
        "come",
    )
