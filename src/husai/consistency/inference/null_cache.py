"""The nulls of a comparison, kept in memory so that each is drawn once and then shared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from husai.consistency.config import ComparisonConfig
from husai.consistency.inference.nulls import (
    NULL_KINDS,
    NullKind,
    Nulls,
    NullSource,
    Source,
    distribution,
    draw_nulls,
    drawn_kinds,
)
from husai.consistency.scores.code_scores import UnitCodes
from husai.consistency.scores.codes import shuffle_rows
from husai.consistency.scores.pair import MatchRun, PreparedPair, Side
from husai.consistency.scores.registry import SCORES, Score
from husai.consistency.scores.subspace import DataSpan, covariance_root
from husai.threads import worker_pool

# Float operations that the nulls of one pair of shapes may take when the number of draws is not
# given: about a minute on two cores. Wide dictionaries need fewer draws, as their chance scores
# vary less.
_NULL_OPERATIONS = 4e12
_MOST_NULL_DRAWS, _LEAST_NULL_DRAWS, _OWN_DRAWS = 40, 1, 5
# Numbers in all decoders together up to which the permuted null is drawn; it pools them in
# float64, and a draw from more would take gigabytes.
_MOST_POOLED = 32 * 1024**2
# Shuffles for the null of matched activations, and pairs of latents they may correlate in all.
_MOST_SHUFFLES, _SHUFFLED_PAIRS = 19, 20 * 1024**2


class NullCache:
    """Drawn nulls, kept by the shape of the SAEs, so that SAEs of one shape share them.

    Parameters
    ----------
    config
        Number of draws, seed, threads, threshold.
    covariance
        ``[d, d]`` covariance of the activations; with None, nulls that need it are not drawn.
    spaces
        The spaces in which scores are computed, by name; None for the full space.
    run
        Options of long matches.
    """

    def __init__(
        self,
        config: ComparisonConfig,
        covariance: ArrayLike | None = None,
        spaces: Mapping[str, DataSpan | None] | None = None,
        run: MatchRun | None = None,
    ) -> None:
        self._config, self._run = config, run
        self._spaces = spaces or {"full": None}
        self.covariance = None if covariance is None else np.asarray(covariance, dtype=np.float64)
        self._roots: dict[str, NDArray[np.float64] | None] = {}
        self._known: dict[tuple[object, ...], Nulls] = {}
        sources: set[Source] = {"dictionaries"}
        if covariance is not None:
            sources.add("covariance")
        self.kinds = drawn_kinds(sources)

    def draws(self, n_a: int, n_b: int, d: int, kind: str = "isotropic") -> int:
        """Number of random pairs for dictionaries of these sizes.

        Five times as many for a null made from the SAEs themselves: claims rest on it, so its
        p-value must be able to fall below 1 / 200. Few scores have such a null.
        """
        factor = _OWN_DRAWS if "dictionaries" in NULL_KINDS[kind].needs else 1
        if self._config.null_draws is not None:
            return factor * self._config.null_draws
        affordable = int(_NULL_OPERATIONS / (2.0 * n_a * n_b * d))
        return min(max(affordable, _LEAST_NULL_DRAWS), factor * _MOST_NULL_DRAWS)

    def pair(
        self, a: Side, b: Side, space: str = "full", group: str = "", own: Sequence[Side] = ()
    ) -> Nulls:
        """Return the drawn nulls for a pair of SAEs, by score and sign, then by kind.

        Parameters
        ----------
        a, b
            Two SAEs; for most kinds of null only their sizes matter.
        space
            Name of the space that their rows are in.
        group
            Name of the group of SAEs, for nulls that are made from its SAEs.
        own
            The SAEs of the group; the two given ones when empty.
        """
        found: Nulls = {}
        for kind in self.kinds:
            for key, null in self._drawn(
                NULL_KINDS[kind], a, b, space, group, tuple(own) or (a, b)
            ).items():
                found.setdefault(key, {}).update(null)
        return found

    def _drawn(
        self, kind: NullKind, a: Side, b: Side, space: str, group: str, own: tuple[Side, ...]
    ) -> Nulls:
        (n_a, d), n_b = a.decoder.shape, len(b.decoder)
        made_of = (a, b, *own) if "dictionaries" in kind.needs else (a, b)
        encoders = all(side.encoder is not None for side in made_of)
        in_metric = encoders and self._config.encoder_metric == "data"
        n_draws = self.draws(n_a, n_b, d, kind.name)
        key = (
            *(kind.name, n_a, n_b, d, encoders),
            space if kind.needs or in_metric else "",
            group if "dictionaries" in kind.needs else "",
        )
        if n_draws == 0:
            return {}
        if "dictionaries" in kind.needs and sum(one.decoder.size for one in own) > _MOST_POOLED:
            return {}
        if key not in self._known:
            source = NullSource(
                n_a,
                n_b,
                d,
                self._root(space) if "covariance" in kind.needs else None,
                own if "dictionaries" in kind.needs else (),
                self._root(space) if in_metric else None,
            )
            self._known[key] = draw_nulls(
                kind, source, self._config, n_draws, self._scores(kind, encoders), run=self._run
            )
        return self._known[key]

    def _scores(self, kind: NullKind, encoders: bool) -> list[Score]:
        allowed = {"decoder", "encoder"} if encoders else {"decoder"}
        return [
            score
            for score in SCORES.values()
            if kind.name in score.nulls and score.needs <= allowed
        ]

    def _root(self, space: str) -> NDArray[np.float64] | None:
        if space not in self._roots and self.covariance is not None:
            span = self._spaces[space]
            matrix = self.covariance
            if span is not None:
                matrix = span.basis @ matrix @ span.basis.T
            self._roots[space] = covariance_root(matrix)
        return self._roots.get(space)


def given_nulls(kind: str, values: Mapping[tuple[str, bool], Sequence[float | None]]) -> Nulls:
    """Make nulls from the scores of given pairs (initialisations), not independent draws.

    Parameters
    ----------
    kind
        Name of the null.
    values
        Scores of the pairs, by name of the score and sign.
    """
    found: Nulls = {}
    for (name, signed), scored in values.items():
        null = distribution(kind, SCORES[name], signed, scored, independent=False)
        if null is not None and kind in SCORES[name].nulls:
            found[name, signed] = {kind: null}
    return found


def shuffled_nulls(a: Side, b: Side, config: ComparisonConfig) -> Nulls:
    """Draw the null in which the rows of one side's codes are shuffled: unrelated inputs.

    Empty without codes, or when no shuffle is wanted or the SAEs are too wide for it.
    """
    wanted = [score for score in SCORES.values() if "shuffled" in score.nulls]
    if a.codes is None or b.codes is None or not wanted:
        return {}
    one, other = a.codes.codes, b.codes.codes
    affordable = min(_MOST_SHUFFLES, _SHUFFLED_PAIRS // (one.shape[1] * other.shape[1]))
    if config.null_draws is not None:
        affordable = min(affordable, config.null_draws)
    draws = affordable if config.code_null_draws is None else config.code_null_draws

    def draw(t: int) -> list[float | None]:
        moved = shuffle_rows(other, np.random.default_rng([config.seed, t]))
        other_side = Side(b.decoder, codes=UnitCodes(sparse.csc_array(moved)))
        pair = PreparedPair(a, other_side, config)
        return [score.of(pair, signed).value for score in wanted for signed in score.signs]

    with worker_pool(config.workers) as pool:
        values = list(pool.map(draw, range(draws)))
    found: Nulls = {}
    keys = [(score, signed) for score in wanted for signed in score.signs]
    for column, (score, signed) in enumerate(keys):
        null = distribution("shuffled", score, signed, [row[column] for row in values])
        if null is not None:
            found[score.name, signed] = {"shuffled": null}
    return found
