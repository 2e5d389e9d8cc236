"""Names of :mod:`husai.matching` that can also be imported from ``husai.consistency``."""

from husai.matching.certified import Certificate
from husai.matching.match import match_features, match_signed_and_absolute
from husai.matching.result import Match

__all__ = ["Certificate", "Match", "match_features", "match_signed_and_absolute"]
