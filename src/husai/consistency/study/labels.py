"""The tables of what features mean: their labels, coverage of classes, reproducibility by kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from husai.activations.rows import Activations
from husai.consistency.analyses.explanation import SEVERAL, Explanation, explain_latents
from husai.consistency.analyses.kinds import (
    Coverage,
    class_gt_mcc_nulls,
    class_means,
    coverage,
    covered_by_chance,
    kind_intervals,
    reproducibility_by_kind,
)
from husai.consistency.analyses.labels import (
    Classes,
    Labels,
    modular_labels,
    plane_labels,
    table_labels,
)
from husai.consistency.config import ConsistencyConfig
from husai.consistency.inference.intervals import mean_interval
from husai.consistency.inference.references import Reference, permuted
from husai.consistency.inference.seeds import match_all, partner_similarity
from husai.consistency.scores.decoder import gt_mcc
from husai.consistency.study.groups import group_head, null_columns
from husai.consistency.study.pairs import Row
from husai.consistency.study.record import LiveSAE
from husai.errors import InputError
from husai.progress import step
from husai.tasks.modular import Vocabulary, compute_answers
from husai.threads import worker_pool

Floats = NDArray[np.float64]
Groups = Mapping[str, Sequence[LiveSAE]]

FEATURE_COLUMNS = (
    *("kind", "family", "label", "r2", "average_precision", "f1_fires", "f1_best", "family_r2"),
)
"""The columns of the table of features that say which label explains a feature."""

# Draws for the null of coverage; few are enough, as random directions cover almost no class.
_CODE_DRAWS = 10
# Permuted groups drawn for the null of reproducibility by kind.
_BAND_DRAWS = 2
# Draws for the null of GT-MCC against class means where their number is not given.
_MEAN_DRAWS = 200


class LabelledRows(NamedTuple):
    """Activation rows ``[n_rows, d]`` and the families of labels that may explain latents."""

    rows: Floats
    families: tuple[Labels, ...]


class LabelTables(NamedTuple):
    """Labels by feature; coverage by group and by SAE (``covered``); reproducibility by kind."""

    features: pd.DataFrame
    coverage: pd.DataFrame
    covered: pd.DataFrame
    kinds: pd.DataFrame


def candidate_labels(rows: Activations, table: pd.DataFrame | None = None) -> LabelledRows | None:
    """Gather all labels of the rows that are known.

    Parameters
    ----------
    rows
        Activations. If they are all pairs (a, b) of a modular task, in order, they get the labels
        of the task; planes are added where they are known.
    table
        Columns of labels, one row for each activation row.

    Returns
    -------
    LabelledRows or None
        None when nothing is known about the rows.

    Raises
    ------
    InputError
        When the table has another number of rows.
    """
    values = rows.values.numpy()
    families: list[Labels] = []
    vocabulary = rows.model.get("vocabulary")
    if vocabulary is not None:
        words = Vocabulary.model_validate(vocabulary)
        if len(values) == words.modulus**2:
            a, b = np.divmod(np.arange(len(values)), words.modulus)
            answers = compute_answers(a, b, words)
            families += modular_labels(a, b, answers, words.modulus, words.operation)
    if rows.planes is not None:
        families.append(plane_labels(values, rows.planes.numpy(), rows.plane_names))
    if table is not None and len(table.columns):
        if len(table) != len(values):
            raise InputError(
                f"labels: {len(table)} rows of labels, {len(values)} of activations; give one row "
                "of labels for each row of activations"
            )
        families += table_labels(table)
    return LabelledRows(values.astype(np.float64), tuple(families)) if families else None


def label_tables(live: Groups, labelled: LabelledRows, config: ConsistencyConfig) -> LabelTables:
    """Explain every live latent by a label, and make the tables of coverage and of kinds.

    Parameters
    ----------
    live
        SAEs in the full space by name of their group, with codes of the labelled rows.
    labelled
        The rows and their labels.
    config
        Thresholds, draws, level, seed, threads.
    """
    members = [one for group in live.values() for one in group if one.codes is not None]
    members = [one for one in members if len(one.index)]
    with step("labels of every feature"), worker_pool(config.workers) as pool:
        found = dict(
            zip(
                [one.record.id for one in members],
                pool.map(lambda one: _explain(one, labelled, config), members),
                strict=True,
            )
        )
    tables = [
        found[one.record.id]
        .latents[list(FEATURE_COLUMNS)]
        .assign(id=one.record.id, latent=one.index)
        for one in members
    ]
    if not tables:
        empty = pd.DataFrame()
        return LabelTables(pd.DataFrame(columns=["id", "latent"]), empty, empty, empty)
    known = {
        name: group for name, group in live.items() if all(one.record.id in found for one in group)
    }

    def of_group(name: str) -> tuple[list[Row], list[Row], pd.DataFrame]:
        group = known[name]
        reference = permuted([one.decoder for one in group])
        return (
            _coverage_rows(name, group, found, labelled, reference, config),
            _covered_rows(name, group, found, labelled, config),
            _kinds_of(name, group, found, reference, config) if len(group) > 1 else pd.DataFrame(),
        )

    with step("coverage and kinds of every group"), worker_pool(config.workers) as pool:
        made = list(pool.map(of_group, known))
    kinds = [found for *_, found in made if len(found)]
    return LabelTables(
        pd.concat(tables, ignore_index=True),
        pd.DataFrame([row for rows, *_ in made for row in rows]),
        pd.DataFrame([row for _, rows, _ in made for row in rows]),
        pd.concat(kinds, ignore_index=True) if kinds else pd.DataFrame(),
    )


def _explain(one: LiveSAE, labelled: LabelledRows, config: ConsistencyConfig) -> Explanation:
    return explain_latents(_codes(one), labelled.families, least_r2=config.label_r2)


def _codes(one: LiveSAE) -> sparse.csc_array:
    assert one.codes is not None
    return one.codes.codes


def _class_families(labelled: LabelledRows) -> list[Classes]:
    """Return the families of two or more classes, for which coverage is counted."""
    return [
        family
        for family in labelled.families
        if isinstance(family, Classes) and len(family.names) > 1
    ]


def _covered(one: Explanation, family: Classes, config: ConsistencyConfig) -> Coverage:
    return coverage(one.classes[family.family], threshold=config.label_f1, least_r2=config.label_r2)


def _covered_rows(
    name: str,
    group: Sequence[LiveSAE],
    found: Mapping[str, Explanation],
    labelled: LabelledRows,
    config: ConsistencyConfig,
) -> list[Row]:
    """Make the rows of one group in the table ``covered``: one per SAE and family."""
    rows = []
    for one in group:
        for family in _class_families(labelled):
            count = _covered(found[one.record.id], family, config)
            rows.append(
                {
                    "group": name,
                    "id": one.record.id,
                    "seed": one.record.seed,
                    "family": family.family,
                    "n_classes": len(family.names),
                    "covered": count.f1_best,
                    "by_firing": count.f1_fires,
                    "by_average_precision": count.average_precision,
                    "by_r2": count.r2,
                }
            )
    return rows


def _coverage_rows(
    name: str,
    group: Sequence[LiveSAE],
    found: Mapping[str, Explanation],
    labelled: LabelledRows,
    reference: Reference,
    config: ConsistencyConfig,
) -> list[Row]:
    head = group_head(name, group, "full")
    draws = _MEAN_DRAWS if config.null_draws is None else 5 * config.null_draws
    result = []
    families = _class_families(labelled)
    by_chance = covered_by_chance(
        reference,
        labelled.rows,
        np.diff(_codes(group[0]).indptr) / len(labelled.rows),
        families,
        threshold=config.label_f1,
        n_draws=min(_CODE_DRAWS, draws),
        seed=config.seed,
    )
    means = {family.family: class_means(labelled.rows, family) for family in families}
    means = {name: one for name, one in means.items() if np.linalg.norm(one, axis=1).max() > 1e-9}
    nulls = {}
    if draws:
        nulls = class_gt_mcc_nulls(
            reference, len(group[0].index), means, n_draws=draws, seed=config.seed
        )
    for family in families:
        counts = [_covered(found[one.record.id], family, config) for one in group]
        n = len(family.names)
        interval = mean_interval(
            [count.f1_best for count in counts], level=config.level, bounds=(0.0, float(n))
        )
        line: Row = {
            **head,
            "family": family.family,
            "n_classes": n,
            "mean": interval.mean,
            "low": interval.low,
            "high": interval.high,
            "reason": interval.reason,
            "by_firing": float(np.mean([count.f1_fires for count in counts])),
            "by_average_precision": float(np.mean([count.average_precision for count in counts])),
            "by_r2": float(np.mean([count.r2 for count in counts])),
        }
        if family.family in nulls:
            scores = [gt_mcc(one.decoder, means[family.family], signed=True) for one in group]
            own = mean_interval(scores, level=config.level, bounds=(-1.0, 1.0))
            assert own.mean is not None
            line["chance"] = float(by_chance[family.family].mean())
            line |= {"gt_mcc": own.mean, "gt_mcc_low": own.low, "gt_mcc_high": own.high}
            line |= null_columns("permuted", nulls[family.family], own.mean)
        result.append(line)
    return result


def _kinds_of(
    name: str,
    group: Sequence[LiveSAE],
    found: Mapping[str, Explanation],
    reference: Reference,
    config: ConsistencyConfig,
) -> pd.DataFrame:
    """Make the rows of one group in the table ``kinds``, with the null of permuted features."""
    matches = match_all([one.decoder for one in group])
    kind = [found[one.record.id].latents["kind"].to_numpy() for one in group]
    own = partner_similarity(matches, [len(one.index) for one in group])
    features = pd.concat(
        [
            pd.DataFrame(
                {
                    "kind": kind[s],
                    "reproducibility": own[s].mean(axis=1),
                    "n_seeds_found": (own[s] >= config.shared_threshold).sum(axis=1),
                    "n_other_seeds": len(group) - 1,
                }
            )
            for s in range(len(group))
        ],
        ignore_index=True,
    )
    table = reproducibility_by_kind(features)
    intervals = [kind_intervals(each, kind, own, level=config.level) for each in table["kind"]]
    null = _permuted_features(reference, [len(one.index) for one in group], config)
    head = group_head(name, group, "full")
    columns: dict[str, Any] = dict(
        **{key: head[key] for key in ("group", "architecture", "d_sae", "k", "space")},
        l0=head["l0"],
        n_seeds=head["n_seeds"],
        converged=head["converged"],
        n_features=table["n_features"] / len(group),
        share_low=[one.share and one.share.low for one in intervals],
        share_high=[one.share and one.share.high for one in intervals],
        low=[one.reproducibility and one.reproducibility.low for one in intervals],
        high=[one.reproducibility and one.reproducibility.high for one in intervals],
        null_mean=float(null.mean()) if len(null) else None,
        null_q05=float(np.quantile(null, 0.05)) if len(null) else None,
        null_q95=float(np.quantile(null, 0.95)) if len(null) else None,
        above_null=[
            float((part > np.quantile(null, 0.95)).mean()) if len(null) else None
            for part in (
                features.loc[features["kind"] == each, "reproducibility"] for each in table["kind"]
            )
        ],
    )
    return table.assign(**columns)


def _permuted_features(
    reference: Reference, sizes: Sequence[int], config: ConsistencyConfig
) -> Floats:
    """Reproducibility of the features of permuted groups: the null of a single feature."""
    if config.null_draws == 0:
        return np.zeros(0)
    found = []
    for draw in range(_BAND_DRAWS):
        drawn = reference.draw(np.random.default_rng([config.seed, draw]), sizes)
        found += [part.mean(axis=1) for part in partner_similarity(match_all(drawn), sizes)]
    return np.concatenate(found)


def leading_kind(kinds: pd.DataFrame) -> str | None:
    """Name the kind with the most features found in every seed; None without labels.

    Features for several classes, for no label, and those that never fire are not considered.
    """
    if not len(kinds):
        return None
    named = kinds[~kinds["kind"].isin(["other", "dead"]) & ~kinds["kind"].str.endswith(SEVERAL)]
    if named.empty:
        return None
    found = named["n_features"] * named["found_everywhere"]
    return str(found.groupby(named["kind"]).sum().idxmax())


def main_group(coverage: pd.DataFrame, kinds: pd.DataFrame) -> tuple[str, str] | None:
    """Name the leading kind, and the group that shows it best; None without labels.

    It is the group in which most classes of the kind have a latent of their own, the widest if
    there are several; for a kind without classes, the group whose features of that kind are most
    often found in every seed.

    Parameters
    ----------
    coverage, kinds
        These tables of a report, for one hook.
    """
    lead = leading_kind(kinds)
    if lead is None:
        return None
    covered = coverage
    if len(covered):  # a kind can have several families of classes: operands are a, b and tokens
        covered = covered[covered["group"].isin(kinds["group"]) & (covered["family"] == lead)]
    if len(covered) and covered["mean"].max() > 0:
        return lead, str(covered.sort_values(["mean", "d_sae"])["group"].iloc[-1])
    parts = kinds[kinds["kind"] == lead]
    return lead, str(parts.sort_values(["found_everywhere", "d_sae"])["group"].iloc[-1])


def plural(kind: str) -> str:
    """Write a kind in the plural: answers, operands."""
    return kind if kind.endswith("s") else f"{kind}s"


def kind_words(kind: str) -> str:
    """Say what a feature of a kind stands for, in words."""
    if kind.endswith(SEVERAL):
        return f"several {plural(kind.removesuffix(SEVERAL))}"
    return {"other": "none of the labels", "dead": "nothing: it never fires"}.get(kind, kind)
