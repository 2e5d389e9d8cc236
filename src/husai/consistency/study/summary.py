"""The model of a study's ``summary.json``, from which its JSON schema is generated."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, create_model

from husai.consistency.study.schema import TABLES

SCHEMA_NAME = "husai.consistency"
SCHEMA_VERSION = "4.0"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataSubspace(_Part):
    """The data's principal subspace at one hook: the space ``data`` of the tables."""

    hook: str | None = None
    dimensions: int = Field(ge=1)
    variance: float = Field(ge=0, le=1 + 1e-9, description="share of the data's variance inside")


class RowsRead(_Part):
    """Activations that the SAEs were trained on."""

    hook: str
    fingerprint: str = Field(pattern="^[0-9a-f]{16}$")


class TransformerRead(_Part):
    """The transformer whose activations these are."""

    name: str = Field(description="its name if shipped with the project; empty if trained here")
    seed: int = Field(description="seed of its initial weights")
    fingerprint: str = Field(pattern="^[0-9a-f]{16}$", description="fingerprint of its weights")


class Provenance(_Part):
    """What the numbers were made from, and with which software."""

    plan: list[str] = Field(min_length=1, description="Ids of the SAEs")
    seeds: list[int] = Field(min_length=1)
    activations: list[RowsRead] = Field(min_length=1)
    transformer: TransformerRead | None = Field(
        default=None, description="null for the user's own rows"
    )
    versions: dict[str, str]
    commit: str | None = Field(default=None, pattern="^[0-9a-f]{40}$")
    dirty: bool | None = None


class _Summary(_Part):
    """The summary of a study's consistency.

    A change that old readers would misread raises the first number of schema_version, an addition
    the second. A value that is not defined is null; reason says why. 3.0 renamed the score
    shared_decoder to matched_fraction; 3.1 names the transformer; 3.2 added coverage of labels and
    kinds of features. In 4.0 encoders are compared in the data's metric, an SAE is converged by the
    motion of its decoder, and the untrained model is no null.
    """

    schema_: Literal["husai.consistency"] = Field(alias="schema")
    schema_version: Literal["4.0"]
    config: dict[str, Any] = Field(
        description="husai.consistency.ConsistencyConfig, defaults included"
    )
    n_saes: int = Field(ge=1)
    n_groups: int = Field(ge=1)
    n_converged: int = Field(ge=0)
    n_convergence_unknown: int = Field(ge=0)
    data_subspaces: list[DataSubspace]
    metrics: dict[str, dict[str, float]] = Field(
        description="Tracked numbers by group, then by score, sign and space"
    )
    provenance: Provenance


_GroupRow, _TruthRow, _CoverageRow, _KindRow = (
    TABLES[name].row_model() for name in ("groups", "truth", "coverage", "kinds")
)
StudySummary = create_model(
    "StudySummary",
    __base__=_Summary,
    __doc__=_Summary.__doc__,
    groups=(list[_GroupRow], Field(min_length=1)),  # type: ignore[valid-type]
    truth=(list[_TruthRow], ...),  # type: ignore[valid-type]
    coverage=(list[_CoverageRow], Field(default_factory=list)),  # type: ignore[valid-type]
    kinds=(list[_KindRow], Field(default_factory=list)),  # type: ignore[valid-type]
)


def summary_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a study's ``summary.json``."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **StudySummary.model_json_schema(by_alias=True),
    }


def checked_summary(summary: dict[str, Any]) -> dict[str, Any]:
    """Return the summary as plain JSON values that follow the published schema.

    Raises
    ------
    pydantic.ValidationError
        When it does not.
    """
    model = StudySummary.model_validate(summary)
    return model.model_dump(mode="json", by_alias=True, exclude_unset=True)


def tracked_metrics(groups: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Return each group's scores, and their corrected scores, by name, for tracking."""
    metrics: dict[str, dict[str, float]] = {}
    wanted = groups[groups["score"].isin(["pw_mcc", "mmcs", "shared_fraction"])]
    for row in wanted.to_dict("records"):
        name = f"{row['score']}{'_signed' if row['signed'] else ''}_{row['space']}"
        found = metrics.setdefault(row["group"], {})
        for label, column in (
            (name, "mean"),
            (f"{name}_above_isotropic", "isotropic_corrected"),
            (f"{name}_above_permuted", "permuted_corrected"),
        ):
            if pd.notna(row.get(column)):
                found[label] = float(row[column])
    return metrics


def plain_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a table's rows as plain values, with None for what is missing (JSON has no NaN)."""
    return [
        {str(key): _plain(value) for key, value in row.items()} for row in table.to_dict("records")
    ]


def _plain(value: Any) -> Any:
    if value is None or value is pd.NA:
        return None
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
