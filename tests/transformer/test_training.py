"""Training of the transformer: one step by hand, exact resume, curves, bad input."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError

from husai.errors import InputError
from husai.storage import read_header, write_tensors
from husai.tasks import ModularDataset, ModularTaskConfig, modular_dataset
from husai.transformer import (
    CheckpointStore,
    TransformerConfig,
    TransformerTrainingConfig,
    build_transformer,
    load_transformer,
    save_transformer,
    train_transformer,
)
from husai.transformer import training as training_module
from husai.transformer.evaluation import grokking_summary
from husai.transformer.training import learning_rate_factor

SMALL = TransformerConfig(d_model=16, n_heads=2, d_mlp=24)


def small_dataset(**values: Any) -> Any:
    return modular_dataset(ModularTaskConfig(modulus=11, **values))


def train(
    dataset: Any = None, model: Any = SMALL, checkpoint_dir: Any = None, **values: Any
) -> Any:
    values = {"max_epochs": 12, "evaluate_every": 4, "early_stopping": False} | values
    return train_transformer(
        dataset or small_dataset(),
        model,
        TransformerTrainingConfig(**values),
        checkpoint_dir=checkpoint_dir,
        progress=False,
    )


def same_run(first: Any, second: Any) -> None:
    assert set(first.state_dict) == set(second.state_dict)
    for name, value in first.state_dict.items():
        assert torch.equal(value, second.state_dict[name]), name
    columns = [c for c in first.history if c != "seconds"]
    pd.testing.assert_frame_equal(first.history[columns], second.history[columns], check_exact=True)


# --- what is trained ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        SMALL,
        SMALL.model_copy(update={"normalization": "LN"}),
        SMALL.model_copy(update={"normalization": "LNPre", "n_layers": 2}),
        SMALL.model_copy(update={"normalization": "RMS", "act_fn": "gelu"}),
    ],
)
@pytest.mark.parametrize("batch_size", [None, 25])
def test_every_shape_learns_the_train_rows(model: Any, batch_size: Any) -> None:
    run = train(model=model, batch_size=batch_size, max_epochs=60, learning_rate=1e-2)
    first, last = run.history.iloc[0], run.history.iloc[-1]
    assert first["train_loss"] == pytest.approx(math.log(12), rel=0.2)
    assert last["train_loss"] < 0.75 * first["train_loss"]
    assert run.summary["forward"] == ("compiled" if model.normalization == "none" else "hooked")


def test_fast_and_hooked_training_agree() -> None:
    fast = train(fast_path=True, max_epochs=20)
    hooked = train(fast_path=False, max_epochs=20)
    assert (fast.summary["forward"], hooked.summary["forward"]) == ("compiled", "hooked")
    for name, value in hooked.state_dict.items():
        torch.testing.assert_close(fast.state_dict[name], value, rtol=1e-3, atol=2e-5, msg=name)


def test_one_step_equals_adamw_by_hand() -> None:
    dataset = small_dataset()
    run = train(dataset, max_epochs=1, weight_decay=0.5, warm_up_steps=4, learning_rate=1e-2)
    model = build_transformer(SMALL, 12, 3)
    rows = dataset.rows("train")
    logits = model(torch.tensor(dataset.tokens()[rows]))[:, -1].double()
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(dataset.answers()[rows]))
    torch.autograd.backward(loss)
    weight = model.state_dict(keep_vars=True)["unembed.weight"]
    # first step of Adam: the bias-corrected moments are g and g²; warm-up: a quarter of the rate
    rate = 1e-2 / 4
    expected = weight * (1 - rate * 0.5) - rate * weight.grad / (weight.grad.abs() + 1e-8)
    torch.testing.assert_close(
        run.state_dict["unembed.weight"], expected.detach(), atol=1e-5, rtol=1e-4
    )


def test_only_train_rows_are_in_the_loss() -> None:
    dataset = small_dataset()
    examples = dataset.examples.copy()
    held_out = examples["split"] != "train"
    examples.loc[held_out, "answer"] = (examples.loc[held_out, "answer"] + 5) % 11
    wrong = ModularDataset(examples, dataset.vocabulary)
    first, second = train(dataset), train(wrong)
    for name, value in first.state_dict.items():
        assert torch.equal(value, second.state_dict[name])
    assert first.history["test_loss"].iloc[-1] != second.history["test_loss"].iloc[-1]


@pytest.mark.parametrize(
    ("biases", "moving"),
    [
        ("none", set()),
        ("mlp", {"mlp.in", "mlp.out"}),
        ("all", {"mlp.in", "mlp.out", "attn.q", "attn.v", "attn.o"}),
    ],
)
def test_biases_that_are_not_trained_stay_zero(biases: Any, moving: Any) -> None:
    run = train(model=SMALL.model_copy(update={"biases": biases}), max_epochs=3)
    nonzero = {
        name.removeprefix("blocks.0.").removesuffix(".bias")
        for name, value in run.state_dict.items()
        if name.endswith(".bias") and value.abs().max() > 1e-6
    }
    # the key bias shifts all scores alike, so its gradient is rounding and Adam scales it up
    assert nonzero - {"attn.k"} == moving


def test_curves_are_those_of_the_hooked_model() -> None:
    dataset = small_dataset()
    run = train(dataset, max_epochs=6, evaluate_every=6)
    with torch.no_grad():
        logits = run.build()(torch.tensor(dataset.tokens()))[:, -1].double()
    answers = torch.tensor(dataset.answers())
    last = run.history.iloc[-1]
    for split in ("train", "val", "test"):
        rows = torch.tensor(dataset.rows(split))
        loss = torch.nn.functional.cross_entropy(logits[rows], answers[rows])
        assert last[f"{split}_loss"] == pytest.approx(float(loss), rel=1e-5)
        accuracy = (logits[rows].argmax(1) == answers[rows]).double().mean()
        assert last[f"{split}_accuracy"] == pytest.approx(float(accuracy))
    squares = sum(float(v.double().square().sum()) for v in run.state_dict.values())
    assert last["weight_norm"] == pytest.approx(math.sqrt(squares))
    assert run.summary["threads"] == torch.get_num_threads()
    assert run.summary["hardware"]


def test_seeds_determine_everything_random() -> None:
    same_run(train(batch_size=20), train(batch_size=20))
    weights = train(model=SMALL.model_copy(update={"seed": 1}), batch_size=20)
    order = train(batch_size=20, seed=1)
    base = train(batch_size=20)
    assert weights.history["train_loss"].iloc[0] != base.history["train_loss"].iloc[0]
    assert order.history["train_loss"].iloc[0] == base.history["train_loss"].iloc[0]
    assert order.history["train_loss"].iloc[-1] != base.history["train_loss"].iloc[-1]


# --- schedules and stopping -----------------------------------------------------------------


def test_schedules_at_known_points() -> None:
    def factors(steps: Any, **values: Any) -> Any:
        config = TransformerTrainingConfig(max_epochs=101, warm_up_steps=0, **values)
        return [learning_rate_factor(step, 1, config) for step in steps]

    assert factors([0, 50, 100]) == [1, 1, 1]
    assert factors([0, 50, 100], schedule="cosine") == pytest.approx([1, 0.5, 0])
    assert factors([25], schedule="cosine") == pytest.approx([0.5 + math.sqrt(0.125)])
    assert factors([0, 50, 100], schedule="linear", final_learning_rate_fraction=0.2) == (
        pytest.approx([1, 0.6, 0.2])
    )
    step = factors([9, 10, 19, 20], schedule="step", decay_every=10, decay_factor=0.1)
    assert step == pytest.approx([1, 0.1, 0.1, 0.01])
    warm = TransformerTrainingConfig(max_epochs=100, warm_up_steps=10)
    rates = [learning_rate_factor(s, 1, warm) for s in (0, 4, 9, 10)]
    assert rates == pytest.approx([0.1, 0.5, 1, 1])


def test_learning_rate_is_in_the_history() -> None:
    run = train(schedule="linear", warm_up_steps=0, max_epochs=9, evaluate_every=4)
    assert run.history["learning_rate"].tolist() == pytest.approx([0, 1e-3 * 5 / 8, 1e-3 / 8, 0])


def curves(test_accuracy: Any, train_accuracy: Any) -> Any:
    n = len(test_accuracy)
    table = {"epoch": np.arange(n) * 10, "train_accuracy": train_accuracy}
    table["test_accuracy"] = test_accuracy
    rest = ("val_accuracy", "train_loss", "val_loss", "test_loss")
    return pd.DataFrame(table | {name: [math.nan] * n for name in rest})


def test_grokking_is_reported_by_its_delay() -> None:
    summary = grokking_summary(curves([0, 0.1, 0.5, 0.97, 0.99], [0.1, 0.98, 0.99, 1, 1]))
    assert summary["epoch_train_99"] == 20
    assert summary["epoch_test_99"] == 40
    assert summary["grokking_delay_epochs"] == 20
    assert summary["grokking_delay_ratio"] == 2
    assert summary["final_val_loss"] is None
    never = grokking_summary(curves([0, 0.5], [0, 1.0]))
    assert never["epoch_test_99"] is None
    assert never["grokking_delay_epochs"] is None


def test_early_stopping_waits_until_accuracy_stays_high(monkeypatch: Any) -> None:
    accuracies = iter([0.0, 0.5, 0.995, 0.98, 0.995, 0.999, 1.0, 1.0, 1.0])
    record = training_module._Run._record

    def scripted(run: Any) -> None:
        record(run)
        run.history[-1]["test_accuracy"] = next(accuracies)

    monkeypatch.setattr(training_module._Run, "_record", scripted)
    run = train(early_stopping=True, evaluate_every=2, patience=4, max_epochs=100)
    # 0.995 at 4 falls below at 6; from 8 on it stays, and 12 is four epochs later
    assert run.summary["epochs"] == 12
    assert "test accuracy at or above 0.99 for 4 epochs" in run.summary["stopped"]


# --- checkpoints ----------------------------------------------------------------------------


class Interrupted(Exception):
    pass


def interrupt_after(monkeypatch: Any, epochs: Any) -> None:
    train_epoch = training_module._Run._train_epoch

    def interrupted(run: Any) -> None:
        if run.epoch == epochs:
            raise Interrupted
        train_epoch(run)

    monkeypatch.setattr(training_module._Run, "_train_epoch", interrupted)


@pytest.mark.parametrize(
    "values", [{}, {"batch_size": 17, "schedule": "cosine"}, {"fast_path": False}]
)
def test_resumed_equals_uninterrupted_bit_for_bit(
    tmp_path: Any, monkeypatch: Any, values: Any
) -> None:
    values = {"max_epochs": 23, "checkpoint_every": 5, "evaluate_every": 3} | values
    whole = train(checkpoint_dir=tmp_path / "whole", **values)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 17)
        with pytest.raises(Interrupted):
            train(checkpoint_dir=tmp_path / "parts", **values)
    assert CheckpointStore(tmp_path / "parts").epochs() == [0, 5, 10, 15]
    with monkeypatch.context() as patch:
        # and once more, before another checkpoint is reached
        interrupt_after(patch, 18)
        with pytest.raises(Interrupted):
            train(checkpoint_dir=tmp_path / "parts", **values)
    resumed = train(checkpoint_dir=tmp_path / "parts", **values)
    same_run(whole, resumed)
    assert resumed.summary["stopped"] == whole.summary["stopped"]
    stores = [CheckpointStore(tmp_path / name) for name in ("whole", "parts")]
    assert stores[0].epochs() == stores[1].epochs() == [0, 5, 10, 15, 20, 23]
    for (epoch, first), (_, second) in zip(*stores, strict=True):
        for name, value in first.items():
            assert torch.equal(value, second[name]), (epoch, name)


def test_interruption_while_writing_leaves_the_checkpoint_before(
    tmp_path: Any, monkeypatch: Any
) -> None:
    whole = train(max_epochs=8, checkpoint_every=2)

    def failing(path: Any, tensors: Any, header: Any) -> None:
        if path.name.startswith("resume") and header["epoch"] == 4:
            raise Interrupted
        write_tensors(path, tensors, header)

    with monkeypatch.context() as patch:
        patch.setattr("husai.transformer.checkpoints.write_tensors", failing)
        with pytest.raises(Interrupted):
            train(max_epochs=8, checkpoint_every=2, checkpoint_dir=tmp_path)
    assert read_header(tmp_path / "resume.safetensors")["epoch"] == 2
    same_run(whole, train(max_epochs=8, checkpoint_every=2, checkpoint_dir=tmp_path))


def test_finished_run_is_not_trained_again(tmp_path: Any, monkeypatch: Any) -> None:
    first = train(checkpoint_dir=tmp_path)
    interrupt_after(monkeypatch, -1)
    monkeypatch.setattr(training_module._Run, "_train_epoch", None)
    same_run(first, train(checkpoint_dir=tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 2e-3}, r"training.learning_rate = 0.001 there, 0.002 here"),
        ({"model": SMALL.model_copy(update={"seed": 9})}, r"transformer.seed = 0 there, 9 here"),
        ({"dataset": modular_dataset(ModularTaskConfig(modulus=11, seed=3))}, "dataset_sha256"),
    ],
)
def test_another_runs_checkpoints_are_refused(tmp_path: Any, change: Any, message: Any) -> None:
    train(checkpoint_dir=tmp_path)
    with pytest.raises(InputError, match=message):
        train(checkpoint_dir=tmp_path, **change)


# --- files ----------------------------------------------------------------------------------


def test_a_saved_model_is_loaded_completely(tmp_path: Any) -> None:
    dataset = small_dataset(token_format="alternating")
    run = train(dataset)
    save_transformer(run, tmp_path / "model.safetensors")
    loaded = load_transformer(tmp_path / "model.safetensors")
    same_run(run, loaded)
    assert loaded.model_config == run.model_config
    assert loaded.training_config == run.training_config
    assert loaded.vocabulary == run.vocabulary
    assert loaded.summary == run.summary
    tokens = torch.tensor(dataset.tokens())
    with torch.no_grad():
        assert torch.equal(loaded.build()(tokens), run.build()(tokens))


def test_history_with_an_empty_split_survives_the_file(tmp_path: Any) -> None:
    run = train(small_dataset(val_fraction=0, test_fraction=0.5))
    assert run.history["val_loss"].isna().all()
    save_transformer(run, tmp_path / "model.safetensors")
    pd.testing.assert_frame_equal(
        load_transformer(tmp_path / "model.safetensors").history, run.history
    )


def test_foreign_file_is_refused(tmp_path: Any) -> None:
    write_tensors(tmp_path / "other.safetensors", {"x": torch.zeros(2)}, {"kind": "activations"})
    with pytest.raises(InputError, match=r"other.safetensors: .*'activations'"):
        load_transformer(tmp_path / "other.safetensors")


# --- bad input ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (TransformerConfig, {"n_heads": 3}, "n_heads = 3 does not divide d_model = 128"),
        (TransformerConfig, {"d_head": 16}, "d_head = 16 with n_heads = 4 gives 64, not d_model"),
        (TransformerConfig, {"act_fn": "tanh"}, "act_fn"),
        (TransformerConfig, {"depth": 2}, "depth"),
        (TransformerTrainingConfig, {"betas": (0.9, 1.0)}, "betas"),
        (TransformerTrainingConfig, {"learning_rate": 0}, "learning_rate"),
        (TransformerTrainingConfig, {"device": "tpu"}, "device"),
        (TransformerTrainingConfig, {"schedule": "exponential"}, "schedule"),
    ],
)
def test_bad_parameters_name_the_field(config: Any, values: Any, message: Any) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**values)


def test_vocabulary_must_match() -> None:
    with pytest.raises(InputError, match=r"d_vocab = 100 .* the dataset has 12 tokens"):
        train(model=SMALL.model_copy(update={"d_vocab": 100}))
    assert (
        train(model=SMALL.model_copy(update={"d_vocab": 12}), max_epochs=1).summary["epochs"] == 1
    )


def test_stopping_on_an_empty_split_is_refused() -> None:
    dataset = small_dataset(val_fraction=0, test_fraction=0.5)
    with pytest.raises(InputError, match="stopping_split = 'val'"):
        train(dataset, early_stopping=True, stopping_split="val")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_missing_device_is_refused() -> None:
    with pytest.raises(InputError, match="device = 'cuda'"):
        train(device="cuda")


def test_divergence_stops_the_run() -> None:
    with pytest.raises(InputError, match=r"train loss is nan.*learning_rate"):
        train(learning_rate=1e30, max_epochs=8, evaluate_every=1)
