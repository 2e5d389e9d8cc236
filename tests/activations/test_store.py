"""A store of activations: rows are read back exactly, in the order of the seed, or not at all."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from husai.activations import ActivationStore
from husai.errors import InputError
from husai.sae import BankTrainingConfig, SAEConfig, train_bank
from husai.sae import buffered as buffered_module
from husai.sae.buffered import BufferedRows
from husai.sae.rows import HeldRows, prepare_rows, rows_fingerprint

ABOUT = {"model": "tiny", "hook": "blocks.0.hook_out@all"}


def write(folder, rows, shard=700, dtype="float32", held_out=0) -> ActivationStore:
    store = ActivationStore.create(folder, rows.shape[1], dtype, ABOUT)
    for number, part in enumerate(torch.split(rows, shard)):
        store.write(number, part)
    store.finish(held_out)
    return store


@pytest.fixture
def rows():
    return torch.from_numpy(np.random.default_rng(0).normal(size=(6500, 8))).float()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rows_are_read_back_across_shards(tmp_path, rows, dtype):
    store = write(tmp_path / "s", rows, dtype=dtype, held_out=500)
    kept = rows.to(getattr(torch, dtype)).float()
    assert (store.n_rows, store.n_held_out, store.d_in) == (6000, 500, 8)
    for start, stop in ((0, 6500), (0, 1), (699, 701), (650, 2200), (6499, 6500), (10, 10)):
        assert torch.equal(store.rows(start, stop), kept[start:stop])
    assert store.mean_square == pytest.approx(float(kept.double().square().sum(1).mean()))
    assert torch.allclose(store.mean, kept.double().mean(0))
    store.verify()


def test_the_same_rows_give_the_same_bytes_and_later_shards_are_added(tmp_path, rows):
    one, other = write(tmp_path / "a", rows), write(tmp_path / "b", rows)
    for path in sorted(one.folder.iterdir()):
        assert path.read_bytes() == (other.folder / path.name).read_bytes(), path.name
    before = one.fingerprint
    assert before == other.fingerprint
    one = ActivationStore(one.folder)
    one.write(10, rows[:40])
    one.finish()
    again = ActivationStore(one.folder)
    assert again.n_rows == 6540
    assert again.fingerprint != before
    assert torch.equal(again.rows(6490, 6540), torch.cat([rows[6490:], rows[:40]]))
    again.delete()
    assert not one.folder.exists()


def test_damaged_changed_or_foreign_stores_give_an_error_of_one_line(tmp_path, rows):
    store = write(tmp_path / "s", rows)
    shard = store.folder / "rows-000003.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-5])
    assert not store.has(3)
    with pytest.raises(InputError, match=r"rows-000003\.safetensors: incomplete: \d+ bytes of \d+"):
        ActivationStore(store.folder).rows(0, 10)
    shard.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    with pytest.raises(InputError, match="its content has changed"):
        ActivationStore(store.folder).verify()
    shard.unlink()
    with pytest.raises(InputError, match="no such shard"):
        store.finish()
    with pytest.raises(InputError, match=r"other activations \(about differs\)"):
        ActivationStore.create(store.folder, 8, "float32", {"model": "other"})
    with pytest.raises(InputError, match="no store of activations"):
        ActivationStore(tmp_path)
    started = ActivationStore.create(tmp_path / "t", 8, "float16", ABOUT)
    with pytest.raises(InputError, match="the extraction has not finished"):
        _ = ActivationStore(started.folder).n_rows
    with pytest.raises(InputError, match="choose bfloat16 or float32"):
        started.write(0, torch.full((2, 8), 1e6))
    with pytest.raises(InputError, match="fix the model"):
        started.write(0, torch.full((2, 8), float("nan")))
    with pytest.raises(InputError, match=r"need [\d,]+\.\d GB more as float16, and the disk has"):
        started.check_space(10**15)


TRAINING = BankTrainingConfig(
    steps=12, batch_size=100, eval_interval=6, checkpoint_interval=5, threads=1, rows_memory_gb=1e-9
)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(buffered_module, "BLOCK_ROWS", 32)


def buffer_gb(rows: int, d: int = 8) -> float:
    """Return the size in GB of a buffer half of which holds this many rows."""
    return 2 * 4 * d * rows / 1e9 * 1.0001


def stream(prepared, seeds, steps, pieces):
    """Return the rows of the batches by seed, read in pieces of some steps."""
    memory = prepared.memory(seeds, torch.device("cpu"))
    found: dict[int, list[torch.Tensor]] = {seed: [] for seed in seeds}
    step = 0
    while step < steps:
        step, batches = prepared.batches(seeds, step, min(steps, step + pieces))
        for seed, numbers in batches.items():
            found[seed].append(memory[numbers].clone())
    return {seed: torch.cat(parts) for seed, parts in found.items()}


def test_every_pass_has_every_row_once_in_an_order_set_by_the_seed(tmp_path, rows, small_blocks):
    store = write(tmp_path / "s", rows, held_out=100)
    training = TRAINING.model_copy(update={"rows_memory_gb": buffer_gb(700), "normalize": "none"})
    prepared = prepare_rows(store, None, training)
    assert isinstance(prepared, BufferedRows)
    assert (prepared.n_train, prepared.n_windows) == (6400, 10)
    together = stream(prepared, {3, 4}, 130, 100)
    for seed in (3, 4):
        flat = together[seed].reshape(-1, 8)
        for number in (0, 1):  # two passes
            seen = Counter(map(tuple, flat[6400 * number : 6400 * (number + 1)].tolist()))
            assert seen == Counter(map(tuple, rows[:6400].tolist()))
        # alone, and read in other pieces, it is the same
        alone = stream(prepare_rows(store, None, training), {seed}, 130, 7)
        assert torch.equal(alone[seed], together[seed])
    assert not torch.equal(together[3], together[4])
    flat = together[3].reshape(-1, 8)
    assert not torch.equal(flat[:6400], flat[6400:12800])
    # a resumed run starts anywhere
    later = prepare_rows(store, None, training)
    memory = later.memory({3}, torch.device("cpu"))
    until, batches = later.batches({3}, 90, 91)
    assert until == 91
    assert torch.equal(memory[batches[3]], together[3][90:91])


def test_neighbours_in_a_batch_are_not_neighbours_in_the_store(tmp_path, small_blocks):
    numbered = torch.arange(6400.0)[:, None].repeat(1, 8)
    store = write(tmp_path / "s", numbered, held_out=100)
    training = TRAINING.model_copy(update={"rows_memory_gb": buffer_gb(700), "normalize": "none"})
    order = stream(prepare_rows(store, None, training), {0}, 60, 60)[0][..., 0].reshape(-1)
    # of a random order a third of the distances are below 0.18 of the rows
    distance = (order[1:] - order[:-1]).abs() / 6300
    assert 0.25 < float(distance.mean()) < 0.4
    # a window has 22 blocks: the next row is of the same block once in 22 times
    assert float((distance < 0.01).double().mean()) < 0.02 + 2 / 22


def test_rows_are_drawn_from_all_over_the_store(tmp_path):
    numbered = torch.arange(6400.0)[:, None].repeat(1, 8)
    store = write(tmp_path / "s", numbered, held_out=100)
    training = TRAINING.model_copy(update={"rows_memory_gb": buffer_gb(2048), "normalize": "none"})
    prepared = prepare_rows(store, None, training)
    assert isinstance(prepared, BufferedRows)
    drawn = {seed: prepared.draw(np.random.default_rng(seed), 640) for seed in (0, 0, 1)}
    numbers = {seed: set(rows[:, 0].int().tolist()) for seed, rows in drawn.items()}
    assert [len(found) for found in numbers.values()] == [640, 640]
    assert max(numbers[0] | numbers[1]) < prepared.n_train
    # two seeds have a tenth in common, as two draws of a tenth of all have
    assert len(numbers[0] & numbers[1]) < 0.25 * 640
    assert np.ptp(list(numbers[0])) > 0.8 * 6300
    again = prepared.draw(np.random.default_rng(0), 640)
    assert torch.equal(drawn[0], again)
    assert len(prepared.draw(np.random.default_rng(0), 10**6)) == prepared.n_train


def test_training_from_a_store_resumes_to_the_same_bits(tmp_path, rows, small_blocks):
    store = write(tmp_path / "s", rows, held_out=200)
    training = TRAINING.model_copy(update={"rows_memory_gb": buffer_gb(512)})
    configs = [SAEConfig(d_sae=16, k=2, init_seed=seed) for seed in (0, 1)]
    whole = train_bank(store, configs, training)
    folder = tmp_path / "checkpoints"
    train_bank(store, configs, training, checkpoint_dir=folder)
    for path in folder.glob("step_*12*"):
        path.unlink()
    resumed = train_bank(store, configs, training, checkpoint_dir=folder)
    alone = train_bank(store, configs[1:], training)
    for one, other in zip(whole, resumed, strict=True):
        assert torch.equal(one.W_dec, other.W_dec)
    assert torch.equal(alone[0].W_dec, whole[1].W_dec)
    assert whole[0].provenance["rows"]["fingerprint"] == rows_fingerprint(store, training)
    assert whole[0].metrics["fvu"] < 1


def test_rows_that_fit_into_memory_train_the_same_as_a_matrix(tmp_path, rows):
    store = write(tmp_path / "s", rows, held_out=500)
    training = TRAINING.model_copy(update={"rows_memory_gb": 1.0})
    held = prepare_rows(store, None, training)
    assert isinstance(held, HeldRows)
    as_matrix = prepare_rows(rows[:6000], rows[:6000], training)
    # of all rows, the held-out ones included
    assert held.scale == pytest.approx(as_matrix.scale, rel=0.01)
    assert torch.equal(held.held_out, rows[6000:])
    (from_store,) = train_bank(
        store, [SAEConfig(d_sae=16, k=2)], training.model_copy(update={"normalize": "none"})
    )
    (from_matrix,) = train_bank(
        rows[:6000],
        [SAEConfig(d_sae=16, k=2)],
        training.model_copy(update={"normalize": "none"}),
        eval_rows=rows[6000:],
    )
    assert torch.equal(from_store.W_dec, from_matrix.W_dec)
    assert from_store.metrics["fvu"] == from_matrix.metrics["fvu"]


def test_a_buffer_smaller_than_a_batch_is_refused(tmp_path, rows):
    store = write(tmp_path / "s", rows)
    with pytest.raises(
        InputError, match="rows_memory_gb: 1e-09 is enough for two windows of 0 rows"
    ):
        prepare_rows(store, None, TRAINING)
