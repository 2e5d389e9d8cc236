"""From a list of SAEs to tidy tables: every score beside its nulls, interval and gate."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from husai.config import Config
from husai.consistency.matching import Match, unit_rows
from husai.consistency.nulls import NullDistribution, NullKind, null_scores
from husai.consistency.scores import (
    PAIR_SCORES,
    DictionaryPair,
    partner_of,
    shared_fraction,
)
from husai.consistency.statistics import seed_interval
from husai.consistency.subspace import DataSpan, data_span
from husai.errors import InputError

SCHEMA_VERSION = 1

# Scores that have no null of their own borrow one. The decoder's half of the shared fraction
# bounds the whole from above. The encoder's rows do not live in the data's space, so the
# data-aware null says nothing about them.
_NULL_OF = {"shared_fraction": "shared_decoder", "pw_mcc_encoder": "pw_mcc"}
_WITHOUT_NULL = {("pw_mcc_encoder", "data_aware")}


class ConsistencyConfig(Config):
    """How a set of SAEs is compared."""

    dead: Literal["keep", "drop"] = Field(
        default="keep", description="whether latents that never fire take part in the match"
    )
    shared_threshold: float = Field(
        default=0.7, gt=0, le=1, description="least cosine of a shared or reproduced feature"
    )
    data_variance: float = Field(
        default=0.99, gt=0, le=1, description="variance that the data's subspace holds"
    )
    null_draws: int = Field(default=40, ge=1, description="random pairs behind each null")
    level: float = Field(default=0.95, gt=0, lt=1, description="confidence level of intervals")
    seed: int = Field(default=0, ge=0, description="seed of the nulls")
    workers: int = Field(default=1, ge=1, description="threads")


@dataclass(frozen=True)
class SAERecord:
    """What the comparison needs to know of one SAE.

    Attributes
    ----------
    id
        Unique name.
    architecture, k, l1_coefficient
        Its kind and its sparsity setting.
    seed
        The seed that was varied.
    W_dec
        ``[d_sae, d]`` decoder, a feature a row.
    W_enc
        ``[d, d_sae]`` encoder as the SAE holds it, or None.
    W_dec_init
        ``[d_sae, d]`` initial decoder, or None.
    converged
        Whether its convergence gate is passed; None when unknown.
    cosine_to_init
        Mean cosine of the decoder to its own initialisation, or None.
    firing_rate
        ``[d_sae]`` share of rows on which each latent fires, or None.
    l0, fvu
        Mean number of latents that fire and fraction of variance unexplained, or None.
    group
        SAEs of one group differ in the seed only; made from the settings when empty.
    """

    id: str
    architecture: str
    seed: int
    W_dec: NDArray[np.floating[Any]]
    W_enc: NDArray[np.floating[Any]] | None = None
    W_dec_init: NDArray[np.floating[Any]] | None = None
    k: float | None = None
    l1_coefficient: float | None = None
    converged: bool | None = None
    cosine_to_init: float | None = None
    firing_rate: NDArray[np.floating[Any]] | None = None
    l0: float | None = None
    fvu: float | None = None
    group: str = ""

    @property
    def d_sae(self) -> int:
        """Width."""
        return int(self.W_dec.shape[0])

    @property
    def group_name(self) -> str:
        """The group's name: architecture, width and sparsity setting."""
        if self.group:
            return self.group
        parts = [self.architecture, f"d_sae={self.d_sae}"]
        if self.k is not None:
            parts.append(f"k={self.k:g}")
        if self.l1_coefficient is not None:
            parts.append(f"l1={self.l1_coefficient:g}")
        return " ".join(parts)


@dataclass(frozen=True)
class ConsistencyReport:
    """Tidy tables and a summary.

    Attributes
    ----------
    saes
        A row per SAE: settings, gate, live latents, share of its decoder inside the data's span.
    pairs
        A row per pair of SAEs of a group, space, score and sign.
    groups
        A row per group, space, score and sign: mean, interval over seeds, and for each null its
        mean, sd, corrected score, p-value and z.
    features
        A row per SAE and latent: in how many other seeds it came back, and how well.
    summary
        Nested plain values with ``schema_version``.
    """

    saes: pd.DataFrame
    pairs: pd.DataFrame
    groups: pd.DataFrame
    features: pd.DataFrame
    summary: dict[str, Any]


@dataclass(frozen=True)
class _Live:
    """One SAE's rows that take part, in one space."""

    record: SAERecord
    index: NDArray[np.int64]
    decoder: NDArray[np.float64]
    encoder: NDArray[np.float64] | None
    init: NDArray[np.float64] | None


def live_latents(record: SAERecord, dead: Literal["keep", "drop"]) -> NDArray[np.int64]:
    """Indices of the latents that take part.

    Rows of zeros have no direction and never take part. With ``"drop"`` neither do latents whose
    firing rate is zero.

    Raises
    ------
    InputError
        When ``"drop"`` is asked for and the firing rate is not known, or its length is wrong.
    """
    live = np.asarray(record.W_dec).any(axis=1)
    if dead == "drop":
        if record.firing_rate is None:
            raise InputError(
                f"{record.id}: firing_rate is not known, so its dead latents cannot be dropped; "
                'give it or choose dead="keep"'
            )
        if np.shape(record.firing_rate) != (record.d_sae,):
            raise InputError(
                f"{record.id}: firing_rate has shape {np.shape(record.firing_rate)}, "
                f"not ({record.d_sae},)"
            )
        live &= np.asarray(record.firing_rate) > 0
    return np.flatnonzero(live)


def check_records(records: Sequence[SAERecord]) -> None:
    """Check that the SAEs can be compared, before any work.

    Raises
    ------
    InputError
        When there is none, an id occurs twice, dimensions differ, or a shape does not fit.
    """
    if not records:
        raise InputError("records: no SAE to compare; give at least one")
    seen: set[str] = set()
    for record in records:
        if record.id in seen:
            raise InputError(f"records: the id {record.id!r} occurs twice")
        seen.add(record.id)
        unit_rows(record.W_dec, f"{record.id}: W_dec")
        d = record.W_dec.shape[1]
        if d != records[0].W_dec.shape[1]:
            raise InputError(
                f"{record.id}: its decoder has {d} dimensions and {records[0].id}'s "
                f"{records[0].W_dec.shape[1]}; compare SAEs of one space"
            )
        if record.W_enc is not None and np.shape(record.W_enc) != (d, record.d_sae):
            raise InputError(
                f"{record.id}: W_enc has shape {np.shape(record.W_enc)}, not {(d, record.d_sae)}"
            )
        if record.W_dec_init is not None and np.shape(record.W_dec_init) != (record.d_sae, d):
            raise InputError(
                f"{record.id}: W_dec_init has shape {np.shape(record.W_dec_init)}, "
                f"not {(record.d_sae, d)}"
            )


def consistency_report(
    records: Sequence[SAERecord],
    config: ConsistencyConfig | None = None,
    *,
    covariance: ArrayLike | None = None,
) -> ConsistencyReport:
    """Compare all SAEs of each group, against every null, over seeds.

    Parameters
    ----------
    records
        The SAEs; those of one group (architecture, width, sparsity setting) differ in seed only.
    config
        How to compare; defaults when None.
    covariance
        ``[d, d]`` covariance of the activations: adds the data-aware null and the scores within
        the data's subspace.

    Raises
    ------
    InputError
        When the records do not fit together.
    """
    config = config or ConsistencyConfig()
    check_records(records)
    spaces: dict[str, DataSpan | None] = {"full": None}
    if covariance is not None:
        if np.shape(covariance) != (records[0].W_dec.shape[1],) * 2:
            raise InputError(
                f"covariance: shape {np.shape(covariance)}, "
                f"decoders of {records[0].W_dec.shape[1]} dimensions"
            )
        spaces["data"] = data_span(covariance, variance=config.data_variance)
    groups: dict[str, list[SAERecord]] = defaultdict(list)
    for record in records:
        groups[record.group_name].append(record)

    nulls = _NullCache(config, covariance, spaces)
    pair_rows: list[dict[str, Any]] = []
    group_rows: list[dict[str, Any]] = []
    feature_tables: list[pd.DataFrame] = []
    with ThreadPoolExecutor(config.workers) as pool:
        for name in sorted(groups):
            members = groups[name]
            for space, span in spaces.items():
                live = [_live(record, config, span) for record in members]
                rows, init_rows, matches = _group_pairs(live, space, config, pool)
                pair_rows += rows
                group_rows += _group_scores(name, live, space, rows, init_rows, nulls, config)
                feature_tables.append(_feature_table(name, live, space, matches, config))
    pairs = pd.DataFrame(pair_rows)
    table = pd.DataFrame(group_rows)
    features = pd.concat(feature_tables, ignore_index=True)
    saes = _sae_table(records, spaces.get("data"), config)
    return ConsistencyReport(saes, pairs, table, features, _summary(saes, table, spaces, config))


def _live(record: SAERecord, config: ConsistencyConfig, span: DataSpan | None) -> _Live:
    index = live_latents(record, config.dead)

    def place(rows: NDArray[Any] | None) -> NDArray[np.float64] | None:
        if rows is None or not len(index):
            return None
        chosen = unit_rows(rows[index])
        return chosen if span is None else span.project(chosen)

    decoder = place(record.W_dec)
    return _Live(
        record,
        index,
        np.zeros((0, record.W_dec.shape[1])) if decoder is None else decoder,
        place(None if record.W_enc is None else record.W_enc.T),
        place(record.W_dec_init),
    )


_Matches = dict[tuple[int, int], Match]


def _group_pairs(
    live: Sequence[_Live], space: str, config: ConsistencyConfig, pool: ThreadPoolExecutor
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], _Matches]:
    """Score all pairs of a group, and the pairs of their initialisations."""
    pairs = list(combinations(range(len(live)), 2))

    def one(
        pair: tuple[int, int],
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Match | None]:
        return _score_pair(live[pair[0]], live[pair[1]], space, config)

    rows: list[dict[str, Any]] = []
    inits: list[dict[str, Any]] = []
    matches: _Matches = {}
    for pair, (scored, init, match) in zip(pairs, pool.map(one, pairs), strict=True):
        rows += scored
        inits += init
        if match is not None:
            matches[pair] = match
    return rows, inits, matches


def _score_pair(
    a: _Live, b: _Live, space: str, config: ConsistencyConfig
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Match | None]:
    """Every score of two SAEs, of their initialisations, and the absolute match."""
    flags = [a.record.converged, b.record.converged]
    head = {
        "group": a.record.group_name,
        "id_a": a.record.id,
        "id_b": b.record.id,
        "seed_a": a.record.seed,
        "seed_b": b.record.seed,
        "space": space,
        "n_a": len(a.index),
        "n_b": len(b.index),
        "converged": _all_converged(flags),
    }

    def row(score: str, signed: bool, value: float | None, reason: str = "") -> dict[str, Any]:
        value = np.nan if value is None else value
        return {**head, "score": score, "signed": signed, "value": value, "reason": reason}

    if not len(a.index) or not len(b.index):
        empty = a.record.id if not len(a.index) else b.record.id
        reason = f"{empty} has no live latent"
        return [row(s, g, None, reason) for s in PAIR_SCORES for g in (False, True)], [], None
    rows, inits = [], []
    absolute = None
    for signed in (False, True):
        pair = DictionaryPair(a.decoder, b.decoder, signed=signed)
        rows += [row(name, signed, score.compute(pair)) for name, score in PAIR_SCORES.items()]
        if not signed:
            absolute = pair.match
        if a.encoder is not None and b.encoder is not None:
            shared = shared_fraction(
                a.decoder,
                a.encoder,
                b.decoder,
                b.encoder,
                signed=signed,
                threshold=config.shared_threshold,
                decoder_match=pair.match,
            )
            rows.append(row("shared_fraction", signed, shared.fraction))
            rows.append(row("pw_mcc_encoder", signed, shared.encoder.mean))
        if a.init is not None and b.init is not None:
            pair = DictionaryPair(a.init, b.init, signed=signed)
            inits += [row(name, signed, score.compute(pair)) for name, score in PAIR_SCORES.items()]
    return rows, inits, absolute


def _all_converged(flags: Sequence[bool | None]) -> bool | None:
    """False when one is not converged, None when one is unknown, else True."""
    if any(flag is False for flag in flags):
        return False
    return None if any(flag is None for flag in flags) else True


class _NullCache:
    """Nulls by shape, so that groups of one shape share them."""

    def __init__(
        self,
        config: ConsistencyConfig,
        covariance: ArrayLike | None,
        spaces: Mapping[str, DataSpan | None],
    ) -> None:
        self._config, self._spaces = config, spaces
        self._covariance = None if covariance is None else np.asarray(covariance, dtype=np.float64)
        self._known: dict[tuple[Any, ...], dict[str, NullDistribution]] = {}
        self.kinds: list[NullKind] = ["isotropic"]
        if covariance is not None:
            self.kinds.append("data_aware")

    def __call__(
        self, kind: NullKind, n: int, d: int, space: str, signed: bool
    ) -> dict[str, NullDistribution]:
        key = (kind, n, d, space if kind == "data_aware" else "", signed)
        if key not in self._known:
            span, covariance = self._spaces[space], self._covariance
            if kind == "data_aware" and span is not None and covariance is not None:
                covariance = span.basis @ covariance @ span.basis.T
            self._known[key] = null_scores(
                n,
                n,
                d,
                kind=kind,
                scores=list(PAIR_SCORES),
                signed=signed,
                covariance=covariance if kind == "data_aware" else None,
                n_draws=self._config.null_draws,
                seed=self._config.seed,
                workers=self._config.workers,
            )
        return self._known[key]


def _group_scores(
    name: str,
    live: Sequence[_Live],
    space: str,
    rows: Sequence[dict[str, Any]],
    init_rows: Sequence[dict[str, Any]],
    nulls: _NullCache,
    config: ConsistencyConfig,
) -> list[dict[str, Any]]:
    """One row per score and sign of a group: mean, interval, nulls, gate."""
    first = live[0].record
    flags = [one.record.converged for one in live]
    n = round(float(np.mean([len(one.index) for one in live])))
    head = {
        "group": name,
        "architecture": first.architecture,
        "d_sae": first.d_sae,
        "k": first.k,
        "l1_coefficient": first.l1_coefficient,
        "space": space,
        "dimensions": live[0].decoder.shape[1],
        "n_live": n,
        "n_seeds": len(live),
        "converged": _all_converged(flags),
        "n_converged": sum(flag is True for flag in flags),
    }
    if len(live) < 2:
        reason = "one seed: no pair to compare"
        return [
            {**head, "score": score, "signed": signed, "reason": reason}
            for score in PAIR_SCORES
            for signed in (False, True)
        ]
    positions = {one.record.id: i for i, one in enumerate(live)}
    result = []
    for (score, signed), values in _by_score(rows).items():
        null_name = _NULL_OF.get(score, score)
        if not PAIR_SCORES[null_name].symmetric:
            continue  # a direction has no meaning among seeds of one group
        line = {**head, "score": score, "signed": signed}
        bad = next((row["reason"] for row in values if row["reason"]), "")
        if bad:
            result.append({**line, "reason": bad})
            continue
        W = np.zeros((len(live), len(live)))
        for row in values:
            i, j = positions[row["id_a"]], positions[row["id_b"]]
            W[i, j] = W[j, i] = row["value"]
        interval = seed_interval(
            W, level=config.level, bounds=PAIR_SCORES[null_name].bounds(signed)
        )
        line |= {
            "mean": interval.mean,
            "low": interval.low,
            "high": interval.high,
            "se": interval.se,
            "n_pairs": interval.n_pairs,
            "interval": interval.method,
            "reason": interval.reason,
        }
        if interval.mean is not None:
            for kind in nulls.kinds:
                if (score, kind) in _WITHOUT_NULL:
                    continue
                null = nulls(kind, n, live[0].decoder.shape[1], space, signed)[null_name]
                line |= _null_columns(kind, null, interval.mean)
            init = [
                row["value"]
                for row in init_rows
                if (row["score"], row["signed"]) == (null_name, signed)
            ]
            if init:
                perfect = PAIR_SCORES[null_name].perfect
                null = NullDistribution("init", score, signed, np.array(init), False, perfect)
                line |= _null_columns("init", null, interval.mean)
        result.append(line)
    return result


def _by_score(
    rows: Sequence[dict[str, Any]],
) -> dict[tuple[str, bool], list[dict[str, Any]]]:
    """Gather rows by score and sign, in the order in which they came."""
    found: dict[tuple[str, bool], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        found[row["score"], row["signed"]].append(row)
    return found


def _null_columns(kind: str, null: NullDistribution, score: float) -> dict[str, float | None]:
    return {
        f"{kind}_mean": null.mean,
        f"{kind}_sd": null.sd,
        f"{kind}_corrected": null.corrected(score) if null.informative else None,
        f"{kind}_p": null.p_value(score),
        f"{kind}_z": null.z(score),
    }


def _feature_table(
    name: str, live: Sequence[_Live], space: str, matches: _Matches, config: ConsistencyConfig
) -> pd.DataFrame:
    """A row per SAE and live latent: similarity to its partner in each other seed, summed up."""
    tables = []
    for position, one in enumerate(live):
        found = np.zeros((len(live), len(one.index)))
        for (i, j), match in matches.items():
            if position == i:
                found[j] = partner_of(match)[1]
            elif position == j:
                found[i, match.b_index] = match.similarity
        others = np.delete(found, position, axis=0)
        table = pd.DataFrame({"latent": one.index})
        table.insert(0, "id", one.record.id)
        table.insert(0, "group", name)
        table["space"] = space
        table["n_other_seeds"] = len(others)
        table["n_seeds_found"] = (others >= config.shared_threshold).sum(axis=0)
        if len(others):
            table["similarity_mean"] = others.mean(axis=0)
            table["similarity_min"] = others.min(axis=0)
            table["similarity_max"] = others.max(axis=0)
        if one.record.firing_rate is not None:
            table["firing_rate"] = np.asarray(one.record.firing_rate)[one.index]
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _sae_table(
    records: Sequence[SAERecord], span: DataSpan | None, config: ConsistencyConfig
) -> pd.DataFrame:
    rows = []
    for record in records:
        live = live_latents(record, config.dead)
        inside = None
        if span is not None and len(live):
            inside = float(span.inside(record.W_dec[live]).mean())
        rows.append(
            {
                "group": record.group_name,
                "id": record.id,
                "architecture": record.architecture,
                "d_sae": record.d_sae,
                "k": record.k,
                "l1_coefficient": record.l1_coefficient,
                "seed": record.seed,
                "n_live": len(live),
                "l0": record.l0,
                "fvu": record.fvu,
                "converged": record.converged,
                "cosine_to_init": record.cosine_to_init,
                "inside_data": inside,
            }
        )
    return pd.DataFrame(rows)


def _summary(
    saes: pd.DataFrame,
    groups: pd.DataFrame,
    spaces: Mapping[str, DataSpan | None],
    config: ConsistencyConfig,
) -> dict[str, Any]:
    data = spaces.get("data")
    return {
        "schema_version": SCHEMA_VERSION,
        "config": config.model_dump(),
        "n_saes": len(saes),
        "n_groups": int(saes["group"].nunique()),
        "n_converged": int((saes["converged"] == True).sum()),  # noqa: E712 - unknown is None
        "data_subspace": None
        if data is None
        else {"dimensions": data.rank, "variance": data.variance},
        "groups": plain_rows(groups),
    }


def plain_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a table's rows as plain values, with None for what is missing (JSON has no NaN)."""
    convert: Callable[[Any], Any] = lambda v: (  # noqa: E731
        None if v is None or v is pd.NA or (isinstance(v, float) and np.isnan(v)) else v
    )
    return [
        {
            str(key): convert(value.item() if isinstance(value, np.generic) else value)
            for key, value in row.items()
        }
        for row in table.to_dict("records")
    ]
