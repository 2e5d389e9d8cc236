"""Write the parts of the documentation that come from the code: schemas, scores, nulls, tables.

    python docs/generate.py

A test compares the files with what this makes.
"""

from __future__ import annotations

import json
from pathlib import Path

from husai.compare.document import schema
from husai.consistency.inference.nulls import NULL_KINDS
from husai.consistency.scores.registry import SCORES
from husai.consistency.study.beside import BESIDE
from husai.consistency.study.schema import TABLES
from husai.consistency.study.summary import summary_schema

FOLDER = Path(__file__).parent


def score_rows() -> list[str]:
    """The glossary's table of every score in the registry."""
    lines = [
        "| term | meaning | needs | forms | bounds | perfect | nulls |",
        "|---|---|---|---|---|---|---|",
    ]
    for score in SCORES.values():
        forms = " and ".join("signed" if sign else "absolute" for sign in sorted(score.signs))
        bounds = [score.bounds_of(sign) for sign in sorted(score.signs)]
        if len(score.signs) > 1 and bounds[0] == bounds[1]:
            bounds = bounds[:1]
        spans = ", ".join(f"{low:g} to {high:g}" for low, high in bounds).replace("inf", "∞")
        needs = ", ".join(
            need for need in ("decoder", "encoder", "codes", "truth") if need in score.needs
        )
        lines.append(
            f"| {score.term} (`{score.name}`) | {cell(score.meaning)} | {needs} | "
            f"{forms} | {spans} | {score.perfect:g} | {', '.join(score.nulls) or '–'} |"
        )
    return lines


def null_rows() -> list[str]:
    """The glossary's table of every null."""
    return [
        "| term | title in tables | chance of what |",
        "|---|---|---|",
        *(
            f"| {kind.name.replace('_', '-')} (`{kind.name}`) | {kind.title} | "
            f"{cell(kind.meaning)} |"
            for kind in NULL_KINDS.values()
        ),
    ]


def glossary() -> str:
    """The glossary with its lists of scores and nulls made anew."""
    text = (FOLDER / "glossary.md").read_text(encoding="utf-8")
    for name, rows in (("scores", score_rows()), ("nulls", null_rows())):
        begin, end = f"<!-- made by docs/generate.py: {name} -->\n", "<!-- end -->"
        before, rest = text.split(begin)
        text = before + begin + "\n" + "\n".join(rows) + "\n\n" + end + rest.split(end, 1)[1]
    return text


def cell(text: str) -> str:
    """Write a text in a cell of a table, in which a bare bar would begin the next cell."""
    return text.replace("|", "\\|")


def tables_page() -> str:
    """Every table of a study and what its columns mean."""
    lines = [
        "# Tables of a study",
        "",
        "Made by `python docs/generate.py` from the declarations in the code. "
        "The [glossary](glossary.md) explains the terms.",
        "",
    ]
    for table in (*TABLES.values(), *BESIDE.values()):
        lines += [
            f"## {table.name}",
            "",
            f"A row: {table.meaning}",
            "",
            "| column | cells | meaning |",
            "|---|---|---|",
            *(
                f"| `{c.name}` | {c.kind}{f', {c.unit}' if c.unit else ''} | {cell(c.meaning)} |"
                for c in table.columns
            ),
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


def files() -> dict[Path, str]:
    """Every generated file with its text."""
    schemas = {"compare.json": schema(), "study_summary.json": summary_schema()}
    return {
        FOLDER / "glossary.md": glossary(),
        FOLDER / "tables.md": tables_page(),
        **{
            FOLDER / "schemas" / name: json.dumps(made, indent=1) + "\n"
            for name, made in schemas.items()
        },
    }


if __name__ == "__main__":
    for path, text in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path)
