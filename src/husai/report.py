"""The study in one page of Markdown, every number from the run's own tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out rows of text as a Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def number(value: Any, digits: int = 3) -> str:
    """Write a number, or a dash where there is none."""
    return "–" if value is None or pd.isna(value) else f"{value:.{digits}f}"


def study_report(
    training: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    statistics: pd.DataFrame,
    saes: pd.DataFrame,
    groups: pd.DataFrame,
    provenance: Mapping[str, Any],
) -> str:
    """Write what a study found.

    Parameters
    ----------
    training, evaluation
        Summary of the transformer's training; loss and accuracy of the reloaded weights.
    statistics
        A row for each hook: :func:`husai.activations.activation_statistics`.
    saes
        A row for each SAE: plan and metrics.
    groups
        The ``groups`` table of :func:`husai.consistency.consistency_report`.
    provenance
        Commit and versions.
    """
    parts = [
        "# The home study",
        "Made by `kedro run` and copied here by `make results`; every number comes from the "
        f"run's own tables. {_made_by(provenance)}",
        "## The transformer",
        _transformer(training, evaluation),
        "## The activations",
        markdown_table(
            ["hook", "rows", "dimensions", "mean norm", "effective rank", "dims for 99 %"],
            (
                [
                    f"`{row['hook_name']}` at {row['position']}",
                    str(row["rows"]),
                    str(row["d_in"]),
                    number(row["mean_norm"], 2),
                    number(row["effective_rank_entropy"], 1),
                    str(row["dims_99_variance"]),
                ]
                for row in statistics.to_dict("records")
            ),
        ),
        "Effective rank is exp of the entropy of the covariance's normalised eigenvalues "
        "(Roy & Vetterli 2007).",
        "## The SAEs",
        _sae_table(saes),
        "Means over the seeds of a group, on held-out rows. A SAE is converged when its held-out "
        "FVU changes by less than 1 % in 1,000 steps at the end. Cosine to init is that of each "
        "decoder row to where it started: what is left of it is agreement with nothing.",
        "## Which features come back",
        "PW-MCC, absolute cosine, with its 95 % interval over seeds (jackknife); the nulls are "
        "isotropic random dictionaries, random directions with the activations' covariance, and "
        "the SAEs' own initialisations. In the full space:",
        _score_table(groups, "full"),
        "Within the data's own subspace:",
        _score_table(groups, "data"),
        "† not all SAEs of the group are converged. Above chance is (score − null)/(1 − null): "
        "negative means less alike than chance.",
    ]
    return "\n\n".join(parts) + "\n"


def _made_by(provenance: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in provenance.get("versions", {}).items())
    commit = str(provenance.get("commit", "unknown"))[:12]
    dirty = " with changes" if provenance.get("dirty") else ""
    return f"Commit {commit}{dirty}; {versions}."


def _transformer(training: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    if training.get("epoch_test_99") is None:
        grokked = f"Not grokked after {training['epochs']} epochs."
    else:
        grokked = (
            f"99 % of the training set right from epoch {training['epoch_train_99']}, of the test "
            f"set from epoch {training['epoch_test_99']}: a delay of "
            f"{training['grokking_delay_epochs']} epochs "
            f"({training['grokking_delay_ratio']:.1f} times)."
        )
    return (
        f"{grokked} Stopped after {training['epochs']} epochs, {training['seconds']:.0f} s on "
        f"{training['hardware']} with {training['threads']} threads. Reloaded from its file: test "
        f"accuracy {100 * evaluation['test_accuracy']:.2f} %, test loss "
        f"{evaluation['test_loss']:.4f}."
    )


def _sae_table(saes: pd.DataFrame) -> str:
    means = saes.groupby("group", sort=False).agg(
        seeds=("sae_id", "size"),
        converged=("converged", "sum"),
        l0=("l0", "mean"),
        fvu=("fvu", "mean"),
        dead=("dead_fraction", "mean"),
        init=("cosine_to_init", "mean"),
        seconds=("train_seconds", "mean"),
    )
    return markdown_table(
        ["group", "seeds", "converged", "L0", "FVU", "dead", "cosine to init", "s a SAE"],
        (
            [
                str(name),
                str(int(row["seeds"])),
                str(int(row["converged"])),
                number(row["l0"], 2),
                number(row["fvu"], 4),
                number(row["dead"], 2),
                number(row["init"]),
                number(row["seconds"], 1),
            ]
            for name, row in means.iterrows()
        ),
    )


def _score_table(groups: pd.DataFrame, space: str) -> str:
    part = groups[(groups["space"] == space) & ~groups["signed"].astype(bool)]
    mmcs = part[part["score"] == "mmcs"].set_index("group")["mean"]
    scores = part[part["score"] == "pw_mcc"].sort_values(["d_sae", "architecture"])
    dimensions = sorted(set(scores["dimensions"]))
    rows = []
    for row in scores.to_dict("records"):
        mark = "" if row["converged"] is True or row["converged"] == 1 else " †"
        rows.append(
            [
                f"{row['group']}{mark}",
                f"**{number(row['mean'])}** [{number(row['low'])}, {number(row['high'])}]",
                f"{number(row['isotropic_mean'])} ± {number(row['isotropic_sd'])}",
                f"{number(row['data_aware_mean'])} ± {number(row['data_aware_sd'])}",
                number(row["init_mean"]),
                number(row["isotropic_corrected"]),
                number(row["data_aware_corrected"]),
                number(mmcs.get(row["group"])),
            ]
        )
    head = f"PW-MCC in {'/'.join(str(d) for d in dimensions)} dimensions"
    return markdown_table(
        [
            "group",
            head,
            "isotropic null",
            "data-aware null",
            "init",
            "above isotropic",
            "above data-aware",
            "MMCS",
        ],
        rows,
    )
