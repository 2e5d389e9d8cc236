"""The husai command: output, exit codes, and errors of one line."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import husai
from husai.cli import commands, main
from husai.compare.comparison import CompareConfig
from husai.compare.document import schema


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three dictionaries that share half of their features, and activation rows."""
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((20, 16))
    for s in range(3):
        rows = np.concatenate([truth, rng.standard_normal((20, 16))])[rng.permutation(40)]
        np.save(tmp_path / f"s{s}.npy", rows.astype(np.float32))
    save_file({"W_dec": torch.from_numpy(rows).float()}, tmp_path / "s3.safetensors")
    np.save(tmp_path / "rows.npy", rng.standard_normal((100, 16)).astype(np.float32))
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_and_version_import_nothing_heavy() -> None:
    script = (
        "import sys\nfrom husai.cli import main\n"
        "try:\n    main({arguments})\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {{'numpy', 'torch', 'numba', 'pandas', 'scipy', 'kedro'}} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    for arguments in (["--version"], ["--help"], ["compare", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", script.format(arguments=arguments)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout
    assert (
        husai.__version__
        in subprocess.run(
            [sys.executable, "-m", "husai.cli", "--version"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )


def test_compare_prints_and_writes_its_result(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "out.json"
    code, text, error = run(
        capsys,
        "compare",
        *(folder / f"s{s}.npy" for s in range(3)),
        "--json",
        out,
        "--activations",
        folder / "rows.npy",
        "--null-draws",
        "2",
    )
    assert code == 0, error
    assert "A = s0.npy   B = s2.npy" in text
    assert "interval over SAEs" in text
    assert "convergence unknown" in text
    document = json.loads(out.read_text())
    jsonschema.validate(document, schema())
    assert len(document["pairs"]) == 3
    assert document["saes"][0]["files"][0]["name"] == "s0.npy"
    assert document["activations"]["n_rows"] == 100
    assert str(folder) not in {sae["id"] for sae in document["saes"]}
    quiet = run(
        capsys,
        "compare",
        folder / "s0.npy",
        folder / "s3.safetensors",
        "--null-draws",
        "0",
        "--json",
        out,
        "--quiet",
    )
    assert quiet == (0, "", "")


def test_fail_under_sets_the_exit_code(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair: list[str | Path] = [folder / "s0.npy", folder / "s1.npy", "--null-draws", "0"]
    assert run(capsys, "compare", *pair, "--fail-under", "0.5")[0] == 0
    code, _, error = run(capsys, "compare", *pair, "--fail-under", "0.99")
    assert code == 1
    assert "below --fail-under 0.99" in error


class Malice:
    """A pickle that runs code when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def bad_inputs(folder: Path) -> dict[str, tuple[Path, str]]:
    """Name to a bad SAE and what the message must say."""
    good = np.load(folder / "s0.npy")
    (folder / "torn.npy").write_bytes((folder / "s0.npy").read_bytes()[:200])
    (folder / "torn.safetensors").write_bytes((folder / "s3.safetensors").read_bytes()[:100])
    broken = good.copy()
    broken[3] = np.nan
    np.save(folder / "nan.npy", broken)
    np.save(folder / "narrow.npy", good[:, :7])
    np.save(folder / "vector.npy", good[0])
    np.save(folder / "objects.npy", np.array([Malice(folder / "ran_npy")]), allow_pickle=True)
    (folder / "empty").mkdir()
    (folder / "notes.txt").write_text("no SAE")
    with (folder / "evil.pt").open("wb") as file:
        pickle.dump(Malice(folder / "ran_pt"), file)
    torch.save({"encoder.weight": Malice(folder / "ran_torch")}, folder / "evil_torch.pt")
    (folder / "evil_dir").mkdir()
    torch.save({"encoder.weight": Malice(folder / "ran_dir")}, folder / "evil_dir" / "ae.pt")
    (folder / "evil_dir" / "config.json").write_text(
        json.dumps({"trainer": {"dict_class": "AutoEncoder"}})
    )
    return {
        "torn npy": (folder / "torn.npy", "torn.npy"),
        "torn safetensors": (folder / "torn.safetensors", "torn.safetensors"),
        "NaN rows": (folder / "nan.npy", "nan.npy"),
        "mismatched d": (folder / "narrow.npy", "narrow.npy"),
        "a vector": (folder / "vector.npy", "vector.npy"),
        "objects": (folder / "objects.npy", "objects.npy"),
        "empty directory": (folder / "empty", "empty"),
        "unknown format": (folder / "notes.txt", "notes.txt"),
        "pickle": (folder / "evil.pt", "evil.pt"),
        "torch pickle": (folder / "evil_torch.pt", "evil_torch.pt"),
        "pickle in a directory": (folder / "evil_dir", "evil_dir"),
        "missing": (folder / "nowhere", "nowhere"),
        "given twice": (folder / "s0.npy", "given twice"),
    }


@pytest.mark.parametrize(
    "case",
    [
        "torn npy",
        "torn safetensors",
        "NaN rows",
        "mismatched d",
        "a vector",
        "objects",
        "empty directory",
        "unknown format",
        "pickle",
        "torch pickle",
        "pickle in a directory",
        "missing",
        "given twice",
    ],
)
def test_bad_input_gives_an_error_of_one_line_and_runs_no_code(
    case: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, message = bad_inputs(folder)[case]
    code, out, error = run(capsys, "compare", folder / "s0.npy", path)
    assert code == 2
    assert out == ""
    assert error.count("\n") == 1
    assert error.startswith("husai compare: ")
    assert message in error
    assert not list(folder.glob("ran_*"))


def test_bad_options_are_refused_before_the_work(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = [folder / "s0.npy", folder / "s1.npy"]
    np.save(folder / "narrow.npy", np.eye(7))
    np.save(folder / "still.npy", np.ones((5, 16)))
    for extra, message in (
        (["--fail-under", "nan"], "'--fail-under': nan is not a finite number"),
        (["--fail-under", "high"], "'--fail-under': 'high' is not a valid float"),
        (["--input-scale", "0"], "'--input-scale': 0.0 is not above 0"),
        (["--input-scale", "nan"], "'--input-scale': nan is not a finite number"),
        (["--k", str(10**30)], "'--k'"),
        (["--resume", folder / "s0.npy"], "s0.npy is a file; give a folder"),
        (["--activations", folder / "narrow.npy"], "narrow.npy: rows of 7 numbers; the SAEs read"),
        (["--activations", folder / "still.npy"], "still.npy: all rows are equal"),
        (["--format", "pickle"], "'--format'"),
        (["--bogus"], "No such option '--bogus'"),
        (["--threshold", "1.5"], "--threshold: 1.5"),
        (["--null-draws", "-1"], "--null-draws: -1"),
        (["--device", "nowhere"], "device"),
        (["--json", str(folder / "missing" / "out.json")], "this folder does not exist"),
        (["--json", str(folder)], "this is a folder"),
        (["--activations", str(folder / "s9.npy")], "s9.npy: no such file"),
        (["--activations", str(folder / "notes.txt")], "notes.txt"),
    ):
        code, out, error = run(capsys, "compare", *pair, *extra)
        assert code == 2, extra
        assert out == ""
        assert message in error
        assert error.count("\n") == 1
    code, _, error = run(capsys, "compare", pair[0])
    assert code == 2
    assert "only one SAE" in error


def test_the_help_states_the_defaults_of_the_comparison() -> None:
    defaults = {name: field.default for name, field in CompareConfig.model_fields.items()}
    options = {option.name: option.default for option in commands.commands["compare"].params}
    shared = defaults.keys() & options.keys() - {"null_draws"}
    assert shared >= {"shared_threshold", "encoder", "seed", "max_passes", "device"}
    assert {name: options[name] for name in shared} == {name: defaults[name] for name in shared}


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = run(capsys)
    assert code == 2
    assert "compare" in error


def test_interruption_has_its_exit_code(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("husai.consistency.scores.pair.match_signed_and_absolute", interrupted)
    code, _, error = run(capsys, "compare", folder / "s0.npy", folder / "s1.npy")
    assert code == 130
    assert error == "husai: interrupted\n"


def test_an_interrupted_comparison_is_resumed_and_cleans_up(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("husai.consistency.scores.pair.LONG_PAIRS", 0)
    monkeypatch.setattr("husai.matching.match._DENSE_PAIRS", 0)
    command: list[str | Path] = [
        "compare",
        folder / "s0.npy",
        folder / "s1.npy",
        "--resume",
        folder / "state",
    ]
    command += ["--null-draws", "1"]

    from husai.matching import certified

    real = certified.CertifiedSearch.run

    def interrupted(self: certified.CertifiedSearch) -> certified.Certificate:
        raise KeyboardInterrupt

    monkeypatch.setattr(certified.CertifiedSearch, "run", interrupted)
    assert run(capsys, *command)[0] == 130
    assert [p.name for p in (folder / "state").iterdir()] == ["decoders_0_and_1.safetensors"]
    (folder / "state" / "mine.txt").write_text("not a checkpoint")
    monkeypatch.setattr(certified.CertifiedSearch, "run", real)
    code, out, _ = run(capsys, *command)
    assert code == 0
    assert "PW-MCC" in out
    assert [p.name for p in (folder / "state").iterdir()] == ["mine.txt"]


def test_features_writes_a_page_and_a_table(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, table = tmp_path / "page.html", tmp_path / "features.csv"
    saes: list[str | Path] = [folder / f"s{s}.npy" for s in range(3)]
    code, out, err = run(capsys, "features", *saes, "--out", page, "--table", table)
    assert (code, err) == (0, "")
    assert "120 features of 3 SAEs" in out  # half of them planted
    assert 0.5 <= float(out.split("SAEs: ")[1].split("%")[0]) / 100 < 0.6
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert len(table.read_text(encoding="utf-8").splitlines()) == 121


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--modulus", "7"], "give --activations"),
        (["--table", "features.txt"], ".parquet or .csv"),
        (["--activations", "nothing.npy"], "no such file"),
    ],
)
def test_features_refuses_input_that_does_not_fit(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    reason: str,
) -> None:
    saes = [folder / f"s{s}.npy" for s in range(2)]
    code, _, err = run(capsys, "features", *saes, "--out", tmp_path / "page.html", *options)
    assert code == 2
    assert reason in err
    assert err.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


@pytest.fixture
def whole_saes(tmp_path: Path) -> list[Path]:
    """Three SAEs in files, whose latents are the same ten directions in another order."""
    from husai.features import fit_encoder
    from husai.sae import save_sae

    rng = np.random.default_rng(0)
    truth = np.linalg.qr(rng.standard_normal((16, 16)))[0][:10]
    codes = np.where(rng.random((400, 10)) < 0.2, rng.uniform(1, 2, (400, 10)), 0)
    rows = (codes @ truth).astype(np.float32)
    np.savez(tmp_path / "rows.npz", rows=rows, topic=codes.argmax(axis=1))
    paths = []
    for s in range(3):
        paths.append(tmp_path / f"sae{s}.safetensors")
        save_sae(fit_encoder(truth[rng.permutation(10)], rows, 3), paths[-1])
    return paths


def test_consensus_is_written_in_every_format_and_read_back(
    whole_saes: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from husai.sae import load_sae

    rows, out = tmp_path / "rows.npz", tmp_path / "made" / "consensus"
    arguments: list[str | Path] = [*whole_saes, "--activations", rows, "--out", out]
    arguments += ["--steps", "50"]
    code, text, err = run(capsys, "consensus", *arguments)
    assert (code, err) == (0, "")
    assert "probe_accuracy" in text
    own = load_sae(out / "consensus.safetensors")
    given = torch.from_numpy(np.load(rows)["rows"])
    for name in ("saelens", "dictionary_learning", "sparsify"):
        assert torch.allclose(load_sae(out / name).encode(given), own.encode(given), atol=1e-4)
    assert own.config.d_sae == 10
    tracks = (out / "tracks.csv").read_text(encoding="utf-8").splitlines()
    assert len(tracks) == 11
    assert run(capsys, "consensus", *arguments)[0] == 2  # the folder is there
    page = tmp_path / "page.html"
    code, text, _ = run(
        capsys, "features", *whole_saes, "--activations", rows, "--out", page, "--threshold", "0.9"
    )
    assert code == 0
    assert "100.0% are found" in text
    assert "topic = " in page.read_text(encoding="utf-8")


def test_consensus_refuses_dictionaries_without_an_encoder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saes = [folder / f"s{s}.npy" for s in range(2)]
    arguments: list[str | Path] = ["--activations", folder / "rows.npy"]
    arguments += ["--out", tmp_path / "new"]
    code, _, err = run(capsys, "consensus", *saes, *arguments)
    assert code == 2
    assert "cannot encode" in err
