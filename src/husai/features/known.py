"""Feature cards with all measures that need no model: ambiguity and the return probability."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from husai.consistency.analyses.labels import Labels
from husai.features.ambiguity import ambiguity_tables
from husai.features.cards import FeatureCards, FeatureGroup, feature_cards
from husai.features.config import FeaturesConfig
from husai.features.returning import return_probabilities

_LEAST_SAES = 3  # with two SAEs a probability cannot be learned


def known_cards(
    group: FeatureGroup,
    families: Sequence[Labels] = (),
    config: FeaturesConfig | None = None,
) -> tuple[FeatureCards, pd.DataFrame]:
    """Make cards with ambiguity and, for three SAEs or more, the return probability.

    Parameters
    ----------
    group, families, config
        As for :func:`husai.features.feature_cards`.

    Returns
    -------
    cards
        Cards with the columns of :func:`husai.features.ambiguity_tables` and
        :func:`husai.features.return_probabilities`.
    reliability
        How well those probabilities predicted each SAE when it was left out, see
        :func:`husai.features.reliability`; empty below four SAEs.

    Raises
    ------
    InputError
        As :func:`husai.features.feature_cards`.
    """
    cards = feature_cards(group, families, config)
    cards = cards.join(*ambiguity_tables(cards, config))
    if len(group.live) < _LEAST_SAES:
        return cards, pd.DataFrame()
    features, reliability = return_probabilities(cards, config)
    return cards.join(features), reliability
