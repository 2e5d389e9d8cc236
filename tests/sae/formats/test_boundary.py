"""Files that are broken, foreign or hostile: one line with the file's name, and no memory spent."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.sae.formats.made import (
    LFS,
    D,
    F,
    K,
    linear,
    numbers,
    save_weights,
    tensor,
    tensors,
    write,
)

from husai.compare.files import load_activations
from husai.errors import InputError
from husai.matching.match import match_features
from husai.sae import BankTrainingConfig, SAEConfig, save_sae, train_bank
from husai.sae.formats import load_dictionary, load_sae, read

SAE = numbers()
PLAIN = ("W_enc", "b_enc", "W_dec", "b_dec")
SPARE = 64 * 2**20
"""Bytes by which memory may grow while a bomb is refused."""


def dictionary_learning(folder: Path, content: dict[str, Any]) -> Path:
    trainer = {"dict_class": "AutoEncoder"}
    return write(folder, "config.json", {"trainer": trainer}, "ae.pt", content)


def saelens(folder: Path) -> Path:
    cfg = {"architecture": "topk", "k": K, "d_in": D, "d_sae": F}
    return write(folder, "cfg.json", cfg, "sae_weights.safetensors", tensors(SAE, *PLAIN))


def refused(path: Path, words: str, load: Any = load_dictionary) -> None:
    """Check that the path is refused in one line without using memory."""
    before = psutil.Process().memory_info().rss
    with pytest.raises(InputError, match=words) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert str(path.parent) in str(caught.value)
    assert psutil.Process().memory_info().rss - before < SPARE


def test_arrays_with_strides_of_zero_are_not_expanded(tmp_path: Path) -> None:
    """A file of a few kilobytes that claims to hold 6 GB."""
    huge = torch.zeros(1).expand(400_000, 4_000)
    content = {
        "encoder.weight": huge,
        "encoder.bias": torch.zeros(1).expand(400_000),
        "decoder.weight": huge.T,
        "bias": torch.zeros(1).expand(4_000),
    }
    path = dictionary_learning(tmp_path / "sae", content)
    assert (path / "ae.pt").stat().st_size < 10_000
    refused(path, "more bytes than the file has")


def test_archives_that_unpack_to_huge_sizes_are_refused(tmp_path: Path) -> None:
    plain = tmp_path / "plain.pt"
    torch.save({"W_dec": torch.zeros(25_000_000)}, plain)
    packed = tmp_path / "packed.pt"
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w") as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member), zipfile.ZIP_DEFLATED)
    plain.unlink()
    refused(packed, "would unpack from")
    archive = tmp_path / "params.npz"
    np.savez_compressed(archive, W_dec=np.zeros((25_000_000,), np.float32))
    refused(archive, "numbers do not compress so well")
    # what is merely compressed is read
    np.savez_compressed(tmp_path / "fine.npz", W_dec=SAE.W_dec)
    assert load_dictionary(tmp_path / "fine.npz")[0].shape == (F, D)


def test_headers_that_claim_more_than_the_file_holds_are_refused(tmp_path: Path) -> None:
    short = tmp_path / "short.npy"
    with short.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**4)}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(b"\0" * 100)
    refused(short, "more bytes than it has")
    header_only = json.dumps(
        {"W_dec": {"dtype": "F32", "shape": [10**6, 10**4], "data_offsets": [0, 4 * 10**10]}}
    ).encode()
    claims = tmp_path / "claims.safetensors"
    claims.write_bytes(len(header_only).to_bytes(8, "little") + header_only + b"\0" * 100)
    refused(claims, "incomplete or of another format")


@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors"])
def test_a_pointer_of_git_lfs_says_what_to_do(name: str, tmp_path: Path) -> None:
    path = saelens(tmp_path / "sae")
    (path / name).write_text(LFS)
    refused(path, "git lfs pull")
    (tmp_path / "rows.npy").write_text(LFS)
    refused(tmp_path / "rows.npy", "git lfs pull", load_activations)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (SAE.W_dec * 1j, "complex128; give real numbers"),
        (SAE.W_dec.astype("m8[s]"), "timedelta64"),
        (np.array([["a", "b"]]), "give real numbers"),
        (SAE.W_dec > 0, "bool; give real numbers"),
        (np.full((3, 2), np.nan), "NaN or infinity"),
        (np.full((3, 2), 1e300), "NaN or infinity"),
        (np.zeros((3, 2)), "all zero"),
        (np.zeros((0, 2)), "expected"),
        (np.ones(3), "give a matrix"),
    ],
)
def test_arrays_that_are_not_a_dictionary(array: Any, words: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)
    refused(tmp_path / "a.npy", words)


def test_python_objects_are_not_read(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}, None], dtype=object), allow_pickle=True)
    refused(tmp_path / "a.npy", "Python objects")
    (tmp_path / "b.pt").write_bytes(pickle.dumps({"W_dec": Path("x")}))
    refused(tmp_path / "b.pt", r"b\.pt")


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "[]", "{", '{"architecture": NaN}', "\x00", '{"k": 1' + "0" * 5_000 + "}", ""],
)
def test_files_that_are_not_configurations(text: str, tmp_path: Path) -> None:
    path = saelens(tmp_path / "sae")
    (path / "cfg.json").write_text(text)
    refused(path, "cfg", load_sae)


def test_directories_and_pipes_are_no_files(tmp_path: Path) -> None:
    path = saelens(tmp_path / "sae")
    (path / "sae_weights.safetensors").unlink()
    (path / "sae_weights.safetensors").mkdir()
    refused(path, "no SAE here or below")


@pytest.mark.parametrize("exponent", [-32, -37, 30])
def test_a_dictionary_of_any_size_scores_as_itself(exponent: int, tmp_path: Path) -> None:
    small = (SAE.W_dec * 10.0**exponent).astype(np.float32)
    np.save(tmp_path / "small.npy", small)
    found, _ = load_dictionary(tmp_path / "small.npy")
    assert match_features(found, SAE.W_dec).mean == pytest.approx(1.0, abs=1e-5)


def test_values_outside_float32_are_refused_or_make_a_latent_dead(tmp_path: Path) -> None:
    np.save(tmp_path / "gone.npy", SAE.W_dec.astype(np.float64) * 1e-60)
    refused(tmp_path / "gone.npy", "all zero")
    partly = SAE.W_dec.copy()
    partly[3] *= 1e-42
    np.save(tmp_path / "partly.npy", partly)
    found, _ = load_dictionary(tmp_path / "partly.npy")
    assert not found[3].any()
    assert found[[0, 1, 2, 4]].any(axis=1).all()


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = torch.randn(200, D, generator=torch.Generator().manual_seed(0))
    config = SAEConfig(architecture="topk", d_sae=F, k=K)
    (sae,) = train_bank(rows, [config], BankTrainingConfig(steps=3, batch_size=32, threads=1))
    path = tmp_path_factory.mktemp("own") / "sae.safetensors"
    save_sae(sae, path)
    return path


def test_a_flipped_bit_is_noticed(own: Path, tmp_path: Path) -> None:
    content = bytearray(own.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    for at in (start, (start + len(content)) // 2, len(content) - 1):
        content[at] ^= 1
        copy = tmp_path / "sae.safetensors"
        copy.write_bytes(content)
        with pytest.raises(InputError, match=r"have changed since they were saved|NaN"):
            load_sae(copy)
        content[at] ^= 1
    copy.write_bytes(content)
    assert load_sae(copy).config.k == K


def kinds(root: Path, own: Path) -> list[Path]:
    """One small file or folder of each kind."""
    named = tensors(SAE, *PLAIN, "threshold")
    scaled = write(
        root / "llama",
        "hyperparams.json",
        {"act_fn": "jumprelu", "jump_relu_threshold": 0.1},
        "checkpoints/final.safetensors",
        linear(SAE) | {"decoder.bias": tensor(SAE.b_dec)},
    )
    gemma = root / "gemma"
    gemma.mkdir()
    arrays: dict[str, Any] = {name: value.numpy() for name, value in named.items()}
    np.savez(gemma / "params.npz", **arrays)
    np.save(root / "plain.npy", SAE.W_dec)
    openai: dict[str, Any] = {
        "pre_bias": tensor(SAE.b_dec),
        "latent_bias": tensor(SAE.b_enc),
        "encoder.weight": tensor(SAE.W_enc.T),
        "decoder.weight": tensor(SAE.W_dec.T),
        "activation": "ReLU",
    }
    sparsify = linear(SAE) | tensors(SAE, "W_dec", "b_dec")
    (root / "own.safetensors").write_bytes(own.read_bytes())
    return [
        saelens(root / "saelens"),
        dictionary_learning(root / "dl", linear(SAE) | {"bias": tensor(SAE.b_dec)}),
        write(root / "sparsify", "cfg.json", {"k": K}, "sae.safetensors", sparsify),
        scaled,
        gemma,
        root / "plain.npy",
        save_weights(root / "8.pt", openai),
        root / "own.safetensors",
    ]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory, own: Path) -> dict[Path, bytes]:
    """Every file of one SAE of each kind, with its content."""
    root = tmp_path_factory.mktemp("kinds")
    for path in kinds(root, own):
        read(path)
    return {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@given(data=st.data())
@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_mutated_file_gives_an_sae_or_an_error_of_one_line(
    data: st.DataObject, originals: dict[Path, bytes]
) -> None:
    path = data.draw(st.sampled_from(sorted(originals)))
    content = bytearray(originals[path])
    way = data.draw(st.sampled_from(["cut", "flip", "noise", "insert", "swap"]))
    at = data.draw(st.integers(0, max(len(content) - 1, 0)))
    if way == "cut":
        content = content[:at]
    elif way == "flip":
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    elif way == "noise":
        noise = data.draw(st.binary(min_size=1, max_size=40))
        content[at : at + len(noise)] = noise
    elif way == "insert":
        content[at:at] = data.draw(st.binary(min_size=1, max_size=40))
    else:
        content = bytearray(data.draw(st.sampled_from(list(originals.values()))))
    path.write_bytes(content)
    message = f"{path}"
    try:
        found = read(path)
        assert torch.isfinite(found.W_dec).all()
        if found.sae is not None:
            found.sae.encode(torch.zeros(2, found.W_dec.shape[1]))
    except InputError as error:
        message = str(error)
    finally:
        path.write_bytes(originals[path])
    assert "\n" not in message
    assert str(path.parent) in message or path.name in message


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.sampled_from(["none", "topk", "false", "", "relu", "groupmax", "jumprelu", "layer_norm"]),
    st.lists(st.integers(0, 3), max_size=3),
    st.dictionaries(st.sampled_from(["k", "in", "dict_class"]), st.integers(-2, 9), max_size=2),
)


@given(data=st.data())
@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_mutated_configuration_gives_an_sae_or_an_error_of_one_line(
    data: st.DataObject, originals: dict[Path, bytes]
) -> None:
    path = data.draw(st.sampled_from(sorted(p for p in originals if p.suffix == ".json")))
    content = json.loads(originals[path])
    names = [*content, "k", "architecture", "activation", "normalize_activations", "signed"]
    names += ["apply_b_dec_to_input", "act_fn", "norm_activation", "metadata", "activation_fn"]
    for name in data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3)):
        content[name] = data.draw(VALUES)
    path.write_text(json.dumps(content))
    message = f"{path}"
    try:
        found = read(path.parent)
        if found.sae is not None:
            codes = found.sae.encode(tensor(SAE.rows))
            assert torch.isfinite(codes).all()
    except InputError as error:
        message = str(error)
    finally:
        path.write_bytes(originals[path])
    assert "\n" not in message
    assert str(path.parent) in message


def test_an_invalid_configuration_of_our_own_gives_an_error_of_one_line(
    own: Path, tmp_path: Path
) -> None:
    content = own.read_bytes().replace(b"init_seed", b"init_sead").replace(b"d_sae", b"d_sea")
    (tmp_path / "sae.safetensors").write_bytes(content)
    refused(tmp_path / "sae.safetensors", "init_sead", load_sae)
