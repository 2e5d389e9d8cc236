"""Compare SAEs of any origin: every score beside its nulls, and which features are matched.

:func:`compare` scores SAEs in memory, with the engine of :mod:`husai.consistency.study`.
``result_document`` gives the result in the published JSON form, ``result_text`` as tables of text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from husai.compare.schema import NullEntry, OverallEntry, ScoreEntry, ThresholdCounts
from husai.consistency.config import ComparisonConfig
from husai.consistency.inference.null_cache import NullCache, shuffled_nulls
from husai.consistency.inference.nulls import NullDistribution, Nulls
from husai.consistency.scores.pair import MatchRun
from husai.consistency.scores.registry import Score, Value, of_pairs
from husai.consistency.scores.subspace import DataMetric, activation_covariance
from husai.consistency.study.groups import ScoredPairs, mean_score
from husai.consistency.study.pairs import ScoredPair, missing_need, score_pair
from husai.consistency.study.record import (
    LiveSAE,
    SAERecord,
    check_records,
    encoder_metric,
    live_codes,
    live_sae,
    with_codes,
)
from husai.errors import InputError
from husai.features.ambiguity import PartnerRange, partner_range
from husai.matching.result import Match


class CompareConfig(ComparisonConfig):
    """How SAEs from anywhere are compared."""

    thresholds: tuple[float, ...] = Field(
        default=(0.5, 0.7, 0.9), description="similarities at which features count as matched"
    )
    encoder: bool = Field(
        default=True, description="whether to match the encoders too, if there are any"
    )
    epsilon: float = Field(
        default=0.02,
        ge=0,
        description="a partner is exchangeable when the sum of all similarities loses at most this "
        "by taking it; 0 leaves ambiguity out",
    )


@dataclass(frozen=True)
class PairComparison:
    """The comparison of two SAEs.

    Attributes
    ----------
    a, b
        Their ids.
    scores
        One entry per score and sign.
    signed, absolute
        The two one-to-one matches of the decoders; their indices count only non-zero rows.
    rows_a, rows_b
        The latents of the two SAEs that these indices stand for.
    shared
        ``[m]`` bool, one for each pair of the signed match, or None without encoders.
    ambiguity
        By sign of the match, how far the partners of A's features could be others; None where that
        was left out or is not proved.
    """

    a: str
    b: str
    scores: list[ScoreEntry]
    signed: Match
    absolute: Match
    rows_a: NDArray[np.int64]
    rows_b: NDArray[np.int64]
    shared: NDArray[np.bool_] | None
    ambiguity: Mapping[bool, PartnerRange | None]

    def match(self, signed: bool) -> Match:
        """The match of one sign."""
        return self.signed if signed else self.absolute


@dataclass(frozen=True)
class Comparison:
    """The comparison of all pairs of several SAEs.

    Attributes
    ----------
    saes
        The SAEs: their latents that take part, and what is known about each.
    pairs
        Every pair, in the order of the SAEs.
    overall
        One entry per score: mean over pairs, with its interval over SAEs (three or more).
    config
        How they were compared.
    activations
        Where the activation rows came from and how many there are, or None.
    metric
        Metric in which encoder rows were compared: ``data``, or ``raw``.
    """

    saes: Sequence[LiveSAE]
    pairs: list[PairComparison]
    overall: list[OverallEntry]
    config: CompareConfig
    activations: Mapping[str, Any] | None
    metric: Literal["data", "raw"] = "raw"


def compare(
    saes: Sequence[SAERecord],
    config: CompareConfig | None = None,
    *,
    activations: NDArray[Any] | None = None,
    activations_origin: Mapping[str, Any] | None = None,
    checkpoint: Path | None = None,
    progress: bool = False,
) -> Comparison:
    """Compare all pairs of two or more SAEs.

    Parameters
    ----------
    saes
        SAEs of one space. Intervals are over these SAEs, so give SAEs that differ only in what
        the interval should be over, such as the seed.
    config
        How to compare; defaults when None.
    activations
        ``[n, d]`` rows of activations. With them encoders are compared in the data's metric, there
        is a data-aware null, and the codes of SAEs that can encode are compared.
    activations_origin
        Where they came from, to be kept in the result.
    checkpoint
        Folder for the state of long matches, from which an interrupted comparison can continue;
        its files are not removed.
    progress
        Whether to show progress bars.

    Raises
    ------
    InputError
        When fewer than two SAEs are given, ids repeat, or dimensions differ.
    """
    config = config or CompareConfig()
    if len(saes) < 2:
        raise InputError(f"{len(saes)} SAE given; a comparison needs at least two")
    check_records(saes)
    covariance = about = None
    if activations is not None:
        if activations.ndim != 2 or activations.shape[1] != saes[0].W_dec.shape[1]:
            raise InputError(
                f"activations: shape {activations.shape}, but the SAEs read rows of "
                f"{saes[0].W_dec.shape[1]} numbers"
            )
        covariance = activation_covariance(np.asarray(activations))
        about = {**(activations_origin or {}), "n_rows": len(activations)}
    metric = encoder_metric(covariance, config)
    live = [_live(record, activations, config, metric) for record in saes]
    run = MatchRun(config.max_passes, config.device, checkpoint, progress)
    nulls = NullCache(config, covariance, run=run)
    scored: dict[tuple[int, int], ScoredPair] = {}
    pairs = []
    for i, j in combinations(range(len(live)), 2):
        scored[i, j] = score_pair(live[i], live[j], config, run=run, name=f"{i} and {j}")
        found = nulls.pair(live[i].side, live[j].side, group=f"{i} and {j}")
        for key, null in shuffled_nulls(live[i].side, live[j].side, config).items():
            found.setdefault(key, {}).update(null)
        asked = about is not None
        pairs.append(_compared(live[i], live[j], scored[i, j], found, config, asked))
    overall = [
        _overall(score, sign, live, scored, config)
        for score in of_pairs()
        for sign in score.signs
        if score.symmetric and ("codes" not in score.needs or about is not None)
    ]
    return Comparison(live, pairs, overall, config, about, "raw" if metric is None else "data")


def _live(
    record: SAERecord,
    rows: NDArray[Any] | None,
    config: CompareConfig,
    metric: DataMetric | None,
) -> LiveSAE:
    if not np.asarray(record.W_dec).any():
        raise InputError(f"{record.id}: its decoder is all zero; there is nothing to compare")
    if rows is not None:
        record = with_codes(record, rows)
    live = live_sae(record, config.dead, codes=live_codes(record, config), metric=metric)
    # the codes are kept once, in the form that the scores use
    record = replace(record, codes=None)
    return replace(live, record=record, encoder=live.encoder if config.encoder else None)


def _compared(
    a: LiveSAE, b: LiveSAE, scored: ScoredPair, nulls: Nulls, config: CompareConfig, codes: bool
) -> PairComparison:
    scores = [
        _entry(name, sign, value, nulls.get((name, sign), {}))
        for (name, sign), value in scored.values.items()
    ]
    for score in of_pairs():
        reason = missing_need(score, [a, b])
        if not reason or ("codes" in score.needs and not codes):
            continue
        if "codes" in score.needs:
            reason = "a plain dictionary cannot encode activations"
        elif not config.encoder:
            reason = "encoders were left out by --no-encoder"
        scores += [_entry(score.name, sign, Value(None, reason=reason), {}) for sign in score.signs]
    return PairComparison(
        a.record.id,
        b.record.id,
        scores,
        scored.matches[True],
        scored.matches[False],
        a.index,
        b.index,
        scored.shared,
        {
            signed: partner_range(a.decoder, b.decoder, match, config.epsilon)
            if config.epsilon
            else None
            for signed, match in scored.matches.items()
        },
    )


def _entry(
    name: str, signed: bool, found: Value, nulls: Mapping[str, NullDistribution]
) -> ScoreEntry:
    """One score with its nulls."""
    value = found.value
    return ScoreEntry(
        score=name,
        signed=signed,
        value=value,
        chance=found.chance,
        nulls={
            kind: NullEntry(
                mean=null.mean,
                sd=null.sd,
                draws=len(null.values),
                corrected=null.corrected(value) if null.informative else None,
                p_value=null.p_value(value),
            )
            for kind, null in nulls.items()
            if value is not None
        },
        reason=found.reason,
    )


def _overall(
    score: Score,
    signed: bool,
    live: Sequence[LiveSAE],
    pairs: ScoredPairs,
    config: CompareConfig,
) -> OverallEntry:
    """Mean of one score over pairs, with its interval over SAEs."""
    interval = mean_score(pairs, len(live), score, signed, config.level)
    if interval is None:
        i, j = next(
            at
            for at, pair in pairs.items()
            if pair.values.get((score.name, signed), Value(None)).value is None
        )
        reason = f"not defined for every pair: {live[i].record.id}, {live[j].record.id}"
        return OverallEntry(score=score.name, signed=signed, reason=reason)
    return OverallEntry(
        score=score.name,
        signed=signed,
        mean=interval.mean,
        low=interval.low,
        high=interval.high,
        se=interval.se,
        reason=interval.reason,
    )


def threshold_counts(match: Match, thresholds: Iterable[float]) -> list[ThresholdCounts]:
    """Count the features with and without a partner, for each least similarity."""
    counts = []
    for threshold in thresholds:
        matched = int((match.similarity >= threshold).sum())
        counts.append(
            ThresholdCounts(
                threshold=threshold,
                matched=matched,
                unmatched_a=match.n_a - matched,
                unmatched_b=match.n_b - matched,
            )
        )
    return counts
