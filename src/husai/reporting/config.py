"""Parameters of the pages: the command that makes them, and thresholds of their sentences."""

from __future__ import annotations

from pydantic import Field

from husai.config import Config


class ReportingConfig(Config):
    """How the study's page is written."""

    same_correlation: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description="matched correlation of codes from which one seed's dictionary is called a "
        "translation of another's",
    )
    comes_back: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="share of features found in every other seed from which the page says that "
        "they come back",
    )
