"""Explain a feature by a few latents of another SAE together: which are split, which are merged.

Each latent's activation is regressed on those of a few latents of another SAE. They are chosen by
orthogonal matching pursuit on half of the rows, and the fit is measured on the other half. The
null does the same with the other SAE's rows in random order, so that its latents fire as often and
as strongly as before. A latent that one latent explains is *matched*; one that only several latents
together explain is *split* in the other SAE; several latents whose sum is one latent of the other
SAE are *merged* in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations, repeat
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from husai.consistency.inference.intervals import seed_interval
from husai.errors import InputError
from husai.features.cards import FeatureGroup
from husai.threads import worker_pool

Floats = NDArray[np.float64]

VERDICTS = ("matched", "split", "merged", "alone")


class Moments(NamedTuple):
    """Centred sums over rows: squares of the targets, Gram matrix of the sources, products."""

    scatter: Floats
    gram: Floats
    product: Floats


class Combination(NamedTuple):
    """The few sources that explain each target, and how well they do.

    Attributes
    ----------
    members
        ``[n, k]`` the chosen sources, in the order of choice; -1 where fewer than k were useful.
    r2
        ``[n, k]`` share of the variance on the other half of the rows that the first 1 … k
        sources explain.
    """

    members: NDArray[np.int64]
    r2: Floats


def _moments(targets: sparse.csr_array, sources: sparse.csr_array) -> Moments:
    n = targets.shape[0]
    total_a, total_b = (np.asarray(x.sum(axis=0)).ravel() for x in (targets, sources))
    return Moments(
        np.asarray(targets.power(2).sum(axis=0)).ravel() - total_a**2 / n,
        (sources.T @ sources).toarray() - np.outer(total_b, total_b) / n,
        (targets.T @ sources).toarray() - np.outer(total_a, total_b) / n,
    )


def combine(
    targets: sparse.csr_array,
    sources: sparse.csr_array,
    *,
    k: int = 4,
    order: NDArray[np.int64] | None = None,
    seed: int = 0,
) -> Combination:
    """Explain each target by a few sources, by orthogonal matching pursuit.

    Parameters
    ----------
    targets, sources
        ``[n_rows, n]`` and ``[n_rows, m]`` codes of the same rows.
    k
        Most sources for one target.
    order
        For the null: the order in which the sources' rows are taken. None keeps their order.
    seed
        Seed of the random split of the rows into halves.

    Raises
    ------
    InputError
        When rows do not correspond or are fewer than four.
    """
    a, b = (sparse.csr_array(x).astype(np.float64) for x in (targets, sources))
    if a.shape[0] != b.shape[0] or a.shape[0] < 4:
        raise InputError(
            f"codes: {a.shape[0]} and {b.shape[0]} rows; both need the same rows, four or more"
        )
    if order is not None:
        b = b[order]
    mixed = np.random.default_rng(seed).permutation(a.shape[0])
    half = len(mixed) // 2
    fit, test = (_moments(a[part], b[part]) for part in (mixed[:half], mixed[half:]))
    n, m = fit.product.shape
    k = min(k, m)
    members, r2 = np.full((n, k), -1, dtype=np.int64), np.zeros((n, k))
    spread = np.sqrt(np.clip(np.diag(fit.gram), 0.0, None))
    usable = spread > 1e-9
    for i in range(n):
        if fit.scatter[i] <= 1e-12 or test.scatter[i] <= 1e-12:
            continue
        chosen: list[int] = []
        residual = fit.product[i].copy()
        for step in range(k):
            gain = np.where(usable, np.abs(residual), 0.0) / np.where(usable, spread, 1.0)
            gain[chosen] = 0.0
            best = int(gain.argmax())
            if gain[best] <= 1e-9:
                r2[i, step:] = r2[i, step - 1] if step else 0.0
                break
            chosen.append(best)
            own = fit.gram[np.ix_(chosen, chosen)]
            weights = np.linalg.lstsq(own, fit.product[i, chosen], rcond=1e-10)[0]
            residual = fit.product[i] - fit.gram[:, chosen] @ weights
            left = (
                test.scatter[i]
                - 2 * weights @ test.product[i, chosen]
                + weights @ test.gram[np.ix_(chosen, chosen)] @ weights
            )
            members[i, step] = best
            r2[i, step] = 1 - left / test.scatter[i]
    return Combination(members, r2)


def combination_table(
    group: FeatureGroup,
    *,
    k: int = 4,
    least_r2: float = 0.5,
    max_features: int = 512,
    seed: int = 0,
    workers: int = 1,
) -> pd.DataFrame:
    """Find for each feature and other SAE whether one latent, a few together, or none explain it.

    The SAEs may differ in width: a feature of a narrow SAE is often split in a wide one.

    Parameters
    ----------
    group
        A group with codes.
    k
        Most latents of the other SAE that explain a feature together.
    least_r2
        Share of the variance, on rows that were not fitted, that counts as explained.
    max_features
        Most features of one SAE that are explained: a random part of its live latents where it has
        more. All live latents of the other SAE may explain them.
    seed
        Seed of the random halves, of the null's order and of the random part.
    workers
        Number of threads.

    Returns
    -------
    pandas.DataFrame
        ``id``, ``latent``, ``other_id``, ``r2_one``, ``r2_few`` (of up to k latents), ``r2_null``
        (the same with rows in random order), ``members`` (latents of the other SAE, the best
        first, as text) and ``verdict``: ``matched`` (one latent explains it), ``split`` (only
        several do), ``merged`` (none does, but it is one of several that a latent of the other SAE
        is the sum of), or ``alone``.

    Raises
    ------
    InputError
        When the group has no codes.
    """
    if group.codes is None:
        raise InputError("combinations: the SAEs have no codes; give rows of activations")
    codes: Sequence[sparse.csr_array] = [sparse.csr_array(one) for one in group.codes]
    order = np.random.default_rng([seed, 1]).permutation(codes[0].shape[0])
    n = len(codes)
    rng = np.random.default_rng([seed, 2])
    asked = [np.sort(rng.permutation(one.shape[1])[:max_features]) for one in codes]
    pairs = list(permutations(range(n), 2))

    def explain(pair: tuple[int, int], at: NDArray[np.int64] | None) -> Combination:
        s, t = pair
        return combine(codes[s][:, asked[s]], codes[t], k=k, order=at, seed=seed)

    with worker_pool(workers) as pool:
        found = dict(zip(pairs, pool.map(explain, pairs, repeat(None)), strict=True))
        nulls = dict(zip(pairs, pool.map(explain, pairs, repeat(order)), strict=True))
    tables = []
    for (s, t), own in found.items():
        null = nulls[s, t]
        back = found[t, s]
        one, few = own.r2[:, 0], own.r2.max(axis=1)
        # latents of this SAE that only together explain a latent of the other one
        parts = back.members[(back.r2[:, 0] < least_r2) & (back.r2.max(axis=1) >= least_r2)]
        part = np.isin(asked[s], parts[parts >= 0])
        verdict = np.select(
            [one >= least_r2, few >= least_r2, part], VERDICTS[:3], default=VERDICTS[3]
        )
        index = group.live[t].index
        tables.append(
            pd.DataFrame(
                {
                    "id": group.live[s].record.id,
                    "latent": group.live[s].index[asked[s]],
                    "other_id": group.live[t].record.id,
                    "r2_one": one,
                    "r2_few": few,
                    "r2_null": null.r2.max(axis=1),
                    "members": [
                        " ".join(str(index[j]) for j in row if j >= 0) for row in own.members
                    ],
                    "verdict": verdict,
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


class Place(NamedTuple):
    """Where an SAE stands in a study: its group, such as its width, and its seed."""

    group: str
    seed: int


def share_table(
    table: pd.DataFrame,
    places: Mapping[str, Place],
    verdicts: Sequence[str],
    level: float = 0.95,
) -> pd.DataFrame:
    """Give the share of each verdict from one group of SAEs to another, seeds being the sample.

    Parameters
    ----------
    table
        ``id``, ``other_id`` and ``verdict``: a row per feature and other SAE. Pairs of one seed are
        left out.
    places
        Of every SAE.
    verdicts
        In the order wanted.
    level
        Of the jackknife intervals, in which a seed is left out on both sides.

    Returns
    -------
    pandas.DataFrame
        ``from``, ``to`` (groups), ``verdict``, ``share`` (mean over pairs of SAEs), ``low``,
        ``high``.
    """
    shares = (
        table.groupby(["id", "other_id"], sort=False)["verdict"]
        .value_counts(normalize=True)
        .unstack(fill_value=0)
        .reindex(columns=list(verdicts), fill_value=0.0)
        .reset_index()
    )
    for side, column in (("from", "id"), ("to", "other_id")):
        shares[side] = [places[one].group for one in shares[column]]
        shares[f"{side}_seed"] = [places[one].seed for one in shares[column]]
    shares = shares[shares["from_seed"] != shares["to_seed"]]
    seeds = sorted(set(shares["from_seed"]) | set(shares["to_seed"]))
    rows = []
    for (here, there), part in shares.groupby(["from", "to"], sort=False):
        for verdict in verdicts:
            W = part.pivot_table(verdict, "from_seed", "to_seed", aggfunc="mean")
            grid = W.reindex(index=seeds, columns=seeds).to_numpy(dtype=np.float64, copy=True)
            np.fill_diagonal(grid, 0.0)
            found = seed_interval((grid + grid.T) / 2, level=level, bounds=(0.0, 1.0))
            ends = {"share": found.mean, "low": found.low, "high": found.high}
            rows.append({"from": here, "to": there, "verdict": verdict, **ends})
    return pd.DataFrame(rows)
