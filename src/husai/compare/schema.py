"""The models of the JSON that ``husai compare`` writes, from which its schema is generated."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from husai.consistency.inference.nulls import NULL_KINDS
from husai.consistency.scores.registry import of_pairs

SCHEMA_NAME = "husai.compare"
SCHEMA_VERSION = "2.1"

ScoreName = Annotated[
    str,
    Field(
        json_schema_extra={"enum": [score.name for score in of_pairs()]},
        description="A score of the registry",
    ),
]
NullName = Annotated[str, Field(json_schema_extra={"enum": list(NULL_KINDS)})]


class Entry(BaseModel):
    """A part of the document; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class NullEntry(Entry):
    """A score under one null."""

    mean: float
    sd: float | None = Field(description="null for a single draw")
    draws: int = Field(ge=1)
    corrected: float | None = Field(
        description="(value - mean) / (perfect - mean); null if the mean is the perfect score"
    )
    p_value: float | None = Field(
        gt=0, le=1, description="null where the null's values are not independent draws"
    )


class ScoreEntry(Entry):
    """One score of a pair, beside its nulls."""

    score: ScoreName
    signed: bool = Field(description="true: the cosine itself is used; false: its absolute value")
    value: float | None
    chance: float | None = Field(description="Chance level in closed form, for scores of codes")
    nulls: dict[NullName, NullEntry]
    reason: str = Field(description="Why the value is null")


class OverallEntry(Entry):
    """Mean of one score over all pairs, with an interval over SAEs when there are three or more."""

    score: ScoreName
    signed: bool
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    se: float | None = None
    reason: str = Field(description="Why something is null")


class ThresholdCounts(Entry):
    """Features with and without a partner of at least one similarity."""

    threshold: float
    matched: int = Field(ge=0)
    unmatched_a: int = Field(ge=0)
    unmatched_b: int = Field(ge=0)


class MatchedPairs(Entry):
    """The matching itself: latents by their row of the decoder in the file, from 0."""

    a_index: list[Annotated[int, Field(ge=0)]]
    b_index: list[Annotated[int, Field(ge=0)]]
    cosine: list[float]
    shared: list[bool] | None = Field(
        description="Whether the encoders' match has the pair too, both at the threshold; null in "
        "the absolute match and without encoders"
    )
    exchangeable: list[Annotated[int, Field(ge=0)]] | None = Field(
        default=None,
        description="Partners that A's feature has in some matching within epsilon of the best, "
        "its own included; null where ambiguity is",
    )


class ThresholdRange(Entry):
    """Features matched at one similarity, over all matchings within epsilon of the best."""

    threshold: float
    at_least: int = Field(ge=0, description="In every one of them")
    at_most: int = Field(ge=0, description="Each in some")


class AmbiguityEntry(Entry):
    """How far the match could be another at nearly no loss, from the prices that prove it."""

    epsilon: float = Field(gt=0, description="Most that the sum of similarities may lose")
    ambiguous: float = Field(ge=0, le=1, description="Share of A's features with another partner")
    mean_exchangeable: float = Field(ge=0, description="Partners a feature, its own included")
    score_moves: float = Field(ge=0, description="Most that the mean similarity falls")
    feature_moves: float = Field(ge=0, description="Most that one feature's similarity differs")
    matched: list[ThresholdRange]


class MatchEntry(Entry):
    """One match of the decoders, with its proof."""

    signed: bool
    method: Literal["dense", "sparse"]
    n_pairs: int = Field(ge=1)
    certified: bool = Field(description="Whether the match is proved to be the best")
    gap_bound: float = Field(
        ge=0, description="The best match has a mean similarity at most this much higher"
    )
    largest_violation: float | None = Field(
        description="Bound on the largest violation of the dual over all pairs; null for dense"
    )
    passes: float | None = Field(
        description="Products computed, as a multiple of one pass over all pairs; null for dense"
    )
    thresholds: list[ThresholdCounts]
    ambiguity: AmbiguityEntry | None = Field(
        default=None,
        description="null where it was left out, the match is not proved to be the best, or there "
        "are too many pairs",
    )
    pairs: MatchedPairs | None = Field(
        description="The matching itself, or null when it is in matching_file"
    )


class PairEntry(Entry):
    """The comparison of two SAEs."""

    a: str = Field(description="id of an SAE")
    b: str
    scores: list[ScoreEntry]
    matches: list[MatchEntry] = Field(
        min_length=2, max_length=2, description="by the absolute cosine, and by the signed one"
    )


class FileEntry(Entry):
    """A file that was read."""

    name: str
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Origin(BaseModel):
    """What is known about a source; some formats add further keys."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    path: str | None = None
    files: list[FileEntry] | None = None


class SAEEntry(Origin):
    """One SAE."""

    id: str
    d_sae: int = Field(ge=1, description="Features")
    d: int = Field(ge=1, description="Width of the activations")
    zero_rows: int = Field(ge=0, description="Features whose decoder row is zero; left out")
    has_encoder: bool
    converged: bool | None = Field(description="null: unknown", strict=True)
    format: str | None = None
    architecture: str | None = None
    source: str | None = Field(None, description="Its address, when it came from the hub")
    left_out: str | None = Field(None, description="Why only its decoder is compared")
    contract: dict[str, Any] | None = Field(
        None,
        description="What it reads, as far as its files say: model, hook, hook_out, layer, "
        "position, scale, reshape, and space (the activations that its decoder rows are "
        "directions of)",
    )


class ActivationsEntry(Origin):
    """The activation rows."""

    n_rows: int = Field(ge=2)


class Software(BaseModel):
    """Versions of the software that computed the numbers."""

    model_config = ConfigDict(extra="allow", frozen=True)

    husai: str
    python: str
    numpy: str
    scipy: str


class Document(Entry):
    """Result of comparing two or more sparse autoencoders.

    A change that old readers would misread raises the first number of schema_version, an addition
    the second. 1.1 added scores to those of 1.0, and the null of shared_fraction is that of the
    fraction itself. 1.2 added mismatches. In 2.0 encoders are compared in the data's metric where
    there are activations. 2.1 added ambiguity.
    """

    model_config = ConfigDict(title="husai compare")

    schema_: Literal["husai.compare"] = Field(alias="schema")
    schema_version: str = Field(pattern=r"^[12]\.\d+$")
    created: str = Field(description="UTC, ISO 8601")
    software: Software
    options: dict[str, Any] = Field(description="Every option of the comparison, defaults included")
    activations: ActivationsEntry | None = Field(
        description="The activation rows, when there were any"
    )
    saes: list[SAEEntry] = Field(min_length=2)
    mismatches: list[str] = Field(
        default_factory=list,
        description="Contradictions between the SAEs about what they read: a sentence for each "
        "field of their contracts",
    )
    pairs: list[PairEntry] = Field(min_length=1)
    overall: list[OverallEntry]
    encoder_metric: Literal["data", "raw"] | None = Field(
        default=None,
        description="Metric in which encoder rows are compared: data, the covariance of the "
        "activations; raw, the plain rows; null if no SAE has an encoder",
    )
    matching_file: str | None = Field(
        description="Parquet file beside this one with the matchings, if they are too many for "
        "this document"
    )


def schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of the document, generated from :class:`Document`."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Document.model_json_schema(mode="serialization"),
    }
