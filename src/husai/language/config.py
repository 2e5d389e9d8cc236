"""Which language model is read, where, and how."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from husai.activations.store import StoreDtype
from husai.config import (
    Config,
    Count,
    CountFromZero,
    Hook,
    Listed,
    Name,
    Position,
    Seed,
    as_position,
)


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


class ContextsConfig(Config):
    """How many contexts describe a latent, and how long they are."""

    contexts: Count = Field(default=5, description="of each latent, those that activate it most")
    before: Count = Field(default=8, description="tokens shown before the one that activates it")
    after: Count = Field(default=4, description="tokens shown after it")
    tokens: Count = Field(
        default=5, description="that a latent makes most and least likely, through the unembedding"
    )


class EvaluationConfig(Config):
    """How SAEs are measured inside the model that they read."""

    contexts: Count = Field(
        default=256, description="held-out contexts that reconstructions are spliced into"
    )
    measure: Literal["auto", "cross_entropy", "output_change"] = Field(
        default="auto",
        description="auto: the loss of a model with a head for tokens, and the change of an "
        "encoder's output embedding",
    )
    batch_tokens: Count = Field(default=1024, description="tokens of one forward pass")
    masked_fraction: float = Field(
        default=0.15, gt=0, lt=1, description="tokens that a masked model has to tell"
    )
    seed: Seed = Field(default=0, description="of the choice of masked tokens")


class ProbesConfig(Config):
    """Which labelled texts are probed, and with how many latents."""

    files: Listed[Name] = Field(
        default=(),
        description="sets of labelled documents: names of files of text.source; left out: the "
        "first n_tasks that have documents enough. The two most frequent labels are compared",
    )
    n_tasks: CountFromZero = Field(default=20, description="sets probed when files is empty")
    documents: Count = Field(default=200, ge=20, description="of a set, as many of either label")
    context: Count = Field(default=64, description="tokens of a document that are read, at most")
    k: Listed[Count] = Field(default=(1, 2, 5, 16), description="latents of a sparse probe")
    test_fraction: float = Field(default=0.5, gt=0, lt=1, description="documents that test it")
    seed: Seed = Field(default=0, description="of the choice of documents and of those that test")
