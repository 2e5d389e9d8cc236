"""Compare SAEs of any origin: every score beside chance, and who is matched with whom.

:func:`compare` scores SAEs held in memory; ``compare_document`` puts the result in the published
JSON form, ``compare_text`` in a table for people.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import sparse

from husai.config import Config
from husai.consistency.inference.intervals import SeedInterval, seed_interval
from husai.consistency.inference.nulls import (
    NullDistribution,
    NullKind,
    covariance_root,
    random_dictionary,
)
from husai.consistency.scores.codes import code_consistency, cross_moments, match_activations
from husai.consistency.scores.decoder import shared_pairs
from husai.consistency.scores.subspace import activation_covariance
from husai.errors import InputError
from husai.matching.match import Match, match_features, match_signed_and_absolute

# Float operations that the nulls of one pair of shapes may take when their number is not given:
# a minute or so on two cores. Chance varies less the wider the dictionaries.
_NULL_OPERATIONS = 4e12
_MOST_NULL_DRAWS, _LEAST_NULL_DRAWS = 40, 1
# From here on a match takes seconds: it shows a bar, and can be resumed.
_LONG_PAIRS = 8192**2
# Widths up to which all pairs of latents are correlated at once ([n_a, n_b] float64 in memory).
_CORRELATION_PAIRS = 4096**2
# Shuffles behind the null of matched activations, and pairs of latents they may correlate in all.
_MOST_SHUFFLES, _SHUFFLED_PAIRS = 19, 20 * 1024**2
# Beyond, latents are matched as rows of [latents, rows]; this many numbers are 2 GB.
_CORRELATION_NUMBERS = 5e8


class CompareConfig(Config):
    """How SAEs are compared."""

    thresholds: tuple[float, ...] = Field(
        default=(0.5, 0.7, 0.9), description="similarities at which features count as matched"
    )
    shared_threshold: float = Field(
        default=0.7,
        gt=0,
        le=1,
        description="least cosine, decoder and encoder, of a shared feature",
    )
    null_draws: int | None = Field(
        default=None,
        ge=0,
        description="random pairs behind each null; None takes what about a minute allows, "
        "0 leaves the nulls out",
    )
    encoder: bool = Field(default=True, description="match the encoders too, where there are any")
    level: float = Field(default=0.95, gt=0, lt=1, description="confidence level of intervals")
    seed: int = Field(default=0, ge=0, description="seed of the nulls")
    max_passes: float = Field(
        default=4.0, ge=1, description="budget of one exact match, in passes of the product"
    )
    device: str = Field(default="cpu", description="cpu, or the torch device for the products")


@dataclass(frozen=True)
class ComparedSAE:
    """One SAE as the comparison sees it.

    Attributes
    ----------
    id
        Unique name.
    W_dec
        ``[d_sae, d]`` decoder, a feature a row.
    W_enc
        ``[d, d_sae]`` encoder, or None.
    encode
        Function from activation rows ``[n, d]`` to codes ``[n, d_sae]``, or None.
    converged
        Whether its convergence gate is passed; None when unknown.
    origin
        Plain values that say where it came from: path, format, files with their sha256, ….
    """

    id: str
    W_dec: NDArray[Any]
    W_enc: NDArray[Any] | None = None
    encode: Callable[[NDArray[Any]], NDArray[Any]] | None = None
    converged: bool | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PairComparison:
    """Two SAEs compared.

    Attributes
    ----------
    a, b
        Their ids.
    scores
        One row per score: ``score``, ``signed``, ``value``, ``chance``, ``nulls``, ``reason``.
    signed, absolute
        The two one-to-one matches of the decoders. Indices count the rows that are not zero.
    rows_a, rows_b
        Latents that those indices name.
    shared
        ``[m]`` bool, one for each pair of the signed match, or None without encoders.
    """

    a: str
    b: str
    scores: list[dict[str, Any]]
    signed: Match
    absolute: Match
    rows_a: NDArray[np.int64]
    rows_b: NDArray[np.int64]
    shared: NDArray[np.bool_] | None


@dataclass(frozen=True)
class Comparison:
    """SAEs compared, all pairs of them.

    Attributes
    ----------
    saes
        What was compared.
    pairs
        Every pair, in the order of the SAEs.
    overall
        One row per score: mean over pairs, with its interval over SAEs (three or more).
    config
        How.
    activations
        Plain values about the activation rows, or None.
    """

    saes: Sequence[ComparedSAE]
    pairs: list[PairComparison]
    overall: list[dict[str, Any]]
    config: CompareConfig
    activations: Mapping[str, Any] | None


def compare(
    saes: Sequence[ComparedSAE],
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
        SAEs of one space. They are taken as the sample of the intervals: give SAEs that differ
        in what is to be varied, such as the seed.
    config
        How to compare; defaults when None.
    activations
        ``[n, d]`` rows of activations: adds the data-aware null and, for SAEs that can encode,
        the agreement of the codes.
    activations_origin
        Plain values to be kept about them.
    checkpoint
        Folder for the passes of long matches, so that an interrupted comparison goes on; its
        files stay.
    progress
        Show progress bars.

    Raises
    ------
    InputError
        When fewer than two SAEs are given, ids repeat, or widths do not fit.
    """
    config = config or CompareConfig()
    live = [live_rows(sae) for sae in saes]
    _check(saes, live)
    root = None
    if activations is not None:
        if activations.ndim != 2 or activations.shape[1] != saes[0].W_dec.shape[1]:
            raise InputError(
                f"activations: shape {activations.shape}, but the SAEs read rows of "
                f"{saes[0].W_dec.shape[1]} numbers"
            )
        root = covariance_root(activation_covariance(np.asarray(activations)))
    runs = _Runs(config, checkpoint, progress)
    nulls = _Nulls(runs, saes[0].W_dec.shape[1], root)
    codes = _Codes(saes, activations)
    pairs = []
    for i, j in combinations(range(len(saes)), 2):
        pairs.append(_compare_pair(saes, live, i, j, runs, nulls, codes))
    about = None
    if activations is not None:
        about = {**(activations_origin or {}), "n_rows": len(activations)}
    return Comparison(saes, pairs, _overall(saes, pairs, config), config, about)


def live_rows(sae: ComparedSAE) -> NDArray[np.int64]:
    """Latents with a direction: a row of zeros has none and takes no part."""
    return np.flatnonzero(np.asarray(sae.W_dec).any(axis=1))


def _check(saes: Sequence[ComparedSAE], live: Sequence[NDArray[np.int64]]) -> None:
    if len(saes) < 2:
        raise InputError(f"{len(saes)} SAE given; a comparison needs at least two")
    ids = [sae.id for sae in saes]
    if len(set(ids)) < len(ids):
        raise InputError(f"ids: {ids} are not all different")
    for sae, rows in zip(saes, live, strict=True):
        if sae.W_dec.ndim != 2 or sae.W_dec.shape[1] != saes[0].W_dec.shape[1]:
            raise InputError(
                f"{sae.id}: its decoder has shape {sae.W_dec.shape} and {saes[0].id}'s "
                f"{saes[0].W_dec.shape}; only SAEs of activations of one width can be compared"
            )
        if not np.isfinite(sae.W_dec).all():
            bad = np.flatnonzero(~np.isfinite(sae.W_dec).all(axis=1))
            raise InputError(
                f"{sae.id}: {len(bad)} of its {len(sae.W_dec)} decoder rows hold NaN or infinity "
                f"(the first is row {bad[0]}); repair or drop them"
            )
        if not len(rows):
            raise InputError(f"{sae.id}: its decoder is all zero; there is nothing to compare")
        if sae.W_enc is not None:
            if sae.W_enc.shape != sae.W_dec.shape[::-1]:
                raise InputError(
                    f"{sae.id}: W_enc has shape {sae.W_enc.shape}, not {sae.W_dec.shape[::-1]}"
                )
            if not np.isfinite(sae.W_enc).all():
                raise InputError(f"{sae.id}: its encoder holds NaN or infinity")


# -- one pair ------------------------------------------------------------------------------------


def decoder_scores(
    signed: Match, absolute: Match, threshold: float
) -> dict[tuple[str, bool], float]:
    """Scores that two decoders have by their matches: ``{(name, signed): value}``."""
    scores: dict[tuple[str, bool], float] = {}
    for match in (absolute, signed):
        a_to_b = float(match.a_nearest_similarity.mean())
        b_to_a = float(match.b_nearest_similarity.mean())
        shared = (match.similarity >= threshold).sum() / min(match.n_a, match.n_b)
        scores |= {
            ("pw_mcc", match.signed): match.mean,
            ("mmcs", match.signed): (a_to_b + b_to_a) / 2,
            ("mmcs_a_to_b", match.signed): a_to_b,
            ("mmcs_b_to_a", match.signed): b_to_a,
            ("matched_fraction", match.signed): float(shared),
        }
    return scores


def _compare_pair(
    saes: Sequence[ComparedSAE],
    live: Sequence[NDArray[np.int64]],
    i: int,
    j: int,
    runs: _Runs,
    nulls: _Nulls,
    codes: _Codes,
) -> PairComparison:
    config = runs.config
    a, b = saes[i], saes[j]
    rows_a, rows_b = live[i], live[j]
    W_a, W_b = _rows(a.W_dec, rows_a), _rows(b.W_dec, rows_b)
    signed, absolute = match_signed_and_absolute(
        W_a, W_b, **runs.options(len(W_a), len(W_b), f"decoders {i} and {j}")
    )
    scores = [
        _score_row(name, sign, value, nulls(len(rows_a), len(rows_b)).get((name, sign), {}))
        for (name, sign), value in decoder_scores(signed, absolute, config.shared_threshold).items()
    ]
    shared = None
    if not config.encoder:
        scores.append(_score_row("shared_fraction", True, None, {}, "encoders left out by choice"))
    elif a.W_enc is None or b.W_enc is None:
        missing = " and ".join(sae.id for sae in (a, b) if sae.W_enc is None)
        scores.append(_score_row("shared_fraction", True, None, {}, f"no encoder in {missing}"))
    else:
        encoder = match_features(
            _rows(a.W_enc.T, rows_a),
            _rows(b.W_enc.T, rows_b),
            signed=True,
            **runs.options(len(W_a), len(W_b), f"encoders {i} and {j}"),
        )
        shared = shared_pairs(signed, encoder, config.shared_threshold)
        # both cosines must reach the threshold, so the decoder's half bounds it from above
        null = nulls(len(rows_a), len(rows_b)).get(("matched_fraction", True), {})
        fraction = float(shared.sum() / min(len(rows_a), len(rows_b)))
        scores.append(_score_row("shared_fraction", True, fraction, null))
        # encoder rows do not live among the data: only random directions say what chance gives
        isotropic = nulls(len(rows_a), len(rows_b)).get(("pw_mcc", True), {})
        isotropic = {kind: null for kind, null in isotropic.items() if kind == "isotropic"}
        scores.append(_score_row("pw_mcc_encoder", True, encoder.mean, isotropic))
    scores += _code_scores(codes, i, j, rows_a, rows_b, absolute, config)
    return PairComparison(a.id, b.id, scores, signed, absolute, rows_a, rows_b, shared)


def _rows(matrix: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
    return matrix if len(rows) == len(matrix) else matrix[rows]


def _score_row(
    name: str,
    signed: bool,
    value: float | None,
    nulls: Mapping[str, NullDistribution],
    reason: str = "",
    chance: float | None = None,
) -> dict[str, Any]:
    """One score with its nulls, as plain values."""
    return {
        "score": name,
        "signed": signed,
        "value": value,
        "chance": chance,
        "nulls": {
            kind: {
                "mean": null.mean,
                "sd": null.sd,
                "draws": len(null.values),
                "corrected": null.corrected(value) if null.informative else None,
                "p_value": null.p_value(value),
            }
            for kind, null in nulls.items()
            if value is not None
        },
        "reason": reason,
    }


class _MatchOptions(TypedDict):
    max_passes: float
    device: str
    checkpoint: Path | None
    progress: bool | str


class _Runs:
    """How the matches of one comparison are run."""

    def __init__(self, config: CompareConfig, checkpoint: Path | None, progress: bool) -> None:
        self.config, self._checkpoint, self._progress = config, checkpoint, progress

    def options(self, n_a: int, n_b: int, name: str) -> _MatchOptions:
        """Options of the match called ``name``; short ones show no bar and keep no file."""
        long = n_a * n_b > _LONG_PAIRS
        keep = long and self._checkpoint is not None
        file = f"{name.replace(' ', '_')}.safetensors"
        return {
            "max_passes": self.config.max_passes,
            "device": self.config.device,
            "checkpoint": self._checkpoint / file if keep and self._checkpoint else None,
            "progress": name if long and self._progress else False,
        }


class _Nulls:
    """Chance levels of the decoders' scores, one set for each pair of widths."""

    def __init__(self, runs: _Runs, d: int, root: NDArray[np.float64] | None) -> None:
        self._runs, self._config, self._d, self._root = runs, runs.config, d, root
        self._known: dict[tuple[int, int], dict[tuple[str, bool], dict[str, NullDistribution]]] = {}

    def draws(self, n_a: int, n_b: int) -> int:
        """How many random pairs these widths get."""
        if self._config.null_draws is not None:
            return self._config.null_draws
        affordable = int(_NULL_OPERATIONS / (2.0 * n_a * n_b * self._d))
        return min(max(affordable, _LEAST_NULL_DRAWS), _MOST_NULL_DRAWS)

    def __call__(self, n_a: int, n_b: int) -> dict[tuple[str, bool], dict[str, NullDistribution]]:
        """``{(score, signed): {kind: null}}`` for dictionaries of these widths."""
        if (n_a, n_b) not in self._known:
            self._known[n_a, n_b] = self._draw(n_a, n_b)
        return self._known[n_a, n_b]

    def _draw(self, n_a: int, n_b: int) -> dict[tuple[str, bool], dict[str, NullDistribution]]:
        result: dict[tuple[str, bool], dict[str, NullDistribution]] = {}
        kinds: dict[NullKind, NDArray[np.float64] | None] = {"isotropic": None}
        if self._root is not None:
            kinds["data_aware"] = self._root
        for kind, root in kinds.items():
            values: dict[tuple[str, bool], list[float]] = {}
            for draw in range(self.draws(n_a, n_b)):
                rng = np.random.default_rng([self._config.seed, draw])
                A = random_dictionary(n_a, self._d, rng, root).astype(np.float32)
                B = random_dictionary(n_b, self._d, rng, root).astype(np.float32)
                name = f"chance {kind} {n_a} {n_b} {draw}"
                matches = match_signed_and_absolute(A, B, **self._runs.options(n_a, n_b, name))
                scores = decoder_scores(*matches, self._config.shared_threshold)
                for key, value in scores.items():
                    values.setdefault(key, []).append(value)
            for (score, sign), found in values.items():
                null = NullDistribution(kind, score, sign, np.array(found))
                result.setdefault((score, sign), {})[kind] = null
        return result


class _Codes:
    """Codes of the activation rows, encoded once an SAE and kept sparse."""

    def __init__(self, saes: Sequence[ComparedSAE], activations: NDArray[Any] | None) -> None:
        self._saes, self._activations = saes, activations
        self._known: dict[int, sparse.csr_array] = {}

    @property
    def wanted(self) -> bool:
        """Whether there are activations to encode."""
        return self._activations is not None

    def can(self, index: int) -> bool:
        """Whether this SAE can encode."""
        return self._saes[index].encode is not None

    def __call__(self, index: int) -> sparse.csr_array:
        """Codes ``[n, d_sae]`` of one SAE, in units of unit-norm decoder rows."""
        if index not in self._known:
            sae = self._saes[index]
            assert sae.encode is not None
            assert self._activations is not None
            norms = np.linalg.norm(np.asarray(sae.W_dec, dtype=np.float64), axis=1)
            blocks = []
            step = max(1, 32_000_000 // len(norms))
            for start in range(0, len(self._activations), step):
                rows = np.asarray(self._activations[start : start + step], dtype=np.float32)
                blocks.append(sparse.csr_array(sae.encode(rows) * norms.astype(np.float32)))
            self._known[index] = sparse.csr_array(sparse.vstack(blocks, format="csr"))
        return self._known[index]


def _code_scores(
    codes: _Codes,
    i: int,
    j: int,
    rows_a: NDArray[np.int64],
    rows_b: NDArray[np.int64],
    match: Match,
    config: CompareConfig,
) -> list[dict[str, Any]]:
    """Agreement of the codes on the same rows."""
    if not codes.wanted:
        return []
    names = ("code_jaccard", "code_correlation", "code_r2", "activation_mcc")
    if not (codes.can(i) and codes.can(j)):
        reason = "a plain dictionary cannot encode activations"
        return [_score_row(name, name == "activation_mcc", None, {}, reason) for name in names]
    one, other = codes(i)[:, rows_a], codes(j)[:, rows_b]
    agreement = code_consistency(one, other, match)
    chance = {"code_jaccard": agreement.jaccard_chance, "code_correlation": 0.0}
    values = (agreement.jaccard, agreement.correlation, agreement.r2)
    scores = [
        _score_row(
            name, False, value, {}, agreement.reason if value is None else "", chance.get(name)
        )
        for name, value in zip(names, values, strict=False)
    ]
    value, reason = _activation_mcc(one, other)
    nulls = {} if value is None else _shuffled_null(one, other, config)
    return [*scores, _score_row("activation_mcc", True, value, nulls, reason)]


def _shuffled_null(
    one: sparse.csr_array, other: sparse.csr_array, config: CompareConfig
) -> dict[str, NullDistribution]:
    """Latents matched by activations when the rows of one side are shuffled."""
    pairs = one.shape[1] * other.shape[1]
    affordable = int(min(_MOST_SHUFFLES, _SHUFFLED_PAIRS // pairs))
    draws = affordable if config.null_draws is None else min(config.null_draws, affordable)
    values = []
    for draw in range(draws):
        order = np.random.default_rng([config.seed, draw]).permutation(other.shape[0])
        value, _ = _activation_mcc(one, other[order])
        if value is not None:
            values.append(value)
    if not values:
        return {}
    return {"shuffled": NullDistribution("shuffled", "activation_mcc", True, np.array(values))}


def _activation_mcc(one: sparse.csr_array, other: sparse.csr_array) -> tuple[float | None, str]:
    """Mean correlation of latents matched by the correlation of their activations."""
    n_a, n_b = one.shape[1], other.shape[1]
    if n_a * n_b <= _CORRELATION_PAIRS:
        found = match_activations(cross_moments(one, other))
        return found.mean, found.reason
    if one.shape[0] * max(n_a, n_b) > _CORRELATION_NUMBERS:
        most = int(_CORRELATION_NUMBERS / max(n_a, n_b))
        return None, f"too many numbers to correlate at this width; give at most {most} rows"
    # a correlation over rows is the cosine of the centred columns: the same exact matching
    centred = []
    for part in (one, other):
        columns = part.toarray().T
        columns -= columns.mean(axis=1, keepdims=True)
        varies = np.square(columns).sum(axis=1) > 0
        if not varies.any():
            return None, "no latent varies over these rows"
        centred.append(columns[varies])
    return match_features(*centred, signed=True).mean, ""


# -- all pairs -----------------------------------------------------------------------------------


_ASYMMETRIC = ("mmcs_a_to_b", "mmcs_b_to_a")


def _overall(
    saes: Sequence[ComparedSAE], pairs: Sequence[PairComparison], config: CompareConfig
) -> list[dict[str, Any]]:
    """Mean of each score over pairs, with its interval over SAEs."""
    position = {sae.id: i for i, sae in enumerate(saes)}
    rows = []
    for first in pairs[0].scores:
        name, sign = first["score"], first["signed"]
        if name in _ASYMMETRIC:
            continue
        W = np.zeros((len(saes), len(saes)))
        missing = ""
        for pair in pairs:
            found = next(
                (s for s in pair.scores if (s["score"], s["signed"]) == (name, sign)), None
            )
            if found is None or found["value"] is None:
                missing = f"not every pair has it ({pair.a}, {pair.b})"
                break
            i, j = position[pair.a], position[pair.b]
            W[i, j] = W[j, i] = found["value"]
        if missing:
            empty = dict.fromkeys(("mean", "low", "high", "se"))
            rows.append({"score": name, "signed": sign, **empty, "reason": missing})
            continue
        low = -1.0 if sign or name == "code_correlation" else 0.0
        bounds = None if name == "code_r2" else (low, 1.0)
        interval: SeedInterval = seed_interval(W, level=config.level, bounds=bounds)
        rows.append(
            {
                "score": name,
                "signed": sign,
                "mean": interval.mean,
                "low": interval.low,
                "high": interval.high,
                "se": interval.se,
                "reason": interval.reason,
            }
        )
    return rows


def threshold_counts(match: Match, thresholds: Iterable[float]) -> list[dict[str, Any]]:
    """Features matched and unmatched at each similarity."""
    rows = []
    for threshold in thresholds:
        matched = int((match.similarity >= threshold).sum())
        rows.append(
            {
                "threshold": threshold,
                "matched": matched,
                "unmatched_a": match.n_a - matched,
                "unmatched_b": match.n_b - matched,
            }
        )
    return rows
