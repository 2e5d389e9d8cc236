"""Write what the documentation takes from the code: JSON schemas, scores, nulls and tables.

    python docs/generate.py

A test compares the files with what this makes.
"""

from __future__ import annotations

import json
from pathlib import Path

from husai.compare.document import schema
from husai.consistency.inference.nulls import NULL_KINDS
from husai.consistency.scores.registry import SCORES
from husai.consistency.study.schema import TABLES
from husai.consistency.study.summary import summary_schema

FOLDER = Path(__file__).parent


def scores_page() -> str:
    """Every score, null and table in one page."""
    lines = [
        "# Scores, nulls and tables",
        "",
        "Made by `python docs/generate.py` from the declarations in the code.",
        "",
        "## Scores",
        "",
        "`signed` uses the cosine itself, `absolute` its absolute value.",
        "",
        "| name | meaning | needs | forms | bounds | perfect | nulls |",
        "|---|---|---|---|---|---|---|",
    ]
    for score in SCORES.values():
        forms = " and ".join("signed" if sign else "absolute" for sign in sorted(score.signs))
        bounds = [score.bounds_of(sign) for sign in sorted(score.signs)]
        if len(score.signs) > 1 and bounds[0] == bounds[1]:
            bounds = bounds[:1]
        spans = ", ".join(f"{low:g} to {high:g}" for low, high in bounds)
        needs = ", ".join(
            need for need in ("decoder", "encoder", "codes", "truth") if need in score.needs
        )
        lines.append(
            f"| `{score.name}` | {score.meaning} | {needs} | {forms} | {spans} | "
            f"{score.perfect:g} | {', '.join(score.nulls) or '–'} |"
        )
    lines += ["", "## Nulls", "", "| name | title | chance of what |", "|---|---|---|"]
    lines += [f"| `{k.name}` | {k.title} | {k.meaning} |" for k in NULL_KINDS.values()]
    lines += ["", "## Tables of a study", ""]
    for table in TABLES.values():
        lines += [
            f"### {table.name}",
            "",
            f"A row: {table.meaning}",
            "",
            "| column | cells | meaning |",
            "|---|---|---|",
            *(
                f"| `{c.name}` | {c.kind}{f', {c.unit}' if c.unit else ''} | {c.meaning} |"
                for c in table.columns
            ),
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


def files() -> dict[Path, str]:
    """Every generated file with its text."""
    schemas = {"compare.json": schema(), "study_summary.json": summary_schema()}
    return {
        FOLDER / "scores.md": scores_page(),
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
