"""Writes a comparison in the published JSON form, and its matchings beside it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from husai.compare.comparison import (
    CompareConfig,
    Comparison,
    PairComparison,
    threshold_counts,
)
from husai.compare.contract import check_contracts
from husai.compare.schema import (
    SCHEMA_NAME,
    SCHEMA_VERSION,
    ActivationsEntry,
    AmbiguityEntry,
    Document,
    MatchedPairs,
    MatchEntry,
    PairEntry,
    SAEEntry,
    Software,
    ThresholdRange,
    schema,
)
from husai.matching.result import Match
from husai.provenance import versions

__all__ = ["matching_table", "result_document", "schema", "write_result"]

# Up to so many pairs of features, the matchings are part of the JSON.
_INLINE_PAIRS = 20_000


def matching_table(comparison: Comparison) -> pd.DataFrame:
    """Return the full matchings, a row per matched pair of features.

    Columns ``a``, ``b`` (ids), ``signed``, ``a_index``, ``b_index`` (latents), ``cosine``,
    ``shared`` (null without encoders and in the absolute match) and ``exchangeable`` (partners that
    A's feature could have; null where ambiguity is not known).
    """
    tables = []
    for pair in comparison.pairs:
        for match in (pair.absolute, pair.signed):
            shared = pair.shared if match.signed and pair.shared is not None else None
            tables.append(
                pd.DataFrame(
                    {
                        "a": pair.a,
                        "b": pair.b,
                        "signed": match.signed,
                        "a_index": pair.rows_a[match.a_index],
                        "b_index": pair.rows_b[match.b_index],
                        "cosine": match.cosine,
                        "shared": pd.array(
                            [pd.NA] * len(match.cosine) if shared is None else list(shared),
                            dtype="boolean",
                        ),
                        "exchangeable": pd.array(
                            _exchangeable(pair, match) or np.full(len(match.cosine), None),
                            dtype="Int64",
                        ),
                    }
                )
            )
    return pd.concat(tables, ignore_index=True)


def _exchangeable(pair: PairComparison, match: Match) -> list[int] | None:
    """Partners that A's feature of each pair could have."""
    found = pair.ambiguity[match.signed]
    return None if found is None else [int(n) for n in found.n_exchangeable[match.a_index]]


def _ambiguity_entry(
    pair: PairComparison, match: Match, config: CompareConfig
) -> AmbiguityEntry | None:
    found = pair.ambiguity[match.signed]
    if found is None:
        return None
    ranges = [(threshold, *found.matched(threshold)) for threshold in config.thresholds]
    return AmbiguityEntry(
        epsilon=found.epsilon,
        ambiguous=found.ambiguous,
        mean_exchangeable=float(found.n_exchangeable.mean()),
        score_moves=found.score_moves,
        feature_moves=found.feature_moves,
        matched=[
            ThresholdRange(threshold=threshold, at_least=low, at_most=high)
            for threshold, low, high in ranges
        ],
    )


def result_document(comparison: Comparison, matching_file: str | None = None) -> Document:
    """Return the comparison in the published JSON form (``docs/compare.md``, :func:`schema`).

    Parameters
    ----------
    comparison
        The comparison.
    matching_file
        Name of the file beside the document with the matchings; None puts them into the document.
    """
    inline = matching_file is None
    return Document(
        schema=SCHEMA_NAME,
        schema_version=SCHEMA_VERSION,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        software=Software(**versions()),
        options=comparison.config.model_dump(mode="json"),
        activations=None
        if comparison.activations is None
        else ActivationsEntry(**comparison.activations),
        saes=[
            SAEEntry(
                id=sae.record.id,
                d_sae=sae.record.d_sae,
                d=sae.record.W_dec.shape[1],
                zero_rows=sae.record.d_sae - len(sae.index),
                has_encoder=sae.record.W_enc is not None,
                converged=sae.record.converged,
                **sae.record.origin,
            )
            for sae in comparison.saes
        ],
        mismatches=check_contracts([sae.record for sae in comparison.saes], any_space=True),
        pairs=[
            PairEntry(
                a=pair.a,
                b=pair.b,
                scores=pair.scores,
                matches=[
                    _match_entry(pair, match, comparison.config, inline)
                    for match in (pair.absolute, pair.signed)
                ],
            )
            for pair in comparison.pairs
        ],
        overall=comparison.overall,
        encoder_metric=comparison.metric
        if any(sae.encoder is not None for sae in comparison.saes)
        else None,
        matching_file=matching_file,
    )


def _match_entry(
    pair: PairComparison, match: Match, config: CompareConfig, inline: bool
) -> MatchEntry:
    certificate = match.certificate
    pairs = None
    if inline:
        shared = pair.shared if match.signed else None
        pairs = MatchedPairs(
            a_index=pair.rows_a[match.a_index].tolist(),
            b_index=pair.rows_b[match.b_index].tolist(),
            cosine=match.cosine.tolist(),
            shared=None if shared is None else shared.tolist(),
            exchangeable=_exchangeable(pair, match),
        )
    return MatchEntry(
        signed=match.signed,
        method="dense" if match.method == "dense" else "sparse",
        n_pairs=len(match.a_index),
        certified=match.certified,
        gap_bound=match.gap_bound,
        largest_violation=None if certificate is None else certificate.largest_violation,
        passes=None if certificate is None else certificate.passes,
        thresholds=threshold_counts(match, config.thresholds),
        ambiguity=_ambiguity_entry(pair, match, config),
        pairs=pairs,
    )


def write_result(comparison: Comparison, path: Path) -> list[Path]:
    """Write the comparison as JSON, and matchings of many pairs as parquet beside it.

    Returns the files written.
    """
    from husai.storage import atomic_path

    count = sum(len(pair.absolute.a_index) + len(pair.signed.a_index) for pair in comparison.pairs)
    written = []
    name = None
    if count > _INLINE_PAIRS:
        beside = path.with_name(f"{path.stem}.matching.parquet")
        with atomic_path(beside) as temporary:
            matching_table(comparison).to_parquet(temporary, index=False)
        name = beside.name
        written.append(beside)
    plain = result_document(comparison, name).model_dump(mode="json", by_alias=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(plain, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return [path, *written]
