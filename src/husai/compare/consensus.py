"""The work of ``husai consensus``: one SAE made from the features that several SAEs share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from husai.compare.files import load_saes, rows_of_saes
from husai.consistency.analyses.labels import table_labels
from husai.consistency.study.record import check_records, with_codes
from husai.errors import InputError
from husai.features import (
    ConsensusConfig,
    ConsensusResult,
    build_consensus,
    feature_group,
    single_class,
)
from husai.features.consensus import yardsticks
from husai.storage import atomic_path

if TYPE_CHECKING:
    from husai.sae.formats import Format, Hints, WrittenFormat


def consensus_of_files(
    saes: Sequence[str | Path],
    activations: Path,
    out: Path,
    config: ConsensusConfig | None = None,
    *,
    formats: Sequence[WrittenFormat] = ("husai",),
    format: Format | None = None,
    hints: Hints | None = None,
) -> ConsensusResult:
    """Make the consensus of SAEs in files, and write it.

    Parameters
    ----------
    saes
        Paths, as in :func:`husai.compare.files.load_saes`.
    activations
        File of the activation rows; whole numbers beside them are classes for the probe.
    out
        A new folder. It gets ``consensus.safetensors`` (husai), a folder for each other format,
        ``worth.csv`` (the consensus beside dictionaries of the same size) and ``tracks.csv``
        (which latent of which SAE each feature is).
    config
        Which features enter, and how the encoder is fitted.
    formats
        Formats to write.
    format, hints
        Format of the SAEs that are read, and what their files leave out.

    Raises
    ------
    InputError
        When a file does not fit, an SAE cannot encode, no feature is shared, or the folder exists.
    """
    from husai.sae.formats import export_sae

    config = config or ConsensusConfig()
    if out.exists():
        raise InputError(f"{out}: exists already; give a new folder")
    records = load_saes(saes, format, hints)
    check_records(records)
    for record in records:
        if record.encode is None:
            raise InputError(f"{record.id}: a plain dictionary cannot encode; give whole SAEs")
    rows = rows_of_saes(activations, records)
    classes = single_class(table_labels(rows.labels)) if len(rows.labels.columns) else None
    group = feature_group([with_codes(one, rows.values) for one in records])
    result = build_consensus(group, yardsticks(rows.values, config, classes=classes), config)
    contract = records[0].origin.get("contract", {})
    sources = {"contract": contract, "saes": group.ids}
    sae = replace(result.sae, provenance={**result.sae.provenance, **sources})
    out.mkdir(parents=True)
    for to in formats:
        export_sae(sae, out / ("consensus.safetensors" if to == "husai" else to), to)
    tracks = result.consensus.tracks
    named = tracks.rename(columns={f"latent_{s}": name for s, name in enumerate(group.ids)})
    for name, table in (("worth", result.table), ("tracks", named)):
        with atomic_path(out / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False)
    return replace(result, sae=sae)
