"""Feature cards: all that is known about each feature of a group of SAEs, as data frames.

The SAEs of a group read the same rows and differ in the seed. Each feature of each of them is
matched with one partner in every other seed. A card says how similar a feature is to its partners
and which they are, what it means, and how often and how strongly it fires.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse, stats

from husai.consistency.analyses.explanation import explain_latents
from husai.consistency.analyses.labels import Classes, Labels
from husai.consistency.config import ConsistencyConfig
from husai.consistency.inference.seeds import Matches, match_all
from husai.consistency.scores.codes import whole_codes
from husai.consistency.study.features import feature_table
from husai.consistency.study.record import (
    LiveSAE,
    SAERecord,
    check_records,
    live_codes,
    live_sae,
    with_firing_rates,
)
from husai.errors import InputError
from husai.features.config import FeaturesConfig
from husai.matching.match import unit_rows

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class FeatureGroup:
    """SAEs of one space, matched pair by pair: the input of every measure of features.

    Attributes
    ----------
    name
        Name of the group.
    live
        The SAEs, each with the latents that are compared.
    matches
        For each pair of positions ``s < t`` the best one-to-one match by |cosine|; its indices
        count live latents.
    codes
        ``[n_rows, n_live]`` codes of each SAE's live latents on the same rows, or None.
    """

    name: str
    live: Sequence[LiveSAE]
    matches: Matches
    codes: Sequence[sparse.csc_array] | None

    @property
    def ids(self) -> list[str]:
        """The SAEs' names."""
        return [one.record.id for one in self.live]

    @property
    def names(self) -> list[str]:
        """The SAEs' names on a page: their seeds where no two are equal, else their ids."""
        seeds = [one.record.seed for one in self.live]
        return [f"seed {seed}" for seed in seeds] if len(set(seeds)) == len(seeds) else self.ids

    def partners(self, s: int, t: int) -> tuple[NDArray[np.int64], Floats]:
        """Return ``[n_live]`` partners in SAE t of the latents of SAE s, and the signed cosines.

        Without a partner the index is -1 and the cosine NaN.
        """
        n = len(self.live[s].index)
        found, cosine = np.full(n, -1), np.full(n, np.nan)
        match = self.matches[min(s, t), max(s, t)]
        here, there = match.a_index, match.b_index
        if s > t:
            here, there = there, here
        found[here], cosine[here] = there, match.cosine
        return found, cosine


def feature_group(records: Sequence[SAERecord], *, name: str = "") -> FeatureGroup:
    """Match every pair of SAEs of one group.

    Parameters
    ----------
    records
        Two or more SAEs of one space. With codes of the same rows (see
        :func:`husai.consistency.with_codes`), latents that never fire are left out.
    name
        Name of the group; when empty, the first SAE's group name.

    Raises
    ------
    InputError
        When there are fewer than two, they do not fit together, or one has no live latent.
    """
    check_records(records)
    if len(records) < 2:
        raise InputError(f"{records[0].id}: one SAE has no partners; give at least two")
    encoded = all(one.codes is not None for one in records)
    found = with_firing_rates(records) if encoded else list(records)
    config = ConsistencyConfig(dead="drop" if encoded else "keep")
    live = [
        live_sae(one, config.dead, codes=live_codes(one, config) if encoded else None)
        for one in found
    ]
    for one in live:
        if not len(one.index):
            raise InputError(f"{one.record.id}: none of its latents fires on these rows")
    codes = None
    if encoded:
        codes = [
            sparse.csc_array(sparse.csc_array(whole_codes(one.record.codes))[:, one.index])
            for one in live
            if one.record.codes is not None
        ]
    matches = match_all([one.decoder for one in live])
    return FeatureGroup(name or records[0].group_name, live, matches, codes)


@dataclass(frozen=True)
class FeatureCards:
    """All that is known about each feature.

    Attributes
    ----------
    group
        The SAEs and their matches.
    features
        A row per SAE and live latent: ``id``, ``latent``, ``reproducibility`` (mean |cosine| to
        its partners) with ``low`` and ``high``, ``n_seeds_found``, ``n_other_seeds``,
        ``similarity_min``, ``similarity_max``; with codes ``firing_rate``, ``mean_activation``
        (where it fires) and ``max_activation``; with labels ``kind``, ``label``, ``r2``,
        ``average_precision``; and the columns of each measure that was joined, see :meth:`join`.
    partners
        A row per feature and other SAE: ``id``, ``latent``, ``other_id``, ``other_latent`` (-1 for
        none), ``cosine``, ``similarity``.
    notes
        Sentences about the measures, shown on the page.
    """

    group: FeatureGroup
    features: pd.DataFrame
    partners: pd.DataFrame
    notes: Sequence[str] = field(default=())

    def join(
        self,
        features: pd.DataFrame | None = None,
        partners: pd.DataFrame | None = None,
        notes: Sequence[str] = (),
    ) -> FeatureCards:
        """Add the columns of a measure, and its notes.

        Parameters
        ----------
        features
            One row per ``id`` and ``latent``.
        partners
            One row per ``id``, ``latent`` and ``other_id``.
        notes
            Sentences about the measure.
        """
        own, pairs = self.features, self.partners
        if features is not None:
            own = own.merge(features, on=["id", "latent"], how="left", validate="one_to_one")
        if partners is not None:
            pairs = pairs.merge(
                partners, on=["id", "latent", "other_id"], how="left", validate="one_to_one"
            )
        return FeatureCards(self.group, own, pairs, (*self.notes, *notes))


def feature_cards(
    group: FeatureGroup,
    families: Sequence[Labels] = (),
    config: FeaturesConfig | None = None,
) -> FeatureCards:
    """Collect for each feature its similarity to its partners, its label and its activity.

    Parameters
    ----------
    group
        From :func:`feature_group`.
    families
        Labels of the rows of the codes, as candidates for what a latent means: see
        :func:`husai.consistency.table_labels` and :func:`husai.consistency.modular_labels`.
    config
        ``threshold``, ``level`` and ``label_r2`` are used.

    Raises
    ------
    InputError
        When labels are given without codes, or their rows are not those of the codes.
    """
    config = config or FeaturesConfig()
    shared = ConsistencyConfig(shared_threshold=config.threshold)
    features = feature_table(group.name, group.live, "full", group.matches, shared)
    features = features.drop(columns=["group", "space", "track", "track_similarity"])
    partners = _partner_table(group)
    ends = partner_intervals(partners, config.level)
    features = features.merge(ends, on=["id", "latent"], how="left", validate="one_to_one")
    if group.codes is not None:
        activity = _activity(group.codes)
        features = pd.concat([features.drop(columns="firing_rate"), activity], axis=1)
    if families:
        if group.codes is None:
            raise InputError("labels: the SAEs have no codes to explain; give rows of activations")
        labels = [
            explain_latents(codes, families, least_r2=config.label_r2).latents
            for codes in group.codes
        ]
        columns = ["kind", "family", "label", "r2", "average_precision", "f1_best"]
        features = pd.concat([features, pd.concat(labels, ignore_index=True)[columns]], axis=1)
    return FeatureCards(group, features, partners)


def _partner_table(group: FeatureGroup) -> pd.DataFrame:
    tables = []
    for s, one in enumerate(group.live):
        for t, other in enumerate(group.live):
            if s == t:
                continue
            found, cosine = group.partners(s, t)
            tables.append(
                pd.DataFrame(
                    {
                        "id": one.record.id,
                        "latent": one.index,
                        "other_id": other.record.id,
                        "other_latent": np.where(found >= 0, other.index[found], -1),
                        "cosine": cosine,
                        "similarity": np.nan_to_num(np.abs(cosine)),
                    }
                )
            )
    return pd.concat(tables, ignore_index=True)


def partner_intervals(partners: pd.DataFrame, level: float) -> pd.DataFrame:
    """Compute an interval for each feature's mean similarity to its partners, by Student's t.

    The other seeds are the sample; the interval is for the mean over many more seeds. With fewer
    than two other seeds its ends are NaN.

    Parameters
    ----------
    partners
        :attr:`FeatureCards.partners`.
    level
        Confidence level, between 0 and 1.

    Returns
    -------
    pandas.DataFrame
        ``id``, ``latent``, ``low``, ``high``.
    """
    by = partners.groupby(["id", "latent"], sort=False)["similarity"]
    table = pd.DataFrame({"mean": by.mean(), "sd": by.std(ddof=1), "n": by.size()}).reset_index()
    half = stats.t.ppf((1 + level) / 2, np.maximum(table["n"] - 1, 1)) * table["sd"]
    half = half / np.sqrt(table["n"])
    return table[["id", "latent"]].assign(
        low=(table["mean"] - half).clip(0, 1), high=(table["mean"] + half).clip(0, 1)
    )


def _activity(codes: Sequence[sparse.csc_array]) -> pd.DataFrame:
    """For each latent: share of the rows on which it fires, mean activation there, largest one."""
    rates, means, largest = [], [], []
    for one in codes:
        fires = np.maximum(np.diff(one.indptr), 1)
        rates.append(np.diff(one.indptr) / one.shape[0])
        means.append(np.asarray(one.sum(axis=0)).ravel() / fires)
        largest.append(np.asarray(one.max(axis=0).todense()).ravel())
    return pd.DataFrame(
        {
            "firing_rate": np.concatenate(rates),
            "mean_activation": np.concatenate(means),
            "max_activation": np.concatenate(largest),
        }
    )


def unit_decoder(group: FeatureGroup, s: int) -> Floats:
    """Return the ``[n_live, d]`` decoder rows of SAE s, in float64 and of unit norm."""
    return unit_rows(group.live[s].record.W_dec[group.live[s].index])


def single_class(families: Sequence[Labels]) -> NDArray[np.int64] | None:
    """Return ``[n_rows]`` classes of the first family that gives each row exactly one class.

    None when there is no such family.
    """
    for family in families:
        if isinstance(family, Classes) and len(family.names) > 1:
            counts = np.diff(family.members.indptr)
            if (counts == 1).all():
                return np.asarray(family.members.indices, dtype=np.int64)
    return None
