"""Does what comes back in some seeds come back in others? One half of the seeds against the other.

The consensus of each half stands beside what one seed of each half has: as many of its features,
those that come back best within its half, or random ones. And beside its null, in which the two
consensus dictionaries keep their spectrum and marginals and share nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from husai.consistency.inference.references import permuted
from husai.consistency.inference.seeds import match_all, partner_similarity
from husai.errors import InputError
from husai.features.config import ConsensusConfig
from husai.features.consensus import consensus_directions
from husai.matching.match import match_features, unit_rows

Floats = NDArray[np.float64]
Half = Sequence[Floats]
Statistic = Callable[[Half, Half], dict[str, float]]

NEAR = 0.9
"""|cosine| at which a feature of one half is nearly the same in the other."""

BASES = ("consensus", "most reproducible of one seed", "random of one seed")


def consensus_recurrence(
    decoders: Sequence[ArrayLike],
    config: ConsensusConfig | None = None,
    *,
    level: float = 0.95,
    null_draws: int = 200,
) -> pd.DataFrame:
    """Ask whether the consensus of half of the seeds recurs in that of the other half.

    Parameters
    ----------
    decoders
        Six or more ``[n_s, d]``: the first half against the others.
    config
        Of the consensus.
    level
        Of the intervals.
    null_draws
        Pairs of permuted dictionaries behind the null.

    Returns
    -------
    pandas.DataFrame
        A row for each of :data:`BASES` and for the ``permuted null`` of the first: ``n_first``,
        ``n_second`` (features, means over seeds where several are tried), ``pw_mcc`` (mean |cosine|
        of their best match), ``found`` and ``nearly_same`` (share of the smaller with a partner at
        ``config.threshold``, and at .9), each with ``_low`` and ``_high``: of the first rows by a
        jackknife that leaves each seed out of its half, of the null the quantiles of its draws.
        ``p`` is that of the consensus under the null.

    Raises
    ------
    InputError
        With fewer than six dictionaries, or when nothing comes back within a half.
    """
    config = config or ConsensusConfig()
    if len(decoders) < 6:
        raise InputError(f"decoders: {len(decoders)}; two halves of three need at least six")
    unit = [unit_rows(one, f"decoder {s}") for s, one in enumerate(decoders)]
    half = len(unit) // 2
    halves = unit[:half], unit[half:]
    rows: list[dict[str, Any]] = []
    for base in BASES:
        found = _jackknife(partial(_agreement, base, config), halves, level)
        rows.append({"between": base, **found})
    first, second = (consensus_directions(part, config).directions for part in halves)
    rows.append(
        {"between": "permuted null", **_null(first, second, config, level, null_draws, rows[0])}
    )
    return pd.DataFrame(rows)


def _agreement(base: str, config: ConsensusConfig, first: Half, second: Half) -> dict[str, float]:
    """Compare what one half has with what the other has."""
    if base == "consensus":
        pooled = [consensus_directions(part, config).directions for part in (first, second)]
        return _compared(pooled[0], pooled[1], config.threshold)
    size = round(
        float(
            np.mean(
                [len(consensus_directions(part, config).directions) for part in (first, second)]
            )
        )
    )
    chosen = [
        [_part(base, part, s, size, config) for s in range(len(part))] for part in (first, second)
    ]
    found = [_compared(a, b, config.threshold) for a, b in product(*chosen)]
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


def _part(base: str, half: Half, s: int, size: int, config: ConsensusConfig) -> Floats:
    """As many features of one seed: those that come back best in its half, or random ones."""
    own = half[s]
    if base.startswith("random"):
        order = np.random.default_rng([config.seed, s]).permutation(len(own))
    else:
        likeness = partner_similarity(match_all(half), [len(one) for one in half])[s]
        order = np.argsort(-likeness.mean(axis=1), kind="stable")
    return own[order[:size]]


def _compared(a: Floats, b: Floats, threshold: float) -> dict[str, float]:
    match = match_features(a, b)
    n = min(match.n_a, match.n_b)
    return {
        "n_first": float(match.n_a),
        "n_second": float(match.n_b),
        "pw_mcc": match.mean,
        "found": float((match.similarity >= threshold).sum() / n),
        "nearly_same": float((match.similarity >= NEAR).sum() / n),
    }


def _jackknife(statistic: Statistic, halves: tuple[Half, Half], level: float) -> dict[str, float]:
    """A statistic of two samples of seeds, with its interval: each seed left out of its half.

    ``se² = Σ_halves (n - 1)/n Σ_s (θ_(s) - θ̄)²`` (Arvesen 1969), with Student's t of the seeds
    less two degrees of freedom.
    """
    whole = statistic(*halves)
    square = dict.fromkeys(whole, 0.0)
    for h, half in enumerate(halves):
        without = []
        for s in range(len(half)):
            left = [*half[:s], *half[s + 1 :]]
            without.append(statistic(left, halves[1]) if h == 0 else statistic(halves[0], left))
        for name in square:
            values = np.array([one[name] for one in without])
            square[name] += (len(half) - 1) / len(half) * np.square(values - values.mean()).sum()
    t = stats.t.ppf((1 + level) / 2, sum(map(len, halves)) - 2)
    found = {}
    for name, value in whole.items():
        found[name] = value
        if not name.startswith("n_"):
            reach = t * np.sqrt(square[name])
            found |= {
                f"{name}_low": float(np.clip(value - reach, 0, 1)),
                f"{name}_high": float(np.clip(value + reach, 0, 1)),
            }
    return found


def _null(
    first: Floats,
    second: Floats,
    config: ConsensusConfig,
    level: float,
    draws: int,
    observed: dict[str, Any],
) -> dict[str, float]:
    reference, sizes = permuted([first, second]), (len(first), len(second))
    compared = []
    for t in range(draws):
        a, b = reference.draw(np.random.default_rng([config.seed, t]), sizes)
        compared.append(_compared(a, b, config.threshold))
    drawn = pd.DataFrame(compared)
    found: dict[str, float] = {"n_first": float(sizes[0]), "n_second": float(sizes[1])}
    for name in ("pw_mcc", "found", "nearly_same"):
        low, high = drawn[name].quantile([(1 - level) / 2, (1 + level) / 2])
        found |= {name: float(drawn[name].mean()), f"{name}_low": low, f"{name}_high": high}
    found["p"] = float((1 + (drawn["pw_mcc"] >= observed["pw_mcc"]).sum()) / (1 + draws))
    return found
