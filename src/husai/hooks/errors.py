"""A Kedro hook that turns errors which the user can fix into one line without a traceback."""

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
"""Errors that a file with unexpected content can cause in a node."""


class PlainErrors:
    """Turns the errors that nodes raise for the user into messages of the command line.

    Parameters
    ----------
    lineage
        Knows which input files were changed after they were written.
    """

    def __init__(self, lineage: Lineage) -> None:
        self._lineage = lineage

    @hook_impl
    def after_context_created(self) -> None:
        """Keep secrets out of the log; Kedro allows no log formatter of a project."""
        hide_secrets_in_logs()

    @hook_impl(trylast=True)  # after the hooks that log the traceback
    def on_pipeline_error(
        self, error: Exception, run_params: dict[str, Any], catalog: DataCatalog
    ) -> None:
        """Raise an error with only the message, if the cause is known."""
        cause: BaseException = error
        # Kedro wraps the errors of datasets in its own
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
                f"{', '.join(map(str, changed))}: changed since it was written, and this run "
                f"cannot read it ({type(cause).__name__}: {message[:200]}); make it again: "
                f"kedro run --pipelines={','.join(dict.fromkeys(changed.values()))}"
                f"{typed_options(run_params)}"
            ) from error

    def _unreadable(
        self, name: str, cause: BaseException, run_params: dict[str, Any], catalog: DataCatalog
    ) -> str:
        """Return a message with the unreadable file, and the command that makes it again."""
        from kedro.framework.project import pipelines

        found = makers(name, pipelines)
        dataset: Any = catalog.get(name)
        path = getattr(dataset, "_filepath", None) or getattr(dataset, "_path", name)
        reason = next(iter(str(cause).strip().splitlines()), "")
        again = (
            f"make it again with: {command(found[:1], pipelines, typed_options(run_params))}"
            if found
            else "replace it"
        )
        return f"{name}: {path} cannot be read ({type(cause).__name__}: {reason[:200]}); {again}"
