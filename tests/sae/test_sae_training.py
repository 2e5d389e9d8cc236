"""A bank trains, its SAEs come out in the activations' own space, and files hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from husai.sae import BankTrainingConfig, SAEConfig, load_sae, save_sae, train_bank


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
