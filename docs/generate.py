"""Write the documents made from the code: schemas, scores, nulls, tables, parameters, commands.

    python docs/generate.py

A test checks that the committed files are the ones that this writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel

from husai.activations import ExtractionConfig
from husai.calibration.config import PlantedTruthConfig
from husai.campaign.config import CampaignConfig, LongerConfig
from husai.cli import commands
from husai.compare.document import schema
from husai.consistency.config import ConsistencyConfig
from husai.consistency.inference.nulls import NULL_KINDS
from husai.consistency.scores.registry import SCORES
from husai.consistency.study.beside import BESIDE
from husai.consistency.study.schema import TABLES
from husai.consistency.study.summary import summary_schema
from husai.features import ConsensusConfig, FeaturesConfig
from husai.language.config import (
    ContextsConfig,
    EvaluationConfig,
    LanguageModelConfig,
    ProbesConfig,
    ReadingConfig,
)
from husai.reporting.config import ReportingConfig
from husai.sae import BankTrainingConfig, SAEConfig
from husai.tasks import ModularTaskConfig
from husai.text.config import TextConfig
from husai.tracking.config import TrackingConfig
from husai.transformer import TransformerChoice, TransformerTrainingConfig

FOLDER = Path(__file__).parent

GROUPS: Mapping[str, type[BaseModel]] = {
    "task": ModularTaskConfig,
    "transformer": TransformerChoice,
    "transformer_training": TransformerTrainingConfig,
    "activations": ExtractionConfig,
    "campaign": CampaignConfig,
    "sae_training": BankTrainingConfig,
    "options of an SAE": SAEConfig,
    "consistency": ConsistencyConfig,
    "longer_training": LongerConfig,
    "features": FeaturesConfig,
    "consensus": ConsensusConfig,
    "reporting": ReportingConfig,
    "planted_truth": PlantedTruthConfig,
    "language_model": LanguageModelConfig,
    "text, probe_text": TextConfig,
    "reading": ReadingConfig,
    "contexts": ContextsConfig,
    "evaluation": EvaluationConfig,
    "probes": ProbesConfig,
    "mlflow.yml": TrackingConfig,
}
"""Groups of parameters by their name on the command line, with the model that checks them."""

LIMITS = (
    ("minimum", "≥"),
    ("exclusiveMinimum", ">"),
    ("maximum", "≤"),
    ("exclusiveMaximum", "<"),
)


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
    """The glossary with new lists of scores and nulls."""
    text = (FOLDER / "glossary.md").read_text(encoding="utf-8")
    for name, rows in (("scores", score_rows()), ("nulls", null_rows())):
        begin, end = f"<!-- made by docs/generate.py: {name} -->\n", "<!-- end -->"
        before, rest = text.split(begin)
        text = before + begin + "\n" + "\n".join(rows) + "\n\n" + end + rest.split(end, 1)[1]
    return text


def cell(text: str) -> str:
    """Write a text for a cell of a table, in which a plain bar would begin the next cell."""
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
            f"Each row: {table.meaning}",
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


def values_of(schema: Mapping[str, Any]) -> str:
    """Describe in words the values that a field can have, from its JSON schema."""
    if "enum" in schema or "const" in schema:
        return " or ".join(str(one) for one in schema.get("enum", [schema.get("const")]))
    if "anyOf" in schema or "oneOf" in schema:
        every = [values_of(one) for one in schema.get("anyOf", schema.get("oneOf", []))]
        return " or ".join(dict.fromkeys(every))
    if "$ref" in schema:
        return f"a group: {schema['$ref'].rsplit('/', 1)[-1]}"
    kind = {"string": "text", "array": "list", "object": "by name", "boolean": "true or false"}
    words = [kind.get(schema.get("type", ""), schema.get("type", "any"))]
    if isinstance(schema.get("items"), dict) and schema["items"]:
        words.append(f"of {values_of(schema['items'])}")
    words += [f"{sign} {schema[name]:g}" for name, sign in LIMITS if name in schema]
    return " ".join(words)


def parameter_rows(name: str, model: type[BaseModel]) -> Iterator[str]:
    """A group of parameters as a table, and after it the groups inside it."""
    schema = model.model_json_schema()
    yield f"## {name}"
    yield ""
    yield f"`{model.__name__}`: {(model.__doc__ or '').strip().splitlines()[0]}"
    yield ""
    yield "| field | values | default | meaning |"
    yield "|---|---|---|---|"
    inside: dict[str, type[BaseModel]] = {}
    for field, about in model.model_fields.items():
        described = schema["properties"][field]
        default = json.dumps(described["default"]) if "default" in described else ""
        if about.is_required():
            default = "required"
        meaning = " ".join((about.description or "").split())
        if isinstance(about.annotation, type) and issubclass(about.annotation, BaseModel):
            inside[field] = about.annotation
            default, meaning = "", meaning or "see below"
        values = "a group" if field in inside else values_of(described)
        cells = (f"`{field}`", values, f"`{default}`" if default else "", meaning)
        yield f"| {' | '.join(cell(one) for one in cells)} |"
    yield ""
    for field, group in inside.items():
        yield from parameter_rows(f"{name}.{field}", group)


def parameters_page() -> str:
    """Every parameter, from the models that check them."""
    lines = [
        "# Parameters",
        "",
        "Made by `python docs/generate.py` from the models that check the parameters of every run. "
        "Set them in `conf/` or with `--params GROUP.FIELD=VALUE`; write a list as words with "
        "spaces. The default here is that of the library; `conf/base` has the values of the home "
        "study.",
        "",
    ]
    for name, model in GROUPS.items():
        lines += parameter_rows(name, model)
    return "\n".join(lines).rstrip() + "\n"


def command_help(command: click.Command, context: click.Context) -> Iterator[str]:
    """The help of a command, and of the commands inside it."""
    text = command.get_help(context)
    yield f"## {context.command_path}"
    yield ""
    yield f"```text\n{text}\n```"
    yield ""
    for name, inner in sorted(getattr(command, "commands", {}).items()):
        yield from command_help(inner, click.Context(inner, context, info_name=name))


def commands_page() -> str:
    """The help of every command."""
    settings = {**commands.context_settings, "terminal_width": 100}
    lines = [
        "# Commands",
        "",
        "Made by `python docs/generate.py` from the help of the commands. How to use them: "
        "[compare](../compare.md), [features](../features.md), [studies](../usage.md).",
        "",
        *command_help(commands, click.Context(commands, info_name="husai", **settings)),
    ]
    return "\n".join(lines).rstrip() + "\n"


def files() -> dict[Path, str]:
    """Every generated file with its text."""
    schemas = {"compare.json": schema(), "study_summary.json": summary_schema()}
    return {
        FOLDER / "glossary.md": glossary(),
        FOLDER / "tables.md": tables_page(),
        FOLDER / "reference" / "parameters.md": parameters_page(),
        FOLDER / "reference" / "commands.md": commands_page(),
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
