"""The dataset of modular arithmetic: every pair (a, b) of Z_p, its answer, tokens and split.

The model reads ``a`` and ``b`` and has to predict the answer at the ``=`` token, the last of the
sequence. The answer itself is never a token of the input: a causal model that sees it at the
position of the loss only learns to copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field, model_validator

from husai.config import Config, Seed
from husai.errors import InputError

Operation = Literal["addition", "subtraction", "multiplication"]
TokenFormat = Literal["compact", "index_value", "alternating"]
Split = Literal["train", "val", "test"]

SPLITS: tuple[Split, ...] = ("train", "val", "test")
OPERATOR_SIGN: dict[Operation, str] = {
    "addition": "+",
    "subtraction": "-",
    "multiplication": "*",
}
# about 16 bytes of memory per example; far larger than anything that is trained full batch
MAX_MODULUS = 4096

_VARIABLE = -1  # in a template: the place of an operand


class ModularTaskConfig(Config):
    """The arithmetic of the task, how it is written in tokens, and how it is split."""

    modulus: int = Field(113, ge=2, le=MAX_MODULUS, description="p: the numbers are 0 … p-1")
    operation: Operation = Field("addition", description="answer = a (op) b mod p")
    token_format: TokenFormat = Field(
        "compact",
        description="compact [a, b, =]; index_value [index 0, a, index 1, b, =]; "
        "alternating [a, op, b, =]",
    )
    train_fraction: float = Field(
        0.5, gt=0, le=1, description="share of the examples that are trained on"
    )
    val_fraction: float = Field(
        0.1, ge=0, lt=1, description="share held out for choosing hyperparameters"
    )
    test_fraction: float = Field(
        0.4, ge=0, lt=1, description="share held out for the reported results"
    )
    sample_fraction: float | None = Field(
        None, gt=0, le=1, description="keep only this share of all p² pairs; None keeps all"
    )
    seed: Seed = Field(0, description="seed of the sub-sample and of the split")

    @model_validator(mode="after")
    def _fractions_sum_to_one(self) -> ModularTaskConfig:
        total = self.train_fraction + self.val_fraction + self.test_fraction
        if abs(total - 1.0) > 1e-9:
            raise ValueError(
                f"train_fraction ({self.train_fraction}) + val_fraction ({self.val_fraction}) + "
                f"test_fraction ({self.test_fraction}) = {total:.6g}; they must sum to 1"
            )
        return self


class Vocabulary(Config):
    """What the token ids mean and at which positions of the sequence they are."""

    modulus: int = Field(description="p; ids 0 … p-1 are the numbers")
    operation: Operation = Field(description="what the task computes")
    token_format: TokenFormat = Field(description="how an example is written")
    token_names: tuple[str, ...] = Field(description="name of each id, [d_vocab]")
    template: tuple[int, ...] = Field(
        description="the sequence, [n_ctx]: a fixed token's id, or -1 where an operand goes"
    )
    position_a: int = Field(description="position of a")
    position_b: int = Field(description="position of b")

    @property
    def d_vocab(self) -> int:
        """Number of token ids."""
        return len(self.token_names)

    @property
    def n_ctx(self) -> int:
        """Tokens in a sequence."""
        return len(self.template)

    @property
    def answer_position(self) -> int:
        """Position at which the answer is predicted: the last, that of ``=``."""
        return self.n_ctx - 1


class DecodedExample(NamedTuple):
    """An example read back from its tokens."""

    a: int
    operation: Operation
    b: int


@dataclass(frozen=True)
class ModularDataset:
    """Examples of modular arithmetic and the vocabulary they are written in.

    Attributes
    ----------
    examples
        One row per example in (a, b) order, columns ``a``, ``b``, ``answer``, ``split``
        ("train", "val" or "test") and ``token_0`` … ``token_{n_ctx-1}``.
    vocabulary
        What the token ids mean.
    """

    examples: pd.DataFrame
    vocabulary: Vocabulary

    def tokens(self) -> npt.NDArray[np.int64]:
        """Token ids, [n_examples, n_ctx]."""
        columns = [f"token_{i}" for i in range(self.vocabulary.n_ctx)]
        return self.examples[columns].to_numpy(dtype=np.int64)

    def answers(self) -> npt.NDArray[np.int64]:
        """Answers, [n_examples]."""
        return self.examples["answer"].to_numpy(dtype=np.int64)

    def rows(self, split: Split) -> npt.NDArray[np.int64]:
        """Row numbers of a split, ascending."""
        return np.flatnonzero((self.examples["split"] == split).to_numpy()).astype(np.int64)


def make_vocabulary(
    modulus: int, operation: Operation = "addition", token_format: TokenFormat = "compact"
) -> Vocabulary:
    """Describe the tokens of a task: numbers are 0 … p-1, ``=`` is p, then the other symbols."""
    sign = OPERATOR_SIGN[operation]
    names = [str(value) for value in range(modulus)] + ["="]
    equals = modulus
    template: tuple[int, ...]
    if token_format == "compact":
        template = (_VARIABLE, _VARIABLE, equals)
    elif token_format == "alternating":
        names.append(sign)
        template = (_VARIABLE, modulus + 1, _VARIABLE, equals)
    else:
        # the index of an operand is a token of its own, not the number 0 or 1
        names += ["index 0", "index 1"]
        template = (modulus + 1, _VARIABLE, modulus + 2, _VARIABLE, equals)
    position_a, position_b = (i for i, token in enumerate(template) if token == _VARIABLE)
    return Vocabulary(
        modulus=modulus,
        operation=operation,
        token_format=token_format,
        token_names=tuple(names),
        template=template,
        position_a=position_a,
        position_b=position_b,
    )


def compute_answers(
    a: npt.NDArray[np.int64], b: npt.NDArray[np.int64], vocabulary: Vocabulary
) -> npt.NDArray[np.int64]:
    """Return ``a (op) b mod p``, elementwise, in 0 … p-1."""
    if vocabulary.operation == "addition":
        result = a + b
    elif vocabulary.operation == "subtraction":
        result = a - b
    else:
        result = a * b
    return np.mod(result, vocabulary.modulus)


def encode(
    a: npt.NDArray[np.int64], b: npt.NDArray[np.int64], vocabulary: Vocabulary
) -> npt.NDArray[np.int64]:
    """Write pairs of numbers as tokens.

    Parameters
    ----------
    a, b
        Operands in 0 … p-1, [n] each.
    vocabulary
        From :func:`make_vocabulary`.

    Returns
    -------
    numpy.ndarray
        Token ids, [n, n_ctx].
    """
    for name, operand in (("a", a), ("b", b)):
        if operand.size and not (operand.min() >= 0 and operand.max() < vocabulary.modulus):
            raise InputError(f"{name} holds values outside 0 … {vocabulary.modulus - 1}")
    tokens = np.tile(np.asarray(vocabulary.template, dtype=np.int64), (a.shape[0], 1))
    tokens[:, vocabulary.position_a] = a
    tokens[:, vocabulary.position_b] = b
    return tokens


def decode(tokens: npt.ArrayLike, vocabulary: Vocabulary) -> DecodedExample:
    """Read one example back from its tokens.

    Parameters
    ----------
    tokens
        Token ids, [n_ctx].
    vocabulary
        What they mean.

    Raises
    ------
    InputError
        When the length, a fixed token or an operand does not fit the vocabulary's format.
    """
    ids = np.asarray(tokens)
    if ids.shape != (vocabulary.n_ctx,):
        raise InputError(
            f"tokens has shape {ids.shape}; the {vocabulary.token_format} format "
            f"has {vocabulary.n_ctx} tokens"
        )
    for position, expected in enumerate(vocabulary.template):
        found = int(ids[position])
        if expected == _VARIABLE:
            if not 0 <= found < vocabulary.modulus:
                raise InputError(
                    f"tokens[{position}] = {found} is not a number of Z_{vocabulary.modulus}"
                )
        elif found != expected:
            raise InputError(
                f"tokens[{position}] = {found}; the {vocabulary.token_format} format has "
                f"{expected} ({vocabulary.token_names[expected]!r}) there"
            )
    return DecodedExample(
        a=int(ids[vocabulary.position_a]),
        operation=vocabulary.operation,
        b=int(ids[vocabulary.position_b]),
    )


def modular_dataset(config: ModularTaskConfig) -> ModularDataset:
    """Make the dataset of a modular task.

    All p² pairs (or the sub-sample) are listed in (a, b) order, then each gets its split. Sizes
    are the fractions of the number of examples, rounded so that they add up exactly.

    Raises
    ------
    InputError
        When a split with a fraction above 0 would be empty.
    """
    vocabulary = make_vocabulary(config.modulus, config.operation, config.token_format)
    p = config.modulus
    # one generator for each purpose: the sub-sample does not change when only the split does
    sample_rng, split_rng = np.random.default_rng(config.seed).spawn(2)

    pairs = np.arange(p * p, dtype=np.int64)
    if config.sample_fraction is not None:
        n_kept = round(config.sample_fraction * p * p)
        pairs = np.sort(sample_rng.permutation(p * p)[:n_kept]).astype(np.int64)
    a, b = np.divmod(pairs, p)

    fractions = (config.train_fraction, config.val_fraction, config.test_fraction)
    sizes = split_sizes(pairs.size, fractions)
    for name, fraction, size in zip(SPLITS, fractions, sizes, strict=True):
        if fraction > 0 and size == 0:
            raise InputError(
                f"{name}_fraction = {fraction} of {pairs.size} examples is less than one example; "
                f"raise it, the modulus ({p}) or sample_fraction ({config.sample_fraction})"
            )
    split = np.empty(pairs.size, dtype=object)
    split[split_rng.permutation(pairs.size)] = np.repeat(np.asarray(SPLITS, dtype=object), sizes)

    tokens = encode(a, b, vocabulary)
    columns: dict[str, object] = {
        "a": a,
        "b": b,
        "answer": compute_answers(a, b, vocabulary),
        "split": split,
    }
    columns |= {f"token_{i}": tokens[:, i] for i in range(vocabulary.n_ctx)}
    return ModularDataset(examples=pd.DataFrame(columns), vocabulary=vocabulary)


def split_sizes(n: int, fractions: tuple[float, ...]) -> list[int]:
    """Round ``n * fractions`` to whole numbers that sum to ``n`` (largest remainder)."""
    exact = np.asarray(fractions, dtype=np.float64) * n
    # 0.3 * 10 is 3.0000000000000004 or 2.9999999999999996: not a remainder
    whole = np.floor(exact + 1e-9)
    order = np.argsort(-(exact - whole), kind="stable")
    whole[order[: n - int(whole.sum())]] += 1
    return [int(size) for size in whole]


def label_distribution(examples: pd.DataFrame) -> pd.DataFrame:
    """Count each answer in each split.

    Parameters
    ----------
    examples
        A dataset's table, with columns ``answer`` and ``split``.

    Returns
    -------
    pandas.DataFrame
        One row per answer that occurs, in ascending order, with columns ``answer``, ``train``,
        ``val``, ``test`` and ``total``. Addition and subtraction are uniform over all p² pairs;
        multiplication is not: 0 has 2p - 1 pairs when p is prime.
    """
    counts = pd.crosstab(examples["answer"], examples["split"])
    counts = counts.reindex(columns=list(SPLITS), fill_value=0)
    counts["total"] = counts.sum(axis=1)
    counts.columns.name = None
    return counts.reset_index()
