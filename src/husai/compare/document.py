"""The published JSON form of a comparison, and its files."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

from husai.compare.comparison import (
    CompareConfig,
    Comparison,
    PairComparison,
    live_rows,
    threshold_counts,
)
from husai.provenance import versions

SCHEMA_NAME = "husai.compare"
SCHEMA_VERSION = "1.0"

# Most pairs of features that the JSON holds itself.
_INLINE_PAIRS = 20_000


def matching_table(comparison: Comparison) -> pd.DataFrame:
    """The full matchings, a row per pair of features and score.

    Columns ``a``, ``b`` (ids), ``signed``, ``a_index``, ``b_index`` (latents), ``cosine``, and
    ``shared`` (null without encoders and in the absolute match).
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
                    }
                )
            )
    return pd.concat(tables, ignore_index=True)


def result_document(comparison: Comparison, matching_file: str | None = None) -> dict[str, Any]:
    """The comparison in the published JSON form (``docs/compare.md``, :func:`schema`).

    Parameters
    ----------
    comparison
        What to write.
    matching_file
        Name of the file beside it that holds the matchings; None puts them into the document.
    """
    return {
        "schema": SCHEMA_NAME,
        "schema_version": SCHEMA_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "software": versions(),
        "options": comparison.config.model_dump(mode="json"),
        "activations": None if comparison.activations is None else dict(comparison.activations),
        "saes": [
            {
                "id": sae.id,
                "d_sae": len(sae.W_dec),
                "d": sae.W_dec.shape[1],
                "zero_rows": len(sae.W_dec) - len(live_rows(sae)),
                "has_encoder": sae.W_enc is not None,
                "converged": sae.converged,
                **sae.origin,
            }
            for sae in comparison.saes
        ],
        "pairs": [
            _pair_document(pair, comparison.config, matching_file is None)
            for pair in comparison.pairs
        ],
        "overall": comparison.overall,
        "matching_file": matching_file,
    }


def _pair_document(pair: PairComparison, config: CompareConfig, inline: bool) -> dict[str, Any]:
    document: dict[str, Any] = {"a": pair.a, "b": pair.b, "scores": pair.scores, "matches": []}
    for match in (pair.absolute, pair.signed):
        certificate = match.certificate
        entry: dict[str, Any] = {
            "signed": match.signed,
            "method": match.method,
            "n_pairs": len(match.a_index),
            "certified": match.certified,
            "gap_bound": match.gap_bound,
            "largest_violation": None if certificate is None else certificate.largest_violation,
            "passes": None if certificate is None else certificate.passes,
            "thresholds": threshold_counts(match, config.thresholds),
            "pairs": None,
        }
        if inline:
            entry["pairs"] = {
                "a_index": pair.rows_a[match.a_index].tolist(),
                "b_index": pair.rows_b[match.b_index].tolist(),
                "cosine": match.cosine.tolist(),
                "shared": pair.shared.tolist()
                if match.signed and pair.shared is not None
                else None,
            }
        document["matches"].append(entry)
    return document


def schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of :func:`result_document`."""
    text = resources.files("husai.compare").joinpath("schema.json").read_text()
    document: dict[str, Any] = json.loads(text)
    return document


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
    text = json.dumps(result_document(comparison, name), indent=1, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return [path, *written]
