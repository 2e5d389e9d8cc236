"""Parameters of language models: which one, which activations, and how SAEs are measured."""

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
    """A language model that TransformerLens can load."""

    name: str = Field(
        min_length=1,
        description="a folder in the Hugging Face format, PACKAGE:FOLDER inside an installed "
        "Python package, or a name on the hub",
    )
    revision: str | None = Field(default=None, description="revision of a model on the hub")
    tokenizer: str | None = Field(
        default=None, description="folder or name of a tokenizer; if unset, the model's own"
    )
    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        default="float32", description="number format in which the model computes"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="device of the model; auto: a GPU if there is one"
    )
    untrained_seed: Seed = Field(
        default=0, description="seed of the initial weights of the untrained model"
    )


class ReadingConfig(Config):
    """Which activations are read in one pass of a model over a text."""

    hook_names: Listed[Hook] = Field(
        min_length=1,
        description="hooks, as NAME or NAME@POSITION, where POSITION is a number, all, or mean; "
        "NAME.headN is one head of a hook that has heads; without it the heads are concatenated",
    )
    position: Position = Field(default="all", description="position for a NAME without one")
    special_tokens: bool = Field(
        default=False, description="keep special tokens too; padding is never kept"
    )
    untrained: bool = Field(
        default=False,
        description="read the model with new initial weights too, as a null for the SAEs",
    )
    dtype: StoreDtype = Field(
        default="float16", description="number format in which activations are stored"
    )
    batch_tokens: Count = Field(default=8192, description="tokens of one forward pass")
    shard_contexts: Count = Field(
        default=512,
        description="contexts of one shard, which is the most that an interrupted run has to read "
        "again",
    )

    @field_validator("hook_names")
    @classmethod
    def _distinct(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"given more than once: {repeated}; give each only once")
        return names

    def places(self) -> list[tuple[str, Position]]:
        """Return every hook with the position at which it is read."""
        found: list[tuple[str, Position]] = []
        for entry in self.hook_names:
            name, at, position = entry.partition("@")
            found.append((name, as_position(position) if at else self.position))
        return found


class ContextsConfig(Config):
    """How many contexts describe a latent, and how long they are."""

    contexts: Count = Field(
        default=5, description="number of contexts per latent, those that activate it most"
    )
    before: Count = Field(default=8, description="tokens shown before the one that activates it")
    after: Count = Field(default=4, description="tokens shown after it")
    tokens: Count = Field(
        default=5,
        description="number of tokens that a latent makes most likely, and least likely, through "
        "the unembedding",
    )


class EvaluationConfig(Config):
    """How SAEs are measured inside the model whose activations they read."""

    contexts: Count = Field(
        default=256, description="held-out contexts that reconstructions are spliced into"
    )
    measure: Literal["auto", "cross_entropy", "output_change"] = Field(
        default="auto",
        description="what is measured; auto: the cross-entropy of a model that predicts tokens, "
        "and the change of the output embedding of an encoder without such a head",
    )
    batch_tokens: Count = Field(default=1024, description="tokens of one forward pass")
    masked_fraction: float = Field(
        default=0.15, gt=0, lt=1, description="share of tokens that a masked model has to predict"
    )
    seed: Seed = Field(default=0, description="seed of the choice of masked tokens")


class ProbesConfig(Config):
    """Which labelled texts are used for probing, and with how many latents."""

    files: Listed[Name] = Field(
        default=(),
        description="sets of labelled documents, as names of files of text.source; if empty, the "
        "first n_tasks with enough documents. The two most frequent labels are compared",
    )
    n_tasks: CountFromZero = Field(
        default=20, description="most sets that are probed when files is empty"
    )
    documents: Count = Field(
        default=200, ge=20, description="documents per set, half of them with each label"
    )
    context: Count = Field(default=64, description="most tokens of a document that are read")
    k: Listed[Count] = Field(
        default=(1, 2, 5, 16), description="numbers of latents of the sparse probes"
    )
    test_fraction: float = Field(
        default=0.5, gt=0, lt=1, description="share of the documents that test the probe"
    )
    seed: Seed = Field(
        default=0, description="seed of the choice of documents, and of those that test the probe"
    )
