"""Banks of SAEs: engines agree, training together changes nothing, and a failure stays alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from husai.errors import InputError
from husai.sae import BankTrainingConfig, SAEConfig, group_into_banks, load_sae, train_bank
from husai.sae.bank import SAEBank, build_bank
from husai.sae.engines import products, sparse
from husai.sae.engines.dense import DenseEngine
from husai.sae.engines.sparse import SparseEngine
from husai.sae.engines.turns import Turn, Turns
from husai.sae.schedule import batch_rows, step_table
from husai.sae.trained import TrainedSAE

SETTINGS: dict[str, dict[str, Any]] = {
    "topk": {"k": 3},
    "batch_topk": {"k": 3},
    "relu": {"l1_coefficient": 2.0},
    "jumprelu": {"l0_coefficient": 0.5},
    "matryoshka_batch_topk": {"k": 3},
    "matryoshka_topk": {"k": 3},
}


def rows(n: int = 2000, d: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(24, d, generator=generator)
    support = torch.rand(n, 24, generator=generator).argsort(1) < 3
    return (support * torch.randn(n, 24, generator=generator).abs()) @ directions / 4 + 0.3


def configs(architecture: str, n: int = 3, d_sae: int = 48, **changes: Any) -> list[SAEConfig]:
    settings = SETTINGS[architecture] | {"learning_rate": 3e-3} | changes
    return [
        SAEConfig(architecture=architecture, d_sae=d_sae, init_seed=seed, **settings)
        for seed in range(n)
    ]


def advance(
    bank: SAEBank, x: torch.Tensor, training: BankTrainingConfig, engine: str, steps: int
) -> dict[str, torch.Tensor]:
    made: Any = (
        DenseEngine(bank, x, training, torch.device("cpu"))
        if engine == "dense"
        else SparseEngine(bank, x, training)
    )
    seeds = {config.data_seed for config in bank.configs}
    batches = {
        seed: torch.from_numpy(batch_rows(seed, len(x), training.batch_size, 0, steps))
        for seed in seeds
    }
    means: dict[str, torch.Tensor] = made.run(step_table(bank.configs, training, 0, steps), batches)
    return means


def state(bank: SAEBank) -> dict[str, torch.Tensor]:
    skipped = ("W_dec_init", "failed")
    return {n: t.double() for n, t in bank.tensors().items() if n not in skipped}


def assert_close(a: SAEBank, b: SAEBank, tolerance: float = 2e-4) -> None:
    theirs = state(b)
    for name, mine in state(a).items():
        scale = float(mine.abs().max())
        difference = float((mine - theirs[name]).abs().max())
        assert difference <= tolerance * scale + 1e-10, (name, difference, scale)


def prepared(x: torch.Tensor, architecture: str, few: bool = False, **changes: Any) -> SAEBank:
    bank = build_bank(configs(architecture, **changes), x, x.mean(0))
    if few:
        # few active latents, so that relu and jumprelu take the sparse path; two never fire
        bank.parameters["b_enc"] -= 1.5
    bank.parameters["b_enc"][:, :2] -= 20.0
    return bank


@pytest.mark.parametrize("architecture", SETTINGS)
@pytest.mark.parametrize("method", ["auxk", "ghost"])
@pytest.mark.parametrize("few", [False, True])
def test_kernels_equal_autograd(
    architecture: str, method: str, few: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # dense products in three blocks of rows
    monkeypatch.setattr(products, "DENSE_ROWS", 128)
    x = rows()
    training = BankTrainingConfig.model_validate(
        {"batch_size": 300, "dead_latents": method, "dead_after_passes": 0.2, "threads": 2}
    )
    banks = [prepared(x, architecture, few) for _ in range(2)]
    # ghost and auxk act once latents are dead, which takes two batches here
    means = [advance(b, x, training, e, 8) for b, e in zip(banks, ("dense", "sparse"), strict=True)]
    assert_close(banks[0], banks[1])
    for name in means[0]:
        torch.testing.assert_close(means[0][name], means[1][name], rtol=1e-4, atol=1e-6)
    assert bool((banks[0].since_fired[:, :2] >= training.dead_after_passes * len(x)).all())
    if method == "ghost":
        assert float(means[0]["auxiliary"].min()) > 0


@pytest.mark.parametrize("architecture", ["topk", "batch_topk", "relu"])
@pytest.mark.parametrize("summed", [False, True])
def test_gradients_by_row_and_by_latent_equal_autograd(
    architecture: str, summed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # which of the two ways an SAE takes depends on its size; a width that vectors do not divide
    monkeypatch.setattr(sparse, "SUMMED_VALUES", 10**9 if summed else 0)
    x = rows(d=40)
    training = BankTrainingConfig.model_validate(
        {"batch_size": 300, "dead_latents": "auxk", "dead_after_passes": 0.2, "threads": 1}
    )
    # 7: four latents and three
    changes = {} if architecture == "relu" else {"k": 7}
    banks = [prepared(x, architecture, few=True, **changes) for _ in range(2)]
    for bank, engine in zip(banks, ("dense", "sparse"), strict=True):
        advance(bank, x, training, engine, 8)
    assert_close(banks[0], banks[1])


def test_threads_share_the_saes_evenly_and_keep_those_of_one_seed_together() -> None:
    seeds = {0: 5, 1: 5, 2: 5, 4: 7, 6: 5}
    turns = Turns(seeds, n_steps=25, threads=2)
    first, second, third = turns.take(), turns.take(), turns.take()
    assert first == Turn([0, 1, 2], 5, 0, 10)
    assert second == Turn([4], 7, 0, 10)
    assert third == Turn([6], 5, 0, 10)
    assert turns.take() is None
    turns.give_back(second)
    turns.give_back(first)
    # those that are furthest behind come first
    turns.give_back(third)
    made = dict.fromkeys(seeds, 10)
    while (turn := turns.take()) is not None:
        assert turn.begin == min(made.values())
        for sae in turn.saes:
            assert (made[sae], seeds[sae]) == (turn.begin, turn.seed)
            made[sae] = turn.end
        turns.give_back(turn)
    assert set(made.values()) == {25}
    assert turns.unfinished == 0


@pytest.mark.parametrize("architecture", SETTINGS)
def test_kernels_equal_autograd_with_clipping_decay_and_free_norms(architecture: str) -> None:
    x = rows()
    training = BankTrainingConfig(
        batch_size=300,
        optimizer="adamw",
        weight_decay=0.1,
        clip_grad_norm=0.05,
        unit_norm_decoder=False,
        k_anneal_steps=5,
        threads=1,
    )
    banks = [prepared(x, architecture, few=True) for _ in range(2)]
    for bank, engine in zip(banks, ("dense", "sparse"), strict=True):
        advance(bank, x, training, engine, 8)
    assert_close(banks[0], banks[1])


@pytest.mark.parametrize("engine", ["dense", "sparse"])
@pytest.mark.parametrize("method", ["auxk", "ghost"])
@pytest.mark.parametrize("architecture", SETTINGS)
def test_a_bank_gives_the_same_as_each_sae_trained_alone(
    architecture: str, method: str, engine: str
) -> None:
    x = rows()
    training = BankTrainingConfig.model_validate(
        {
            "batch_size": 256,
            "dead_latents": method,
            "dead_after_passes": 0.2,
            "clip_grad_norm": 0.5,
            "threads": 2,
        }
    )
    changes: list[dict[str, Any]] = [
        {"init_seed": 0, "learning_rate": 1e-3},
        {"init_seed": 1, "learning_rate": 3e-3, "warmup_steps": 5},
        {"init_seed": 2, "learning_rate": 3e-3, "data_seed": 7},
    ]
    if "k" in SETTINGS[architecture]:
        changes[1]["k"] = 5
    chosen = [
        SAEConfig.model_validate(
            {"architecture": architecture, "d_sae": 48} | SETTINGS[architecture] | change
        )
        for change in changes
    ]
    together = build_bank(chosen, x, x.mean(0))
    together.parameters["b_enc"][:, :2] -= 20.0
    advance(together, x, training, engine, 10)
    for index, config in enumerate(chosen):
        alone = build_bank([config], x, x.mean(0))
        alone.parameters["b_enc"][:, :2] -= 20.0
        advance(alone, x, training, engine, 10)
        mine = {name: tensor[index] for name, tensor in state(together).items()}
        for name, tensor in state(alone).items():
            torch.testing.assert_close(mine[name], tensor[0], rtol=2e-3, atol=1e-6, msg=name)


def test_data_order_depends_on_the_data_seed_only() -> None:
    order = batch_rows(3, 100, 30, 0, 10)
    assert np.array_equal(order[4:7], batch_rows(3, 100, 30, 4, 7))
    # three passes: every row three times
    assert np.array_equal(np.bincount(order.ravel(), minlength=100), np.full(100, 3))
    assert not np.array_equal(order, batch_rows(4, 100, 30, 0, 10))


def test_an_sae_that_turns_nan_leaves_the_others_alone() -> None:
    x = rows()
    good = configs("topk", n=2)
    bad = configs("topk", n=1, learning_rate=1e30)
    training = BankTrainingConfig(steps=40, batch_size=256, eval_interval=20, warmup_steps=0)
    first, broken, second = train_bank(x, [good[0], bad[0], good[1]], training)
    assert broken.failure is not None
    assert "not finite" in broken.failure
    alone = train_bank(x, good, training)
    for with_it, without in zip((first, second), alone, strict=True):
        assert with_it.failure is None
        torch.testing.assert_close(with_it.W_dec, without.W_dec, rtol=1e-3, atol=1e-6)


TRAIN = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, {tests!r})
from test_sae_bank import configs, resume_training, rows
from husai.sae import save_sae, train_bank
saes = train_bank(rows(), configs({architecture!r}), resume_training({method!r}),
                  checkpoint_dir=Path({directory!r}) / "checkpoints")
for index, sae in enumerate(saes):
    save_sae(sae, Path({directory!r}) / f"{{index}}.safetensors")
"""


def resume_training(method: str) -> BankTrainingConfig:
    return BankTrainingConfig.model_validate(
        {
            "steps": 800,
            "batch_size": 256,
            "eval_interval": 130,
            "checkpoint_interval": 25,
            "snapshot_interval": 400,
            "dead_latents": method,
            "dead_after_passes": 1.0,
            "resample_every_passes": 20,
            "threads": 2,
        }
    )


@pytest.mark.parametrize(("architecture", "method"), [("topk", "auxk"), ("batch_topk", "resample")])
def test_killed_and_resumed_equals_uninterrupted(
    architecture: str, method: str, tmp_path: Path
) -> None:
    script = TRAIN.format(
        tests=str(Path(__file__).parent),
        architecture=architecture,
        method=method,
        directory=str(tmp_path),
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment)
    checkpoints = tmp_path / "checkpoints"
    deadline = time.monotonic() + 200
    while len(list(checkpoints.glob("step_*.safetensors"))) < 2:
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "0.safetensors").exists()
    reached = max(int(p.stem.split("_")[1]) for p in checkpoints.glob("step_*.safetensors"))
    assert 0 < reached < 800
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    whole = train_bank(rows(), configs(architecture), resume_training(method))
    assert len(list(checkpoints.glob("step_*.safetensors"))) == 2
    for index, sae in enumerate(whole):
        again = load_sae(tmp_path / f"{index}.safetensors")
        for name in ("W_enc", "b_enc", "W_dec", "b_dec", "density"):
            assert torch.equal(getattr(again, name), getattr(sae, name)), name
        if sae.threshold is not None:
            assert again.threshold is not None
            assert torch.equal(again.threshold, sae.threshold)
        assert again.history.equals(sae.history)
        assert list(again.snapshots) == [0, 400, 800]
        assert all(torch.equal(again.snapshots[s], w) for s, w in sae.snapshots.items())


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    x = rows()
    training = BankTrainingConfig(steps=10, batch_size=256)
    train_bank(x, configs("topk"), training, checkpoint_dir=tmp_path)
    with pytest.raises(InputError, match="rows"):
        train_bank(x + 1, configs("topk"), training, checkpoint_dir=tmp_path)
    with pytest.raises(InputError, match=r"configs\[0\]\.k"):
        train_bank(x, configs("topk", k=4), training, checkpoint_dir=tmp_path)
    longer = training.model_copy(update={"steps": 20})
    with pytest.raises(InputError, match=r"training\.steps 10 there, 20 now"):
        train_bank(x, configs("topk"), longer, checkpoint_dir=tmp_path)
    # a finished run is read, not trained again
    (sae, *_) = train_bank(x, configs("topk"), training, checkpoint_dir=tmp_path)
    assert sae.metrics["steps"] == 10


def test_saes_of_one_shape_form_a_bank() -> None:
    mixed = [*configs("topk", 2), *configs("relu", 1), *configs("topk", 1, d_sae=32)]
    assert group_into_banks(mixed) == [[0, 1], [2], [3]]
    with pytest.raises(InputError, match="group_into_banks"):
        train_bank(rows(), mixed, BankTrainingConfig(batch_size=64))


@pytest.mark.parametrize(
    ("architecture", "method"),
    [*((name, "auxk") for name in SETTINGS), ("topk", "resample"), ("relu", "ghost")],
)
def test_other_saes_and_threads_do_not_change_a_bit(architecture: str, method: str) -> None:
    """A campaign may train a missing SAE alone, anywhere, and get the same file."""
    x = rows(600)
    mates = [*configs(architecture, 3), *configs(architecture, 2, data_seed=1)]

    def trained(chosen: list[SAEConfig], threads: int) -> list[TrainedSAE]:
        training = BankTrainingConfig(
            **{"steps": 25, "batch_size": 300, "eval_interval": 25, "threads": threads},
            **{"dead_latents": method, "dead_after_passes": 2, "resample_every_passes": 4},
        )
        return train_bank(x, chosen, training)

    together = trained(mates, 3)
    for index in (0, 2, 4):
        (alone,) = trained([mates[index]], 1)
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            assert torch.equal(getattr(alone, name), getattr(together[index], name)), name
