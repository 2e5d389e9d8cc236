"""Comparison of SAEs in memory: scores, nulls, JSON document and table."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from husai.compare import document as compare_document
from husai.compare.comparison import CompareConfig, compare, threshold_counts
from husai.compare.document import (
    matching_table,
    result_document,
    schema,
    write_result,
)
from husai.compare.schema import Document, ScoreEntry
from husai.compare.table import print_result, result_text
from husai.consistency.inference.intervals import seed_interval
from husai.consistency.inference.null_cache import NullCache
from husai.consistency.inference.nulls import null_scores
from husai.consistency.scores.decoder import mmcs, pw_mcc, shared_fraction
from husai.consistency.scores.pair import Side
from husai.consistency.study.record import SAERecord
from husai.errors import InputError
from husai.matching.match import match_features

Rows = NDArray[Any]


def record(name: str, W_dec: Rows, W_enc: Rows | None = None, **fields: Any) -> SAERecord:
    return SAERecord(name, "topk", 0, W_dec, W_enc, **fields)


def planted(n_saes: int = 3, n: int = 60, n_shared: int = 40, d: int = 24) -> list[SAERecord]:
    """SAEs that share some features exactly and no others."""
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((n_shared, d))
    saes = []
    for s in range(n_saes):
        W_dec = np.concatenate([truth, rng.standard_normal((n - n_shared, d))])
        W_dec = W_dec[rng.permutation(n)].astype(np.float32)
        saes.append(
            record(
                f"seed {s}",
                W_dec,
                W_dec.T.copy(),
                encode=lambda rows, W=W_dec: np.maximum(rows @ W.T - 3, 0),
            )
        )
    return saes


def entry(scores: list[ScoreEntry], name: str, signed: bool) -> ScoreEntry:
    return next(s for s in scores if (s.score, s.signed) == (name, signed))


def value(scores: list[ScoreEntry], name: str, signed: bool) -> float:
    found = entry(scores, name, signed).value
    assert found is not None
    return found


def test_the_command_gives_the_scores_of_the_library() -> None:
    saes = planted()
    config = CompareConfig(null_draws=3, seed=5)
    comparison = compare(saes, config)
    assert [(p.a, p.b) for p in comparison.pairs] == [
        ("seed 0", "seed 1"),
        ("seed 0", "seed 2"),
        ("seed 1", "seed 2"),
    ]
    pair = comparison.pairs[1]
    A, B = saes[0].W_dec, saes[2].W_dec
    for signed in (False, True):
        expected = mmcs(A, B, signed=signed)
        assert value(pair.scores, "pw_mcc", signed) == pytest.approx(pw_mcc(A, B, signed=signed))
        assert value(pair.scores, "mmcs_a_to_b", signed) == pytest.approx(expected.a_to_b)
        assert value(pair.scores, "mmcs_b_to_a", signed) == pytest.approx(expected.b_to_a)
        assert value(pair.scores, "mmcs", signed) == pytest.approx(expected.mean)
    shared = shared_fraction(A, A, B, B)
    assert value(pair.scores, "shared_fraction", True) == pytest.approx(shared.fraction)
    assert value(pair.scores, "matched_fraction", True) == pytest.approx(40 / 60, abs=0.02)

    nulls = null_scores(60, 60, 24, scores=["pw_mcc", "mmcs"], n_draws=3, seed=5)
    for name, expected_null in nulls.items():
        null = entry(pair.scores, name, False).nulls["isotropic"]
        assert null.mean == pytest.approx(expected_null.mean, abs=1e-6)
        corrected = expected_null.corrected(value(pair.scores, name, False))
        assert null.corrected == pytest.approx(corrected, abs=1e-6)
        assert null.p_value == 0.25


def test_the_interval_is_over_saes() -> None:
    saes = planted()
    comparison = compare(saes, CompareConfig(null_draws=0))
    W = np.zeros((3, 3))
    for i in range(3):
        for j in range(3):
            W[i, j] = pw_mcc(saes[i].W_dec, saes[j].W_dec)
    expected = seed_interval(W, bounds=(0, 1))
    row = next(r for r in comparison.overall if (r.score, r.signed) == ("pw_mcc", False))
    assert row.mean == pytest.approx(expected.mean)
    assert (row.low, row.high) == pytest.approx((expected.low, expected.high))
    two = compare(saes[:2], CompareConfig(null_draws=0))
    assert two.overall[0].low is None
    assert "two seeds" in two.overall[0].reason


def test_zero_rows_are_left_out_and_indices_name_the_latents() -> None:
    saes = planted(2)
    W_dec = np.concatenate([np.zeros((5, 24), np.float32), saes[0].W_dec])
    with_zeros = record("zeros", W_dec, W_dec.T.copy())
    config = CompareConfig(null_draws=0)
    alone, other = compare(saes, config), compare([with_zeros, saes[1]], config)
    for before, after in zip(alone.pairs[0].scores, other.pairs[0].scores, strict=True):
        assert before.value == pytest.approx(after.value)
    before_table, after_table = matching_table(alone), matching_table(other)
    np.testing.assert_array_equal(before_table["a_index"] + 5, after_table["a_index"])
    np.testing.assert_array_equal(before_table["b_index"], after_table["b_index"])
    assert result_document(other).saes[0].zero_rows == 5
    assert "5 zero rows left out" in result_text(other)


def test_codes_of_equal_saes_agree_also_when_permuted() -> None:
    sae = planted(1)[0]
    order = np.random.default_rng(1).permutation(60)
    W = sae.W_dec[order]
    moved = record("moved", W, W.T.copy(), encode=lambda rows: np.maximum(rows @ W.T - 3, 0))
    rows = np.random.default_rng(2).standard_normal((400, 24)).astype(np.float32)
    comparison = compare([sae, moved], CompareConfig(null_draws=2), activations=rows)
    scores = comparison.pairs[0].scores
    for name, signed in (
        ("code_jaccard", False),
        ("code_correlation", False),
        ("code_r2", False),
        ("activation_mcc", True),
    ):
        assert value(scores, name, signed) == pytest.approx(1.0, abs=1e-5)
    nulls = entry(scores, "pw_mcc", True).nulls
    assert set(nulls) == {"isotropic", "data_aware", "permuted"}
    shuffled = entry(scores, "activation_mcc", True).nulls["shuffled"]
    assert shuffled.draws == 2
    assert 0 < shuffled.mean < 0.5
    assert shuffled.corrected == pytest.approx(1.0, abs=1e-5)
    assert comparison.activations == {"n_rows": 400}


def test_wide_activation_matching_equals_the_narrow_one(monkeypatch: pytest.MonkeyPatch) -> None:
    saes = planted(2)
    rows = np.random.default_rng(2).standard_normal((300, 24)).astype(np.float32)
    config = CompareConfig(null_draws=0)
    narrow = compare(saes, config, activations=rows).pairs[0].scores
    monkeypatch.setattr("husai.consistency.scores.code_scores._CORRELATION_PAIRS", 0)
    wide = compare(saes, config, activations=rows).pairs[0].scores
    assert value(wide, "activation_mcc", True) == pytest.approx(
        value(narrow, "activation_mcc", True), abs=1e-6
    )
    monkeypatch.setattr("husai.consistency.scores.code_scores._CORRELATION_NUMBERS", 600)
    scores = compare(saes, config, activations=rows).pairs[0].scores
    refused = entry(scores, "activation_mcc", True)
    assert refused.value is None
    assert "at most 10 rows" in refused.reason


def test_data_aware_chance_is_higher_on_narrow_data() -> None:
    rows = np.random.default_rng(2).standard_normal((400, 24)) * np.geomspace(1, 0.01, 24)
    comparison = compare(planted(2), CompareConfig(null_draws=2), activations=rows)
    nulls = entry(comparison.pairs[0].scores, "pw_mcc", False).nulls
    assert nulls["data_aware"].mean > nulls["isotropic"].mean + 0.1


def test_nulls_are_fewer_for_wider_saes_and_never_none_by_default() -> None:
    nulls = NullCache(CompareConfig())
    assert nulls.draws(64, 64, 768) == 40
    assert nulls.draws(131072, 131072, 768) == 1
    assert 1 < nulls.draws(16384, 16384, 768) < 40
    side = Side(np.eye(4))
    assert NullCache(CompareConfig(null_draws=0)).pair(side, side) == {}


def test_document_follows_the_published_schema_and_keeps_the_matching() -> None:
    saes = planted()
    rows = np.random.default_rng(2).standard_normal((50, 24)).astype(np.float32)
    comparison = compare(saes, CompareConfig(null_draws=2), activations=rows)
    document = json.loads(result_document(comparison).model_dump_json(by_alias=True))
    checker = jsonschema.Draft202012Validator(schema())
    jsonschema.Draft202012Validator.check_schema(schema())
    checker.validate(document)
    # the schema does look: what it forbids is found
    spoilers: list[Callable[[Any], Any]] = [
        lambda d: d.pop("schema_version"),
        lambda d: d["pairs"][0].update(extra=1),
        lambda d: d["pairs"][0]["scores"][0].update(score="mystery"),
        lambda d: d["saes"][0].update(converged="yes"),
    ]
    for spoil in spoilers:
        spoiled = json.loads(json.dumps(document))
        spoil(spoiled)
        assert not checker.is_valid(spoiled)
    match = document["pairs"][0]["matches"][1]
    assert match["signed"]
    expected = match_features(saes[0].W_dec, saes[1].W_dec, signed=True)
    assert match["pairs"]["b_index"] == expected.b_index.tolist()
    np.testing.assert_allclose(match["pairs"]["cosine"], expected.cosine)
    assert sum(match["pairs"]["shared"]) == 40
    assert document["options"]["null_draws"] == 2


def test_ambiguity_stands_beside_each_match() -> None:
    """Two copies of one feature can be exchanged at no loss, what is planted cannot."""
    a, b = planted(2)
    twin = record("twin", np.concatenate([b.W_dec, b.W_dec[:2]]))
    comparison = compare([a, twin], CompareConfig(null_draws=0))
    document = json.loads(result_document(comparison).model_dump_json(by_alias=True))
    match = document["pairs"][0]["matches"][0]
    found, pairs = match["ambiguity"], match["pairs"]
    copied = np.isin(pairs["b_index"], [0, 1, 60, 61])
    assert min(np.array(pairs["exchangeable"])[copied]) >= 2
    similarity = np.abs(pairs["cosine"])
    assert found["score_moves"] == pytest.approx(0.02 / 60)
    for row in found["matched"]:
        n = int((similarity >= row["threshold"]).sum())
        assert row["at_least"] <= n <= row["at_most"]
    assert found["ambiguous"] == pytest.approx(np.mean(np.array(pairs["exchangeable"]) > 1))
    assert matching_table(comparison)["exchangeable"].notna().all()
    assert "have another partner" in result_text(comparison)
    without = compare([a, b], CompareConfig(null_draws=0, epsilon=0))
    document = json.loads(result_document(without).model_dump_json(by_alias=True))
    assert document["pairs"][0]["matches"][0]["ambiguity"] is None
    assert matching_table(without)["exchangeable"].isna().all()
    assert "ambiguous" not in result_text(without)


def test_large_matchings_go_into_parquet_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = compare(planted(), CompareConfig(null_draws=0))
    assert write_result(comparison, tmp_path / "small.json") == [tmp_path / "small.json"]
    monkeypatch.setattr(compare_document, "_INLINE_PAIRS", 10)
    written = write_result(comparison, tmp_path / "large.json")
    assert [path.name for path in written] == ["large.json", "large.matching.parquet"]
    small = json.loads((tmp_path / "small.json").read_text())
    large = json.loads((tmp_path / "large.json").read_text())
    jsonschema.validate(large, schema())
    assert large["matching_file"] == "large.matching.parquet"
    assert large["pairs"][0]["matches"][0]["pairs"] is None
    table = pd.read_parquet(written[1])
    part = table[(table["a"] == "seed 0") & (table["b"] == "seed 1") & ~table["signed"]]
    assert part["b_index"].tolist() == small["pairs"][0]["matches"][0]["pairs"]["b_index"]


def test_threshold_counts_add_up() -> None:
    a = np.eye(4)[:3]
    b = np.array([[1.0, 0, 0, 0], [0, 0.8, 0.6, 0], [0, 0, 0, 1.0], [1, 1, 1, 1]])
    counts = threshold_counts(match_features(a, b), [0.5, 0.9])
    assert counts[1].model_dump() == {
        "threshold": 0.9,
        "matched": 1,
        "unmatched_a": 2,
        "unmatched_b": 3,
    }
    assert counts[0].matched == 3


def test_the_text_says_which_values_are_unknown() -> None:
    saes = planted(2)
    plain = [record("a", saes[0].W_dec), record("b", saes[1].W_dec, converged=False)]
    text = result_text(compare(plain, CompareConfig(null_draws=0)))
    assert "convergence unknown" in text
    assert "NOT CONVERGED" in text
    assert "no encoder in a and b" in text
    assert "No nulls were drawn" in text
    assert "Two SAEs make one pair" in text
    many = result_text(compare(planted(), CompareConfig(null_draws=1)))
    assert "interval over SAEs" in many
    assert "p cannot be below 0.500" in many


def test_bad_input_is_named() -> None:
    a, b = planted(2)
    with pytest.raises(InputError, match="at least two"):
        compare([a])
    with pytest.raises(InputError, match="occurs twice"):
        compare([a, a])
    with pytest.raises(InputError, match="narrow: its decoder has 20 dimensions"):
        compare([a, record("narrow", b.W_dec[:, :20])])
    with pytest.raises(InputError, match="dead: its decoder is all zero"):
        compare([a, record("dead", np.zeros((5, 24)))])
    broken = b.W_dec.copy()
    broken[7, 3] = np.nan
    with pytest.raises(InputError, match=r"broken: W_dec: 1 of its 60 .* .the first is row 7"):
        compare([a, record("broken", broken)])
    with pytest.raises(InputError, match="W_enc has shape"):
        compare([a, record("turned", b.W_dec, b.W_dec)])
    with pytest.raises(InputError, match="activations: shape"):
        compare([a, b], activations=np.ones((4, 3)))


def test_generated_documentation_is_that_of_the_code() -> None:
    source = Path(__file__).parents[2] / "docs" / "generate.py"
    spec = importlib.util.spec_from_file_location("generate", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for path, text in module.files().items():
        assert path.read_text(encoding="utf-8") == text, f"run docs/generate.py: {path.name}"


def test_a_result_of_schema_1_0_stays_readable() -> None:
    comparison = compare(planted(2), CompareConfig(null_draws=2))
    new = json.loads(result_document(comparison).model_dump_json(by_alias=True))
    kept = {"pw_mcc", "mmcs", "mmcs_a_to_b", "mmcs_b_to_a", "matched_fraction"}
    old = {**new, "schema_version": "1.0"}
    for part in (*old["pairs"], old):
        rows = "scores" if "scores" in part else "overall"
        part[rows] = [row for row in part[rows] if row["score"] in kept]
    old["saes"] = [{k: v for k, v in sae.items() if v is not None} for sae in old["saes"]]
    for sae in old["saes"]:
        sae["converged"] = None
    assert Document.model_validate(old).schema_version == "1.0"
    jsonschema.validate(old, schema())
    with pytest.raises(ValueError, match="schema_version"):
        Document.model_validate({**new, "schema_version": "3.0"})


def test_the_table_has_no_colours_in_a_file_and_fits_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    comparison = compare(planted(), CompareConfig(null_draws=1))
    text = result_text(comparison)
    assert "\x1b" not in text
    line = next(line for line in text.splitlines() if line.strip().startswith("PW-MCC"))
    entry = next(e for e in comparison.pairs[0].scores if e.score == "pw_mcc" and not e.signed)
    assert f"{entry.value:.4f}" in line
    assert f"{entry.nulls['isotropic'].mean:.4f}" in line
    assert f"{entry.nulls['isotropic'].corrected:.4f}" in line
    row = next(r for r in comparison.overall if r.score == "pw_mcc" and not r.signed)
    assert f"[{row.low:.4f}, {row.high:.4f}]" in text
    # a terminal: styled, and no line wider than it
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "90")
    terminal = StringIO()
    print_result(comparison, terminal)
    assert "\x1b[1m" in terminal.getvalue()
    plain = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
    assert max(map(len, plain.splitlines())) <= 90
