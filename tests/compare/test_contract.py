"""What two SAEs say they read: a mismatch is a warning, and different spaces are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from tests.sae.formats.made import D, F, K, linear, numbers, tensor, tensors, write

from husai.cli import main
from husai.compare.contract import mismatches
from husai.compare.document import schema
from husai.compare.files import load_activations, load_saes
from husai.errors import InputError

SAE, OTHER = numbers(), numbers(1)


def saelens(folder: Path, sae: Any = SAE, **cfg: Any) -> str:
    told = {"architecture": "standard", "normalize_activations": "none"} | cfg
    content = tensors(sae, "W_enc", "b_enc", "W_dec", "b_dec")
    return str(write(folder, "cfg.json", told, "sae_weights.safetensors", content))


def transcoder(folder: Path, **cfg: Any) -> str:
    told = {"architecture": "transcoder", "d_in": D, "d_out": D} | cfg
    content = tensors(OTHER, "W_enc", "b_enc", "W_dec", "b_dec")
    return str(write(folder, "cfg.json", told, "sae_weights.safetensors", content))


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main([*arguments, "--null-draws", "0"])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_another_hook_is_a_warning_and_an_error_with_strict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = saelens(tmp_path / "a", model_name="gpt2", hook_name="blocks.5.hook_resid_post")
    b = saelens(tmp_path / "b", OTHER, model_name="gpt2", hook_name="blocks.9.hook_resid_post")
    out = tmp_path / "out.json"
    code, _, error = run(capsys, "compare", a, b, "--json", str(out))
    assert code == 0
    assert "WARNING" in error
    assert "blocks.5.hook_resid_post" in error
    assert "blocks.9.hook_resid_post" in error
    assert "model differs" not in error
    document = json.loads(out.read_text())
    jsonschema.validate(document, schema())
    contracts = [sae["contract"] for sae in document["saes"]]
    assert [c["layer"] for c in contracts] == [5, 9]
    assert {c["model"] for c in contracts} == {"gpt2"}
    (mismatch,) = document["mismatches"]
    assert mismatch in error
    code, _, error = run(capsys, "compare", a, b, "--strict")
    assert code == 2
    assert "hook differs" in error
    assert error.count("\n") == 1


def test_other_names_for_the_same_activations_are_no_mismatch() -> None:
    hugging_face = {"model": "openai-community/gpt2", "hook": "layers.5", "scale": "0.330"}
    tlens = {"model": "gpt2-small", "hook": "blocks.5.hook_resid_post", "scale": "0.331"}
    assert mismatches({"a": hugging_face, "b": tlens, "c": {"model": None}}) == []
    (line,) = mismatches({"a": hugging_face, "b": tlens | {"scale": "layer_norm"}})
    assert line == "scale differs (a: 0.330, b: layer_norm)"
    (line,) = mismatches({name: {"layer": i // 4} for i, name in enumerate("abcdef")})
    assert line == "layer differs (a, b, c and 1 more: 0, e, f: 1)"


def test_the_output_of_a_transcoder_is_not_the_input_of_an_sae(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sae = saelens(tmp_path / "sae", hook_name="blocks.5.hook_mlp_in")
    writes = transcoder(tmp_path / "tc", hook_name_out="blocks.5.hook_mlp_out")
    code, _, error = run(capsys, "compare", sae, writes)
    assert code == 2
    assert "tc: its decoder rows are directions of its output" in error
    assert run(capsys, "compare", sae, writes, "--any-space")[0] == 0
    # an SAE of what is written has directions of the same activations
    same = saelens(tmp_path / "same", hook_name="blocks.5.hook_mlp_out")
    assert run(capsys, "compare", same, writes)[0] == 0
    assert run(capsys, "compare", writes, transcoder(tmp_path / "tc2"))[0] == 0


def test_a_folder_of_hook_points_and_seeds_gives_all_its_saes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = linear(SAE) | tensors(SAE, "W_dec", "b_dec")
    for name in ("layers.6/seed0", "layers.6/seed1", "layers.10/seed0"):
        cfg = {"k": K, "d_in": D, "num_latents": F}
        write(tmp_path / "run" / name, "cfg.json", cfg, "sae.safetensors", content)
    saes = load_saes([tmp_path / "run"])
    assert [sae.id for sae in saes] == ["layers.6/seed0", "layers.6/seed1", "layers.10/seed0"]
    code, text, _ = run(capsys, "compare", str(tmp_path / "run" / "layers.6"))
    assert code == 0
    assert "A = seed0   B = seed1" in text
    two = load_saes([tmp_path / "run" / "layers.6", tmp_path / "run" / "layers.10"])
    assert len({sae.id for sae in two}) == 3
    code, _, error = run(capsys, "compare", str(tmp_path / "run" / "layers.10"))
    assert code == 2
    assert "only one SAE is given" in error


def test_the_reason_for_missing_codes_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = saelens(tmp_path / "whole")
    scaled = saelens(tmp_path / "scaled", OTHER, normalize_activations="expected_average_only_in")
    np.save(tmp_path / "rows.npy", SAE.rows.astype(np.float16).reshape(4, -1, D))
    rows = ["--activations", str(tmp_path / "rows.npy")]
    code, text, _ = run(capsys, "compare", whole, scaled, *rows)
    assert code == 0
    assert "its input scale is not in its files" in text
    code, text, _ = run(capsys, "compare", whole, scaled, *rows, "--input-scale", "0.5")
    assert code == 0
    assert "not in its files" not in text
    assert "support Jaccard of matched codes" in text


@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors", "pt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_are_read_from_every_kind_of_file(
    kind: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    rows = tensor(SAE.rows).to(dtype).reshape(4, -1, D)
    path = tmp_path / f"rows.{kind}"
    if kind in ("npy", "npz") and dtype == torch.bfloat16:
        pytest.skip("NumPy has no bfloat16")
    if kind == "npy":
        np.save(path, rows.numpy())
    elif kind == "npz":
        np.savez(path, acts=rows.numpy(), labels=np.arange(4))
    elif kind == "safetensors":
        save_file({"acts": rows, "labels": torch.arange(4)}, path)
    else:
        torch.save(rows, path)
    found, about = load_activations(path)
    assert np.array_equal(found, rows.reshape(-1, D).float().numpy())
    assert found.dtype == np.float32
    assert about["files"][0]["name"] == path.name


def test_concatenated_heads_are_one_row(tmp_path: Path) -> None:
    np.save(tmp_path / "z.npy", SAE.rows.reshape(-1, 2, D // 2))
    joined, _ = load_activations(tmp_path / "z.npy", width=D)
    assert joined.shape == SAE.rows.shape
    positions, _ = load_activations(tmp_path / "z.npy", width=D // 2)
    assert positions.shape == (2 * len(SAE.rows), D // 2)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.ones(6), r"rows are \[n, d\]"),
        (np.ones((1, 6)), "at least two"),
        (np.ones((3, 0)), r"rows are \[n, d\]"),
        (np.ones((3, 6)) * 1j, "complex128; give real numbers"),
        (np.ones((3, 6)).astype("m8[s]"), "give real numbers"),
        (np.array([[1.0, 0.0], [2.0, 0.0], [np.inf, 0.0]]), "row 2 has NaN, infinity"),
        (np.full((3, 2), 1e300), "row 0 has NaN, infinity"),
    ],
)
def test_files_without_usable_rows_are_named(array: Any, words: str, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", array)
    with pytest.raises(InputError, match=words):
        load_activations(tmp_path / "rows.npy")


def test_files_with_several_arrays_or_no_rows_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", a=SAE.rows, b=SAE.rows)
    with pytest.raises(InputError, match="2 arrays could be the rows"):
        load_activations(tmp_path / "rows.npz")
    (tmp_path / "rows.csv").write_text("1,2")
    with pytest.raises(InputError, match="not a format of rows"):
        load_activations(tmp_path / "rows.csv")


def test_convert_and_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = saelens(
        tmp_path / "a", architecture="topk", k=K, model_name="gpt2", hook_name="blocks.5.hook_z"
    )
    for to in ("dictionary_learning", "sparsify", "saelens", "husai"):
        target = tmp_path / (f"{to}.safetensors" if to == "husai" else to)
        assert main(["convert", source, str(target), "--to", to]) == 0
        assert "written" in capsys.readouterr().out
        # a second time it is there already
        assert main(["convert", source, str(target), "--to", to]) == 2
        assert "exists already" in capsys.readouterr().err
        assert main(["inspect", str(target), "--json"]) == 0
        (found,) = json.loads(capsys.readouterr().out)
        assert (found["format"], found["read_as"], found["k"]) == (to, "topk", K)
        assert (found["d_sae"], found["d"]) == (F, D)
        norms = np.sqrt((SAE.W_dec**2).sum(axis=1))
        assert found["decoder_norms"]["least"] == pytest.approx(norms.min(), rel=1e-5)
        assert found["decoder_norms"]["largest"] == pytest.approx(norms.max(), rel=1e-5)
    for to in ("saelens", "husai"):
        name = f"{to}.safetensors" if to == "husai" else to
        main(["inspect", str(tmp_path / name)])
        assert "model gpt2, hook blocks.5.hook_z" in capsys.readouterr().out


def test_inspect_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    W_dec = SAE.W_dec.copy()
    W_dec[2] = 0
    np.save(tmp_path / "plain.npy", W_dec)
    assert main(["inspect", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "1 rows without a direction" in text
    assert "missing       the model" in text
    assert "has no encoder or activation function" in text
    assert (
        main(["convert", str(tmp_path / "plain.npy"), str(tmp_path / "x"), "--to", "saelens"]) == 2
    )
    assert "only its decoder can be compared" in capsys.readouterr().err
