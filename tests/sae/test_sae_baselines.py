"""Trained baselines obey their limits in both engines, after resuming, and in files and plans."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tests.sae.test_sae_bank import SETTINGS, advance, assert_close, rows

from husai.errors import InputError
from husai.sae import BankTrainingConfig, SAEConfig, from_tensors, load_sae, save_sae, to_tensors
from husai.sae import train_bank as train
from husai.sae.bank import SAEBank, build_bank
from husai.sae.dead import resample_dead_latents
from husai.sae.engines.dense import turned_back
from husai.sae.kernels.adam import turn_back
from husai.sae.rows import draw_rows

BASELINES = ("frozen_decoder", "soft_frozen_decoder", "frozen_encoder")
COSINE = 0.8


def training(**changes: Any) -> BankTrainingConfig:
    return BankTrainingConfig.model_validate(
        {"batch_size": 300, "dead_after_passes": 0.2, "threads": 1, "warmup_steps": 0} | changes
    )


def cosines(W_dec: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    return torch.cosine_similarity(W_dec.double(), start.double(), dim=-1)


def all_baselines(architecture: str, **changes: Any) -> SAEBank:
    """A bank of one SAE a baseline, and one without."""
    x = rows()
    chosen = [
        SAEConfig.model_validate(
            {"architecture": architecture, "d_sae": 48, "baseline": baseline, "learning_rate": 0.1}
            | SETTINGS[architecture]
            | changes
        )
        for baseline in ("none", *BASELINES)
    ]
    bank = build_bank(chosen, x, x.mean(0))
    bank.parameters["b_enc"][:, :2] -= 20.0
    return bank


@pytest.mark.parametrize("architecture", SETTINGS)
@pytest.mark.parametrize(
    "changes",
    [{}, {"clip_grad_norm": 0.05, "optimizer": "adamw", "weight_decay": 0.1}, {"unit": False}],
)
def test_both_engines_train_the_same_baselines(architecture: str, changes: dict[str, Any]) -> None:
    settings = dict(changes)
    settings["unit_norm_decoder"] = settings.pop("unit", True)
    banks = [all_baselines(architecture, learning_rate=0.02) for _ in range(2)]
    start = {name: tensor.clone() for name, tensor in banks[0].parameters.items()}
    for bank, engine in zip(banks, ("dense", "sparse"), strict=True):
        advance(bank, rows(), training(**settings), engine, 8)
        moved = {
            name: [not torch.equal(tensor[i], start[name][i]) for i in range(4)]
            for name, tensor in bank.parameters.items()
        }
        assert moved["W_dec"] == [True, False, True, True]
        assert moved["W_enc"] == [True, True, True, False]
        assert all(moved["b_enc"])
        assert all(moved["b_dec"])
        assert float(cosines(bank.parameters["W_dec"][2], bank.W_dec_init[2]).min()) > COSINE - 1e-6
    assert_close(banks[0], banks[1])


def test_without_the_limit_the_soft_decoder_goes_further() -> None:
    bank = all_baselines("topk")
    advance(bank, rows(), training(), "sparse", 40)
    free, _, soft, _ = cosines(bank.parameters["W_dec"], bank.W_dec_init)
    assert float(free.min()) < 0.5
    assert float(soft.min()) == pytest.approx(COSINE, abs=1e-6)
    norms = bank.parameters["W_dec"][2].norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(48))


def test_projection_gives_the_nearest_allowed_direction() -> None:
    generator = torch.Generator().manual_seed(0)
    start, row = torch.randn(2, 5, generator=generator)
    start = start / start.norm()
    # far on the other side, of norm 3
    row = 3 * (row - 2 * start) / (row - 2 * start).norm()
    assert float(row @ start) < 0
    turned = turned_back(row[None], start[None], COSINE)[0]
    assert float(turned.norm()) == pytest.approx(3, rel=1e-6)
    assert float(turned @ start) / 3 == pytest.approx(COSINE, abs=1e-6)
    others = torch.randn(200_000, 5, generator=generator)
    others = others / others.norm(dim=1, keepdim=True)
    allowed = others[others @ start >= COSINE]
    assert len(allowed) > 100
    best = float((allowed @ row).max())
    assert float(turned @ row) / 3 >= best
    assert float(turned @ row) / 3 == pytest.approx(best, abs=0.05)
    in_place = row.numpy().copy()
    turn_back(in_place, start.numpy(), COSINE)
    torch.testing.assert_close(torch.from_numpy(in_place), turned)
    near = start + 0.1 * row
    kept = near.numpy().copy()
    turn_back(kept, start.numpy(), COSINE)
    assert torch.equal(torch.from_numpy(kept), turned_back(near[None], start[None], COSINE)[0])
    assert torch.equal(torch.from_numpy(kept), near)


def test_a_baseline_is_not_resampled() -> None:
    bank = all_baselines("relu")
    bank.since_fired[:, :5] = 1_000_000
    before = {name: tensor.clone() for name, tensor in bank.tensors().items()}
    x = rows()
    found = resample_dead_latents(bank, partial(draw_rows, x), len(x), training(), 10)
    assert found == [5, 0, 0, 0]
    for name, tensor in bank.tensors().items():
        assert torch.equal(tensor[1:], before[name][1:]), name
    assert not torch.equal(bank.parameters["W_dec"][0, :5], before["W_dec_init"][0, :5])


def test_a_resumed_baseline_equals_an_uninterrupted_one_and_its_file_says_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import husai.sae.checkpoint as checkpoint
    import husai.sae.train as module

    x = rows(600)
    chosen = [SAEConfig(d_sae=48, k=3, baseline=baseline) for baseline in BASELINES]
    options = training(steps=40, checkpoint_interval=20, eval_interval=20)
    whole = train(x, chosen, options)
    write = checkpoint.write_checkpoint

    def write_and_die(*arguments: Any, **named: Any) -> None:
        write(*arguments, **named)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_checkpoint", write_and_die)
    with pytest.raises(KeyboardInterrupt):
        train(x, chosen, options, checkpoint_dir=tmp_path)
    monkeypatch.undo()
    other = [config.model_copy(update={"baseline": "none"}) for config in chosen]
    with pytest.raises(InputError, match=r"configs\[0\]\.baseline frozen_decoder there, none now"):
        train(x, other, options, checkpoint_dir=tmp_path)
    resumed = train(x, chosen, options, checkpoint_dir=tmp_path)
    for a, b in zip(whole, resumed, strict=True):
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
        save_sae(b, tmp_path / "sae.safetensors")
        assert load_sae(tmp_path / "sae.safetensors").config == b.config


def test_older_files_without_this_field_hold_trained_saes() -> None:
    (sae,) = train(rows(600), [SAEConfig(d_sae=12, k=3)], training(steps=2))
    tensors, header = to_tensors(sae)
    del header["config"]["baseline"]
    assert from_tensors(tensors, header, "old").config == sae.config
    with pytest.raises(ValidationError, match="baseline"):
        SAEConfig.model_validate({"d_sae": 12, "k": 3, "baseline": "frozen"})
