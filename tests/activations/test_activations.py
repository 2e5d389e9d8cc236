"""Activations: the rows that are read equal those the model computes, and statistics are right."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from husai.activations import (
    Activations,
    ExtractionConfig,
    activation_statistics,
    extract_activations,
)
from husai.errors import InputError
from husai.storage import TensorFile
from husai.transformer import TransformerConfig, build_transformer


def make_rows(values: torch.Tensor) -> Activations:
    return Activations(values, torch.zeros(len(values), dtype=torch.int64), "hook", -1)


@pytest.fixture(scope="module")
def model_and_tokens():
    config = TransformerConfig(d_model=8, n_heads=2, d_mlp=16, seed=3)
    model = build_transformer(config, d_vocab=8, n_ctx=3)
    tokens = torch.randint(0, 8, (37, 3), generator=torch.Generator().manual_seed(0))
    return model, tokens, torch.arange(37) % 3


def test_chunks_give_the_same_as_one_pass(model_and_tokens):
    model, tokens, split = model_and_tokens
    hooks = ("blocks.0.mlp.hook_post", "blocks.0.hook_resid_post", "blocks.0.attn.hook_z")
    config = ExtractionConfig(hook_names=hooks, positions=(-1, 0), chunk_size=5)
    found = {a.key: a for a in extract_activations(model, tokens, split, config, {}, False)}
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
    assert len(found) == 6
    for name in hooks:
        for position in (-1, 0):
            expected = cache[name][:, position].reshape(37, -1)
            torch.testing.assert_close(found[f"{name}@{position}"].values, expected)
    assert torch.equal(found["blocks.0.hook_resid_post@-1"].split, split)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hook_names": ("blocks.7.hook_resid_post",)}, "no hook 'blocks.7.hook_resid_post'"),
        ({"positions": (3,)}, "3 is outside the context of 3"),
        ({"hook_names": ("blocks.0.hook_resid_post@-4",)}, "-4 is outside the context of 3"),
        ({"hook_names": ("hook_embed@-1", "hook_embed")}, r"given twice: \['hook_embed@-1'\]"),
        ({"positions": (-1, 2)}, "gives one of the 3 positions twice"),
        (
            {"hook_names": ("blocks.0.attn.hook_pattern",)},
            r"does not begin with \[batch, position\]",
        ),
        ({"hook_names": ("blocks.0.attn.hook_q_input",)}, "gives nothing"),
    ],
)
def test_bad_extraction_names_field_and_value(model_and_tokens, change, message):
    model, tokens, split = model_and_tokens
    config = ExtractionConfig(**change)
    with pytest.raises(InputError, match=message):
        list(extract_activations(model, tokens, split, config, {}, False))


def test_a_hook_may_have_a_position_of_its_own(model_and_tokens):
    model, tokens, split = model_and_tokens
    config = ExtractionConfig(hook_names=("hook_embed@0", "blocks.0.hook_resid_post"))
    found = {a.key: a for a in extract_activations(model, tokens, split, config, {}, False)}
    assert list(found) == ["hook_embed@0", "blocks.0.hook_resid_post@-1"]
    embedding = model.state_dict()["embed.weight"]
    torch.testing.assert_close(found["hook_embed@0"].values, embedding[tokens[:, 0]])


def test_non_finite_activations_are_an_error(model_and_tokens):
    model, tokens, split = model_and_tokens
    weight = model.state_dict(keep_vars=True)["embed.weight"]
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight[int(tokens[4, 2])] = torch.nan
        with pytest.raises(InputError, match="NaN or infinite"):
            list(extract_activations(model, tokens, split, ExtractionConfig(), {}, False))
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def test_statistics_of_a_planted_spectrum():
    # four directions of equal variance in 10 dimensions, far from the origin
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((10, 10)))[0][:4]
    corners = np.array(np.meshgrid(*[[-1.0, 1.0]] * 4)).reshape(4, -1).T
    values = torch.tensor(corners @ basis * 3 + 5.0, dtype=torch.float32)
    found = activation_statistics(make_rows(values))
    assert found["rows"] == 16
    assert found["rows_train"] == 16
    assert found["entropy_rank"] == pytest.approx(4, abs=1e-3)
    assert found["participation_ratio"] == pytest.approx(4, abs=1e-3)
    assert found["dims_99_variance"] == 4
    assert found["total_variance"] == pytest.approx(4 * 9, rel=1e-4)
    assert found["norm_of_mean"] == pytest.approx(5 * np.sqrt(10), rel=1e-4)


def test_file_round_trip_keeps_everything(tmp_path):
    values = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    rows = Activations(values, torch.tensor([0, 1, 2, 0, 0, 2]), "blocks.0.hook", -1, {"p": 7})
    file = TensorFile.from_bytes(TensorFile(*rows.to_tensors()).to_bytes(), "memory")
    back = Activations.from_tensors(file.tensors, file.header, "memory")
    assert torch.equal(back.values, values)
    assert torch.equal(back.split, rows.split)
    assert (back.hook_name, back.position, back.model) == ("blocks.0.hook", -1, {"p": 7})
    assert file.header["split"] == {"train": 3, "val": 1, "test": 2}
    assert back.fingerprint == rows.fingerprint
    changed = make_rows(values + 1e-6)
    assert changed.fingerprint != rows.fingerprint


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"rows": torch.zeros(3, 2)}, "no tensor named 'activations'"),
        ({"activations": torch.zeros(3)}, "non-empty matrix"),
        ({"activations": torch.zeros(0, 4)}, "non-empty matrix"),
        ({"activations": torch.tensor([[1.0, 0.0], [torch.inf, 0.0]])}, "first is row 1"),
        ({"activations": torch.zeros(3, 2), "split": torch.zeros(2)}, "3 rows"),
    ],
)
def test_bad_files_say_what_is_wrong(tensors, message):
    with pytest.raises(InputError, match=message):
        Activations.from_tensors(tensors, {}, "mine.safetensors")
