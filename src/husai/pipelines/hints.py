"""Type hints of nodes, for types that are slow to import: Kedro resolves hints at every start."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from husai.campaign.features import StudyFeatures
    from husai.campaign.records import StudyRecords
    from husai.consistency import SAERecord
    from husai.features import FeatureCards
else:
    FeatureCards = Figure = SAERecord = StudyFeatures = StudyRecords = object

__all__ = ["FeatureCards", "Figure", "SAERecord", "StudyFeatures", "StudyRecords"]
