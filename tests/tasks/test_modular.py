"""Modular arithmetic: every pair once, its answer, tokens and split."""

import itertools
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from husai.errors import InputError
from husai.tasks import ModularTaskConfig, decode, label_distribution, modular_dataset
from husai.tasks.modular import Operation, TokenFormat, encode, make_vocabulary, split_sizes

FORMATS: tuple[TokenFormat, ...] = ("compact", "index_value", "alternating")
OPERATIONS: tuple[Operation, ...] = ("addition", "subtraction", "multiplication")


def arithmetic(a: int, b: int, p: int, operation: Operation) -> int:
    return {"addition": a + b, "subtraction": a - b, "multiplication": a * b}[operation] % p


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("token_format", FORMATS)
@pytest.mark.parametrize("p", [2, 7, 12])
def test_every_pair_once_in_order_with_its_answer(
    p: Any, token_format: Any, operation: Any
) -> None:
    dataset = modular_dataset(
        ModularTaskConfig(
            modulus=p,
            operation=operation,
            token_format=token_format,
            train_fraction=0.5,
            val_fraction=0.25,
            test_fraction=0.25,
        )
    )
    expected = [
        (a, b, arithmetic(a, b, p, operation)) for a, b in itertools.product(range(p), repeat=2)
    ]
    assert (
        list(dataset.examples[["a", "b", "answer"]].itertuples(index=False, name=None)) == expected
    )
    for (a, b, _), tokens in zip(expected, dataset.tokens(), strict=True):
        assert decode(tokens, dataset.vocabulary) == (a, operation, b)


@pytest.mark.parametrize("token_format", FORMATS)
def test_only_the_operand_positions_vary(token_format: Any) -> None:
    dataset = modular_dataset(ModularTaskConfig(modulus=11, token_format=token_format))
    vocabulary, tokens = dataset.vocabulary, dataset.tokens()
    for position in range(vocabulary.n_ctx):
        values = set(tokens[:, position].tolist())
        if position in (vocabulary.position_a, vocabulary.position_b):
            assert values == set(range(11))
        else:
            # the same mark in every example: it can tell nothing about the answer
            (mark,) = values
            assert mark >= 11
    assert vocabulary.token_names[tokens[0, vocabulary.answer_position]] == "="


def test_written_out_formats() -> None:
    a, b = np.array([3]), np.array([9])
    p = 113
    assert encode(a, b, make_vocabulary(p)).tolist() == [[3, 9, p]]
    alternating = make_vocabulary(p, "subtraction", "alternating")
    names = [alternating.token_names[t] for t in encode(a, b, alternating)[0]]
    assert names == ["3", "-", "9", "="]
    pairs = make_vocabulary(p, "addition", "index_value")
    names = [pairs.token_names[t] for t in encode(a, b, pairs)[0]]
    assert names == ["index 0", "3", "index 1", "9", "="]
    assert make_vocabulary(p).d_vocab == 114


@pytest.mark.parametrize("sample_fraction", [None, 0.37])
@pytest.mark.parametrize(
    "fractions", [(0.3, 0.3, 0.4), (0.5, 0.1, 0.4), (1 / 3, 1 / 3, 1 / 3), (0.7, 0.0, 0.3)]
)
def test_sizes_add_up_and_are_within_one_of_the_fraction(
    fractions: Any, sample_fraction: Any
) -> None:
    config = ModularTaskConfig(
        modulus=23,
        train_fraction=fractions[0],
        val_fraction=fractions[1],
        test_fraction=fractions[2],
        sample_fraction=sample_fraction,
    )
    dataset = modular_dataset(config)
    n = round(23 * 23 * (sample_fraction or 1))
    rows = [dataset.rows(split) for split in ("train", "val", "test")]
    assert sorted(np.concatenate(rows)) == list(range(n))
    for fraction, part in zip(fractions, rows, strict=True):
        assert abs(len(part) - fraction * n) < 1


def test_split_sizes_are_robust_to_rounding() -> None:
    assert split_sizes(10, (0.3, 0.3, 0.4)) == [3, 3, 4]
    assert split_sizes(7, (0.5, 0.5, 0.0)) == [4, 3, 0]


def test_seed_decides_the_split_and_nothing_else() -> None:
    first, again, other = (
        modular_dataset(ModularTaskConfig(modulus=19, seed=s)) for s in (4, 4, 5)
    )
    assert first.examples.equals(again.examples)
    assert not first.examples["split"].equals(other.examples["split"])
    columns = [c for c in first.examples if c != "split"]
    assert first.examples[columns].equals(other.examples[columns])


def test_the_sub_sample_does_not_depend_on_the_fractions() -> None:
    def pairs(train: float) -> list[tuple[int, ...]]:
        config = ModularTaskConfig(
            modulus=19,
            sample_fraction=0.5,
            train_fraction=train,
            val_fraction=0,
            test_fraction=1 - train,
        )
        return list(modular_dataset(config).examples[["a", "b"]].itertuples(index=False, name=None))

    assert pairs(0.5) == pairs(0.25)
    assert pairs(0.5) == sorted(pairs(0.5))


def test_label_distribution_counts_what_number_theory_says() -> None:
    def totals(operation: Operation) -> dict[int, int]:
        dataset = modular_dataset(ModularTaskConfig(modulus=13, operation=operation))
        table = label_distribution(dataset.examples)
        assert (table[["train", "val", "test"]].sum(axis=1) == table["total"]).all()
        assert table["train"].sum() == len(dataset.rows("train"))
        return dict(zip(table["answer"], table["total"], strict=True))

    assert totals("addition") == dict.fromkeys(range(13), 13)
    assert totals("subtraction") == dict.fromkeys(range(13), 13)
    # zero divisors: 2p - 1 pairs give 0; each unit is hit p - 1 times
    assert totals("multiplication") == {0: 25} | dict.fromkeys(range(1, 13), 12)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([3, 4], "shape"),
        ([3, 4, 3], r"tokens\[2\] = 3"),
        ([113, 4, 113], r"tokens\[0\] = 113"),
        ([3, -1, 113], r"tokens\[1\] = -1"),
    ],
)
def test_decode_refuses_tokens_that_are_no_example(tokens: Any, message: Any) -> None:
    with pytest.raises(InputError, match=message):
        decode(tokens, make_vocabulary(113))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modulus": 1}, "modulus"),
        ({"train_fraction": 0.3}, r"train_fraction \(0.3\) .* = 0.8; they must sum to 1"),
        ({"train_fraction": 0.5, "val_fraction": -0.1, "test_fraction": 0.6}, "val_fraction"),
        ({"sample_fraction": 0.0}, "sample_fraction"),
        ({"token_format": "verbose"}, "token_format"),
        ({"modulos": 7}, "modulos"),
    ],
)
def test_bad_configuration_names_the_field(values: Any, message: Any) -> None:
    with pytest.raises(ValidationError, match=message):
        ModularTaskConfig(**values)


def test_an_empty_split_is_refused() -> None:
    config = ModularTaskConfig(modulus=2, train_fraction=0.9, val_fraction=0.05, test_fraction=0.05)
    with pytest.raises(InputError, match=r"val_fraction = 0.05 of 4 examples"):
        modular_dataset(config)
