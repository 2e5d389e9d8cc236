"""A bank trains, its SAEs come out in the activations' own space, and files hold them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from husai.sae import BankTrainingConfig, SAEConfig, load_sae, save_sae, train_bank
from husai.sae.metrics import evaluate


def planted(n: int = 3000, d: int = 16, features: int = 24, k: int = 3) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    dictionary = torch.randn(features, d, generator=generator)
    dictionary = dictionary / dictionary.norm(dim=1, keepdim=True)
    support = torch.rand(n, features, generator=generator).argsort(1) < k
    code = support * torch.randn(n, features, generator=generator).abs()
    return code @ dictionary, dictionary


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "topk": {"k": 3},
    "batch_topk": {"k": 3},
    "relu": {"l1_coefficient": 2.0},
    "jumprelu": {"l0_coefficient": 0.5},
    "matryoshka_batch_topk": {"k": 3},
    "matryoshka_topk": {"k": 3},
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_file_round_trip_is_exact(name: str, tmp_path: Path) -> None:
    x, _ = planted()
    config = SAEConfig(architecture=name, d_sae=32, **ARCHITECTURES[name])
    training = BankTrainingConfig(steps=20, batch_size=256, eval_interval=10)
    (sae,) = train_bank(5.0 * x, [config], training)
    save_sae(sae, tmp_path / "sae.safetensors")
    again = load_sae(tmp_path / "sae.safetensors")
    assert again.config == config
    assert torch.equal(again.encode(x), sae.encode(x))
    assert again.metrics == sae.metrics
    assert again.history.equals(sae.history)
    assert torch.equal(again.W_dec_init, sae.W_dec_init)


def test_topk_recovers_a_planted_dictionary() -> None:
    x, dictionary = planted()
    config = SAEConfig(architecture="topk", d_sae=32, k=3, learning_rate=3e-3)
    (sae,) = train_bank(x, [config], BankTrainingConfig(steps=600, batch_size=256))
    best = (dictionary @ sae.W_dec.T).abs().amax(1)
    assert best.mean() > 0.95
    assert sae.metrics["fvu"] < 0.1


def test_metrics_equal_their_definitions() -> None:
    x, _ = planted(500)
    (sae,) = train_bank(
        x, [SAEConfig(d_sae=32, k=3)], BankTrainingConfig(steps=50, batch_size=128), eval_rows=x
    )
    f, x64 = sae.encode(x.double()), x.double()
    x_hat = sae.decode(f)
    error, spread = (x64 - x_hat), x64 - x64.mean(0)
    assert sae.metrics["fvu"] == pytest.approx(
        float(error.square().sum() / spread.square().sum()), rel=1e-9
    )
    explained = 1 - error.var(0, correction=0).sum() / x64.var(0, correction=0).sum()
    assert sae.metrics["explained_variance"] == pytest.approx(float(explained), rel=1e-9)
    assert sae.metrics["l0"] == pytest.approx(float((f > 0).sum(1).double().mean()))
    assert torch.allclose(sae.density, (f > 0).double().mean(0))
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(32), atol=1e-5)
    cosine = torch.nn.functional.cosine_similarity(sae.W_dec, sae.W_dec_init).abs().mean()
    assert sae.metrics["cosine_to_init"] == pytest.approx(float(cosine), abs=1e-5)
    # a row that turned round has kept its direction
    turned = replace(sae, W_dec=-sae.W_dec)
    assert evaluate(turned, x)[0]["cosine_to_init"] == pytest.approx(float(cosine), abs=1e-5)


def test_loss_recovered_is_measured_from_ablation_to_the_clean_loss() -> None:
    x, _ = planted(500)
    training = BankTrainingConfig(steps=50, batch_size=128)

    def loss_with(apply: Callable[[torch.Tensor], torch.Tensor]) -> float:
        return float((apply(x) - x).square().mean()) + 1.0

    (sae,) = train_bank(x, [SAEConfig(d_sae=32, k=3)], training, loss_with=loss_with)
    zero, clean = float(x.square().mean()) + 1.0, 1.0
    spliced = float((sae.decode(sae.encode(x)) - x).square().mean()) + 1.0
    expected = (zero - spliced) / (zero - clean)
    assert sae.metrics["loss_recovered"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["topk", "relu", "batch_topk"])
def test_scaling_the_activations_scales_the_sae(name: str) -> None:
    """Scaling is folded back: rows ten times as large give the same decoder, codes times ten."""
    x, _ = planted(1500)
    config = SAEConfig(architecture=name, d_sae=32, **ARCHITECTURES[name])
    training = BankTrainingConfig(steps=100, batch_size=256)
    (small,), (large,) = (train_bank(s * x, [config], training) for s in (1.0, 8.0))
    torch.testing.assert_close(large.W_dec, small.W_dec, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(large.b_dec, 8 * small.b_dec, rtol=1e-3, atol=1e-3)
    assert large.metrics["fvu"] == pytest.approx(small.metrics["fvu"], rel=1e-2)


def test_a_converged_sae_stops_and_the_others_continue() -> None:
    x, _ = planted(1500)
    still = SAEConfig(d_sae=32, k=3, learning_rate=1e-9)
    moving = SAEConfig(d_sae=32, k=3, learning_rate=1e-3)
    training = BankTrainingConfig(
        steps=300, batch_size=256, eval_interval=10, stop_when_converged=True
    )
    stopped, on = train_bank(x, [still, moving], training)
    assert stopped.metrics["steps"] == 50
    assert stopped.metrics["converged"] == 1
    assert on.metrics["steps"] > 50
    assert stopped.failure is None


def test_every_initialisation_is_as_defined() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 3, generator=generator) @ torch.randn(3, 10, generator=generator) + 2
    span = torch.linalg.svd(x - x.mean(0)).Vh[:3]
    training = BankTrainingConfig(steps=1, batch_size=64)

    def outside(init: str) -> float:
        config = SAEConfig.model_validate({"d_sae": 12, "k": 2, "init": init})
        (sae,) = train_bank(x, [config], training)
        assert torch.allclose(sae.W_dec_init.norm(dim=1), torch.ones(12), atol=1e-5)
        rest = sae.W_dec_init - sae.W_dec_init @ span.T @ span
        return float(rest.norm(dim=1).max())

    assert outside("random") > 0.5
    assert outside("random_in_span") < 1e-4
    assert outside("data") < 0.02


@pytest.mark.parametrize("steps", [300, 1500])
def test_batch_topk_keeps_k_latents_at_inference(steps: int) -> None:
    """The threshold keeps up with training: L0 at inference is k, on rows it was not set on."""
    x, _ = planted(2000)
    training = BankTrainingConfig(steps=steps, batch_size=200)
    (sae,) = train_bank(x, [SAEConfig(architecture="batch_topk", d_sae=48, k=3)], training)
    assert sae.metrics["l0"] == pytest.approx(3, rel=0.12)
