"""Tables beside the report, on planted dictionaries and codes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy import stats

from husai.consistency import (
    ConsistencyConfig,
    ConsistencyReport,
    SAERecord,
    consistency_report,
    join_reports,
    match_features,
)
from husai.consistency.analyses.symmetry import best_translation
from husai.consistency.study.beside import BESIDE
from husai.consistency.study.columns import TableError
from husai.consistency.study.geometry import directions_geometry, geometry_table, symmetry_table
from husai.consistency.study.matched import matched_tables
from husai.consistency.study.record import with_firing_rates
from husai.consistency.study.tables import (
    correlates_table,
    orderings_table,
    settings_table,
    trajectory_table,
)
from husai.errors import InputError

P = 7
CONFIG = ConsistencyConfig(null_draws=2, code_null_draws=2, symmetry_draws=4)


def grid() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    a, b = np.divmod(np.arange(P * P), P)
    return a, b


def spots(n: int, seed: int) -> NDArray[np.float64]:
    """Codes without any symmetry."""
    rng = np.random.default_rng(seed)
    return np.asarray(np.maximum(rng.standard_normal((P * P, n)), 0))


def record(seed: int, codes: NDArray[np.float64] | None = None, **fields: Any) -> SAERecord:
    n = 6 if codes is None else codes.shape[1]
    W = np.random.default_rng([3, seed]).standard_normal((n, 9))
    return SAERecord(
        f"{fields.get('group', 'g')}-{seed}", "topk", seed, W, W_enc=W.T, codes=codes, **fields
    )


def test_a_translated_dictionary_is_recognised_and_an_unrelated_one_is_not() -> None:
    a, b = grid()
    codes = spots(5, 0)
    order = np.random.default_rng(1).permutation(5)
    moved = codes[((a - 3) % P) * P + (b - 2) % P][:, order]
    got = best_translation(codes, moved, P, n_null=4)
    assert (got["shift_a"] + 3) % P == 0
    assert (got["shift_b"] + 2) % P == 0
    assert got["score"] == pytest.approx(1.0)
    assert got["p"] == pytest.approx(1 / 5)
    other = best_translation(codes, spots(7, 5), P, n_null=4)
    brute = max(
        match(codes[((a + s) % P) * P + (b + t) % P], spots(7, 5))
        for s in range(P)
        for t in range(P)
    )
    assert other["score"] == pytest.approx(brute)
    # unrelated codes gain as much from choosing a shift as relabelled ones do
    assert abs(other["score"] - other["null_mean"]) < 0.1
    with pytest.raises(InputError, match="49"):
        best_translation(codes[:-1], codes, P)
    assert best_translation(np.zeros((P * P, 2)), codes, P)["reason"] == "no latent varies"


def match(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    from scipy.optimize import linear_sum_assignment

    C = np.corrcoef(x.T, y.T)[: x.shape[1], x.shape[1] :]
    return float(C[linear_sum_assignment(C, maximize=True)].mean())


def test_symmetry_table_says_what_maps_to_what() -> None:
    a, b = grid()
    symmetric = spots(4, 2)
    symmetric = symmetric + symmetric[b * P + a]  # the swap maps each latent to itself
    records = [
        record(0, symmetric, converged=True),
        record(1, symmetric[:, ::-1], converged=False),
    ]
    table = symmetry_table({"g": records}, P, CONFIG).set_index(["kind_of_pair", "symmetry"])
    assert table.loc[("itself", "swap"), "score"] == pytest.approx(1.0)
    assert table.loc[("other seed", "swap"), "score"] == pytest.approx(1.0)
    assert float(table["score"][("itself", "translate (+1, +0)")]) < 0.9
    assert ("other seed", "best translation") in table.index
    assert not table["converged"].any()
    wide = symmetry_table({"g": records}, P, CONFIG.model_copy(update={"symmetry_width": 3}))
    assert wide["reason"].tolist() == ["wider than symmetry_width = 3"]
    blind = symmetry_table({"g": [record(0)]}, P, CONFIG)
    assert "no codes" in blind["reason"].iloc[0]


def test_geometry_is_compared_with_random_directions() -> None:
    rng = np.random.default_rng(0)
    flat = np.zeros((20, 9))
    flat[:, :2] = rng.standard_normal((20, 2))
    codes = (rng.random((40, 20)) < 0.2) * 1.0
    group = [
        SAERecord(f"s{s}", "topk", s, flat, W_enc=flat.T, codes=codes, converged=None)
        for s in range(3)
    ]
    covariance = np.diag([1.0, 1, *[0.0] * 7])
    table = geometry_table({"flat": group}, CONFIG, covariance).set_index("measure")
    assert table.loc["dims_99", "mean"] == 2
    assert table.loc["dims_99", "data_aware_mean"] == 2
    assert float(table["isotropic_mean"]["dims_99"]) > 6
    assert table.loc["cosine_to_encoder", "mean"] == pytest.approx(1.0)
    together = (codes.T @ codes)[~np.eye(20, dtype=bool)]
    assert table.loc["never_coactive", "mean"] == pytest.approx((together == 0).mean())
    one = geometry_table({"one": [SAERecord("x", "topk", 0, flat[:1])]}, CONFIG)
    assert one["reason"].str.len().gt(0).all()
    assert one.get("mean", pd.Series(dtype=float)).isna().all()
    assert directions_geometry(flat, 0.7)["participation_ratio"] <= 2


def test_trajectories_end_with_the_values_of_the_report_or_give_a_reason() -> None:
    records = [record(s, W_dec_init=np.eye(6, 9), converged=False) for s in range(3)]
    start = {r.id: np.eye(6, 9) for r in records}
    table = trajectory_table(
        {"g": records},
        lambda r: {0: start[r.id], 10: r.W_dec},
        {"g": {"isotropic": 0.4}},
        CONFIG,
    )
    assert table["step"].tolist() == [0, 10]
    # one start for all seeds: agreement is perfect before anything is learned
    assert table["mean"].iloc[0] == pytest.approx(1.0)
    expected = np.mean(
        [
            match_features(records[i].W_dec, records[j].W_dec).mean
            for i, j in ((0, 1), (0, 2), (1, 2))
        ]
    )
    assert table["mean"].iloc[1] == pytest.approx(expected)
    assert table["isotropic_mean"].tolist() == [0.4, 0.4]
    assert not table["converged"].any()
    none = trajectory_table({"g": records}, lambda r: {}, {}, CONFIG)
    assert none["reason"].tolist() == ["no decoders saved during training"]
    single = trajectory_table({"g": records[:1]}, lambda r: {0: r.W_dec}, {}, CONFIG)
    assert "one seed" in single["reason"].iloc[0]


def study(l0: dict[str, tuple[float, ...]], n_seeds: int = 4) -> ConsistencyReport:
    """Report groups of two architectures that share their features, each with its L0 values."""
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((8, 6))
    records = []
    for architecture, noise in (("topk", 0.1), ("relu", 0.8)):
        for at, value in enumerate(l0[architecture]):
            for s in range(n_seeds):
                W = truth + noise * rng.standard_normal((8, 6))
                records.append(
                    SAERecord(
                        f"{architecture}-{at}-{s}",
                        architecture,
                        s,
                        W,
                        W_enc=W.T,
                        k=at + 1,
                        l0=value,
                        fvu=1 / value,
                        converged=architecture == "topk",
                    )
                )
    return consistency_report(records, CONFIG)


def matched_of(report: ConsistencyReport) -> tuple[pd.DataFrame, pd.DataFrame]:
    return matched_tables(report.groups, report.pairs, report.saes)


def test_architectures_are_compared_on_one_axis_or_the_table_gives_a_reason() -> None:
    report = study({"topk": (2.0, 8.0), "relu": (4.0, 16.0)})
    matched, contrasts = matched_of(report)
    for name, table in (("matched", matched), ("contrasts", contrasts)):
        BESIDE[name].check(table)
    part = matched.query("score == 'pw_mcc' and space == 'full' and matched_on == 'l0'")
    assert part["at"].between(4, 8).all()
    assert part["reason"].eq("").all()
    np.testing.assert_allclose(part["l0"].astype(float), part["at"])
    gates = part.groupby("architecture")["converged"].first()
    assert gates["topk"]
    assert not gates["relu"]
    # every SAE has 8 live latents: there is no curve over their number
    alike = matched.query("matched_on == 'n_live'")
    assert alike["reason"].str.contains("no n_live in common").all()
    order = orderings_table(report.groups, contrasts)
    BESIDE["orderings"].check(order)
    fair = order[(order["basis"] == "matched l0") & order["source"].str.contains("Song")]
    assert len(fair)
    assert fair["agrees"].all()  # topk above relu, as Song et al. print
    assert fair["separated"].all()
    against = order[(order["reason"] == "") & order["source"].str.contains("Paulo")]
    assert set(against["basis"]) == {"matched l0", "matched fvu", "own L0"}
    assert not against["agrees"].any()
    apart = matched_of(study({"topk": (2.0,), "relu": (9.0,)}))
    assert apart[0]["reason"].str.contains("no curve").all()
    assert apart[1].empty
    nothing, none = matched_tables(report.groups, report.pairs, report.saes.assign(l0=None))
    assert nothing["reason"].tolist() == [
        "no architecture has SAEs with L0, FVU and a score at two seeds"
    ]
    assert (orderings_table(report.groups.assign(mean=np.nan), none)["reason"] != "").all()


def test_a_seed_missing_in_one_setting_is_left_out_of_the_whole_curve() -> None:
    report = study({"topk": (2.0, 8.0), "relu": (4.0, 16.0)}, n_seeds=5)
    lost = report.saes["id"] == "topk-1-4"
    gone = report.pairs["id_a"].eq("topk-1-4") | report.pairs["id_b"].eq("topk-1-4")
    matched, _ = matched_tables(report.groups, report.pairs[~gone], report.saes[~lost])
    seeds = matched.query("reason == ''").groupby("architecture")["n_seeds"].first()
    assert seeds.to_dict() == {"relu": 5, "topk": 4}


def test_settings_have_the_width_divided_by_the_rank() -> None:
    table = settings_table(study({"topk": (2.0,), "relu": (2.0,)}).groups, 4.0)
    assert (table["width_ratio"] == 2.0).all()
    assert {"pw_mcc", "shared_fraction", "mmcs"} == set(table["score"])


def test_reports_of_several_hooks_are_joined_and_never_mixed() -> None:
    reports = {
        hook: consistency_report([record(s, group=name) for s in range(2)], CONFIG)
        for hook, name in (("mid@-1", "a"), ("post@-1", "b"))
    }
    joined = join_reports(reports)
    assert dict(zip(joined.groups["group"], joined.groups["hook"], strict=True)) == {
        "a": "mid@-1",
        "b": "post@-1",
    }
    assert joined.summary["n_saes"] == 4
    assert joined.summary["n_groups"] == 2
    with pytest.raises(InputError, match="occurs at"):
        join_reports({"x": reports["mid@-1"], "y": reports["mid@-1"]})
    with pytest.raises(InputError, match="none"):
        join_reports({})


def test_correlations_with_reproducibility_equal_those_of_scipy() -> None:
    rng = np.random.default_rng(5)
    tables = []
    for sae in range(3):
        rate = rng.random(30)
        rate[:5] = rate[5]  # ties
        tables.append(
            pd.DataFrame(
                {
                    "group": "g",
                    "id": f"s{sae}",
                    "space": "full",
                    "hook": "h@0",
                    "converged": sae != 1,
                    "reproducibility": rate + rng.standard_normal(30),
                    "firing_rate": rate,
                    "cosine_to_init": 0.5,
                }
            )
        )
    features = pd.concat(tables, ignore_index=True)
    table = correlates_table(features, level=0.9).set_index("covariate")
    expected = [
        stats.spearmanr(part["reproducibility"], part["firing_rate"]).statistic for part in tables
    ]
    row = table.loc["firing_rate"]
    assert row["mean"] == pytest.approx(np.mean(expected))
    half = stats.t.ppf(0.95, 2) * np.std(expected, ddof=1) / np.sqrt(3)
    assert row["high"] == pytest.approx(min(1.0, np.mean(expected) + half))
    assert not row["converged"]
    assert row["hook"] == "h@0"
    assert "does not vary" in str(table.loc["cosine_to_init", "reason"])
    assert table.loc["purity", "reason"] == "not known"


def test_intervals_of_shares_stay_between_0_and_1() -> None:
    records = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        fires = rng.random((40, 6)) < (0.9 if seed == 2 else 0.01)
        codes = fires.astype(np.float64)
        records.append(record(seed, codes, group="g"))
    table = geometry_table({"g": with_firing_rates(records)}, CONFIG).set_index("measure")
    for measure in ("firing_rate", "never_coactive"):
        low, mean, high = (table[name][measure] for name in ("low", "mean", "high"))
        assert 0 <= low <= mean <= high <= 1
    assert table["low"]["firing_rate"] == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": 1.5}, r"correlates, column mean: holds 1.5, outside \[-1.0, 1.0\]"),
        ({"covariate": 3}, "correlates, column covariate: holds .*3"),
        ({"colour": "red"}, r"correlates: columns \['colour'\] are not declared"),
    ],
)
def test_a_table_beside_the_report_is_checked_against_its_declaration(
    change: dict[str, Any], message: str
) -> None:
    row = {"group": "g", "n_seeds": 3, "converged": True, "covariate": "purity", "reason": ""}
    table = BESIDE["correlates"]
    assert len(table.check(pd.DataFrame([row | {"mean": 0.5}]))) == 1
    with pytest.raises(TableError, match=message):
        table.check(pd.DataFrame([row | change]))
