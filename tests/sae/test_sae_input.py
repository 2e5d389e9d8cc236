"""Bad input is refused before any training, by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from husai.errors import InputError
from husai.sae import (
    ARCHITECTURES,
    Architecture,
    BankTrainingConfig,
    SAEConfig,
    geometric_median,
    register_architecture,
    train_bank,
)
from husai.sae.rows import prepare_rows

TRAINING = BankTrainingConfig(steps=5, batch_size=32)


def rows(n: int = 100) -> torch.Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"k": 9}, "k: 9 is more than d_sae"),
        ({}, "k: topk needs one"),
        ({"k": 0}, "k"),
        ({"architecture": "relu"}, "l1_coefficient"),
        ({"architecture": "relu", "l1_coefficient": 1.0, "k": 2}, "has no k"),
        ({"architecture": "jumprelu"}, "l0_coefficient"),
        ({"architecture": "jumprelu", "l0_coefficient": 1.0, "l1_coefficient": 1.0}, "l1"),
        ({"architecture": "topk", "k": 2, "l0_coefficient": 1.0}, "l0_coefficient"),
        ({"architecture": "gated", "k": 2}, "'gated' does not exist"),
        ({"k": 2, "learning_rate": float("nan")}, "learning_rate"),
        ({"k": 2, "learning_rat": 1e-3}, "learning_rat"),
        ({"k": 2, "matryoshka_fractions": (0.5, 0.25, 1.0)}, "matryoshka_fractions"),
    ],
)
def test_impossible_configurations_are_named(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        SAEConfig.model_validate({"d_sae": 8} | settings)


def with_value(value: float) -> torch.Tensor:
    x = rows()
    x[17, 2] = value
    return x


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (with_value(float("nan")), "1 of 100 rows have NaN or infinity, the first is row 17"),
        (with_value(float("inf")), "row 17"),
        (torch.ones(100, 6), "all 90 training rows are equal"),
        (rows(30), "batch_size: 32 is more than the 27 training rows"),
        (rows()[:, 0], "matrix"),
        (torch.empty(0, 6), "matrix"),
        ("rows.npy", "str is not a matrix"),
    ],
)
def test_rows_that_cannot_be_trained_on(x: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        train_bank(x, [SAEConfig(d_sae=8, k=2)], TRAINING)


def test_widths_must_agree() -> None:
    with pytest.raises(InputError, match="eval_rows: width 5"):
        train_bank(rows(), [SAEConfig(d_sae=8, k=2)], TRAINING, eval_rows=rows()[:, :5])
    (sae,) = train_bank(rows(), [SAEConfig(d_sae=8, k=2)], TRAINING)
    with pytest.raises(InputError, match="width 5"):
        sae.encode(rows()[:, :5])
    with pytest.raises(InputError, match="empty"):
        train_bank(rows(), [], TRAINING)


def test_a_missing_cuda_device_is_an_error() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    training = TRAINING.model_copy(update={"device": "cuda"})
    with pytest.raises(InputError, match="device: cuda"):
        train_bank(rows(), [SAEConfig(d_sae=8, k=2)], training)


def test_a_name_is_registered_once() -> None:
    with pytest.raises(InputError, match="already exists"):
        register_architecture(Architecture("topk", "row", "none", False, "again"))
    assert ARCHITECTURES["topk"].source != "again"


def test_rows_may_be_an_array_or_an_object_with_values() -> None:
    class Holder:
        values = rows()

    config = [SAEConfig(d_sae=8, k=2)]
    (a,) = train_bank(rows().numpy(), config, TRAINING)
    (b,) = train_bank(Holder(), config, TRAINING)
    assert torch.equal(a.W_dec, b.W_dec)


def far_rows() -> torch.Tensor:
    """Rows of 12 sparse directions, all of them far from 0."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(12, 8, generator=generator)
    code = (torch.rand(1500, 12, generator=generator) < 0.2) * torch.rand(
        1500, 12, generator=generator
    )
    return code @ directions + 30.0


def test_the_scale_makes_the_mean_variance_of_a_column_1() -> None:
    values = far_rows()
    prepared = prepare_rows(values, values, TRAINING)
    x = values.numpy().astype(np.float64)
    assert prepared.scale == pytest.approx(1 / np.sqrt(np.var(x, axis=0).mean()), rel=1e-9)
    assert float(prepared.sample.double().var(0, correction=0).mean()) == pytest.approx(1, rel=1e-4)
    raw = prepare_rows(values, values, TRAINING.model_copy(update={"normalize": "rms"}))
    assert raw.scale == pytest.approx(1 / np.sqrt(np.square(x).mean()), rel=1e-9)


def test_relu_fires_on_rows_with_a_large_mean() -> None:
    config = SAEConfig(architecture="relu", d_sae=24, l1_coefficient=1.0)
    found = {}
    for normalize in ("centred", "rms"):
        training = BankTrainingConfig(
            steps=300, batch_size=256, normalize=normalize, dead_latents="none"
        )
        (sae,) = train_bank(far_rows(), [config], training)
        found[normalize] = sae.metrics
        assert sae.provenance["training"]["normalize"] == normalize
    assert found["centred"]["l0"] > 1
    assert found["centred"]["fvu"] < 0.3
    # what the mean does when it is counted
    assert found["rms"]["l0"] < 0.1


def test_shifting_all_rows_shifts_only_b_dec() -> None:
    x = rows(400)
    config = [SAEConfig(d_sae=8, k=2)]
    training = TRAINING.model_copy(update={"b_dec_init": "mean", "steps": 20})
    (here,) = train_bank(x, config, training)
    (there,) = train_bank(x + 5, config, training)
    torch.testing.assert_close(there.W_dec, here.W_dec, rtol=0, atol=2e-3)
    torch.testing.assert_close(there.b_dec, here.b_dec + 5, rtol=0, atol=2e-3)


def test_geometric_median_has_the_least_sum_of_distances() -> None:
    x = torch.from_numpy(np.random.default_rng(0).standard_exponential((200, 3)))
    point = geometric_median(x)
    least = (x - point).norm(dim=1).sum()
    for direction in torch.eye(3, dtype=torch.float64):
        for step in (-1e-2, 1e-2):
            assert (x - point - step * direction).norm(dim=1).sum() > least
    # one far row moves the mean, hardly the median
    far = torch.cat([x, torch.full((1, 3), 1e4, dtype=torch.float64)])
    assert (geometric_median(far) - point).norm() < 0.05
