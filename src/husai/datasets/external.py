"""The dataset of external SAEs, which were not trained by this project."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from kedro.io import AbstractDataset, DatasetError

if TYPE_CHECKING:
    from husai.consistency.study.record import SAERecord

logger = logging.getLogger(__name__)


class ExternalSAEs(AbstractDataset[NoReturn, "dict[str, list[SAERecord]]"]):
    """Groups of SAEs by their paths, in any format that ``husai compare`` reads.

    Parameters
    ----------
    groups
        For each group by name, the paths of its SAEs, which differ only in their seeds. Relative
        paths start in the project's folder, a folder may have several SAEs, and
        ``hf://OWNER/REPO/FOLDER`` is on the Hugging Face hub. Empty for no external SAEs.
    metadata
        Not used here; layers and tracking read it.
    """

    def __init__(
        self,
        *,
        groups: Mapping[str, Sequence[str]] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._groups = {name: list(paths) for name, paths in (groups or {}).items()}
        self.metadata = metadata

    def load(self) -> dict[str, list[SAERecord]]:
        """Read every SAE; code in the files is never executed.

        If the SAEs of a group contradict one another about what they read, a warning is logged.
        """
        from husai.compare.contract import check_contracts
        from husai.compare.files import load_saes

        groups = {name: load_saes(paths) for name, paths in self._groups.items()}
        for name, saes in groups.items():
            for mismatch in check_contracts(saes):
                logger.warning("external SAEs %s: not the same activations: %s", name, mismatch)
        return groups

    def save(self, data: NoReturn) -> None:
        """Raise an error: external SAEs are only read."""
        raise DatasetError("external SAEs are only read, never written")

    def _exists(self) -> bool:
        local = [p for paths in self._groups.values() for p in paths if "://" not in p]
        return all(Path(path).exists() for path in local)

    def _describe(self) -> dict[str, Any]:
        return {"groups": self._groups}
