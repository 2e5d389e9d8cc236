"""Cards with everything that needs no model: ambiguity and the probability of coming back."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from husai.consistency.analyses.labels import Labels
from husai.features.ambiguity import ambiguity_tables
from husai.features.cards import FeatureCards, FeatureGroup, feature_cards
from husai.features.config import FeaturesConfig
from husai.features.returning import return_probabilities

_LEAST_SAES = 3  # two leave nothing to learn a probability from


def known_cards(
    group: FeatureGroup,
    families: Sequence[Labels] = (),
    config: FeaturesConfig | None = None,
) -> tuple[FeatureCards, pd.DataFrame]:
    """Make cards with ambiguity and, from three SAEs on, the probability that a new seed has each.

    Parameters are those of :func:`husai.features.feature_cards`.

    Returns
    -------
    cards
        With the columns of :func:`husai.features.ambiguity_tables` and
        :func:`husai.features.return_probabilities`.
    reliability
        Of those probabilities, each SAE left out in turn; empty below four SAEs.

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
