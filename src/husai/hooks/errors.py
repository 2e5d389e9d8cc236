"""Errors in one line, as a Kedro hook: what the user can fix needs no traceback."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from kedro.framework.hooks import hook_impl
from kedro.io import DatasetError

from husai.errors import CampaignStopped, InputError
from husai.hooks.checks import StudyError
from husai.hooks.lineage import Lineage
from husai.hooks.order import command, makers, typed_options
from husai.provenance import hide_secrets_in_logs, without_secrets

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from kedro.io import DataCatalog


class StoppedError(StudyError):
    """A campaign that can continue: the command line exits with 3."""

    exit_code = 3


CONTENT_ERRORS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)
"""What content of another kind leads to."""


class PlainErrors:
    """Turn the errors that nodes raise for the user into messages of the command line.

    Parameters
    ----------
    lineage
        Knows which files that the run reads are not those that were written.
    """

    def __init__(self, lineage: Lineage) -> None:
        self._lineage = lineage

    @hook_impl
    def after_context_created(self) -> None:
        """Keep secrets out of the log: Kedro takes no formatter of a project's own."""
        hide_secrets_in_logs()

    @hook_impl(trylast=True)  # after those that log the traceback
    def on_pipeline_error(
        self, error: Exception, run_params: dict[str, Any], catalog: DataCatalog
    ) -> None:
        """Raise the message alone, when there is nothing more to know."""
        cause: BaseException = error
        # Kedro wraps what a dataset raises in errors of its own
        while isinstance(cause, DatasetError) and cause.__cause__ is not None:
            cause = cause.__cause__
        message = without_secrets(" ".join(str(cause).split()))
        if isinstance(cause, CampaignStopped):
            raise StoppedError(message) from error
        if isinstance(cause, InputError):
            raise StudyError(message) from error
        name = str(error).split(":", 1)[0]
        if isinstance(error, DatasetError) and name in catalog:
            message = self._unreadable(name, cause, run_params, catalog)
            raise StudyError(without_secrets(message)) from error
        from jinja2 import TemplateError  # here: it is slow to import

        changed = self._lineage.changed
        if changed and isinstance(cause, (*CONTENT_ERRORS, TemplateError)):
            logger.debug("after a changed input", exc_info=error)
            raise StudyError(
                f"{', '.join(map(str, changed))}: changed since written, and this run cannot read "
                f"it so ({type(cause).__name__}: {message[:200]}); make it again: kedro run "
                f"--pipelines={','.join(dict.fromkeys(changed.values()))}"
                f"{typed_options(run_params)}"
            ) from error

    def _unreadable(
        self, name: str, cause: BaseException, run_params: dict[str, Any], catalog: DataCatalog
    ) -> str:
        """Say which file does not read, and what makes it again."""
        from kedro.framework.project import pipelines

        found = makers(name, pipelines)
        dataset: Any = catalog.get(name)
        path = getattr(dataset, "_filepath", None) or getattr(dataset, "_path", name)
        reason = next(iter(str(cause).strip().splitlines()), "")
        again = (
            f"make it again with: {command(found[:1], pipelines, typed_options(run_params))}"
            if found
            else "give it again"
        )
        return f"{name}: {path} does not read ({type(cause).__name__}: {reason[:200]}); {again}"
