"""The dry run: it lists every missing SAE once, and changes nothing."""

from __future__ import annotations

import logging
import shutil
import threading

import pytest
from tests.campaign.conftest import ACTIVATIONS, TRAINING, make_config

from husai import progress
from husai.campaign import estimate_campaign, read_ledger
from husai.campaign.banks import Bank, RowsInfo, make_banks
from husai.campaign.cost import measure
from husai.campaign.cost.calibrations import Calibrations
from husai.campaign.cost.dry_run import clock_seconds
from husai.campaign.executors.base import Done
from husai.campaign.executors.outcomes import Calibration
from husai.errors import InputError
from husai.sae import BankTrainingConfig, SAEConfig

ROWS = RowsInfo("h@-1", 240, 8, "f")


def test_dry_run_lists_what_is_missing_and_trains_nothing(campaign):
    config = make_config(budget={"rate": 2.0, "max_cost": 1e-9})
    plan = campaign.plan(config)
    table, text = estimate_campaign(plan, ACTIVATIONS, TRAINING, config, campaign.folders)
    assert table["saes"].sum() == 12
    assert (table["seconds"] > 0).all()
    assert (table["memory_mb"] > 0).all()
    assert not campaign.folders.store.exists()
    assert {p.name for p in campaign.folders.campaign.iterdir()} == {"calibrations.json"}
    assert "12 SAEs planned, 0 trained already" in text
    assert "max_cost = 1e-09 would stop it" in text
    campaign.start(make_config(), stop_after=3)
    table, text = estimate_campaign(plan, ACTIVATIONS, TRAINING, config, campaign.folders)
    assert table["saes"].sum() == 9
    assert "3 trained already" in text


def test_the_next_dry_run_uses_the_measured_time_of_banks(campaign):
    # with one thread the device-seconds of the ledger are the seconds of a bank
    config = make_config(compute={"processes": 0, "threads": 1})
    plan = campaign.plan(config)
    campaign.start(config)
    took = read_ledger(campaign.folders.campaign, plan["sae_id"].tolist())["seconds"].sum()
    shutil.rmtree(campaign.folders.store)
    table, _ = estimate_campaign(plan, ACTIVATIONS, TRAINING, config, campaign.folders)
    assert table["saes"].sum() == 12
    assert table["seconds"].sum() == pytest.approx(took, rel=0.05)


class OneShape:
    """An executor that says nothing until it has measured."""

    room = 1

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.name = ""

    def submit(self, bank: Bank, *, measure: bool) -> None:
        self.room, self.name = 0, bank.name

    def wait(self, timeout: float) -> list[Done]:
        self.begun.wait(10)
        return [Done(self.name, Calibration(0.0, 1.0, 0.0, 1), "here")]


def test_measuring_one_shape_shows_a_sign_of_life(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(progress, "SILENCE_SECONDS", 0.02)
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    executor = OneShape()

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "measuring topk d8" in record.getMessage():
                executor.begun.set()  # the shape ends only after a sign of life

    heard = Heard()
    logging.getLogger("husai").addHandler(heard)
    calibrations = Calibrations(tmp_path / "c.json", "local", 1.0)
    try:
        with caplog.at_level(logging.INFO), progress.heartbeat("dry run"):
            measure.measure_banks(banks_of(configs(8, 2)), executor, calibrations, 0)  # type: ignore[arg-type]
    finally:
        logging.getLogger("husai").removeHandler(heard)
    assert executor.begun.is_set()
    assert not progress._LIFE.steps


def test_clock_time_is_that_of_the_slot_with_most_work():
    assert clock_seconds([5.0, 4.0, 3.0, 3.0], 2) == 8.0
    assert clock_seconds([5.0, 4.0], 1) == 9.0
    assert clock_seconds([], 3) == 0.0


def configs(d_sae: int, n: int) -> list[SAEConfig]:
    return [SAEConfig(architecture="topk", d_sae=d_sae, k=2, init_seed=i) for i in range(n)]


def banks_of(saes: list[SAEConfig], **options: float) -> list[Bank]:
    ids = [f"s{i}" for i in range(len(saes))]
    n = len(saes)
    return make_banks(ids, saes, [BankTrainingConfig()] * n, [ROWS] * n, **options)  # type: ignore[arg-type]


def test_banks_are_of_one_shape_within_memory_and_hold_every_sae_once():
    saes = configs(8, 5) + configs(64, 7)
    whole = banks_of(saes)
    assert [len(bank.ids) for bank in whole] == [7, 5]
    limit = 3 * whole[0].part(["s5"]).bytes
    small = banks_of(saes, max_bytes=limit)
    assert all(bank.bytes <= limit for bank in small)
    assert sorted(i for bank in small for i in bank.ids) == sorted(f"s{i}" for i in range(12))
    assert all(len({c.shape_key for c in bank.configs}) == 1 for bank in small)
    with pytest.raises(InputError, match="s5 alone takes"):
        banks_of(saes, max_bytes=limit / 4)


def test_no_slot_waits_long_for_the_last_bank():
    banks = banks_of(configs(64, 12), slots=4)
    assert max(len(bank.ids) for bank in banks) <= 2


def test_saes_with_different_training_parameters_are_in_different_banks():
    saes = configs(8, 4)
    own = BankTrainingConfig(dead_latents="none")
    banks = make_banks(
        ["a", "b", "c", "d"],
        saes,
        [BankTrainingConfig(), own, BankTrainingConfig(), own],
        [ROWS] * 4,
    )
    assert sorted(bank.ids for bank in banks) == [("a", "c"), ("b", "d")]
