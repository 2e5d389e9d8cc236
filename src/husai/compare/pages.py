"""The work of ``husai features``: the HTML page of the features of SAEs in files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from husai.compare.files import load_saes, rows_of_saes
from husai.consistency.analyses.labels import Labels, modular_labels, table_labels
from husai.consistency.study.record import check_records, with_codes
from husai.errors import InputError
from husai.features import (
    FeatureCards,
    FeaturesConfig,
    RowFacts,
    feature_group,
    features_page,
    known_cards,
)
from husai.features.pictures import check_contexts
from husai.storage import atomic_path

if TYPE_CHECKING:
    from husai.sae.formats import Format, Hints


@dataclass(frozen=True)
class FeatureSources:
    """The files of SAEs, of the activations that they read, and of what is known about these.

    Attributes
    ----------
    saes
        Paths, as in :func:`husai.compare.files.load_saes`.
    activations
        File of activation rows, with labels beside them; or None.
    contexts
        Table of the text around each row; or None.
    modulus
        p, if the rows are all pairs (a, b) modulo p; or None.
    format
        Format of the SAEs; detected when None.
    """

    saes: Sequence[str | Path]
    activations: Path | None = None
    contexts: Path | None = None
    modulus: int | None = None
    format: Format | None = None


def page_of_files(
    sources: FeatureSources,
    out: Path,
    config: FeaturesConfig | None = None,
    *,
    hints: Hints | None = None,
    table: Path | None = None,
) -> FeatureCards:
    """Match the features of SAEs in files, and write their page.

    Parameters
    ----------
    sources
        The SAEs, the rows, and what is known about these.
    out
        The HTML file to write.
    config
        What the page shows.
    hints
        What the files of the SAEs leave out.
    table
        A .parquet or .csv file to which the table of features is written, or None.

    Raises
    ------
    InputError
        When a file cannot be read or does not fit the others.
    """
    config = config or FeaturesConfig()
    if table is not None and table.suffix not in (".parquet", ".csv"):
        raise InputError(f"{table}: give a name that ends in .parquet or .csv")
    records = load_saes(sources.saes, sources.format, hints)
    check_records(records)
    families: list[Labels] = []
    facts = RowFacts()
    if sources.activations is not None:
        rows = rows_of_saes(sources.activations, records)
        contexts = None
        if sources.contexts is not None:
            contexts = check_contexts(_read_table(sources.contexts), len(rows.values))
        labels = rows.labels if len(rows.labels.columns) else None
        facts = RowFacts(sources.modulus, labels, contexts)
        families = known_labels(len(rows.values), facts)
        # an SAE without an encoder has no codes on the rows
        if all(one.encode is not None for one in records):
            records = [with_codes(one, rows.values) for one in records]
        else:
            families, facts = [], RowFacts()
    elif sources.contexts is not None or sources.modulus is not None:
        raise InputError("--contexts and --modulus describe rows: give --activations too")
    group = feature_group(records, name=f"{len(records)} SAEs")
    cards, _ = known_cards(group, families, config)
    names = ", ".join(group.ids)
    page = features_page(cards, facts, config, title=f"Features of {names}")
    with atomic_path(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    if table is not None:
        with atomic_path(table) as temporary:
            if table.suffix == ".csv":
                cards.features.to_csv(temporary, index=False)
            else:
                cards.features.to_parquet(temporary, index=False)
    return cards


def known_labels(n_rows: int, facts: RowFacts) -> list[Labels]:
    """Return the labels that are known for the rows: those of the modulus and of the table.

    Raises
    ------
    InputError
        When the rows are not all pairs of the modulus.
    """
    families: list[Labels] = []
    if facts.modulus is not None:
        if n_rows != facts.modulus**2:
            raise InputError(f"--modulus: {facts.modulus}² pairs (a, b), but {n_rows} rows")
        a, b = np.divmod(np.arange(n_rows), facts.modulus)
        families += modular_labels(a, b, (a + b) % facts.modulus, facts.modulus)
    if facts.labels is not None:
        families += table_labels(facts.labels)
    return families


def _read_table(path: Path) -> pd.DataFrame:
    if path.suffix not in (".parquet", ".csv") or not path.is_file():
        raise InputError(f"{path}: not a .parquet or .csv file; give a table of contexts")
    try:
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: it cannot be read ({' '.join(str(error).split())})") from error
