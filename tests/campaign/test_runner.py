"""Campaigns: complete, resumable, and with the same weights after every kind of fault."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.campaign.conftest import (
    ACTIVATIONS,
    ROWS,
    TRAINING,
    Campaign,
    assert_same_weights,
    make_config,
)

from husai.activations import Activations, ActivationStore
from husai.campaign import estimate_campaign, run_campaign
from husai.campaign.banks import Bank, RowsInfo, make_banks
from husai.campaign.cost.calibrations import Calibrations
from husai.campaign.cost.estimates import Estimates
from husai.campaign.executors.outcomes import Calibration
from husai.campaign.folders import LEDGER
from husai.campaign.ledger import Ledger
from husai.errors import CampaignStopped, InputError
from husai.sae import BankTrainingConfig, SAEConfig
from husai.sae.checkpoint import write_checkpoint
from husai.storage import locked, read_tensors, write_tensors

ROWS_INFO = RowsInfo("h@-1", 240, 8, "f")
PROCESSES: dict[str, Any] = {"compute": {"processes": 2, "threads": 1}}


def statuses(campaign: Campaign) -> dict[str, int]:
    table = Ledger(campaign.folders.campaign / LEDGER).table()
    return {str(status): int(n) for status, n in table["status"].value_counts().items()}


def test_a_finished_campaign_that_is_started_again_does_nothing(campaign, undisturbed):
    campaign.start()
    before = {path: path.stat().st_mtime_ns for path in campaign.folders.store.iterdir()}
    assert campaign.start() == []
    assert {p: p.stat().st_mtime_ns for p in campaign.folders.store.iterdir()} == before
    assert statuses(campaign) == {"done": 12}
    table = Ledger(campaign.folders.campaign / LEDGER).table()
    assert (table["attempts"] == 1).all()
    assert_same_weights(campaign.saes(), undisturbed)
    assert not any(campaign.folders.checkpoints.iterdir())


@pytest.mark.parametrize("stop_after", [1, 4, 11, 12])
def test_a_campaign_interrupted_between_two_saes_continues(campaign, undisturbed, stop_after):
    first = campaign.start(stop_after=stop_after)
    # closed before the ledger could say of the last one that it is done
    second = campaign.start()
    assert sorted(first + second) == sorted(undisturbed)
    assert statuses(campaign) == {"done": 12}
    assert not any(campaign.folders.checkpoints.iterdir())
    assert_same_weights(campaign.saes(), undisturbed)


def test_an_interrupted_bank_continues_from_its_checkpoint(campaign, undisturbed, monkeypatch):
    import husai.sae.train as train

    class Killed(BaseException):
        """An error that no code may catch."""

    write, steps = write_checkpoint, []

    def write_and_die(directory: Path, checkpoint: Any, *rest: Any, **options: Any) -> None:
        write(directory, checkpoint, *rest, **options)
        if checkpoint.step == 20:
            raise Killed

    monkeypatch.setattr(train, "write_checkpoint", write_and_die)
    with pytest.raises(Killed):
        campaign.start()

    def write_and_count(directory: Path, checkpoint: Any, *rest: Any, **options: Any) -> None:
        write(directory, checkpoint, *rest, **options)
        steps.append(checkpoint.step)

    monkeypatch.setattr(train, "write_checkpoint", write_and_count)
    campaign.start()
    # the interrupted bank of four made 30 and 40 only
    assert sorted(steps) == sorted([30, 40] + 3 * [10, 20, 30, 40])
    assert_same_weights(campaign.saes(), undisturbed)


def test_processes_train_the_same_weights_and_a_killed_one_counts_as_one_attempt(
    campaign, undisturbed, monkeypatch
):
    from husai.campaign.executors import local

    killed: list[int] = []
    wait = local.ProcessExecutor.wait

    def kill_and_wait(self: Any, timeout: float) -> Any:
        events = wait(self, timeout)
        if not killed and any(getattr(event, "part", 0) > 0 for event in events):
            killed.extend(self.pids()[:1])
            os.kill(killed[0], signal.SIGKILL)
        return events

    monkeypatch.setattr(local.ProcessExecutor, "wait", kill_and_wait)
    campaign.start(make_config(**PROCESSES))
    assert len(killed) == 1
    table = Ledger(campaign.folders.campaign / LEDGER).table()
    assert (table["status"] == "done").all()
    assert set(table["attempts"]) == {1, 2}
    assert_same_weights(campaign.saes(), undisturbed)


def test_a_bank_that_always_loses_its_worker_ends_as_a_failure(campaign, monkeypatch):
    from husai.campaign.executors import local

    wait = local.ProcessExecutor.wait

    def kill_and_wait(self: Any, timeout: float) -> Any:
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)
        return wait(self, timeout)

    monkeypatch.setattr(local.ProcessExecutor, "wait", kill_and_wait)
    config = make_config(
        plan={"hook_name": "h", "architectures": {"topk": {"k": [2]}}, "d_sae": [8], "seeds": [0]},
        compute={"processes": 1, "max_retries": 2},
    )
    with pytest.raises(CampaignStopped, match=r"lost 3 times, .* killed by signal 9"):
        campaign.start(config)
    assert statuses(campaign) == {"failed": 1}


def test_a_damaged_or_foreign_partition_is_set_aside_and_trained_again(campaign, undisturbed):
    campaign.start()
    torn, foreign, *_ = sorted(undisturbed)
    content = campaign.path(torn).read_bytes()
    campaign.path(torn).write_bytes(content[: len(content) // 2])
    campaign.path(foreign).write_bytes(campaign.path(sorted(undisturbed)[-1]).read_bytes())
    assert sorted(campaign.start()) == [torn, foreign]
    assert_same_weights(campaign.saes(), undisturbed)
    aside = sorted(p.name for p in (campaign.folders.campaign / "quarantine").iterdir())
    assert [name.split(".")[0] for name in aside] == [torn, foreign]


def test_saes_of_another_training_are_set_aside_not_overwritten(campaign, undisturbed):
    campaign.start()
    longer = TRAINING.model_copy(update={"steps": 50})
    assert len(campaign.start(training=longer)) == 12
    assert len(list((campaign.folders.campaign / "quarantine").iterdir())) == 12
    # threads and checkpoints change nothing of what comes out
    neutral = longer.model_copy(update={"threads": 2, "checkpoint_interval": 25})
    assert campaign.start(training=neutral) == []


def test_an_sae_that_diverges_fails_alone_and_is_not_tried_again(campaign, undisturbed):
    config = make_config()
    variant = {
        "architecture": "topk",
        "d_sae": 8,
        "options": {"k": 2, "learning_rate": 1e30},
    }
    plan = config.plan.model_dump(exclude_defaults=True)
    config = make_config(
        plan={**plan, "seeds": [0, 1, 2], "variants": {"hot": variant}}, max_failures=0.5
    )
    assert len(campaign.start(config)) == 15
    assert statuses(campaign) == {"done": 12, "failed": 3}
    saes = campaign.saes()
    hot = {name for name in saes if "hot" in name}
    assert all("not finite" in str(saes[name].failure) for name in hot)
    assert_same_weights({n: s for n, s in saes.items() if n not in hot}, undisturbed)
    assert campaign.start(config) == []
    with pytest.raises(CampaignStopped, match=r"3 SAEs failed.*not finite"):
        campaign.start(config.model_copy(update={"max_failures": 0.05}))
    failures = (campaign.folders.campaign / "failures.csv").read_text()
    assert all(name in failures for name in hot)


def break_training(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Make training raise if a bank has SAEs of width 8 with initial weights of seed 1."""
    import husai.sae

    train_bank = husai.sae.train_bank

    def faulty(rows: Any, configs: Any, *rest: Any, **options: Any) -> Any:
        if any(c.init_seed == 1 and c.d_sae == 8 for c in configs):
            raise error
        return train_bank(rows, configs, *rest, **options)

    monkeypatch.setattr(husai.sae, "train_bank", faulty)


def test_an_exception_fails_only_the_sae_that_raised_it(campaign, undisturbed, monkeypatch):
    break_training(monkeypatch, RuntimeError("out of luck"))
    with pytest.raises(CampaignStopped, match="10 of 12 SAEs are trained, 2 SAEs failed"):
        campaign.start()
    table = Ledger(campaign.folders.campaign / LEDGER).table()
    failed = table[table["status"] == "failed"]
    assert all("-d8-" in sae_id and "-s1-" in sae_id for sae_id in failed["sae_id"])
    assert failed["traceback"].str.contains("out of luck").all()
    monkeypatch.undo()
    assert sorted(campaign.start()) == sorted(failed["sae_id"])
    assert_same_weights(campaign.saes(), undisturbed)


def test_a_full_disk_stops_the_campaign_which_continues_afterwards(
    campaign, undisturbed, monkeypatch
):
    import husai.sae.train as train

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(train, "write_checkpoint", full)
    with pytest.raises(CampaignStopped, match=r"No space left.*0 of 12 SAEs"):
        campaign.start()
    monkeypatch.undo()
    campaign.start()
    assert_same_weights(campaign.saes(), undisturbed)


def test_an_incomplete_checkpoint_is_set_aside(campaign, undisturbed):
    campaign.start(stop_after=1)
    (folder,) = campaign.folders.checkpoints.iterdir()
    newest = sorted(folder.glob("step_*"))[-1]
    newest.write_bytes(newest.read_bytes()[:50])
    campaign.start()
    assert_same_weights(campaign.saes(), undisturbed)


def test_a_second_campaign_in_one_folder_is_refused(campaign):
    entered = threading.Event()
    leave = threading.Event()

    def hold() -> None:
        with locked(campaign.folders.campaign, "this campaign"):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait(10)
    try:
        with pytest.raises(InputError, match=f"process {os.getpid()} on .* works on this campaign"):
            campaign.start()
    finally:
        leave.set()
        thread.join()
    assert len(campaign.start()) == 12


def test_budget_stops_before_it_is_exceeded_and_continues_with_more(campaign, undisturbed):
    budget: dict[str, Any] = {"rate": 3600.0, "max_cost": 1e-6}
    with pytest.raises(CampaignStopped, match=r"max_cost = 1e-06 .* 0 of 12 SAEs"):
        campaign.start(make_config(budget=budget))
    assert campaign.saes() == {}
    with pytest.raises(CampaignStopped, match=r"max_hours = 1e-09"):
        campaign.start(make_config(budget={"max_hours": 1e-9}))
    # what one device-second costs is 1; a campaign of this size takes a few
    assert len(campaign.start(make_config(budget={"rate": 3600.0, "max_cost": 1000.0}))) == 12
    table = Ledger(campaign.folders.campaign / LEDGER).table()
    assert table["cost"].sum() == pytest.approx(table["seconds"].sum())
    assert 0 < table["cost"].sum() < 1000
    costs = {name: sae.provenance["campaign"]["cost"] for name, sae in campaign.saes().items()}
    assert costs == pytest.approx(dict(zip(table["sae_id"], table["cost"], strict=True)))
    assert_same_weights(campaign.saes(), undisturbed)


def test_a_budget_for_a_part_of_the_saes_trains_that_part(campaign, monkeypatch):
    from husai.campaign.cost.estimates import Estimates

    monkeypatch.setattr(Estimates, "seconds", lambda self, bank: 1.0)
    monkeypatch.setattr("husai.campaign.runner._Running.seconds", lambda self: 1.0)
    # banks of three cost 1 each by this clock, on one device; measured by a dry run beforehand
    config = make_config(
        compute={"processes": 0, "threads": 1}, budget={"rate": 3600.0, "max_cost": 2.5}
    )
    estimate_campaign(campaign.plan(config), ACTIVATIONS, TRAINING, config, campaign.folders)
    with pytest.raises(CampaignStopped, match="6 of 12"):
        campaign.start(config)
    assert Ledger(campaign.folders.campaign / LEDGER).cost() == pytest.approx(2.0)
    # what was spent counts when it is started again
    with pytest.raises(CampaignStopped, match="2 spent"):
        campaign.start(config)
    # and in the dry run: the six that are left would cost 2 more
    for limit, stops in ((3.9, True), (4.1, False)):
        more = config.model_copy(
            update={"budget": config.budget.model_copy(update={"max_cost": limit})}
        )
        _, text = estimate_campaign(
            campaign.plan(more), ACTIVATIONS, TRAINING, more, campaign.folders
        )
        assert "2.0000 EUR were spent before" in text
        assert ("would stop it" in text) == stops


def test_measuring_costs_counts_against_the_budget(campaign):
    config = make_config(
        compute={"processes": 0, "threads": 1}, budget={"rate": 3600.0, "max_cost": 1e-6}
    )
    with pytest.raises(CampaignStopped, match=r"max_cost = 1e-06 .* 0 of 12 SAEs"):
        campaign.start(config)
    table = Ledger(campaign.folders.campaign / LEDGER).table()
    kept = json.loads((campaign.folders.campaign / "calibrations.json").read_text())
    measured = sum(one["measuring"] for one in kept.values())
    assert (
        0 < measured == pytest.approx(table["cost"].sum()) == pytest.approx(table["seconds"].sum())
    )
    assert (table["attempts"] == 0).all()
    # where the limit is reached, nothing more is measured
    (campaign.folders.campaign / "calibrations.json").unlink()
    with pytest.raises(CampaignStopped, match=r"max_cost = 1e-06"):
        campaign.start(config)
    assert not (campaign.folders.campaign / "calibrations.json").exists()


def divided(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every bank of several SAEs lose its worker after its first report of progress."""
    from husai.campaign.executors import Progress, local

    wait, submit = local.ProcessExecutor.wait, local.ProcessExecutor.submit
    several: set[str] = set()

    def submit_and_see(self: Any, bank: Bank, *, measure: bool = False) -> None:
        if len(bank.ids) > 1 and not measure:
            several.add(bank.name)
        submit(self, bank, measure=measure)

    def wait_and_kill(self: Any, timeout: float) -> Any:
        events = wait(self, timeout)
        for event in events:
            if isinstance(event, Progress) and event.name in several:
                for pid in self.pids():
                    os.kill(pid, signal.SIGKILL)
        return events

    monkeypatch.setattr(local.ProcessExecutor, "submit", submit_and_see)
    monkeypatch.setattr(local.ProcessExecutor, "wait", wait_and_kill)


TWO_SEEDS = {"hook_name": "h", "architectures": {"topk": {"k": [2]}}, "d_sae": [8], "seeds": [0, 1]}


def test_a_running_bank_can_be_divided(campaign, monkeypatch):
    divided(monkeypatch)
    config = make_config(plan=TWO_SEEDS, compute={"processes": 1, "max_retries": 0})
    longer = TRAINING.model_copy(update={"steps": 2000, "checkpoint_interval": 1000})
    assert len(campaign.start(config, training=longer)) == 2
    assert statuses(campaign) == {"done": 2}
    table = Ledger(campaign.folders.campaign / LEDGER).table()
    assert (table["attempts"] == 2).all()


def test_interrupted_banks_continue_with_other_checkpoint_settings(campaign, undisturbed):
    campaign.start(stop_after=1)
    neutral = {"checkpoint_interval": 7, "keep_checkpoints": 5, "threads": 2}
    campaign.start(training=TRAINING.model_copy(update=neutral))
    # the three of the interrupted bank: gone on with, not failed and not trained anew
    assert statuses(campaign) == {"done": 12}
    assert_same_weights(campaign.saes(), undisturbed)


def test_nothing_is_submitted_after_the_machine_failed(campaign, undisturbed, monkeypatch):
    from husai.campaign.executors import Done, Lost, local
    from husai.campaign.executors.outcomes import Broken

    submitted: list[Bank] = []

    class Failing:
        """Two slots: one meets a full disk, then the other loses its worker."""

        slots, devices = 2, 1.0

        def __init__(self, *arguments: Any) -> None:
            self.events: list[Any] = []

        @property
        def room(self) -> int:
            return 2 - len(self.events)

        def put(self, key: str, rows: Any) -> None:
            pass

        def submit(self, bank: Bank, *, measure: bool = False) -> None:
            submitted.append(bank)
            full = Broken("OSError: no space left", "", "machine")
            lost = Lost(bank.name, "gone", "b")
            self.events.append(lost if self.events else Done(bank.name, full, "a"))

        def wait(self, timeout: float) -> list[Any]:
            return [self.events.pop(0)]

        def close(self) -> None:
            pass

    monkeypatch.setattr(local, "ProcessExecutor", Failing)
    with pytest.raises(CampaignStopped, match=r"no space left; fix this\. 0 of 12 SAEs"):
        campaign.start(make_config(**PROCESSES))
    assert len(submitted) == 2
    assert statuses(campaign) == {"planned": 12}
    monkeypatch.undo()
    campaign.start()
    assert_same_weights(campaign.saes(), undisturbed)


def test_a_campaign_with_missing_saes_never_counts_as_complete(campaign, monkeypatch):
    monkeypatch.setattr("husai.campaign.runner.missing_banks", lambda *rest: [])
    with pytest.raises(CampaignStopped, match=r"12 SAEs are missing\. 0 of 12 SAEs are trained"):
        campaign.start()


def test_bad_input_fails_only_the_sae_that_has_it(campaign, undisturbed, monkeypatch):
    break_training(monkeypatch, InputError("init_seed: 1 is out of luck"))
    with pytest.raises(CampaignStopped, match="10 of 12 SAEs are trained, 2 SAEs failed"):
        campaign.start()
    monkeypatch.undo()
    assert len(campaign.start()) == 2
    assert_same_weights(campaign.saes(), undisturbed)


def test_parts_of_a_divided_bank_have_their_share_of_its_cost(tmp_path):
    training = BankTrainingConfig(steps=100, eval_interval=50)
    configs = [SAEConfig(architecture="topk", d_sae=8, k=2, init_seed=i) for i in range(3)]
    bank = make_banks(list("abc"), configs, [training] * 3, [ROWS_INFO] * 3)[0]
    measured = Calibrations(tmp_path / "calibrations.json", "local", 1.0)
    measured.put(bank, Calibration(3.0, 0.06, 1.5, 1))
    estimates = Estimates(tmp_path, measured)
    assert estimates.seconds(bank) == pytest.approx(12.0)
    estimates.start(bank)
    halves = bank.halves()
    estimates.divide(bank, halves)
    assert [estimates.seconds(half) for half in halves] == pytest.approx([4.0, 8.0])
    # halves may be divided again
    quarters = halves[1].halves()
    estimates.divide(halves[1], quarters)
    assert [estimates.seconds(quarter) for quarter in quarters] == pytest.approx([4.0, 4.0])


def test_banks_that_cannot_be_measured_get_an_estimate(tmp_path):
    training = BankTrainingConfig(steps=100)
    configs = [SAEConfig(architecture="topk", d_sae=d, k=2) for d in (8, 24)]
    wide, narrow = make_banks(["a", "b"], configs, [training] * 2, [ROWS_INFO] * 2)
    measured = Calibrations(tmp_path / "calibrations.json", "local", 1.0)
    estimates = Estimates(tmp_path, measured)
    estimates.complete([wide, narrow])
    assert estimates.seconds(wide) > estimates.seconds(narrow) > 0
    measured.put(narrow, Calibration(0.0, 0.1, 0.0, 1))
    estimates = Estimates(tmp_path, measured)
    estimates.complete([wide, narrow])
    assert estimates.seconds(wide) == pytest.approx(30.0)


def test_a_worker_lost_while_measuring_does_not_stop_the_campaign(
    campaign, undisturbed, monkeypatch
):
    from husai.campaign.executors import local

    killed: list[int] = []
    wait = local.ProcessExecutor.wait

    def kill_and_wait(self: Any, timeout: float) -> Any:
        if not killed:
            killed.extend(self.pids()[:1])
            os.kill(killed[0], signal.SIGKILL)
        return wait(self, timeout)

    monkeypatch.setattr(local.ProcessExecutor, "wait", kill_and_wait)
    campaign.start(make_config(**PROCESSES, budget={"max_hours": 10.0}))
    assert len(killed) == 1
    assert_same_weights(campaign.saes(), undisturbed)


def test_a_bank_whose_measurement_fails_fails_in_training(campaign, monkeypatch):
    import husai.sae

    break_training(monkeypatch, RuntimeError("out of luck"))
    config = make_config(budget={"rate": 1.0, "max_cost": 1000.0})
    _, text = estimate_campaign(
        campaign.plan(config), ACTIVATIONS, TRAINING, config, campaign.folders
    )
    assert "12 to train" in text
    with pytest.raises(CampaignStopped, match="10 of 12 SAEs are trained, 2 SAEs failed"):
        campaign.start(config)

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(husai.sae, "train_bank", full)
    (campaign.folders.campaign / "calibrations.json").unlink()
    with pytest.raises(CampaignStopped, match=r"measuring .*No space left on device; fix this"):
        campaign.start(config)


def spoiled(path: Path, **changes: Any) -> None:
    """Write a file again with other entries in the header; None removes an entry."""
    tensors, header = read_tensors(path)
    header = {**header, **changes}
    write_tensors(path, tensors, {k: v for k, v in header.items() if v is not LEFT_OUT})


LEFT_OUT = object()


def test_whole_files_that_are_not_saes_are_set_aside(campaign, undisturbed):
    campaign.start()
    names = sorted(undisturbed)[:5]
    spoiled(campaign.path(names[0]), metrics=LEFT_OUT)
    spoiled(campaign.path(names[1]), history_columns=LEFT_OUT)
    spoiled(campaign.path(names[2]), provenance=None)
    spoiled(campaign.path(names[3]), provenance={"training": None})
    content = bytearray(campaign.path(names[4]).read_bytes())
    content[-3] ^= 1  # a bit of the last tensor
    campaign.path(names[4]).write_bytes(content)
    assert sorted(campaign.start()) == names
    assert_same_weights(campaign.saes(), undisturbed)
    assert campaign.start() == []


def test_cost_of_an_sae_is_kept_when_the_driver_ends_before_recording_it(campaign):
    config = make_config(budget={"rate": 3600.0})
    (sae_id,) = campaign.start(config, stop_after=1)
    assert Ledger(campaign.folders.campaign / LEDGER).entries[sae_id].status != "done"
    campaign.start(config)
    ledger = Ledger(campaign.folders.campaign / LEDGER)
    for name, sae in campaign.saes().items():
        about, entry = sae.provenance["campaign"], ledger.entries[name]
        assert 0 < entry.cost == pytest.approx(about["cost"]), name
        assert entry.seconds == pytest.approx(about["device_seconds"]), name


@pytest.mark.parametrize("victim", ["ledger", "rows", "calibrations"])
def test_a_full_disk_of_the_driver_stops_the_campaign(campaign, undisturbed, monkeypatch, victim):
    from husai.campaign.executors import inline

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    def short(*arguments: Any, **options: Any) -> None:
        raise OSError("1920 requested and 512 written")  # as numpy says it

    if victim == "ledger":
        campaign.start(stop_after=2)
        monkeypatch.setattr("husai.campaign.ledger.append_line", full)
    elif victim == "rows":
        monkeypatch.setattr(inline.InlineExecutor, "put", short)
    else:
        monkeypatch.setattr(Calibrations, "put", full)
    with pytest.raises(CampaignStopped, match=r"(No space left|512 written).*fix this"):
        campaign.start()
    monkeypatch.undo()
    campaign.start()
    assert_same_weights(campaign.saes(), undisturbed)


def test_ledger_skips_an_incomplete_line_and_keeps_the_rest(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.record("planned", ["a", "b"])
    ledger.record("running", ["a"], bank="x", worker="w")
    ledger.record("spent", ["a"], seconds=2.0, cost=0.2)
    ledger.record("lost", ["a"], seconds=3.0, cost=0.3, reason="gone")
    ledger.record("running", ["a"])
    ledger.record("done", ["a"], seconds=4.0, cost=0.4)
    before = ledger.table()
    with path.open("ab") as file:
        file.write(b'{"time": 1, "event": "don')
    again = Ledger(path)
    again.record("running", ["b"])
    third = Ledger(path).table().set_index("sae_id")
    assert third.loc["a", ["status", "attempts"]].tolist() == ["done", 2]
    assert third.loc["a", ["seconds", "cost"]].tolist() == pytest.approx([7.0, 0.7])
    assert third.loc["b", "status"] == "running"
    assert before["sae_id"].tolist() == ["a", "b"]


@pytest.mark.parametrize(
    "content", [b"[]", b"", b"\xff\xfe", b'{"a": 1}', b'{"a": {"fixed": "x"}}', b"null"]
)
def test_measured_costs_that_cannot_be_read_are_set_aside(campaign, undisturbed, content):
    campaign.folders.campaign.mkdir()
    path = campaign.folders.campaign / "calibrations.json"
    path.write_bytes(content)
    assert len(campaign.start()) == 12
    assert_same_weights(campaign.saes(), undisturbed)
    (aside,) = campaign.folders.campaign.glob("calibrations.json.*.unreadable")
    assert aside.read_bytes() == content
    assert json.loads(path.read_text())


def test_an_sae_is_saved_before_its_cost(campaign, undisturbed, monkeypatch):
    def fails(*arguments: Any) -> None:
        raise RuntimeError("no costs")

    monkeypatch.setattr(Calibrations, "took", fails)
    with pytest.raises(RuntimeError, match="no costs"):
        campaign.start()
    saved = campaign.saes()
    assert len(saved) == 3
    assert_same_weights(saved, {name: undisturbed[name] for name in saved})


def test_costs_are_measured_again_when_asked(tmp_path):
    training = BankTrainingConfig(steps=10)
    saes = [SAEConfig(architecture="topk", d_sae=d, k=2) for d in (8, 16)]
    one, two = make_banks(["a", "b"], saes, [training] * 2, [ROWS_INFO] * 2)
    path = tmp_path / "calibrations.json"
    busy = Calibration(1.0, 2.0, 3.0, 4, load=7.5)
    for bank in (one, two):
        Calibrations(path, "local", 1.0).put(bank, busy)
    assert Calibrations(path, "local", 1.0).get(one) == busy
    anew = Calibrations(path, "local", 1.0, forget=True)
    assert anew.get(one) is anew.get(two) is None
    anew.put(one, Calibration(0.0, 1.0, 0.0, 4, load=0.1))
    assert anew.get(two) is None
    # what was not measured anew is not lost
    again = Calibrations(path, "local", 1.0)
    assert (again.get(one).step, again.get(two)) == (1.0, busy)


def test_banks_larger_than_the_machine_are_refused_before_training(campaign, monkeypatch):
    monkeypatch.setattr("husai.memory.machine_memory", lambda: 1000)
    with pytest.raises(
        InputError, match=r"campaign\.compute: 1 banks at once: this needs about .* GB"
    ):
        campaign.start()
    assert campaign.saes() == {}


@pytest.mark.parametrize(
    "line", [b"\xff\xfe{}", b"[]", b'{"time": 1e999}', b'{"event": [], "time": 1, "ids": 3}']
)
def test_a_ledger_with_any_line_in_it_is_still_read(campaign, undisturbed, line):
    campaign.start(stop_after=4)
    with (campaign.folders.campaign / LEDGER).open("ab") as file:
        file.write(line + b"\n")
    campaign.start()
    assert_same_weights(campaign.saes(), undisturbed)
    assert statuses(campaign) == {"done": 12}


def test_workers_end_with_their_driver(campaign):
    from husai.campaign.executors.local import ProcessExecutor

    executor = ProcessExecutor(None, 1, 1, 0)
    executor._start()
    (worker,) = executor._workers
    worker.pipe.close()
    assert worker.process.wait(timeout=60) == 0


def test_a_flipped_bit_of_rows_on_disk_is_found_before_anything_is_trained(
    campaign: Campaign, tmp_path: Path
) -> None:
    store = ActivationStore.create(tmp_path / "store", 8, "float32", {"model": "tiny"})
    store.write(0, ROWS)
    store.finish(40)
    held_out = torch.zeros(40, dtype=torch.int64)
    rows = {"h@-1": Activations(ROWS[-40:], held_out, "h", -1, store=store)}
    config = make_config()
    plan = campaign.plan(config)

    def start() -> int:
        folders = campaign.folders
        return len(list(run_campaign(plan, rows, TRAINING, config, folders, progress=False)))

    (shard,) = store.folder.glob("rows-*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-7] ^= 1
    shard.write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"rows-000000\.safetensors: .*its content has changed"):
        start()
    content[-7] ^= 1
    shard.write_bytes(bytes(content))
    assert start() == len(plan)
