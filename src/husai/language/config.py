"""Which language model is read, where, and how."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from husai.activations.store import StoreDtype
from husai.config import Config, Count, Hook, Position, Seed, as_position


class LanguageModelConfig(Config):
    """A model that TransformerLens boots."""

    name: str = Field(
        min_length=1,
        description="a folder in the Hugging Face format, PACKAGE:FOLDER inside an installed "
        "Python package, or a name on the hub",
    )
    revision: str | None = Field(default=None, description="of a model on the hub")
    tokenizer: str | None = Field(default=None, description="folder or name; unset: the model's")
    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        default="float32", description="that the model computes in"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: cuda if any")
    untrained_seed: Seed = Field(default=0, description="of the weights of the untrained model")


class ReadingConfig(Config):
    """What is read of a model in one pass over a text."""

    hook_names: tuple[Hook, ...] = Field(
        min_length=1,
        description="hooks, as NAME or NAME@POSITION: a position of the tokens, all, or mean; "
        "NAME.headN is one head of a hook that has heads, which are side by side otherwise",
    )
    position: Position = Field(default="all", description="where NAME alone is read")
    special_tokens: bool = Field(
        default=False, description="keep special tokens too; padding is never kept"
    )
    untrained: bool = Field(
        default=False, description="read the model at new initial weights too: a null for SAEs"
    )
    dtype: StoreDtype = Field(default="float16", description="that activations are kept as")
    batch_tokens: Count = Field(default=8192, description="tokens of one forward pass")
    shard_contexts: Count = Field(
        default=512, description="contexts of one shard: what a kill costs at most"
    )

    @field_validator("hook_names")
    @classmethod
    def _distinct(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"named more than once: {repeated}; leave repeats out")
        return names

    def places(self) -> list[tuple[str, Position]]:
        """Every hook with the position at which it is read."""
        found: list[tuple[str, Position]] = []
        for entry in self.hook_names:
            name, at, position = entry.partition("@")
            found.append((name, as_position(position) if at else self.position))
        return found
