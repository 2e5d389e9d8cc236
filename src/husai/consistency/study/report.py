"""The comparison of a list of SAEs: all tables of a study, with nulls, intervals and gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from husai.consistency.config import ConsistencyConfig
from husai.consistency.inference.null_cache import NullCache
from husai.consistency.inference.seeds import reproducibility_by_firing_rate
from husai.consistency.scores.subspace import DataSpan, data_span
from husai.consistency.study.features import feature_table
from husai.consistency.study.groups import (
    adjust_groups,
    compare_groups,
    group_scores,
    seeds_together,
)
from husai.consistency.study.labels import LabelledRows, label_tables
from husai.consistency.study.pairs import (
    Row,
    ScoredPair,
    Values,
    pair_rows,
    score_inits,
    score_pair,
    score_within,
)
from husai.consistency.study.record import (
    LiveSAE,
    SAERecord,
    check_records,
    encoder_metric,
    group_members,
    live_group,
    live_latents,
    live_sae,
    with_firing_rates,
)
from husai.consistency.study.schema import TABLES
from husai.consistency.study.summary import SCHEMA_NAME, SCHEMA_VERSION, plain_rows
from husai.consistency.study.truth import feature_planes, plane_columns, truth_tables
from husai.errors import InputError
from husai.memory import return_memory
from husai.progress import step
from husai.threads import worker_pool


@dataclass(frozen=True)
class ConsistencyReport:
    """The tables of a study and its summary.

    The columns of each table are declared, with units, ranges and meanings, in
    :data:`husai.consistency.study.schema.TABLES`. The tables planes and truth are empty without
    true planes, strata without firing rates, and the last three without labels.

    Attributes
    ----------
    saes, pairs, groups, comparisons, seeds, retention, features, strata, planes, truth,
    coverage, covered, kinds
        The tables.
    summary
        The content of ``summary.json``: plain values, without NaN.
    """

    saes: pd.DataFrame
    pairs: pd.DataFrame
    groups: pd.DataFrame
    comparisons: pd.DataFrame
    seeds: pd.DataFrame
    retention: pd.DataFrame
    features: pd.DataFrame
    strata: pd.DataFrame
    planes: pd.DataFrame
    truth: pd.DataFrame
    coverage: pd.DataFrame
    covered: pd.DataFrame
    kinds: pd.DataFrame
    summary: dict[str, Any]

    def __post_init__(self) -> None:
        """Check every table against its declaration."""
        for name, table in TABLES.items():
            table.check(getattr(self, name))

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return the tables by name, without those that are empty."""
        return {
            name: value
            for name, value in vars(self).items()
            if isinstance(value, pd.DataFrame) and len(value)
        }


def consistency_report(
    records: Sequence[SAERecord],
    config: ConsistencyConfig | None = None,
    *,
    covariance: ArrayLike | None = None,
    planes: ArrayLike | None = None,
    labelled: LabelledRows | None = None,
) -> ConsistencyReport:
    """Compare the SAEs of each group with one another, and their scores with every null.

    Parameters
    ----------
    records
        The SAEs; those of one group (architecture, width, sparsity setting) differ in seed only.
    config
        How to compare; defaults when None.
    covariance
        ``[d, d]`` covariance of the activations. With it encoders are compared in the data's
        metric, and there are a data-aware null and scores within the data's subspace.
    planes
        ``[n_planes, 2, d]`` true planes at this hook, for plane recovery.
    labelled
        The rows of the codes with their labels, for labels of features, coverage of classes, and
        reproducibility by kind.

    Raises
    ------
    InputError
        When the records do not fit together.
    """
    config = config or ConsistencyConfig()
    check_records(records)
    records = with_firing_rates(records)
    spaces = _spaces(records[0].W_dec.shape[1], covariance, config)
    members = group_members(records)
    metric = encoder_metric(covariance, config)
    full: dict[str, list[LiveSAE]] = {}
    nulls = NullCache(config, covariance, spaces)
    gathered = _Gathered(config, nulls)
    for space, span in spaces.items():
        placed: dict[str, list[LiveSAE]] = {}
        # one group at a time: the rows and codes of all groups would be gigabytes
        for name, group in members.items():
            if span is None:
                live = live_group(group, config, metric)
            else:
                live = [live_sae(one, config.dead, span, metric=metric) for one in group]
            with step(f"scores of {name} ({space} space)"):
                gathered.add_group(name, live, space)
            if span is None:
                full[name] = [_kept(one, config, labelled) for one in live]
            if config.across_groups:
                placed[name] = live if span is not None else full[name]
            del live
            return_memory()
        if config.across_groups:
            gathered.add_across(placed, space)
    groups = pd.DataFrame(gathered.groups)
    for column in ("mean", "low", "high"):
        if column not in groups:  # with one seed everywhere no score is defined
            groups[column] = np.nan
    groups = adjust_groups(groups)
    pairs = pd.DataFrame(gathered.pairs)
    features = pd.concat(gathered.features, ignore_index=True)
    saes = _sae_table(records, spaces.get("data"), config)
    plane_table, truth = truth_tables(full, planes, config, covariance)
    if planes is not None:
        if len(plane_table):
            saes = saes.merge(plane_columns(full, planes, config), on="id", how="left")
        features = features.merge(
            feature_planes(full, planes, config), on=["id", "latent"], how="left"
        )
    cover, covered, kinds = pd.DataFrame(), pd.DataFrame(), pd.DataFrame()
    if labelled is not None:
        labels, cover, covered, kinds = label_tables(full, labelled, config)
        features = features.merge(labels, on=["id", "latent"], how="left")
    strata = pd.DataFrame()
    if "firing_rate" in features and (features["n_other_seeds"] > 0).any():
        strata = reproducibility_by_firing_rate(features, by=["group", "space"])
        gates = groups.drop_duplicates("group").set_index("group")["converged"]
        strata["converged"] = strata["group"].map(gates).astype("boolean")
    return ConsistencyReport(
        saes=saes,
        pairs=pairs,
        groups=groups,
        comparisons=compare_groups(pairs, full, config),
        seeds=pd.DataFrame(gathered.seeds),
        retention=pd.DataFrame(gathered.retention),
        features=features,
        strata=strata,
        planes=plane_table,
        truth=truth,
        coverage=cover,
        covered=covered,
        kinds=kinds,
        summary={
            **_summary(saes, groups, truth, spaces, config),
            "coverage": plain_rows(cover),
            "kinds": plain_rows(kinds),
        },
    )


def _kept(one: LiveSAE, config: ConsistencyConfig, labelled: LabelledRows | None) -> LiveSAE:
    """Keep what is still needed of a latent's rows after its group was scored."""
    return replace(
        one,
        init=None,
        encoder=one.encoder if config.across_groups else None,
        codes=one.codes if labelled is not None else None,
    )


def _spaces(
    d: int, covariance: ArrayLike | None, config: ConsistencyConfig
) -> dict[str, DataSpan | None]:
    spaces: dict[str, DataSpan | None] = {"full": None}
    if covariance is not None:
        if np.shape(covariance) != (d, d):
            raise InputError(
                f"covariance: shape {np.shape(covariance)}, decoders of {d} dimensions"
            )
        spaces["data"] = data_span(covariance, variance=config.data_variance)
    return spaces


class _Gathered:
    """The rows of the tables, which grow with every group."""

    def __init__(self, config: ConsistencyConfig, nulls: NullCache) -> None:
        self._config, self._nulls = config, nulls
        self.pairs: list[Row] = []
        self.groups: list[Row] = []
        self.seeds: list[Row] = []
        self.retention: list[Row] = []
        self.features: list[pd.DataFrame] = []

    def add_group(self, name: str, live: Sequence[LiveSAE], space: str) -> None:
        """Score a group of seeds."""
        config = self._config
        scored = score_within(live, space, config)
        for (s, t), pair in scored.items():
            self.pairs += pair_rows(live[s], live[t], space, pair)
        # features are followed from seed to seed by the absolute match
        matches = {key: pair.matches[False] for key, pair in scored.items() if pair.matches}
        inits = _score_inits(live, config)
        self.groups += group_scores(name, live, space, scored, inits, self._nulls, config)
        seeds, retention = seeds_together(name, live, space, matches, config)
        self.seeds.append(seeds)
        self.retention += retention
        self.features.append(feature_table(name, live, space, matches, config))
        for one in live:  # n² numbers an SAE: gigabytes, were those of all groups kept
            if one.codes is not None:
                one.codes.release()

    def add_across(self, live: Mapping[str, Sequence[LiveSAE]], space: str) -> None:
        """Score the pairs of SAEs of different groups: their decoders and encoders."""
        pairs = [
            (a, b) for one, other in combinations(live, 2) for a in live[one] for b in live[other]
        ]

        def one(pair: tuple[LiveSAE, LiveSAE]) -> ScoredPair:
            a, b = (replace(side, codes=None) for side in pair)
            return score_pair(a, b, self._config, space=space)

        with worker_pool(self._config.workers) as pool:
            for (a, b), scored in zip(pairs, pool.map(one, pairs), strict=True):
                self.pairs += pair_rows(a, b, space, scored)


def _score_inits(live: Sequence[LiveSAE], config: ConsistencyConfig) -> list[Values]:
    """Score the initialisations of each seed and the next, in a ring: as many pairs as seeds.

    Initialisations are either independent draws or all equal, so the pairs of a ring are enough;
    all pairs would take as long as all pairs of trained SAEs.
    """
    n = len(live)
    ring = [(i, (i + 1) % n) for i in range(n if n > 2 else n - 1)]
    with worker_pool(config.workers) as pool:
        made = list(pool.map(lambda key: score_inits(live[key[0]], live[key[1]], config), ring))
    return [values for values in made if values]


def _sae_table(
    records: Sequence[SAERecord], span: DataSpan | None, config: ConsistencyConfig
) -> pd.DataFrame:
    rows = []
    for record in records:
        live = live_latents(record, config.dead)
        inside = None
        if span is not None and len(live):
            inside = float(span.inside(record.W_dec[live]).mean())
        dead = None
        if record.firing_rate is not None:
            dead = int((np.asarray(record.firing_rate) <= 0).sum())
        rows.append(
            {
                "group": record.group_name,
                "id": record.id,
                "architecture": record.architecture,
                "d_sae": record.d_sae,
                "k": record.k,
                "l1_coefficient": record.l1_coefficient,
                "seed": record.seed,
                "n_live": len(live),
                "n_dead": dead,
                "l0": record.l0,
                "fvu": record.fvu,
                "converged": record.converged,
                "motion": record.motion,
                "plateau": record.plateau,
                "cosine_to_init": record.cosine_to_init,
                "share_in_data_span": inside,
            }
        )
    table = pd.DataFrame(rows)
    table["converged"] = table["converged"].astype("boolean")
    return table


def join_reports(reports: Mapping[str, ConsistencyReport]) -> ConsistencyReport:
    """Join the reports of several hooks: every table gets a column ``hook``.

    Features of different hooks are in different spaces, so each hook has its own report. Group
    names must differ between hooks.

    Parameters
    ----------
    reports
        Reports by hook; the first is the study's main hook.

    Raises
    ------
    InputError
        When there is none, or a group's name occurs at two hooks.
    """
    if not reports:
        raise InputError("reports: none to join")
    seen: dict[str, str] = {}
    for hook, report in reports.items():
        for name in dict.fromkeys(report.saes["group"]):
            if name in seen:
                raise InputError(
                    f"group {name!r} occurs at {seen[name]} and at {hook}; give it two names"
                )
            seen[name] = hook
    tables = {
        name: pd.concat(
            [getattr(report, name).assign(hook=hook) for hook, report in reports.items()],
            ignore_index=True,
        )
        for name, value in vars(next(iter(reports.values()))).items()
        if isinstance(value, pd.DataFrame)
    }
    first = next(iter(reports.values())).summary
    summary = {
        **first,
        **{
            key: sum(report.summary[key] for report in reports.values())
            for key in ("n_saes", "n_groups", "n_converged", "n_convergence_unknown")
        },
        "data_subspaces": [
            {"hook": hook, **report.summary["data_subspaces"][0]}
            for hook, report in reports.items()
            if report.summary["data_subspaces"]
        ],
        "groups": plain_rows(tables["groups"]),
        **{name: plain_rows(tables[name]) for name in ("truth", "coverage", "kinds")},
    }
    return ConsistencyReport(**tables, summary=summary)


def _summary(
    saes: pd.DataFrame,
    groups: pd.DataFrame,
    truth: pd.DataFrame,
    spaces: Mapping[str, DataSpan | None],
    config: ConsistencyConfig,
) -> dict[str, Any]:
    data = spaces.get("data")
    return {
        "schema": SCHEMA_NAME,
        "schema_version": SCHEMA_VERSION,
        "config": config.model_dump(),
        "n_saes": len(saes),
        "n_groups": int(saes["group"].nunique()),
        "n_converged": int(saes["converged"].fillna(False).sum()),
        "n_convergence_unknown": int(saes["converged"].isna().sum()),
        "data_subspaces": []
        if data is None
        else [{"dimensions": data.rank, "variance": data.variance}],
        "groups": plain_rows(groups),
        "truth": plain_rows(truth),
    }
