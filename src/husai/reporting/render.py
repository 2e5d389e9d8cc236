"""Fills in the templates of pages, and formats numbers for them.

If a template uses a name that is not given, this is an error and not an empty place on the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from husai.config import HOME_STUDY
from husai.consistency.analyses.gate import MOTION_STEPS

DASH = "–"


def render(template: str, **values: Any) -> str:
    """Fill in a template of this package.

    Parameters
    ----------
    template
        Its file name in ``reporting/templates``.
    values
        The values that it needs, by name.

    Raises
    ------
    jinja2.UndefinedError
        When the template uses a name that is not given.
    """
    return environment().get_template(template).render(values)


@cache
def environment() -> Environment:
    """Return the Jinja2 environment of all templates."""
    made = Environment(
        loader=PackageLoader("husai.reporting"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    made.filters |= {
        "number": number,
        "percent": percent,
        "interval": interval,
        "dagger": dagger,
        "words": lambda name: str(name).replace("_", " "),
    }
    made.globals |= {"dash": DASH, "home_study": HOME_STUDY, "motion_steps": MOTION_STEPS}
    return made


def number(value: Any, digits: int = 3) -> str:
    """Write a number, or a dash if it is missing."""
    return DASH if value is None or pd.isna(value) else f"{value:.{digits}f}"


def percent(share: Any, digits: int = 0) -> str:
    """Write a share as a percentage."""
    return DASH if share is None or pd.isna(share) else f"{100 * share:.{digits}f} %"


def interval(
    row: Mapping[str, Any],
    value: str = "mean",
    low: str = "low",
    high: str = "high",
    digits: int = 2,
) -> str:
    """Write the value of a row, with its interval if it has one."""
    text = number(row.get(value), digits)
    ends = row.get(low), row.get(high)
    if text == DASH or any(end is None or pd.isna(end) for end in ends):
        return text
    return f"{text} [{number(ends[0], digits)}, {number(ends[1], digits)}]"


def dagger(converged: Any) -> str:
    """Return a dagger if something is known not to be converged, else nothing."""
    unknown = converged is None or pd.isna(converged)
    return "" if unknown or bool(converged) else " †"


def reasons(table: pd.DataFrame) -> list[str]:
    """List the different reasons in a table for missing values."""
    return list(dict.fromkeys(table["reason"].dropna().astype(str))) if "reason" in table else []


def all_converged(flags: pd.Series) -> bool:
    """Whether none of the SAEs is known not to be converged."""
    return all(bool(flag) for flag in flags.dropna())


def mean_of(values: pd.Series) -> float | None:
    """Mean of the values that are known, or None."""
    known = values.astype(float).dropna()
    return float(known.mean()) if len(known) else None


def made_by(provenance: Mapping[str, Any]) -> str:
    """Write the commit and the versions with which the numbers of a page were made."""
    versions = ", ".join(f"{k} {v}" for k, v in provenance.get("versions", {}).items())
    commit = str(provenance.get("commit", "unknown"))[:12]
    dirty = " with changes" if provenance.get("dirty") else ""
    return f"Commit {commit}{dirty}; {versions}."
