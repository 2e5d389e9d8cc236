"""Nineteen layouts of files from other projects: each is read correctly, or refused in one line."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from tests.sae.formats.layouts import ROWS, SAE, Layout, layouts
from tests.sae.formats.made import close, codes_in_unit_rows, norms, same_directions

from husai.cli import main
from husai.errors import InputError
from husai.sae.formats import load_dictionary, load_sae, read

NUMBER = 19


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[Layout]:
    return layouts(tmp_path_factory.mktemp("foreign"))


def compare(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = main(["compare", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_there_are_nineteen_layouts(written: list[Layout]) -> None:
    assert len({one.name for one in written}) == len(written) == NUMBER
    kinds = Counter(one.must for one in written)
    assert kinds == {"codes": 11, "decoder": 3, "rows": 2, "many": 1, "warn": 1, "refuse": 1}


@pytest.mark.parametrize("number", range(NUMBER))
def test_each_layout_is_read_correctly_or_refused(
    number: int,
    written: list[Layout],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one = written[number]
    named = {each.name: each.path for each in written}
    if one.must in ("codes", "decoder"):
        same_directions(load_dictionary(one.path)[0], one.W_dec)
    if one.must == "codes":
        close(codes_in_unit_rows(load_sae(one.path), ROWS), one.codes)
    elif one.must == "decoder":
        with pytest.raises(InputError) as refusal:
            load_sae(one.path)
        assert "\n" not in str(refusal.value)
        assert read(one.path).left_out  # the reason, which the comparison shows
    elif one.must == "many":
        code, out, _ = compare(capsys, one.path, "--null-draws", "0")
        assert code == 0
        assert "seed0" in out
        assert "seed1" in out
    elif one.must == "warn":
        out_file = tmp_path / "out.json"
        neighbour = one.path.with_name("layer 5")
        code, _, err = compare(capsys, neighbour, one.path, "--null-draws", "0", "--json", out_file)
        assert code == 0
        assert "WARNING" in err
        for hook in ("blocks.5.hook_resid_post", "blocks.9.hook_resid_post"):
            assert hook in err
        hooks = [sae["contract"]["hook"] for sae in json.loads(out_file.read_text())["saes"]]
        assert hooks == ["blocks.5.hook_resid_post", "blocks.9.hook_resid_post"]
    elif one.must == "refuse":
        code, _, err = compare(capsys, named["Gemma Scope"], one.path, "--null-draws", "0")
        assert code == 2
        assert "git lfs pull" in err
        assert err.count("\n") == 1
    else:
        out_file = tmp_path / "out.json"
        code, _, _ = compare(
            capsys,
            *(named["Gemma Scope"], named["a bias that is not subtracted"]),
            *("--activations", one.path, "--null-draws", "1", "--json", out_file),
        )
        assert code == 0
        document = json.loads(out_file.read_text())
        (pair,) = document["pairs"]
        scores = {score["score"]: score["value"] for score in pair["scores"]}
        assert document["activations"]["n_rows"] == len(ROWS)
        assert 0 < scores["code_jaccard"] < 1


def test_the_expected_values_detect_a_missing_fold() -> None:
    """Rows of the decoder differ in length, so a reader that does not fold them fails."""
    assert norms(SAE).std() > 0.1
