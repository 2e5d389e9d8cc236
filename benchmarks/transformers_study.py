"""The same SAEs on several transformers: what is universal, and what belongs to one of them.

    python benchmarks/transformers_study.py                       # every shipped transformer
    python benchmarks/transformers_study.py --transformers seed0 seed0_clean

For each transformer it runs `kedro run --env=transformers` in a folder of its own below
data/transformers, and adds a row for each group of SAEs to docs/results/transformers/groups.csv.
Started again, it continues where it was interrupted: SAEs that are trained stay, and a transformer
whose rows are in its folder is done.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project

from husai.campaign.records import RowsRecords, gather_records
from husai.consistency import (
    SAERecord,
    class_gt_mcc,
    class_labels,
    class_means,
    coverage,
    gt_mcc,
    label_chance,
    pw_mcc,
    score_reference,
    seed_interval,
)
from husai.consistency.analyses.explanation import class_scores
from husai.consistency.analyses.labels import Classes
from husai.consistency.inference.references import permuted
from husai.consistency.study.record import group_members, live_latents
from husai.errors import InputError
from husai.storage import atomic_path
from husai.transformer import (
    TrainedTransformer,
    fourier_structure,
    frequency_balance,
    frequency_shares,
    shipped_transformers,
)

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "transformers"
ROWS = "groups.csv"
# of the permuted null of agreement, and of the labels' chance, which encodes all rows each time
DRAWS, LABEL_DRAWS = 200, 3


class Leg(NamedTuple):
    """One transformer of the study: its name and the parameters that choose it."""

    name: str
    params: dict[str, Any]


def shipped_legs(names: Sequence[str] = ()) -> list[Leg]:
    """Give a leg for each shipped transformer, or for those that are named."""
    every = {
        one.name: Leg(one.name, {"transformer": {"seed": one.seed, "shipped": one.shipped}})
        for one in shipped_transformers()
    }
    unknown = sorted(set(names) - set(every))
    if unknown:
        raise InputError(f"--transformers: {unknown} are not shipped; there are: {list(every)}")
    return [every[name] for name in names or every]


def run(folder: Path, params: dict[str, Any]) -> tuple[RowsRecords, TrainedTransformer, Any]:
    """Train what is missing in a leg's folder; give its SAEs with rows, its model and examples."""
    os.environ["HUSAI_DATA_DIR"] = str(folder)
    bootstrap_project(ROOT)
    session: Any
    with KedroSession.create(ROOT, env="transformers", runtime_params=params) as session:
        session.run()
    with KedroSession.create(ROOT, env="transformers", runtime_params=params) as session:
        catalog = session.load_context().catalog
        names = ("sae_plan", "saes", "activations", "transformer", "examples")
        plan, saes, activations, transformer, examples = map(catalog.load, names)
    study = gather_records(plan, saes, {}, activations)
    trained = TrainedTransformer.from_parts(transformer.tensors, transformer.header)
    return study.first, trained, examples


def about(trained: TrainedTransformer) -> dict[str, Any]:
    """Say which transformer it is and how evenly its key frequencies hold the variance."""
    parts = trained.state_dict, trained.vocabulary, trained.model_config
    row: dict[str, Any] = {
        "fingerprint": trained.fingerprint,
        "transformer_seed": trained.model_config.seed,
        "epochs": trained.summary["epochs"],
        "test_accuracy": trained.summary["final_test_accuracy"],
    }
    try:
        shares = frequency_shares(*parts, fourier_structure(*parts).key_frequencies)
    except InputError:  # it has not grokked: no frequency stands out
        return {**row, "n_frequencies": 0}
    return {
        **row,
        "n_frequencies": len(shares),
        "largest_share": max(shares.values()),
        "frequency_balance": frequency_balance(list(shares.values())),
    }


def measure(
    records: Sequence[SAERecord],
    rows: np.ndarray[Any, Any],
    answers: Classes,
    draws: int = DRAWS,
    label_draws: int = LABEL_DRAWS,
) -> dict[str, Any]:
    """Measure a group: agreement beside its permuted null, and what it holds of the answers.

    Latents that never fire are left out.

    Parameters
    ----------
    records
        The seeds' SAEs, with codes of the rows.
    rows
        ``[n_rows, d]`` activations.
    answers
        The answer of each row.
    draws, label_draws
        Of the permuted null, and of the chance of coverage.
    """
    live = [live_latents(record, "drop") for record in records]
    row: dict[str, Any] = {
        "n_seeds": len(records),
        "converged": np.mean([bool(record.converged) for record in records]),
        "live": np.mean([len(one) for one in live]),
        "l0": np.mean([record.l0 for record in records]),
        "fvu": np.mean([record.fvu for record in records]),
        "n_answers": len(answers.names),
    }
    if len(records) < 2 or min(map(len, live)) < 2:
        return row
    decoders = [record.W_dec[one] for record, one in zip(records, live, strict=True)]
    scores = np.eye(len(records))
    for s, t in zip(*np.triu_indices(len(records), 1), strict=True):
        scores[s, t] = scores[t, s] = pw_mcc(decoders[s], decoders[t])
    found = seed_interval(scores, bounds=(0, 1))
    reference = permuted(decoders)
    sizes = len(decoders[0]), len(decoders[1])
    null = score_reference(reference, sizes, n_draws=draws)["pw_mcc"]
    assert found.mean is not None
    row |= {
        "pw_mcc": found.mean,
        "pw_mcc_low": found.low,
        "pw_mcc_high": found.high,
        "pw_mcc_permuted": null.mean,
        "pw_mcc_corrected": null.corrected(found.mean),
        "pw_mcc_p": null.p_value(found.mean),
    }
    means = class_means(rows, answers)
    _, chance = class_gt_mcc(decoders[0], means, reference, n_draws=draws)
    row["gt_mcc"] = np.mean([gt_mcc(decoder, means, signed=True) for decoder in decoders])
    row["gt_mcc_permuted"] = chance.mean
    covered = []
    for record in records:
        assert record.codes is not None
        covered.append(coverage(class_scores(record.codes, answers)))
    row["answers"] = np.mean([one.f1_best for one in covered])
    row["answers_sd"] = np.std([one.f1_best for one in covered], ddof=1)
    row["answers_by_precision"] = np.mean([one.average_precision for one in covered])
    rates = records[0].firing_rate
    assert rates is not None
    by_chance = label_chance(reference, rows, rates[live[0]], answers, n_draws=label_draws)
    row["answers_by_chance"] = by_chance.coverage["f1_best"].mean()
    return row


def study(
    legs: Sequence[Leg],
    folder: Path,
    results: Path,
    params: dict[str, Any] | None = None,
    draws: int = DRAWS,
) -> pd.DataFrame:
    """Run every leg that is not done, and write the table of all.

    Parameters
    ----------
    legs
        Transformers.
    folder
        Of the data, a folder below it for each leg.
    results
        Folder of the table.
    params
        Further parameters of every leg.
    draws
        Of the permuted null.
    """
    tables = []
    for leg in legs:
        own = folder / leg.name
        done = own / ROWS
        if not done.is_file():
            started = time.perf_counter()
            here, trained, examples = run(own.resolve(), merged(params or {}, leg.params))
            answers = class_labels("answer", examples["answer"].to_numpy(dtype=np.int64))
            rows = here.rows.values.numpy()
            head = {"transformer": leg.name, **about(trained)}
            table = pd.DataFrame(
                [
                    {
                        **head,
                        "group": group,
                        "architecture": members[0].architecture,
                        "d_sae": members[0].d_sae,
                        **measure(members, rows, answers, draws),
                    }
                    for group, members in group_members(here.records).items()
                ]
            )
            with atomic_path(done) as temporary:
                table.to_csv(temporary, index=False)
            print(f"{leg.name}: {time.perf_counter() - started:.0f} s")
        tables.append(pd.read_csv(done))
    table = pd.concat(tables, ignore_index=True)
    with atomic_path(results / ROWS) as temporary:
        table.round(5).to_csv(temporary, index=False)
    return table


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Merge nested parameters, the second's in front."""
    found = dict(base)
    for name, value in over.items():
        both = isinstance(value, dict) and isinstance(found.get(name), dict)
        found[name] = merged(found[name], value) if both else value
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--transformers", nargs="+", default=[], help="names; all by default")
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "transformers")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    table = study(shipped_legs(given.transformers), given.data, given.results)
    columns = ["transformer", "group", "pw_mcc", "pw_mcc_permuted", "gt_mcc", "answers"]
    print(table[columns].to_string(index=False))


if __name__ == "__main__":
    main()
