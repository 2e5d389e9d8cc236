"""Banks: the SAEs that one worker trains together."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from husai import __version__
from husai.errors import InputError
from husai.sae.config import BankTrainingConfig, SAEConfig
from husai.storage import atomic_path

MANIFEST = "bank.json"
FLOAT_BYTES = 4


@dataclass(frozen=True)
class RowsInfo:
    """Properties of the training rows on which a bank's cost and identity depend.

    ``buffered_gb`` is the size in 10⁹ bytes of the buffer for rows that do not fit in memory.
    """

    key: str
    n_rows: int
    d_in: int
    fingerprint: str
    buffered_gb: float = 0.0


@dataclass(frozen=True)
class Bank:
    """SAEs that one worker trains together, as plain data.

    Attributes
    ----------
    ids
        Their names in the plan.
    configs
        Their configurations, all of one shape.
    training
        The training parameters that they share.
    rows
        The rows that they are trained on.
    wanted
        Those of ``ids`` that are still missing: an interrupted bank continues unchanged, also with
        SAEs that are saved already.
    """

    ids: tuple[str, ...]
    configs: tuple[SAEConfig, ...]
    training: BankTrainingConfig
    rows: RowsInfo
    wanted: frozenset[str] = field(default=frozenset())

    @property
    def name(self) -> str:
        """Twelve hex digits of everything that the result depends on."""
        content = [
            list(self.ids),
            self.training.decisive(),
            self.rows.fingerprint,
            __version__,
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def bytes(self) -> int:
        """Estimate of the state and working memory, in bytes."""
        saes = sum(
            sae_bytes(config, self.rows.d_in, self.training.batch_size) for config in self.configs
        )
        return saes + round(self.rows.buffered_gb * 1e9)

    @property
    def work(self) -> float:
        """Multiplications of the encoders, forward and backward; training time grows with them."""
        rows = self.training.steps * self.training.batch_size
        return float(rows * sum(6 * config.d_sae * self.rows.d_in for config in self.configs))

    def part(self, ids: Sequence[str]) -> Bank:
        """The bank of some of its SAEs."""
        chosen = [self.ids.index(sae_id) for sae_id in ids]
        return replace(
            self,
            ids=tuple(ids),
            configs=tuple(self.configs[index] for index in chosen),
            wanted=self.wanted & frozenset(ids),
        )

    def halves(self) -> list[Bank]:
        """Two banks of half the SAEs each."""
        middle = len(self.ids) // 2
        return [self.part(self.ids[:middle]), self.part(self.ids[middle:])]


def sae_bytes(config: SAEConfig, d_in: int, batch_size: int) -> int:
    """Estimate the memory that training one SAE takes, in bytes.

    Counted are parameters, gradient and Adam's two moments, the initial decoder, and the codes and
    reconstructions of a batch with their gradients.
    """
    parameters = 2 * config.d_sae * d_in + config.d_sae + d_in
    state = 4 * parameters + config.d_sae * d_in + 2 * config.d_sae
    batch = 2 * batch_size * (config.d_sae + d_in)
    return FLOAT_BYTES * (state + batch)


def make_banks(
    ids: Sequence[str],
    configs: Sequence[SAEConfig],
    trainings: Sequence[BankTrainingConfig],
    rows: Sequence[RowsInfo],
    *,
    slots: int = 1,
    max_bytes: float = float("inf"),
) -> list[Bank]:
    """Group SAEs into banks, the largest first.

    SAEs of one shape, with the same training parameters and rows, share a bank. A bank is halved
    while it needs more memory than ``max_bytes``, or while its work is more than half of a slot's
    share of all work. So no slot waits long for the last bank.

    Parameters
    ----------
    ids, configs, trainings, rows
        Names, configurations, training parameters and rows of the SAEs, in the same order.
    slots
        Banks that can run at once.
    max_bytes
        Largest memory of a bank.

    Raises
    ------
    InputError
        When one SAE alone needs more than ``max_bytes``.
    """
    groups: dict[str, list[int]] = {}
    for index, config in enumerate(configs):
        # SAEs of one bank with the same data seed share their batches
        part: list[Any] = [config.shape_key, trainings[index].model_dump(), rows[index].key]
        if rows[index].buffered_gb:  # a buffer has one order of the rows
            part.append(config.data_seed)
        key = json.dumps(part)
        groups.setdefault(key, []).append(index)
    banks = [
        Bank(
            tuple(ids[i] for i in members),
            tuple(configs[i] for i in members),
            trainings[members[0]],
            rows[members[0]],
            frozenset(ids[i] for i in members),
        )
        for members in groups.values()
    ]
    share = sum(bank.work for bank in banks) / (2 * slots) if slots > 1 else float("inf")
    whole: list[Bank] = []
    while banks:
        bank = banks.pop(0)
        if len(bank.ids) > 1 and (bank.bytes > max_bytes or bank.work > share):
            banks[:0] = bank.halves()
        elif bank.bytes > max_bytes:
            raise InputError(
                f"campaign.compute.bank_memory_gb: {bank.ids[0]} alone takes about "
                f"{bank.bytes / 1e9:.2f} GB, more than the {max_bytes / 1e9:g} GB allowed; raise it"
            )
        else:
            whole.append(bank)
    return sorted(whole, key=lambda bank: -bank.work)


def write_manifest(folder: Path, bank: Bank) -> None:
    """Record in a bank's checkpoint folder which bank it belongs to."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps({"name": bank.name, "ids": list(bank.ids)}))


def adopt_banks(checkpoints: Path, planned: Bank) -> list[Bank]:
    """Return the interrupted banks that have some of the wanted SAEs.

    An interrupted bank continues unchanged, whichever of its SAEs are missing: its checkpoint
    has all of them.

    Parameters
    ----------
    checkpoints
        Folder of the banks' checkpoint folders.
    planned
        All planned SAEs with the same training parameters and rows, of any shape, as one bank;
        ``wanted`` are those that are missing.
    """
    found = []
    taken: set[str] = set()
    for manifest in sorted(checkpoints.glob(f"*/{MANIFEST}")):
        ids = _manifest_ids(manifest)
        if not ids or not set(ids) <= set(planned.ids) or not any(manifest.parent.glob("step_*")):
            continue
        bank = planned.part(ids)
        # banks of the same SAEs with other rows or training parameters have other names
        if bank.name == manifest.parent.name and bank.wanted and not bank.wanted & taken:
            taken |= bank.wanted
            found.append(bank)
    return found


def _manifest_ids(manifest: Path) -> list[str] | None:
    """Return the names in a manifest; None if it cannot be read."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        ids = json.loads(manifest.read_text())["ids"]
        if isinstance(ids, list) and all(isinstance(sae_id, str) for sae_id in ids):
            return ids
    return None


def remove_finished(checkpoints: Path, trained: Collection[str]) -> None:
    """Remove the checkpoints of banks whose SAEs are all trained.

    They remain when a process is killed after it saved the last SAE and before it removed them.
    """
    for manifest in checkpoints.glob(f"*/{MANIFEST}"):
        ids = _manifest_ids(manifest)
        if ids and set(ids) <= set(trained):
            shutil.rmtree(manifest.parent, ignore_errors=True)


def steps_done(checkpoints: Path, bank: Bank) -> int:
    """Return the step of a bank's newest checkpoint; 0 without one."""
    steps = (
        path.stem.removeprefix("step_") for path in (checkpoints / bank.name).glob("step_*.s*")
    )
    return max((int(step) for step in steps if step.isdigit()), default=0)
