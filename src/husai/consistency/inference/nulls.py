"""Nulls: the distribution of a score over dictionaries that share nothing.

A maximum over many candidates is large by chance alone (matched |cosine| .304 between random
dictionaries of 2,048 features in 128 dimensions), so every score is shown beside its null. Each
kind of null is one entry of :data:`NULL_KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from husai.consistency.config import ComparisonConfig
from husai.consistency.inference.permuted import PermutedPool
from husai.consistency.scores.pair import (
    BOTH_SIGNS,
    MatchRun,
    PreparedPair,
    Side,
)
from husai.consistency.scores.registry import Score, known_scores
from husai.consistency.scores.rows import Rows, direction_rows, held_rows
from husai.consistency.scores.subspace import covariance_root
from husai.errors import InputError
from husai.threads import worker_pool

Source = Literal["covariance", "dictionaries", "inits", "codes"]
"""What a null is made from, besides the shapes of the dictionaries."""


@dataclass(frozen=True)
class NullDistribution:
    """Scores of pairs that share nothing, to compare an observed score with.

    Attributes
    ----------
    kind
        ``"isotropic"``, ``"permuted"``, ``"data_aware"``, ``"init"`` or a name from the caller.
    score
        Name of the score.
    signed
        Whether the score used the cosine itself.
    values
        ``[n]`` float64: the score of each null pair.
    independent
        Whether the values are independent draws. Pairs of the same few initialisations are not,
        and give no p-value.
    perfect
        The score of two identical dictionaries: 1 for a similarity, 0 for a distance.
    """

    kind: str
    score: str
    signed: bool
    values: NDArray[np.float64]
    independent: bool = True
    perfect: float = 1.0

    @property
    def mean(self) -> float:
        """Mean of the null."""
        return float(self.values.mean())

    @property
    def sd(self) -> float | None:
        """Standard deviation of one pair's null score; None for a single value."""
        return float(self.values.std(ddof=1)) if len(self.values) > 1 else None

    @property
    def informative(self) -> bool:
        """Whether the mean of the null differs from the perfect score."""
        return abs(self.perfect - self.mean) >= 1e-12

    def corrected(self, score: float) -> float:
        """``(score - null) / (perfect - null)``: 0 at chance, 1 at identity, negative below."""
        if not self.informative:
            raise InputError(
                f"{self.score}: its {self.kind} null is the perfect score already; "
                "a corrected score is not defined"
            )
        return (score - self.mean) / (self.perfect - self.mean)

    def p_value(self, score: float) -> float | None:
        """One-sided Monte Carlo p-value of a score better than chance.

        ``(1 + #{null at least as good}) / (1 + n)`` (Phipson & Smyth 2010), so never below
        ``1 / (1 + n)``. The null is that of a single pair; a mean over several pairs varies less,
        so its p-value is conservative. None where the null's values are not independent.
        """
        if not self.independent:
            return None
        as_good = self.values >= score if self.perfect > self.mean else self.values <= score
        return float((1 + as_good.sum()) / (1 + len(self.values)))

    def z(self, score: float) -> float | None:
        """Standardised effect ``(score - null mean) / null sd``.

        None where the sd is 0, or the null's values are not independent.
        """
        return (score - self.mean) / self.sd if self.sd and self.independent else None


def random_dictionary(
    n: int, d: int, rng: np.random.Generator, root: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Draw ``[n, d]`` unit rows: uniform on the sphere, or with a covariance given by its root.

    Parameters
    ----------
    n, d
        Numbers of features and of dimensions.
    rng
        Random generator.
    root
        ``[r, d]`` with ``root.T @ root`` the covariance, from :func:`covariance_root`.
    """
    rows = rng.standard_normal((n, d if root is None else len(root)))
    if root is not None:
        rows = rows @ root
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@dataclass(frozen=True)
class NullSource:
    """The inputs from which pairs of a null are drawn.

    Attributes
    ----------
    n_a, n_b, d
        Features of the two dictionaries and their dimension.
    root
        ``[r, d]`` root of the activations' covariance, from :func:`covariance_root`, or None.
    own
        The SAEs that are compared, for nulls that are made from them; empty otherwise. Either all
        of them have encoders or none.
    metric
        ``[r, d]`` root of the activations' covariance if encoders are compared in the data's
        metric; None if their raw rows are compared.
    """

    n_a: int
    n_b: int
    d: int
    root: NDArray[np.float64] | None = None
    own: tuple[Side, ...] = ()
    metric: NDArray[np.float64] | None = None

    @cached_property
    def pool(self) -> PermutedPool:
        """The features of ``own``, pooled once for all draws."""
        encoders = [side.encoder() if callable(side.encoder) else side.encoder for side in self.own]
        known = [encoder for encoder in encoders if encoder is not None]
        return PermutedPool(
            [side.decoder for side in self.own], known if len(known) == len(encoders) else None
        )


Draw = Callable[[NullSource, np.random.Generator], tuple[Side, Side]]


@dataclass(frozen=True)
class NullKind:
    """One kind of null.

    Attributes
    ----------
    name
        Its name in columns and files.
    title
        Its name on pages and in figures.
    meaning
        What its pairs are, in one sentence.
    needs
        What it is made from. With ``"dictionaries"`` it is drawn for each group separately, else
        once for all SAEs of one shape.
    draw
        Draws one pair of SAEs that share nothing; None for kinds that are not drawn.
    """

    name: str
    title: str
    meaning: str
    needs: frozenset[Source]
    draw: Draw | None = None


def _isotropic(source: NullSource, rng: np.random.Generator) -> tuple[Side, Side]:
    return _random_pair(source, rng, None)


def _data_aware(source: NullSource, rng: np.random.Generator) -> tuple[Side, Side]:
    return _random_pair(source, rng, source.root)


def _random_pair(
    source: NullSource, rng: np.random.Generator, root: NDArray[np.float64] | None
) -> tuple[Side, Side]:
    """Draw two SAEs; their encoders are drawn only when a score needs them.

    The covariance of the data says nothing about the directions that encoders read, so encoders
    are isotropic in every kind, then moved into the metric in use. They have random streams of
    their own, so that the decoders are the same whether encoders are drawn or not.
    """
    stream_a, stream_b = rng.spawn(2)
    decoders = [
        direction_rows(random_dictionary(n, source.d, rng, root)) for n in (source.n_a, source.n_b)
    ]

    def encoder(n: int, stream: np.random.Generator) -> Rows:
        return direction_rows(random_dictionary(n, source.d, stream, source.metric))

    return (
        Side(decoders[0], lambda: encoder(source.n_a, stream_a)),
        Side(decoders[1], lambda: encoder(source.n_b, stream_b)),
    )


def _permuted(source: NullSource, rng: np.random.Generator) -> tuple[Side, Side]:
    a, b = (
        Side(held_rows(decoder), None if encoder is None else held_rows(encoder))
        for decoder, encoder in source.pool.draw(rng, (source.n_a, source.n_b))
    )
    return a, b


NULL_KINDS: dict[str, NullKind] = {
    kind.name: kind
    for kind in (
        NullKind(
            "isotropic",
            "random directions",
            "dictionaries of the same sizes with directions uniform on the sphere",
            frozenset(),
            _isotropic,
        ),
        NullKind(
            "data_aware",
            "drawn like the data",
            "dictionaries of the same sizes with directions drawn with the covariance of the "
            "activations",
            frozenset({"covariance"}),
            _data_aware,
        ),
        NullKind(
            "permuted",
            "own features permuted",
            "the SAEs' own features with each principal coordinate permuted across features: "
            "spectrum and marginals are kept, the features are not",
            frozenset({"dictionaries"}),
            _permuted,
        ),
        NullKind(
            "init",
            "own initialisation",
            "the SAEs' own initial decoders: agreement that was there before training",
            frozenset({"inits"}),
        ),
        NullKind(
            "shuffled",
            "rows shuffled",
            "the same codes with the rows of one side in another order",
            frozenset({"codes"}),
        ),
        NullKind(
            "chance",
            "in closed form",
            "the expected score of independent codes with the same firing rates",
            frozenset({"codes"}),
        ),
    )
}
"""All kinds of null by name."""


def drawn_kinds(sources: frozenset[Source] | set[Source]) -> list[str]:
    """Names of the kinds of null that can be drawn from these sources."""
    return [kind.name for kind in NULL_KINDS.values() if kind.draw and kind.needs <= sources]


Nulls = dict[tuple[str, bool], dict[str, NullDistribution]]
"""Null distributions by score and sign, then by kind."""


def draw_nulls(
    kind: NullKind,
    source: NullSource,
    config: ComparisonConfig,
    n_draws: int,
    scores: Sequence[Score],
    signs: Sequence[bool] = BOTH_SIGNS,
    run: MatchRun | None = None,
) -> Nulls:
    """Score independent pairs of one kind of null.

    A score that is not defined for some draw is left out. Draw ``t`` depends only on the seed and
    on ``t``, so the values are the same for any number of workers.

    Parameters
    ----------
    kind, source
        The kind of null, and what its pairs are made from.
    config
        Seed, threads and the options of the scores.
    n_draws
        Number of pairs.
    scores, signs
        The scores to compute, and their sign conventions.
    run
        Options of long matches.

    Raises
    ------
    InputError
        When the kind is not drawn, or sizes are below 1.
    """
    if kind.draw is None:
        raise InputError(
            f"kind: {kind.name!r} cannot be drawn; choose from "
            f"{[name for name, entry in NULL_KINDS.items() if entry.draw]}"
        )
    n_a, n_b, d = source.n_a, source.n_b, source.d
    if min(n_a, n_b, d, n_draws) < 1:
        raise InputError(f"sizes: n_a {n_a}, n_b {n_b}, d {d}, n_draws {n_draws}; give at least 1")
    draw = kind.draw
    keys = [(score, signed) for signed in signs for score in scores if signed in score.signs]

    def one(t: int) -> list[float | None]:
        sides = draw(source, np.random.default_rng([config.seed, t]))
        name = f"null {kind.name} {n_a} {n_b} {t}"
        pair = PreparedPair(*sides, config, signs=signs, run=run, name=name)
        return [score.of(pair, signed).value for score, signed in keys]

    if config.workers == 1:  # in this thread, so that an interruption reaches a long match
        values = [one(t) for t in range(n_draws)]
    else:
        with worker_pool(config.workers) as pool:  # assignments and products release the GIL
            values = list(pool.map(one, range(n_draws)))
    found: Nulls = {}
    for column, (score, signed) in enumerate(keys):
        null = distribution(kind.name, score, signed, [row[column] for row in values])
        if null is not None:
            found[score.name, signed] = {kind.name: null}
    return found


def distribution(
    kind: str, score: Score, signed: bool, values: Sequence[float | None], independent: bool = True
) -> NullDistribution | None:
    """Make a null from its values; None if there is no value or one of them is not defined."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return NullDistribution(
        kind, score.name, signed, np.array(known, dtype=np.float64), independent, score.perfect
    )


def null_scores(
    n_a: int,
    n_b: int,
    d: int,
    *,
    kind: str = "isotropic",
    scores: Sequence[str] = ("pw_mcc", "mmcs"),
    signed: bool = False,
    covariance: ArrayLike | None = None,
    n_draws: int = 40,
    seed: int = 0,
    workers: int = 1,
    rank: int | None = None,
    threshold: float = 0.7,
) -> dict[str, NullDistribution]:
    """Score independent pairs of random SAEs.

    Parameters
    ----------
    n_a, n_b, d
        Features of the two dictionaries and their dimension.
    kind
        ``"isotropic"``: directions uniform on the sphere. ``"data_aware"``: directions drawn with
        the covariance of the activations; anisotropic data raise the chance level a lot.
    scores
        Names of scores that need decoders or encoders.
    signed
        Use the cosine itself instead of its absolute value.
    covariance
        ``[d, d]`` covariance of the activations; needed by ``"data_aware"``.
    n_draws
        Number of pairs. The smallest possible p-value is ``1 / (1 + n_draws)``.
    seed
        Seed of the draws.
    workers
        Threads.
    rank
        Dimensions of the subspaces that ``"subspace_overlap"`` compares.
    threshold
        Least cosine of matched and shared features.

    Returns
    -------
    dict
        The null of each score by name; a score that is not defined for these sizes is left out.

    Raises
    ------
    InputError
        On an unknown kind or score, sizes below 1, or a covariance that is missing or not valid.
    """
    drawn = [name for name, entry in NULL_KINDS.items() if entry.draw is not None]
    if kind not in drawn:
        raise InputError(f"kind: {kind!r} is not a null that can be drawn; choose from {drawn}")
    root = None
    if "covariance" in NULL_KINDS[kind].needs:
        if covariance is None:
            raise InputError(f"covariance: the {kind} null needs the activations' covariance")
        root = covariance_root(covariance)
        if root.shape[1] != d:
            raise InputError(f"covariance: of {root.shape[1]} dimensions, dictionaries of {d}")
    config = ComparisonConfig(
        seed=seed, workers=workers, subspace_rank=rank, shared_threshold=threshold
    )
    found = draw_nulls(
        NULL_KINDS[kind],
        NullSource(n_a, n_b, d, root),
        config,
        n_draws,
        known_scores(list(scores)),
        (signed,),
    )
    return {name: nulls[kind] for (name, _), nulls in found.items()}
