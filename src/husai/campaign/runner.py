"""Carries out a plan: submits banks, writes the ledger, restarts lost banks, checks the budget."""

from __future__ import annotations

import logging
import shutil
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from husai.activations import Activations
from husai.campaign.banks import Bank, remove_finished, steps_done
from husai.campaign.config import CampaignConfig
from husai.campaign.cost.budget import Budget
from husai.campaign.cost.calibrations import Calibrations
from husai.campaign.cost.estimates import Estimates
from husai.campaign.cost.measure import calibrations_for, measure_banks
from husai.campaign.executors import (
    POLL_SECONDS,
    Done,
    Event,
    Lost,
    Progress,
    check_backend,
)
from husai.campaign.executors.outcomes import Broken, Trained
from husai.campaign.folders import FAILURES, LEDGER, QUARANTINE, CampaignFolders
from husai.campaign.ledger import DONE, FAILED, PLANNED, RUNNING, Ledger
from husai.campaign.plan import KEPT_COLUMNS, records
from husai.campaign.preparation import (
    executor_for,
    find_missing,
    missing_banks,
    planned_banks,
    put_rows,
    stopped_by_the_machine,
)
from husai.campaign.progress_view import ProgressView
from husai.campaign.store import Store, remove_leftovers
from husai.errors import CampaignStopped
from husai.sae.config import BankTrainingConfig
from husai.storage import TensorFile, atomic_path, locked

if TYPE_CHECKING:
    from husai.campaign.executors import Executor
    from husai.sae import TrainedSAE

logger = logging.getLogger(__name__)

SPENT_SECONDS = 10.0
"""Seconds between two entries of the cost of running banks; a killed process loses at most this."""


@dataclass
class _Running:
    """A bank that was submitted; ``whole`` if it starts from its first step."""

    bank: Bank
    submitted: float
    whole: bool = True
    started: float | None = None
    recorded: float = 0.0
    measured: float | None = None

    def seconds(self) -> float:
        """Seconds since its worker began; after its end as it measured them; 0 while it waits."""
        if self.measured is not None:
            return self.measured
        return 0.0 if self.started is None else time.monotonic() - self.started


def run_campaign(
    plan: pd.DataFrame,
    activations: Mapping[str, Activations],
    training: BankTrainingConfig,
    campaign: CampaignConfig,
    folders: CampaignFolders,
    *,
    progress: bool = True,
) -> Iterator[tuple[str, TrainedSAE]]:
    """Train every SAE of a plan that is not trained yet; yield each after its bank has ended.

    The caller must save an SAE into ``folders.store`` before it asks for the next one; the ledger
    then records that it is done.

    Parameters
    ----------
    plan
        The table of :func:`husai.campaign.plan_saes`.
    activations
        Rows by key (hook and position) for every key in the plan.
    training
        The training parameters of all SAEs; a row of the plan may change some of them.
    campaign
        Where the campaign runs, and its budget.
    folders
        The folders that it reads and writes.
    progress
        Whether to show the progress bar.

    Yields
    ------
    sae_id, sae
        An SAE whose loss was not finite has a ``failure``, and is not trained again.

    Raises
    ------
    InputError
        Before any work, when the plan does not fit the rows, or another campaign uses the folders.
    CampaignStopped
        When a limit of the budget was reached, the machine fails, or SAEs could not be trained.
    """
    check_backend(campaign.compute)
    with stopped_by_the_machine(), locked(folders.campaign):
        remove_leftovers(folders.store)
        work = _Campaign(plan, activations, training, campaign, folders, progress)
        yield from work.run()


class _Campaign:
    """One start of a campaign."""

    def __init__(
        self,
        plan: pd.DataFrame,
        activations: Mapping[str, Activations],
        training: BankTrainingConfig,
        campaign: CampaignConfig,
        folders: CampaignFolders,
        progress: bool,
    ) -> None:
        self.config = campaign
        self.folders = folders
        self.activations = activations
        self.show = progress
        self.ids = plan["sae_id"].tolist()
        self.kept_columns = {
            row["sae_id"]: {name: row[name] for name in KEPT_COLUMNS if name in row}
            for row in records(plan)
        }
        self.ledger = Ledger(folders.campaign / LEDGER)
        self.planned = planned_banks(plan, activations, training)
        self.failed: dict[str, str] = {}
        self.without_file: set[str] = set()
        self._find_work()
        self.running: dict[str, _Running] = {}
        self.losses: dict[str, int] = {}
        # why no bank could be submitted the last time; why no bank will be submitted any more
        self.refusal: str | None = None
        self.stopped: str | None = None
        self.executor: Executor
        self.view: ProgressView
        self.budget: Budget
        self.estimates: Estimates
        self.calibrations: Calibrations

    def _find_work(self) -> None:
        """Find the missing SAEs, and update the ledger to the state of the store."""
        store = Store(self.folders.store, self.folders.campaign / QUARANTINE)
        interrupted = [i for i in self.ids if self._status(i) == RUNNING]
        self.ledger.record("lost", interrupted, reason="the campaign was interrupted")
        found = find_missing(self.planned, store)
        self.planned = found.groups
        self.kept = len(found.kept)
        self.failed |= found.failed
        remove_finished(self.folders.checkpoints, [*found.kept, *found.failed])
        for sae_id in found.kept:
            if self._status(sae_id) != DONE:
                self.ledger.record(DONE, [sae_id], **self._unrecorded(sae_id, found.about[sae_id]))
        for sae_id, reason in found.failed.items():
            if self._status(sae_id) != FAILED:
                unrecorded = self._unrecorded(sae_id, found.about[sae_id])
                self.ledger.record(FAILED, [sae_id], reason=reason, **unrecorded)
        for sae_id, problem in found.unfit.items():
            moved = store.move_out(sae_id)
            logger.warning("%s: %s; moved to %s, it is trained again", sae_id, problem, moved)
            self.ledger.record(PLANNED, [sae_id], reason=f"moved to {QUARANTINE}: {problem}")
        missing = [i for group in self.planned for i in group.ids if i in group.wanted]
        self.ledger.record(PLANNED, [i for i in missing if self._status(i) != PLANNED])

    def _unrecorded(self, sae_id: str, about: Mapping[str, Any]) -> dict[str, float]:
        """Return the cost of an SAE's last attempt, from its file.

        If a process ends after it saved the file and before it wrote the ledger, only the file
        has the cost. Attempts that this ledger does not know do not count for this campaign.
        """
        entry = self.ledger.entries.get(sae_id)
        recorded = {"device_seconds", "cost"} <= about.keys()
        if not recorded or entry is None or not 0 < entry.attempts == about.get("attempts"):
            return {}
        seconds, cost = self.ledger.before(sae_id)
        return {
            "seconds": float(about["device_seconds"]) - seconds,
            "cost": float(about["cost"]) - cost,
        }

    def _status(self, sae_id: str) -> str | None:
        entry = self.ledger.entries.get(sae_id)
        return None if entry is None else entry.status

    def run(self) -> Iterator[tuple[str, TrainedSAE]]:
        """Train the missing SAEs."""
        missing = sum(len(group.wanted) for group in self.planned)
        logger.info(
            "%d SAEs planned: %d trained already, %d failed, %d to train",
            len(self.ids),
            self.kept,
            len(self.failed),
            missing,
        )
        if missing:
            yield from self._train()
        self._conclude()

    def _train(self) -> Iterator[tuple[str, TrainedSAE]]:
        self.executor = executor_for(self.planned, self.config, self.folders, self._progressed)
        try:
            banks = missing_banks(self.planned, self.config, self.folders, self.executor.slots)
            self.budget = Budget(self.config.budget, self.executor.devices, self.ledger.cost())
            self.view = ProgressView(
                {bank.name: bank.work for bank in banks},
                {bank.name: len(bank.wanted) for bank in banks},
                name=self.config.name,
                done=self.kept,
                failed=len(self.failed),
                currency=self.config.budget.currency if self.config.budget.rate else "",
                show=self.show,
            )
            put_rows(banks, self.executor, self.activations)
            self.estimates = Estimates(self.folders.checkpoints)
            self.calibrations = calibrations_for(self.executor, self.config, self.folders)
            # if the limit is reached already, not even the cost is measured
            if self.budget.limited and self.budget.refusal(0.0, 0.0) is None:
                retries = self.config.compute.max_retries
                measure_banks(banks, self.executor, self.calibrations, retries, self._measured)
                self.estimates.measured = self.calibrations
                self.estimates.complete(banks)
            self.pending = deque(banks)
            while self.pending or self.running:
                self._submit()
                if not self.running:
                    break
                for event in self.executor.wait(POLL_SECONDS):
                    yield from self._handle(event)
                self._update_costs()
            self.view.close()
        finally:
            self.executor.close()

    def _submit(self) -> None:
        """Submit banks while the executor and the budget have room for them."""
        while self.pending and self.executor.room > 0 and self.stopped is None:
            committed = sum(
                self.budget.cost(max(self.estimates.seconds(run.bank), run.seconds()))
                for run in self.running.values()
            )
            chosen = None
            for bank in self.pending:
                refusal = self.budget.refusal(self.estimates.seconds(bank), committed)
                refusal = refusal or self._no_space(bank)
                if refusal is None:
                    chosen = bank
                    break
                self.refusal = refusal
            if chosen is None:
                return
            self.pending.remove(chosen)
            self.refusal = None
            self.estimates.start(chosen)
            whole = steps_done(self.folders.checkpoints, chosen) == 0
            self.executor.submit(chosen)
            self.running[chosen.name] = _Running(chosen, time.monotonic(), whole)

    def _no_space(self, bank: Bank) -> str | None:
        """Return why a bank's checkpoints and files may not fit on the disk; None if they fit."""
        folder = self.folders.checkpoints
        folder.mkdir(parents=True, exist_ok=True)
        needed = bank.bytes * (bank.training.keep_checkpoints + 1)
        free = shutil.disk_usage(folder).free
        if free > needed:
            return None
        return (
            f"{folder}: {free / 1e6:.0f} MB are free, and the next bank may need "
            f"{needed / 1e6:.0f} MB; make space"
        )

    def _handle(self, event: Event) -> Iterator[tuple[str, TrainedSAE]]:
        if event.name not in self.running:
            return
        if isinstance(event, Progress):
            self._progressed(event)
        elif isinstance(event, Lost):
            self._lost(event)
        elif isinstance(event.result, Trained):
            yield from self._trained(event)
        elif isinstance(event.result, Broken):
            self._broken(event, event.result)

    def _started(self, name: str, worker: str) -> _Running:
        """Record in the ledger that a bank's worker began, once."""
        run = self.running[name]
        if run.started is None:
            run.started = time.monotonic()
            self.ledger.record(RUNNING, sorted(run.bank.wanted), bank=name, worker=worker)
        return run

    def _progressed(self, event: Progress) -> None:
        self._started(event.name, event.worker)
        self.view.progress(event.name, event.part)
        self._update_costs()

    def _update_costs(self) -> None:
        """Show the cost so far, and record that of running banks from time to time."""
        now = time.monotonic()
        self.view.cost = self.ledger.cost()
        for run in self.running.values():
            if run.started is not None:
                self.view.cost += self.budget.cost(now - max(run.started, run.recorded))
                if now - max(run.started, run.recorded) > SPENT_SECONDS:
                    run.recorded = now
                    share = self._share(run.bank, run.seconds())
                    self.ledger.record("spent", sorted(run.bank.wanted), **share)

    def _measured(self, bank: Bank, seconds: float) -> None:
        self.ledger.record("measured", sorted(bank.wanted), **self._share(bank, seconds))
        self.budget.spent = self.ledger.cost()

    def _share(self, bank: Bank, seconds: float) -> dict[str, float]:
        """Return the device-seconds and the cost of a bank's time, for each SAE that it trains."""
        n = len(bank.wanted)
        return {
            "seconds": seconds * self.executor.devices / n,
            "cost": self.budget.cost(seconds) / n,
        }

    def _end_run(self, event: Done | Lost) -> tuple[_Running, dict[str, float]]:
        """Remove a bank from the running ones; return it with its cost for each SAE."""
        run = self._started(event.name, event.worker)
        if isinstance(event, Done) and isinstance(event.result, Trained | Broken):
            run.measured = event.result.seconds
        del self.running[event.name]
        return run, self._share(run.bank, run.seconds())

    def _trained(self, event: Done) -> Iterator[tuple[str, TrainedSAE]]:
        from husai.sae import from_tensors

        assert isinstance(event.result, Trained)
        run, share = self._end_run(event)
        bank = run.bank
        self.estimates.learn(bank, run.seconds())
        failures = 0
        for sae_id, content in zip(bank.ids, event.result.files, strict=True):
            if sae_id not in bank.wanted:
                continue
            file = TensorFile.from_bytes(content, sae_id)
            sae = from_tensors(file.tensors, file.header, sae_id)
            entry = self.ledger.entries[sae_id]
            seconds, cost = self.ledger.before(sae_id)
            about = {
                **self.kept_columns[sae_id],
                "name": self.config.name,
                "bank": event.name,
                "worker": entry.worker,
                "attempts": entry.attempts,
                "device_seconds": seconds + share["seconds"],
                "cost": cost + share["cost"],
                "currency": self.config.budget.currency,
                "peak_bytes": event.result.peak_bytes,
                "finished": time.time(),
            }
            yield sae_id, replace(sae, provenance={**sae.provenance, "campaign": about})
            if sae.failure is None:
                self.ledger.record(DONE, [sae_id], **share)
            else:
                failures += 1
                self.failed[sae_id] = sae.failure
                self.ledger.record(FAILED, [sae_id], reason=sae.failure, **share)
        # after the results are saved: the measured time, which only improves later estimates
        if run.whole:
            self.calibrations.took(bank, run.seconds(), event.result.peak_bytes)
        self.budget.spent = self.ledger.cost()
        self.view.ended(event.name, len(bank.wanted) - failures, failures)
        shutil.rmtree(self.folders.checkpoints / event.name, ignore_errors=True)

    def _broken(self, event: Done, result: Broken) -> None:
        run, share = self._end_run(event)
        if result.kind == "machine":
            self.ledger.record("lost", sorted(run.bank.wanted), reason=result.reason, **share)
            self.stopped = result.reason
            self.estimates.forget(run.bank)
            self.view.waits(event.name)
        elif len(run.bank.ids) == 1:
            self._fail(run.bank, result.reason, result.traceback, share)
        else:
            # one of its SAEs may be the cause, also of bad input: it should fail alone
            self._divide(run.bank, result.reason, share)
        self.budget.spent = self.ledger.cost()

    def _lost(self, event: Lost) -> None:
        run, share = self._end_run(event)
        bank = run.bank
        losses = self.losses[event.name] = self.losses.get(event.name, 0) + 1
        if losses <= self.config.compute.max_retries:
            logger.warning("%s: bank %s is started again", event.reason, event.name)
            self.ledger.record("lost", sorted(bank.wanted), reason=event.reason, **share)
            self.pending.appendleft(bank)
            self.estimates.forget(bank)
            self.view.waits(event.name)
        elif len(bank.ids) == 1:
            reason = f"lost {losses} times, the last time: {event.reason}"
            self._fail(bank, reason, "", share)
        else:
            self._divide(bank, event.reason, share)
        self.budget.spent = self.ledger.cost()

    def _divide(self, bank: Bank, reason: str, share: dict[str, float]) -> None:
        """Continue with two halves of a bank."""
        logger.warning("%s: bank %s is divided", reason, bank.name)
        self.ledger.record("lost", sorted(bank.wanted), reason=reason, **share)
        halves = [half for half in bank.halves() if half.wanted]
        self.pending.extendleft(halves)
        self.estimates.divide(bank, halves)
        self.view.replace(bank.name, {half.name: (half.work, len(half.wanted)) for half in halves})

    def _fail(self, bank: Bank, reason: str, trace: str, share: dict[str, float]) -> None:
        ids = sorted(bank.wanted)
        logger.error("%s failed: %s", ", ".join(ids), reason)
        self.ledger.record(FAILED, ids, reason=reason, traceback=trace, **share)
        self.failed |= dict.fromkeys(ids, reason)
        self.without_file |= set(ids)
        self.view.ended(bank.name, 0, len(ids))

    def _conclude(self) -> None:
        """Write the table of failures; raise an error if SAEs are missing or too many failed."""
        table = self.ledger.table(self.ids)
        done = int((table["status"] == DONE).sum())
        failures = table[table["status"] == FAILED]
        with atomic_path(self.folders.campaign / FAILURES) as temporary:
            columns = ["sae_id", "attempts", "worker", "reason", "traceback"]
            failures[columns].to_csv(temporary, index=False)
        state = f"{done} of {len(self.ids)} SAEs are trained"
        missing = len(self.ids) - done - len(failures)
        if self.stopped is not None:
            raise CampaignStopped(
                f"{self.stopped}; fix this. {state}; start the campaign again: it continues"
            )
        if self.refusal is not None:
            raise CampaignStopped(
                f"{self.refusal}. {state}; raise the limit and start again: the campaign continues"
            )
        if missing:
            # whatever the reason, a campaign with missing SAEs must not count as complete
            raise CampaignStopped(
                f"{missing} SAEs are missing. {state}; start the campaign again: it continues"
            )
        if not self.failed:
            return
        sae_id, reason = next(iter(self.failed.items()))
        text = (
            f"{len(self.failed)} SAEs failed, the first is {sae_id}: {reason}; all are in "
            f"{self.folders.campaign / FAILURES}"
        )
        if self.without_file or len(self.failed) > self.config.max_failures * len(self.ids):
            raise CampaignStopped(f"{state}, {text}")
        logger.warning("%s", text)
