"""Dead latents: the auxiliary losses raise them, and every method is judged on planted features."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from husai.sae import BankTrainingConfig, SAEConfig
from husai.sae.bank import SAEBank, build_bank
from husai.sae.dead import resample_dead_latents
from husai.sae.engines.dense import DenseEngine, StepSettings, dense_loss
from husai.sae.engines.sparse import SparseEngine
from husai.sae.rows import draw_rows, prepare_rows
from husai.sae.schedule import batch_rows, step_table
from husai.sae.train import _Run


def planted(n: int = 6000) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(96, 32, generator=generator)
    directions = directions / directions.norm(dim=1, keepdim=True)
    support = torch.rand(n, 96, generator=generator).argsort(1) < 4
    code = support * (0.5 + torch.randn(n, 96, generator=generator).abs())
    return code @ directions, directions


def bank_with_a_dead_latent(x: torch.Tensor, missing: torch.Tensor) -> SAEBank:
    """Latent 0 points at a feature no other latent has, and loses every row to the others."""
    bank = build_bank([SAEConfig(d_sae=16, k=2, learning_rate=1e-3)], x, torch.zeros(x.shape[1]))
    for name in ("W_enc", "W_dec"):
        bank.parameters[name][0, 0] = missing
    bank.parameters["W_enc"][0, 0] *= 0.01
    bank.since_fired[0, 0] = 10**9
    return bank


def settings() -> StepSettings:
    return StepSettings(
        torch.zeros(1, dtype=torch.float64),
        torch.tensor([2]),
        torch.full((1,), 0.05, dtype=torch.float64),
    )


@pytest.mark.parametrize("method", ["auxk", "ghost"])
def test_the_auxiliary_gradient_revives_a_dead_latent(method: Any) -> None:
    """With the wrong sign, recovery of planted features would fall from all to none."""
    generator = torch.Generator().manual_seed(1)
    missing = torch.nn.functional.normalize(torch.randn(12, generator=generator), dim=0)
    # what the others reconstruct badly is the feature the dead latent points at
    x = torch.rand(200, 1, generator=generator) * 3 * missing
    bank = bank_with_a_dead_latent(x, missing)
    training = BankTrainingConfig(batch_size=200, dead_latents=method)
    leaves = {name: p.clone().requires_grad_() for name, p in bank.parameters.items()}
    dead = bank.since_fired > 0
    loss = dense_loss(bank, leaves, x, settings(), dead, training)
    plain = dense_loss(bank, leaves, x, settings(), torch.zeros_like(dead), training)
    (gradient,) = torch.autograd.grad(loss.total - plain.total, leaves["b_enc"])
    assert float(gradient[0, 0]) < 0
    step = (
        -1e-2
        * torch.autograd.grad(
            dense_loss(bank, leaves, x, settings(), dead, training).total, leaves["W_enc"]
        )[0]
    )
    before = leaves["W_enc"].detach()
    assert float((x @ (before + step)[0, 0]).mean()) > float((x @ before[0, 0]).mean())


@pytest.mark.parametrize("engine", ["dense", "sparse"])
def test_training_with_auxk_revives_the_latent_and_without_does_not(engine: str) -> None:
    generator = torch.Generator().manual_seed(1)
    missing = torch.nn.functional.normalize(torch.randn(12, generator=generator), dim=0)
    x = torch.rand(400, 1, generator=generator) * 3 * missing
    x = x + 0.3 * torch.randn(400, 12, generator=generator)
    ages = {}
    for method in ("none", "auxk"):
        bank = bank_with_a_dead_latent(x, missing)
        training = BankTrainingConfig.model_validate(
            {"batch_size": 200, "dead_latents": method, "threads": 1, "steps": 300}
        )
        made: Any = (
            DenseEngine(bank, x, training, torch.device("cpu"))
            if engine == "dense"
            else SparseEngine(bank, x, training)
        )
        batches = {0: torch.from_numpy(batch_rows(0, len(x), 200, 0, 150))}
        made.run(step_table(bank.configs, training, 0, 150), batches)
        ages[method] = int(bank.since_fired[0, 0])
    assert ages["auxk"] < 150 * 200
    assert ages["none"] > 10**9


def test_resampling_follows_bricken() -> None:
    x, _ = planted(500)
    bank = build_bank([SAEConfig(architecture="relu", l1_coefficient=1.0, d_sae=8)], x, x.mean(0))
    bank.since_fired[0, [2, 5]] = 10**9
    for moments in (bank.first_moment, bank.second_moment):
        for tensor in moments.values():
            tensor.fill_(1.0)
    kept = {name: p.clone() for name, p in bank.parameters.items()}
    assert resample_dead_latents(
        bank, partial(draw_rows, x), len(x), BankTrainingConfig(), step=100
    ) == [2]
    W_dec, W_enc = bank.parameters["W_dec"][0], bank.parameters["W_enc"][0]
    centred = torch.nn.functional.normalize(x - x.mean(0), dim=1)
    for latent in (2, 5):
        assert float((centred @ W_dec[latent]).max()) == pytest.approx(1.0, abs=1e-5)
        assert float(W_enc[latent].norm()) == pytest.approx(0.2, rel=1e-4)
        assert float(bank.parameters["b_enc"][0, latent]) == 0
        assert float(bank.first_moment["W_enc"][0, latent].abs().sum()) == 0
        assert float(bank.second_moment["W_dec"][0, latent].abs().sum()) == 0
    live = [0, 1, 3, 4, 6, 7]
    assert torch.equal(W_dec[live], kept["W_dec"][0, live])
    assert float(bank.first_moment["W_enc"][0, live].min()) == 1
    assert int(bank.since_fired[0, 2]) == 0


def test_resampling_gives_no_two_seeds_the_same_directions() -> None:
    """With shared draws, SAEs that learn nothing would agree, so seeds must not share them."""
    x, _ = planted(500)
    configs = [
        SAEConfig(architecture="relu", l1_coefficient=1.0, d_sae=8, init_seed=seed)
        for seed in (0, 1)
    ]
    bank = build_bank(configs, x, x.mean(0))
    bank.since_fired[:] = 10**9
    assert resample_dead_latents(
        bank, partial(draw_rows, x), len(x), BankTrainingConfig(), step=100
    ) == [8, 8]
    cosine = bank.parameters["W_dec"][0] @ bank.parameters["W_dec"][1].T
    assert float(cosine.diagonal().max()) < 0.9


def train_half_killed(architecture: str, method: str) -> tuple[float, float]:
    """Planted features found and dead fraction, from a start with half of the latents silent."""
    x, directions = planted()
    penalty: dict[str, Any] = {"l1_coefficient": 0.6} if architecture == "relu" else {"k": 4}
    config = SAEConfig(
        architecture=architecture, d_sae=96, learning_rate=5e-3, init_seed=0, **penalty
    )
    training = BankTrainingConfig.model_validate(
        {
            "steps": 800,
            "batch_size": 512,
            "dead_latents": method,
            "dead_after_passes": 1.0,
            "resample_every_passes": 10,
            "eval_interval": 800,
            "threads": 1,
        }
    )
    run = _Run(prepare_rows(x, None, training), [config], training, None, None, None)
    if architecture == "relu":
        run.bank.parameters["b_enc"][:, :48] = -8.0
    else:
        run.bank.parameters["W_enc"][:, :48] *= 0.05
    (sae,) = run.run(progress=False)
    found = (directions @ sae.W_dec.T).amax(1) > 0.9
    return float(found.double().mean()), sae.metrics["dead_fraction"]


@pytest.mark.parametrize(
    ("architecture", "methods"),
    [("topk", ("auxk", "resample", "ghost")), ("relu", ("resample",))],
)
def test_every_method_revives_latents_and_finds_more_planted_features(
    architecture: str, methods: tuple[str, ...]
) -> None:
    recovered, dead = train_half_killed(architecture, "none")
    assert dead >= 0.5
    for method in methods:
        with_it, still_dead = train_half_killed(architecture, method)
        assert still_dead < 0.5 * dead, method
        assert with_it > 2 * recovered, method
