"""The type of a score: what it needs, its bounds, its nulls and its formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from husai.consistency.scores.pair import BOTH_SIGNS, PreparedPair

Need = Literal["decoder", "encoder", "codes", "truth"]
"""What a score is computed from. ``"truth"``: side B of the pair is the true dictionary."""

Bounds = tuple[float, float]

SHARE: Bounds = (0.0, 1.0)
COSINE: Bounds = (-1.0, 1.0)
DISTANCE: Bounds = (0.0, float("inf"))

DRAWN = ("isotropic", "data_aware")
DECODER_NULLS = (*DRAWN, "init")
CLAIM_NULLS = ("permuted", *DECODER_NULLS)
"""Nulls of the scores that claims rest on; they are drawn for each group, which takes time."""

CLAIM_KINDS = ("permuted", *DRAWN)
"""Nulls shown beside a claim: first the one that it rests on, then two that show the range."""


class Value(NamedTuple):
    """The value of a score for one pair.

    Attributes
    ----------
    value
        The score, or None where it is not defined.
    chance
        Its chance level where that has a closed form.
    reason
        Why it is not defined; empty otherwise.
    """

    value: float | None
    chance: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Score:
    """One score of a pair of SAEs.

    Attributes
    ----------
    name
        Its name in tables and files.
    title
        Its name on pages and in figures; ``{threshold}`` stands for the threshold in use.
    meaning
        What it measures, in one sentence.
    needs
        What it is computed from.
    compute
        Computes it from a pair and the sign convention (True: signed cosines); None where it is
        not defined for these sizes.
    bounds, signed_bounds
        Its possible values, with the absolute and with the signed cosine.
    perfect
        Its value for two equal SAEs: 1, or 0 for a distance.
    signs
        Sign conventions in which it is computed.
    symmetric
        Whether it stays the same when A and B are exchanged.
    nulls
        Kinds of :data:`husai.consistency.inference.nulls.NULL_KINDS` that it is compared with.
    """

    name: str
    title: str
    meaning: str
    needs: frozenset[Need]
    compute: Callable[[PreparedPair, bool], Value | float | None]
    bounds: Bounds = SHARE
    signed_bounds: Bounds | None = None
    perfect: float = 1.0
    signs: tuple[bool, ...] = BOTH_SIGNS
    symmetric: bool = True
    nulls: tuple[str, ...] = DECODER_NULLS

    @property
    def term(self) -> str:
        """Its title without the threshold: its term in the glossary and in figures."""
        return self.title.removesuffix(" ≥ {threshold:g}")

    def bounds_of(self, signed: bool) -> Bounds:
        """The possible values of the score."""
        return self.signed_bounds if signed and self.signed_bounds is not None else self.bounds

    def difference_bounds(self, signed: bool) -> Bounds:
        """The possible values of a difference of two such scores."""
        low, high = self.bounds_of(signed)
        return low - high, high - low

    def of(self, pair: PreparedPair, signed: bool) -> Value:
        """Compute the score of a pair under one sign convention."""
        made = self.compute(pair, signed)
        found = made if isinstance(made, Value) else Value(made)
        if found.value is None and not found.reason:
            return found._replace(reason="not defined for these sizes")
        return found
