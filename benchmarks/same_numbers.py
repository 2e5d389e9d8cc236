"""List where the numbers of two runs of one study, or of two comparisons, differ.

    python benchmarks/same_numbers.py BEFORE AFTER [--rename OLD=NEW ...]

BEFORE and AFTER are data folders (their tables ``*.parquet`` are compared) or two results of
``husai compare --json``. Rows are found by the columns that name them, whatever their order is.
Exit code 1 when something differs by more than the tolerance.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

NAMES = (
    *("hook", "group", "group_a", "group_b", "id", "id_a", "id_b", "sae_id", "latent", "hops"),
    *("space", "score", "signed", "measure", "plane", "covariate", "kind_of_pair", "symmetry"),
    *("step", "architecture", "d_sae", "rate_low", "source", "basis", "model", "k", "l0"),
)
"""Columns that name a row. Those of a table that has them all are not compared as numbers."""

UNSTEADY = ("seconds", "created", "time", "fingerprint", "digest", "software", "versions", "path")
"""Parts of column names whose values differ from run to run."""


def read_tables(path: Path) -> dict[str, pd.DataFrame]:
    """Read all tables below a folder, or those in a result of ``husai compare``."""
    if path.is_dir():
        return {
            str(f.relative_to(path)): pd.read_parquet(f) for f in sorted(path.rglob("*.parquet"))
        }
    document = json.loads(path.read_text())
    scores, matches = [], []
    for pair in document["pairs"]:
        head = {"id_a": pair["a"], "id_b": pair["b"]}
        for row in pair["scores"]:
            nulls = {
                f"{kind}_{name}": value
                for kind, null in row["nulls"].items()
                for name, value in null.items()
            }
            kept = {name: value for name, value in row.items() if name != "nulls"}
            scores.append({**head, **kept, **nulls})
        for match in pair["matches"]:
            counts = {
                f"{name} {row['threshold']}": row[name]
                for row in match["thresholds"]
                for name in ("matched", "unmatched_a", "unmatched_b")
            }
            kept = {k: v for k, v in match.items() if k not in ("thresholds", "pairs", "method")}
            matches.append({**head, **kept, **counts})
    return {
        "pairs": pd.DataFrame(scores),
        "matches": pd.DataFrame(matches),
        "overall": pd.DataFrame(document["overall"]),
    }


def differences(
    before: pd.DataFrame, after: pd.DataFrame, rename: Mapping[str, str], tolerance: float
) -> Iterator[str]:
    """Yield a line for each column, and for rows, that differ."""
    before = before.rename(columns=dict(rename)).replace(dict(rename))
    names = [name for name in NAMES if name in before and name in after]
    for which, columns in (
        ("only before", set(before) - set(after)),
        ("only after", set(after) - set(before)),
    ):
        if columns:
            yield f"columns {which}: {', '.join(sorted(map(str, columns)))}"
    keyed = []
    for table in (before, after):
        key = [_key(row) for row in table[names].astype(object).to_numpy()]
        index = pd.Index(key)
        # rows with the same name are distinguished by their order
        turn = pd.Series(range(len(index))).groupby(key).cumcount().to_numpy()
        keyed.append(
            table.set_index(pd.Index([f"{k} #{t}" for k, t in zip(key, turn, strict=True)]))
        )
    old, new = keyed
    for which, rows in (
        ("only before", old.index.difference(new.index)),
        ("only after", new.index.difference(old.index)),
    ):
        if len(rows):
            yield f"{len(rows)} rows {which}, for example {rows[0]}"
    common = old.index.intersection(new.index)
    for column in before.columns.intersection(after.columns):
        if column in names or any(part in column for part in UNSTEADY):
            continue
        a, b = old.loc[common, column], new.loc[common, column]
        numbers = [pd.to_numeric(x, errors="coerce").astype(float) for x in (a, b)]
        if numbers[0].notna().any() or numbers[1].notna().any():
            gone = numbers[0].notna() != numbers[1].notna()
            apart = (numbers[0] - numbers[1]).abs()
            scale = tolerance * (1 + numbers[0].abs())
            bad = gone | (apart > scale)
            text = f"largest difference {np.nanmax(apart.fillna(0)):.3g}"
        else:
            bad = a.map(_text) != b.map(_text)
            text = "text"
        if bad.any():
            first = bad.index[bad.to_numpy()][0]
            yield (
                f"{column}: {int(bad.sum())} of {len(common)} rows ({text}); "
                f"{first}: {a[first]} became {b[first]}"
            )


def _text(cell: Any) -> str:
    """A cell as text; nothing is nothing, whatever a table calls it."""
    return "" if np.ndim(cell) == 0 and pd.isna(cell) else str(cell)


def _key(row: Any) -> str:
    return " / ".join(
        "" if pd.isna(cell) else f"{cell:g}" if isinstance(cell, float) else str(cell)
        for cell in row
    )


def main() -> int:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument(
        "--rename", nargs="*", default=[], metavar="OLD=NEW", help="columns and scores renamed"
    )
    parser.add_argument("--tolerance", type=float, default=1e-9)
    options = parser.parse_args()
    rename = dict(item.split("=", 1) for item in options.rename)
    old, new = read_tables(options.before), read_tables(options.after)
    found = False
    for name in sorted({*old, *new}):
        if name not in old or name not in new:
            print(f"{name}: only {'after' if name in new else 'before'}")
            found = True
            continue
        lines = list(differences(old[name], new[name], rename, options.tolerance))
        print(f"{name}: {len(new[name])} rows, {'the same' if not lines else 'different'}")
        for line in lines:
            print(f"    {line}")
        found = found or bool(lines)
    return int(found)


if __name__ == "__main__":
    sys.exit(main())
