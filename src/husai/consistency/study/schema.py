"""The study's tables, declared once: columns, types, units, ranges and what they mean."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import pandas as pd
from pandas.api import types as dtypes
from pydantic import BaseModel, ConfigDict, Field, create_model

from husai.consistency.inference.nulls import NULL_KINDS
from husai.consistency.scores.registry import of_pairs

Kind = Literal["text", "integer", "number", "flag"]

# Rounding may carry a mean of ones above one.
_ROUNDING = 1e-6


class TableError(ValueError):
    """A table that does not follow its declaration."""


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes
    ----------
    name, kind, meaning
        What it is called, what its cells are, and what they say.
    unit
        Of a number; empty for one without.
    low, high
        Least and greatest value, or None.
    nullable
        Whether a cell may be missing.
    optional
        Whether the whole column may be missing, or cells of it.
    values
        Texts that it may hold; empty for any.
    """

    name: str
    kind: Kind
    meaning: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    nullable: bool = False
    optional: bool = False
    values: tuple[str, ...] = ()

    def problem(self, cells: pd.Series[Any]) -> str:
        """Say what is wrong with the cells; empty when nothing is."""
        missing = cells.isna()
        if missing.any() and not (self.nullable or self.optional):
            return f"{int(missing.sum())} of {len(cells)} cells are missing"
        known = cells[~missing]
        if not len(known):
            return ""
        if not self._fits(known):
            return f"holds {known.iloc[0]!r}, which is not of kind {self.kind}"
        if self.values and not known.isin(self.values).all():
            return f"holds {known[~known.isin(self.values)].iloc[0]!r}, not of {self.values}"
        if self.kind in ("integer", "number"):
            numbers = known.astype(float)
            for end, bad in (
                (self.low, numbers < (self.low or 0.0) - _ROUNDING),
                (self.high, numbers > (self.high or 0.0) + _ROUNDING),
            ):
                if end is not None and bad.any():
                    return f"holds {numbers[bad].iloc[0]:g}, outside [{self.low}, {self.high}]"
        return ""

    def _fits(self, known: pd.Series[Any]) -> bool:
        """Whether every cell is of the kind."""
        if self.kind == "text":
            return all(isinstance(cell, str) for cell in known)
        if self.kind == "flag":
            return all(cell in (True, False) for cell in known)
        if not dtypes.is_numeric_dtype(known.infer_objects()):
            return False
        return self.kind == "number" or bool((known.astype(float) % 1 == 0).all())

    @property
    def field(self) -> tuple[Any, Any]:
        """Type and Pydantic field of a row's cell."""
        type_: Any = {"text": str, "integer": int, "number": float, "flag": bool}[self.kind]
        if self.values:
            type_ = Literal[self.values]
        may_miss = self.nullable or self.optional
        text = f"{self.meaning} [{self.unit}]" if self.unit else self.meaning
        bounded = self.kind in ("integer", "number")
        default: Any = None if may_miss else ...
        return (
            type_ | None if may_miss else type_,
            Field(
                default=default,
                description=text,
                ge=self.low if bounded else None,
                le=self.high if bounded else None,
            ),
        )


@dataclass(frozen=True)
class Table:
    """One table: its name, what a row is, and its columns."""

    name: str
    meaning: str
    columns: tuple[Column, ...]

    def check(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the frame as it is, or say what does not follow the declaration.

        Raises
        ------
        TableError
            Names the table, the column and the value.
        """
        declared = {column.name: column for column in self.columns}
        if unknown := [str(name) for name in frame if name not in declared]:
            raise TableError(f"table {self.name}: columns {unknown} are not declared")
        for column in self.columns:
            if column.name not in frame:
                if not column.optional and len(frame):
                    raise TableError(f"table {self.name}: column {column.name!r} is missing")
                continue
            if problem := column.problem(frame[column.name]):
                raise TableError(f"table {self.name}, column {column.name}: {problem}")
        return frame

    def row_model(self) -> type[BaseModel]:
        """Give the Pydantic model of one row."""
        fields: dict[str, Any] = {column.name: column.field for column in self.columns}
        config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
        name = f"{self.name.capitalize()}Row"
        return create_model(name, __config__=config, __doc__=self.meaning, **fields)


def _text(name: str, meaning: str, **fields: Any) -> Column:
    return Column(name, "text", meaning, **fields)


def _count(name: str, meaning: str, **fields: Any) -> Column:
    return Column(name, "integer", meaning, **{"low": 0, **fields})


def _number(name: str, meaning: str, **fields: Any) -> Column:
    return Column(name, "number", meaning, **{"nullable": True, **fields})


def _share(name: str, meaning: str, **fields: Any) -> Column:
    return _number(name, meaning, low=0.0, high=1.0, **fields)


def _flag(name: str, meaning: str, **fields: Any) -> Column:
    return Column(name, "flag", meaning, **fields)


HOOK = _text("hook", "id of the activations, HOOK_NAME@POSITION", optional=True)
GROUP = _text("group", "SAEs that differ in their seed only")
ID = _text("id", "id of the SAE")
CONVERGED = _flag("converged", "whether every convergence gate is passed", nullable=True)
REASON = _text("reason", "why something is missing; empty otherwise", nullable=True)
SPACE = _text("space", "all dimensions, or the data's principal subspace", values=("full", "data"))
SCORE = _text(
    "score", "name in the registry of scores", values=tuple(score.name for score in of_pairs())
)
SIGNED = _flag("signed", "whether the cosine itself counts, or its absolute value")
ARCHITECTURE = _text("architecture", "kind of SAE")
WIDTH = _count("d_sae", "latents of an SAE", low=1)
SETTINGS = (
    _number("k", "latents that may fire on a row", low=0),
    _number("l1_coefficient", "weight of the L1 penalty", low=0),
)
L0 = _number("l0", "mean number of latents that fire on a row", low=0)
HEAD = (
    GROUP,
    ARCHITECTURE,
    WIDTH,
    *SETTINGS,
    L0,
    SPACE,
    _count("dimensions", "dimensions of the space", low=1),
    _count("n_live", "latents that take part, mean over SAEs"),
    _count("n_seeds", "SAEs of the group", low=1),
    CONVERGED,
    _count("n_converged", "SAEs whose gate is passed"),
)
INTERVAL = (
    _number("mean", "mean, over pairs of SAEs or over SAEs"),
    _number("low", "lower end of the interval over seeds"),
    _number("high", "upper end of the interval over seeds"),
)


def _null_columns() -> Iterator[Column]:
    parts = (
        ("mean", "mean of the null", None, None),
        ("sd", "standard deviation of the null", 0.0, None),
        ("corrected", "(score - null) / (perfect - null)", None, 1.0),
        ("p", "one-sided p-value of the score", 0.0, 1.0),
        ("z", "(score - null) over the null's standard deviation", None, None),
        ("p_adjusted", "p over the groups of one score and space (Benjamini-Hochberg)", 0.0, 1.0),
    )
    for kind in NULL_KINDS.values():
        for part, meaning, low, high in parts:
            yield _number(
                f"{kind.name}_{part}",
                f"null {kind.name} ({kind.title}): {meaning}",
                low=low,
                high=high,
                optional=True,
            )
    for part, meaning in (
        ("difference", "trained minus untrained"),
        ("low", "lower end of that difference's interval"),
        ("high", "upper end of that difference's interval"),
        ("effect", "Hedges' g of that difference over seeds"),
    ):
        yield _number(f"untrained_{part}", f"null untrained: {meaning}", optional=True)
    yield _text(
        "untrained_reason", "why the untrained null is missing", nullable=True, optional=True
    )


_PLANE_MEASURES = ("recall", "covered", "mean_purity", "in_plane", "mean_rho", "mean_energy")

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        Table(
            "saes",
            "An SAE.",
            (
                *(GROUP, ID, ARCHITECTURE, WIDTH, *SETTINGS),
                _count("seed", "the seed that was varied"),
                _count("n_live", "latents that take part"),
                _count("n_dead", "latents that never fire", nullable=True),
                L0,
                _number("fvu", "fraction of variance unexplained", low=0),
                CONVERGED,
                _share("cosine_to_init", "mean |cosine| of decoder rows to their initial rows"),
                _share("share_in_data_span", "squared norm of decoder rows inside the data's span"),
                *(
                    _share(f"plane_{name}", f"plane recovery: {name}", optional=True)
                    for name in (*_PLANE_MEASURES, "gt_mcc")
                ),
                *(
                    _share(f"gt_mcc_phase_{end}", f"GT-MCC over phases: {end}", optional=True)
                    for end in ("mean", "min", "max", "chance")
                ),
                HOOK,
            ),
        ),
        Table(
            "pairs",
            "A pair of SAEs, a space, a score and a sign.",
            (
                GROUP,
                _flag("within", "whether both SAEs are of one group"),
                *(_text(f"id_{side}", f"id of SAE {side}") for side in "ab"),
                *(_count(f"seed_{side}", f"seed of SAE {side}") for side in "ab"),
                SPACE,
                *(_count(f"n_{side}", f"latents of SAE {side} that take part") for side in "ab"),
                CONVERGED,
                *(SCORE, SIGNED),
                _number("value", "the score"),
                _number("chance", "its chance level in closed form"),
                REASON,
                HOOK,
            ),
        ),
        Table(
            "groups",
            "A group, a space, a score and a sign, with interval and nulls.",
            (
                *(*HEAD, SCORE, SIGNED, *INTERVAL),
                _number("se", "standard error over seeds", low=0, optional=True),
                _count("n_pairs", "pairs of SAEs", nullable=True, optional=True),
                _text("interval", "how the interval was made", nullable=True, optional=True),
                REASON,
                *_null_columns(),
                HOOK,
            ),
        ),
        Table(
            "comparisons",
            "A pair of groups, a space, a score and a sign: their difference over seeds.",
            (
                *(replace(GROUP, name=f"group_{side}") for side in "ab"),
                *(SPACE, SCORE, SIGNED),
                _number("difference", "mean of group a minus mean of group b"),
                _number("low", "lower end of the interval over seeds"),
                _number("high", "upper end of the interval over seeds"),
                _number("se", "standard error over seeds", low=0),
                _number("effect", "Hedges' g on the seeds' pseudo-values"),
                _share("p", "t-test over seeds"),
                _share("permutation_p", "permutation of which SAE is of which group"),
                _share("least_p", "smallest p that permutations of these sizes can give"),
                REASON,
                *(replace(L0, name=f"l0_{side}") for side in "ab"),
                _flag("matched_l0", "whether L0 is within a tenth", nullable=True),
                CONVERGED,
                _share("p_adjusted", "Holm over the table's rows of one space, score and sign"),
                HOOK,
            ),
        ),
        Table(
            "seeds",
            "A group and a space: many seeds together.",
            (
                *HEAD,
                _text("path", "seeds in the order of the best path", nullable=True, optional=True),
                _number("path_mean", "mean PW-MCC along the path", optional=True),
                _text("path_method", "how the path was found", nullable=True, optional=True),
                _number("path_gap", "what a better path could gain", optional=True),
                _number("pair_mean", "mean PW-MCC of all pairs", optional=True),
                _number("selected_mean", "mean of best paths of shuffled scores", optional=True),
                _number("selected_sd", "their standard deviation", low=0, optional=True),
                _share("path_p", "share of shuffles with a path as good", optional=True),
                _text("tree", "edges of the spanning tree", nullable=True, optional=True),
                _number("tree_mean", "mean PW-MCC of its edges", optional=True),
                REASON,
                _share("cycle_fraction", "features that three matches lead back", optional=True),
                _share("cycle_complete", "features with a partner at every step", optional=True),
                _share("cycle_chance", "cycle fraction of random maps", optional=True),
                _share("cycle_isotropic", "cycle fraction of random directions", optional=True),
                HOOK,
            ),
        ),
        Table(
            "retention",
            "A group, a space and a number of hops.",
            (
                *(GROUP, ARCHITECTURE, WIDTH, SETTINGS[0], SPACE, CONVERGED),
                _count("hops", "matches that are followed", low=1),
                _share("retention", "features carried to their direct partner"),
                _share("complete", "features with a partner at every hop"),
                _count("n_paths", "paths behind the mean", low=1),
                HOOK,
            ),
        ),
        Table(
            "features",
            "A latent of an SAE in one space.",
            (
                *(GROUP, ID),
                _count("latent", "row of the decoder, from 0"),
                SPACE,
                _count("track", "track of the alignment; -1 for none", low=-1, optional=True),
                _count("n_other_seeds", "other SAEs of the group"),
                _count("n_seeds_found", "of them, those matched at the threshold", optional=True),
                _share("reproducibility", "mean similarity to its partners", optional=True),
                _share("similarity_min", "least similarity to a partner", optional=True),
                _share("similarity_max", "greatest similarity to a partner", optional=True),
                _share("track_similarity", "mean similarity along its track", optional=True),
                _share("firing_rate", "rows on which it fires", optional=True),
                _share("cosine_to_init", "|cosine| to its own initial row", optional=True),
                _number(
                    "cosine_to_encoder",
                    "cosine to its own encoder row",
                    low=-1.0,
                    high=1.0,
                    optional=True,
                ),
                CONVERGED,
                _count("plane", "true plane that it is nearest to", low=-1, optional=True),
                _share("rho", "norm of its part in that plane", optional=True),
                _share("purity", "that plane's part of what lies in any plane", optional=True),
                _share("energy", "squared norm in all true planes", optional=True),
                _number("angle", "direction within the plane", unit="radians", optional=True),
                _flag("in_plane", "whether rho reaches the threshold", optional=True),
                HOOK,
            ),
        ),
        Table(
            "strata",
            "Features of one group and space with like firing rates.",
            (
                *(GROUP, SPACE),
                _share("rate_low", "least firing rate"),
                _number("rate_high", "greatest firing rate", low=0),
                _count("n_features", "features", low=1),
                _share("firing_rate", "geometric mean of their firing rates"),
                _share("reproducibility", "mean reproducibility"),
                _share("found_fraction", "mean of seeds found over other seeds"),
                _share("orphan_fraction", "features found in no other seed"),
                CONVERGED,
                HOOK,
            ),
        ),
        Table(
            "planes",
            "An SAE and a true plane.",
            (
                *(GROUP, ID),
                _count("plane", "number of the plane"),
                _share("best_rho", "largest norm of a feature's part in the plane"),
                _flag("recovered", "whether some feature reaches the threshold"),
                _count("n_features", "features in the plane"),
                _share("resultant", "length of their mean direction"),
                _share("axial_resultant", "length of their mean axis"),
                _number("largest_gap", "largest angle without a feature", unit="radians"),
                _number("even_gap", "that angle were they evenly spread", unit="radians"),
                _share("rayleigh_p", "Rayleigh's test of even directions"),
                _flag("covered", "whether they span the plane"),
                CONVERGED,
                HOOK,
            ),
        ),
        Table(
            "truth",
            "A group and a measure of plane recovery, with interval and nulls.",
            (
                *HEAD,
                _text("measure", "name of the measure"),
                *(replace(column, low=0.0, high=1.0, optional=True) for column in INTERVAL),
                replace(REASON, optional=True),
                *(
                    _number(f"{kind}_{part}", f"null {kind}: {part}", optional=True)
                    for kind in ("isotropic", "data_aware")
                    for part in ("mean", "sd", "p")
                ),
                HOOK,
            ),
        ),
    )
}
"""Every table of a report by its name."""
