"""Function where each ablation is a run of a large model: some features, on some of their rows.

The estimand is that of :mod:`husai.features.function`: the Pearson correlation, over all rows and
outputs, of what two ablations change. A latent changes nothing on rows on which it does not fire,
so every sum in it is a sum over the rows on which one latent, or both, fire. Each is estimated from
a random sample of those rows; two latents that never fire together have no product to estimate. The
error is that of the samples, by bootstrap over their rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from husai.errors import InputError
from husai.features.cards import FeatureCards, FeatureGroup
from husai.features.config import FeaturesConfig
from husai.features.function import (
    ROLES,
    FunctionTables,
    Measured,
    column_rows,
    column_values,
    measured_rows,
    outputs_of,
    role_partners,
    substitution,
)
from husai.features.readouts import Readout
from husai.features.strata import function_strata

Floats = NDArray[np.float64]

_RESAMPLES = 200


class _Sums(NamedTuple):
    """Of a latent's changes on sampled rows: sum and sum of squares a row, and how many fire."""

    changes: Floats  # [n, 2]
    n_fires: int


@dataclass(frozen=True)
class _Sampler:
    """Ablations of a group's latents on sampled rows."""

    group: FeatureGroup
    codes: list[sparse.csc_array]
    rows: Measured
    readout: Readout
    n_rows: int

    def changes(self, s: int, latent: NDArray[np.int64], row: NDArray[np.int64]) -> Floats:
        """``[n, m]`` change of the outputs on rows when latents of SAE s are ablated there."""
        W_dec = self.group.live[s].record.W_dec[self.group.live[s].index]
        value = column_values(self.codes[s], row, latent)
        changed = self.rows.values[row] - value[:, None] * W_dec[latent]
        found = outputs_of(self.readout, self.rows.chosen[row], changed) - self.rows.outputs[row]
        return np.asarray(found, dtype=np.float64)

    def draw(self, fires: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Up to ``n_rows`` of some rows."""
        if len(fires) <= self.n_rows:
            return fires
        return rng.choice(fires, self.n_rows, replace=False)


def sampled_function(
    cards: FeatureCards,
    values: NDArray[Any],
    readout: Readout,
    config: FeaturesConfig | None = None,
) -> FunctionTables:
    """Compare what partners do in the model, for a random part of the features of each SAE.

    Parameters
    ----------
    cards
        From :func:`husai.features.feature_cards`.
    values
        ``[n_rows, d]`` the activations that were encoded.
    readout
        With ``unchanged``: to run the model on every row by itself would be too much.
    config
        ``function_features`` of each SAE and ``sampled_rows`` of each latent; strata, level, seed.

    Returns
    -------
    FunctionTables
        As :func:`husai.features.functional_consistency`, of the sampled features alone; partners
        have ``function_se`` and those of the other roles too. The note gives the errors.

    Raises
    ------
    InputError
        When the readout has no unchanged outputs, or rows do not fit.
    """
    config = config or FeaturesConfig()
    if readout.unchanged is None:
        raise InputError("readout: give the model's outputs on the rows as they are (unchanged)")
    group = cards.group
    rows = measured_rows(group, values, readout, config.model_copy(update=_ALL_ROWS))
    assert group.codes is not None
    codes = [sparse.csc_array(sparse.csr_array(one)[rows.chosen]) for one in group.codes]
    sampler = _Sampler(group, codes, rows, readout, config.sampled_rows)
    rng = np.random.default_rng(config.seed)
    n = len(group.live)
    anchors = [
        np.sort(rng.permutation(len(one.index))[: config.function_features]) for one in group.live
    ]
    roles_of = {}
    for s, t in permutations(range(n), 2):
        roles = role_partners(group, s, t, rng)
        asked = np.isin(np.arange(len(group.live[s].index)), anchors[s])
        roles_of[s, t] = {role: np.where(asked, k, -1) for role, k in roles.items()}
    wanted: list[set[int]] = [set(one.tolist()) for one in anchors]
    for (_, t), roles in roles_of.items():
        for k in roles.values():
            wanted[t] |= set(k[k >= 0].tolist())
    sums = [_latent_sums(sampler, s, sorted(wanted[s]), rng) for s in range(n)]
    few = config.model_copy(update={"substitution_rows": config.sampled_rows})
    tables = []
    for (s, t), roles in roles_of.items():
        at = anchors[s]
        repaired = substitution(group, s, t, roles, rows, readout, few)
        table = pd.DataFrame(
            {
                "id": group.ids[s],
                "latent": group.live[s].index[at],
                "other_id": group.ids[t],
            }
        )
        for role in ROLES:
            tail = "" if role == "partner" else f"_{role}"
            found = _correlations(sampler, s, t, at, roles[role][at], sums, rng)
            table[f"function{tail}"], table[f"function{tail}_se"] = found
            table[f"repaired{tail}"] = repaired[role][at]
        tables.append(table)
    partners = pd.concat(tables, ignore_index=True)
    keys = ["id", "latent"]
    features = partners.groupby(keys, sort=False)[["function", "repaired"]].mean().reset_index()
    features = features.assign(ablation=_ablation(group, sums, features))
    return FunctionTables(
        features, partners, function_strata(cards, partners, config), _note(partners, rows, config)
    )


_ALL_ROWS = {"max_function_rows": 2**31}


def _note(partners: pd.DataFrame, rows: Measured, config: FeaturesConfig) -> str:
    known = partners["function_se"].dropna()
    whole = float(np.sqrt(np.square(known).sum()) / max(1, len(known)))
    return (
        "Function is the effect on the last block's output at the token, sampled: "
        f"{config.function_features} features of each SAE, each latent on up to "
        f"{config.sampled_rows} of the rows where it fires, of {len(rows.chosen)}. The sampling "
        f"error of one pair is {known.median():.2g} (median), that of the mean {whole:.1g}."
    )


def _latent_sums(
    sampler: _Sampler, s: int, latents: list[int], rng: np.random.Generator
) -> dict[int, _Sums]:
    """Ablate latents of one SAE, each on rows of its own."""
    fires = {j: column_rows(sampler.codes[s], j) for j in latents}
    chosen = {j: sampler.draw(fires[j], rng) for j in latents}
    owner = np.concatenate([np.full(len(chosen[j]), j) for j in latents]).astype(np.int64)
    changes = sampler.changes(s, owner, np.concatenate([chosen[j] for j in latents]))
    sums = np.stack([changes.sum(axis=1), np.square(changes).sum(axis=1)], axis=1)
    return {j: _Sums(sums[owner == j], len(fires[j])) for j in latents}


def _correlations(
    sampler: _Sampler,
    s: int,
    t: int,
    mine: NDArray[np.int64],
    theirs: NDArray[np.int64],
    sums: list[dict[int, _Sums]],
    rng: np.random.Generator,
) -> tuple[Floats, Floats]:
    """Correlation of each pair's changes, and its error; NaN where there is no partner."""
    n_numbers = sampler.rows.outputs.size
    joint = [
        np.intersect1d(column_rows(sampler.codes[s], i), column_rows(sampler.codes[t], k))
        if k >= 0
        else np.zeros(0, dtype=np.int64)
        for i, k in zip(mine, theirs, strict=True)
    ]
    chosen = [sampler.draw(one, rng) for one in joint]
    size = np.array([len(one) for one in chosen])
    row = np.concatenate(chosen).astype(np.int64)
    product = np.zeros(0)
    if len(row):
        changes = [
            sampler.changes(sae, np.repeat(latents, size), row)
            for sae, latents in ((s, mine), (t, theirs))
        ]
        product = (changes[0] * changes[1]).sum(axis=1)
    ends = np.concatenate([[0], np.cumsum(size)])
    found, error = np.full(len(mine), np.nan), np.full(len(mine), np.nan)
    for at, (i, k) in enumerate(zip(mine, theirs, strict=True)):
        if k < 0:
            continue
        a, b = sums[s][int(i)], sums[t][int(k)]
        drawn = _pearson(
            a.n_fires * _means(a.changes, a.n_fires, rng),
            b.n_fires * _means(b.changes, b.n_fires, rng),
            len(joint[at]) * _means(product[ends[at] : ends[at + 1], None], len(joint[at]), rng),
            n_numbers,
        )
        found[at], error[at] = drawn[0], drawn[1:].std(ddof=1)
    return found, error


def _means(sample: Floats, n_all: int, rng: np.random.Generator) -> Floats:
    """Mean of a sample ``[n, c]`` of rows, and of 200 bootstrap samples of it: ``[201, c]``.

    A sample that is all there is has no error.
    """
    n = len(sample)
    if not n:
        return np.zeros((1 + _RESAMPLES, sample.shape[1]))
    mean = sample.mean(axis=0, keepdims=True)
    if n == n_all:
        return np.repeat(mean, 1 + _RESAMPLES, axis=0)
    return np.concatenate([mean, sample[rng.integers(0, n, (_RESAMPLES, n))].mean(axis=1)])


def _pearson(a: Floats, b: Floats, product: Floats, n_numbers: int) -> Floats:
    """Pearson correlations ``[n]``; 0 where one of the two changes nothing.

    ``a``, ``b`` are ``[n, 2]`` sums and sums of squares, ``product`` the ``[n, 1]`` of products.
    """
    spread = [one[:, 1] - one[:, 0] ** 2 / n_numbers for one in (a, b)]
    scale = np.sqrt(np.clip(spread[0], 0, None) * np.clip(spread[1], 0, None))
    shared = product[:, 0] - a[:, 0] * b[:, 0] / n_numbers
    found = np.divide(shared, scale, out=np.zeros_like(scale), where=scale > 0)
    return np.clip(found, -1, 1)


def _ablation(group: FeatureGroup, sums: list[dict[int, _Sums]], features: pd.DataFrame) -> Floats:
    """Mean squared change where each feature fires."""
    place = {name: s for s, name in enumerate(group.ids)}
    found = []
    for sae, latent in features[["id", "latent"]].itertuples(index=False):
        s = place[str(sae)]
        own = sums[s][int(np.searchsorted(group.live[s].index, latent))]
        found.append(own.changes[:, 1].mean() if len(own.changes) else np.nan)
    return np.array(found)
