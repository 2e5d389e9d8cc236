"""Parameters of the pages: the thresholds of their sentences."""

from __future__ import annotations

from pydantic import Field

from husai.config import Config


class ReportingConfig(Config):
    """Thresholds of the sentences on the study's page."""

    same_correlation: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description="least matched correlation of codes at which one seed's dictionary is called a "
        "translation of another's",
    )
    comes_back: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="least share of features found in every other seed at which the page says that "
        "they come back",
    )
