"""A pair of SAEs with the matches, products and moments that its scores share, each made once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from husai.consistency.config import ComparisonConfig
from husai.consistency.scores.code_scores import (
    CodeConsistency,
    RepresentationSimilarity,
    UnitCodes,
    activation_mean,
    code_consistency,
    code_similarity,
)
from husai.consistency.scores.codes import CrossMoments, cross_moments
from husai.consistency.scores.rows import Rows, unit_pair
from husai.consistency.scores.similarity import dictionary_directions
from husai.errors import InputError
from husai.matching.match import match_features, match_signed_and_absolute
from husai.matching.result import Match

# Numbers in a block of cosines (64 MB of float64); the whole [n_a, n_b] matrix is never made.
_BLOCK_NUMBERS = 8_000_000

# Above so many pairs a match takes seconds: it shows a progress bar, and can be resumed.
LONG_PAIRS = 8192**2

BOTH_SIGNS = (True, False)

T = TypeVar("T")


@dataclass(frozen=True)
class Nearest:
    """The nearest feature of every feature; several features may have the same one.

    Attributes
    ----------
    a_index, a_similarity
        ``[n_a]``: for each row of A the nearest row of B and its similarity.
    b_index, b_similarity
        ``[n_b]``: for each row of B the nearest row of A and its similarity.
    signed
        Whether the similarity is the cosine (True) or its absolute value (False).
    """

    a_index: NDArray[np.int64]
    a_similarity: NDArray[np.float64]
    b_index: NDArray[np.int64]
    b_similarity: NDArray[np.float64]
    signed: bool


def nearest_features(A: ArrayLike, B: ArrayLike, *, signed: bool = False) -> Nearest:
    """Find each feature's nearest feature in the other dictionary, block by block.

    Parameters
    ----------
    A, B
        ``[n_a, d]`` and ``[n_b, d]``; rows are features, normalised here.
    signed
        Use the cosine itself instead of its absolute value.

    Raises
    ------
    InputError
        When an input is not a finite matrix or the dimensions differ.
    """
    return _nearest(*unit_pair(A, B), signed)


def _nearest(rows_a: Rows, rows_b: Rows, signed: bool) -> Nearest:
    n_a, n_b = len(rows_a), len(rows_b)
    a_index = np.empty(n_a, dtype=np.int64)
    a_best = np.empty(n_a)
    b_index = np.zeros(n_b, dtype=np.int64)
    b_best = np.full(n_b, -np.inf)
    step = max(1, _BLOCK_NUMBERS // n_b)
    for start in range(0, n_a, step):
        block = rows_a[start : start + step] @ rows_b.T
        if not signed:
            np.abs(block, out=block)
        here = slice(start, start + len(block))
        a_index[here] = block.argmax(axis=1)
        a_best[here] = np.take_along_axis(block, a_index[here, None], axis=1)[:, 0]
        column = block.argmax(axis=0)
        value = block[column, np.arange(n_b)]
        better = value > b_best
        b_best[better] = value[better]
        b_index[better] = column[better] + start
    return Nearest(a_index, a_best, b_index, b_best, signed)


class MatchOptions(TypedDict):
    """The options of :func:`husai.matching.match.match_features` that depend on the run."""

    max_passes: float
    device: str
    checkpoint: Path | None
    progress: bool | str


@dataclass(frozen=True)
class MatchRun:
    """Options of a comparison's long matches: budget, device, checkpoint, progress.

    Attributes
    ----------
    max_passes, device
        As in :class:`husai.consistency.config.ComparisonConfig`.
    checkpoint
        Folder that keeps the state of long matches, or None.
    progress
        Whether long matches show a progress bar.
    """

    max_passes: float = 4.0
    device: str = "cpu"
    checkpoint: Path | None = None
    progress: bool = False

    def options(self, n_a: int, n_b: int, name: str) -> MatchOptions:
        """Options of the match called ``name``; a short one shows no bar and keeps no file."""
        long = n_a * n_b > LONG_PAIRS
        file = f"{name.replace(' ', '_')}.safetensors"
        return {
            "max_passes": self.max_passes,
            "device": self.device,
            "checkpoint": self.checkpoint / file if long and self.checkpoint else None,
            "progress": name if long and self.progress else False,
        }


@dataclass(frozen=True)
class Side:
    """One SAE as the scores of a pair see it.

    Attributes
    ----------
    decoder
        ``[n, d]`` unit rows (or zero), one feature per row, from :func:`direction_rows`.
    encoder
        ``[n, d]`` unit rows of the encoder, a function that makes them when they are needed, or
        None.
    codes
        Codes of the same features on the rows of the study, or None.
    """

    decoder: Rows
    encoder: Rows | Callable[[], Rows] | None = None
    codes: UnitCodes | None = None


@dataclass(frozen=True)
class MatchedProducts:
    """Products over the matched pairs: ``XᵀY``, ``XᵀX`` and ``YᵀY``, each ``[d, d]``."""

    xy: NDArray[np.float64]
    xx: NDArray[np.float64]
    yy: NDArray[np.float64]
    n_pairs: int


class PreparedPair:
    """Two SAEs and everything that their scores share; each part is made when first needed.

    Parameters
    ----------
    a, b
        The two sides.
    config
        Threshold, rank and widths; the defaults when None.
    signs
        Sign conventions that will be needed; matches for both take one pass of products.
    matches
        The matches of the decoders by sign, if they are known already.
    run
        Options of long matches; the defaults when None.
    name
        Name of the pair, for progress bars and files.

    Raises
    ------
    InputError
        When the dimensions differ or a match does not fit.
    """

    def __init__(
        self,
        a: Side,
        b: Side,
        config: ComparisonConfig | None = None,
        *,
        signs: Sequence[bool] = BOTH_SIGNS,
        matches: dict[bool, Match] | None = None,
        run: MatchRun | None = None,
        name: str = "",
    ) -> None:
        if a.decoder.shape[1] != b.decoder.shape[1]:
            raise InputError(
                f"A has rows of {a.decoder.shape[1]} numbers and B of {b.decoder.shape[1]}: "
                "dictionaries can be compared only in one space"
            )
        self.a, self.b = a, b
        self.config = config or ComparisonConfig()
        self.signs, self.name = tuple(signs), name
        self.run = run or MatchRun(self.config.max_passes, self.config.device)
        self._made: dict[str, Any] = {}
        self._distances: dict[bool, dict[float, float]] = {}
        self._products: dict[bool, MatchedProducts] = {}
        if matches is not None:
            self.matches = matches

    def once(self, name: str, make: Callable[[], T]) -> T:
        """Return what ``make`` makes, calling it only the first time for this name."""
        if name not in self._made:
            self._made[name] = make()
        made: T = self._made[name]
        return made

    @property
    def n_a(self) -> int:
        """Features of A."""
        return len(self.a.decoder)

    @property
    def n_b(self) -> int:
        """Features of B."""
        return len(self.b.decoder)

    @property
    def narrower(self) -> int:
        """Features of the smaller side: the denominator of shares and of matched means."""
        return min(self.n_a, self.n_b)

    @property
    def has_encoders(self) -> bool:
        """Whether both sides have encoders."""
        return self.a.encoder is not None and self.b.encoder is not None

    @property
    def has_codes(self) -> bool:
        """Whether both sides have codes."""
        return self.a.codes is not None and self.b.codes is not None

    @cached_property
    def matches(self) -> dict[bool, Match]:
        """The one-to-one match of the decoders, by sign."""
        return self._match(self.a.decoder, self.b.decoder, "decoders")

    @cached_property
    def encoders(self) -> tuple[Rows, Rows]:
        """Unit rows of the two encoders."""
        made = [e() if callable(e) else e for e in (self.a.encoder, self.b.encoder)]
        if made[0] is None or made[1] is None:
            raise InputError("W_enc: a side has no encoder; give both")
        return made[0], made[1]

    @cached_property
    def encoder_matches(self) -> dict[bool, Match]:
        """The one-to-one match of the encoders, by sign."""
        return self._match(*self.encoders, "encoders")

    def _match(self, A: Rows, B: Rows, what: str) -> dict[bool, Match]:
        options = self.run.options(len(A), len(B), f"{what} {self.name}".strip())
        if len(self.signs) == 1:
            return {self.signs[0]: match_features(A, B, signed=self.signs[0], **options)}
        signed, absolute = match_signed_and_absolute(A, B, **options)
        return {True: signed, False: absolute}

    def nearest(self, signed: bool) -> Nearest:
        """Nearest features, many to one; taken from the match if that was made already."""
        if "matches" not in self.__dict__:
            return _nearest(self.a.decoder, self.b.decoder, signed)
        found = self.matches[signed]
        return Nearest(
            found.a_nearest,
            found.a_nearest_similarity,
            found.b_nearest,
            found.b_nearest_similarity,
            signed,
        )

    def sides_met(self, signed: bool) -> NDArray[np.float64]:
        """``[m]``: 1, or -1 where the absolute match paired rows of opposite sign."""
        match = self.matches[signed]
        return np.where(match.cosine < 0, -1.0, 1.0) if not signed else np.ones(len(match.cosine))

    def matched_rows(self, signed: bool) -> tuple[Rows, Rows]:
        """``[m, d]`` matched rows of A, and their partners with the sign that fits."""
        match = self.matches[signed]
        turned = self.b.decoder[match.b_index] * self.sides_met(signed)[:, None]
        return self.a.decoder[match.a_index], turned

    def distance(self, signed: bool, p: float) -> float:
        """Mean matched distance ``mean ||a_i - σ b_j||_p``."""
        if signed not in self._distances:
            x, y = self.matched_rows(signed)
            away = np.subtract(x, y)
            self._distances[signed] = {
                p: float(np.linalg.norm(away, ord=p, axis=1).mean()) for p in (1, 2, np.inf)
            }
        return self._distances[signed][p]

    def products(self, signed: bool) -> MatchedProducts:
        """Centred products of the matched rows."""
        if signed not in self._products:
            x, y = (side - side.mean(axis=0) for side in self.matched_rows(signed))
            xy, xx, yy = (np.asarray(p, dtype=np.float64) for p in (x.T @ y, x.T @ x, y.T @ y))
            self._products[signed] = MatchedProducts(xy, xx, yy, len(x))
        return self._products[signed]

    @cached_property
    def subspaces(self) -> float | None:
        """Overlap of the two decoders' top subspaces; None if there are fewer than two rows."""
        limit = min(self.n_a - 1, self.n_b - 1, self.a.decoder.shape[1])
        wanted = self.config.subspace_rank
        rank = max(1, limit // 2) if wanted is None else min(wanted, limit)
        if rank < 1 or limit < 1:
            return None
        product = dictionary_directions(self.a.decoder, rank)
        product = product @ dictionary_directions(self.b.decoder, rank).T
        return float(np.square(product).sum() / rank)

    def _codes(self) -> tuple[UnitCodes, UnitCodes]:
        if self.a.codes is None or self.b.codes is None:
            raise InputError("codes: a side has none; encode the same rows with both SAEs")
        return self.a.codes, self.b.codes

    @cached_property
    def agreement(self) -> CodeConsistency:
        """How the codes agree under the absolute match of the decoders."""
        one, other = self._codes()
        return code_consistency(one.codes, other.codes, self.matches[False])

    @cached_property
    def cross(self) -> CrossMoments:
        """Moments of the two sides' codes together; ``[n_a, n_b]`` numbers."""
        one, other = self._codes()
        return cross_moments(one.codes, other.codes)

    @cached_property
    def activation_match(self) -> tuple[float | None, str]:
        """Mean correlation of latents matched by their activations, or why there is none."""
        one, other = self._codes()
        return activation_mean(one.codes, other.codes, lambda: self.cross)

    @cached_property
    def code_similarity(self) -> RepresentationSimilarity:
        """CKA and SVCCA of the codes as whole representations."""
        one, other = self._codes()
        if max(self.n_a, self.n_b) > self.config.max_similarity_width:
            reason = "wider than max_similarity_width"
            return RepresentationSimilarity(None, None, None, reason)
        return code_similarity(self.cross, one.gram, other.gram)


def dictionary_pair(
    A: ArrayLike, B: ArrayLike, signs: Sequence[bool] = BOTH_SIGNS, **options: Any
) -> PreparedPair:
    """Prepare two dictionaries ``[n_a, d]`` and ``[n_b, d]``, without encoders or codes.

    Raises
    ------
    InputError
        When an input is not a finite matrix or the dimensions differ.
    """
    rows_a, rows_b = unit_pair(A, B)
    return PreparedPair(Side(rows_a), Side(rows_b), signs=signs, **options)
