"""Errors in one line, as a Kedro hook: what the user can fix needs no traceback."""

from __future__ import annotations

from kedro.framework.hooks import hook_impl
from kedro.io import DatasetError

from husai.errors import CampaignStopped, InputError
from husai.hooks.checks import StudyError
from husai.provenance import hide_secrets_in_logs, without_secrets


class StoppedError(StudyError):
    """A campaign that can continue: the command line exits with 3."""

    exit_code = 3


class PlainErrors:
    """Turn the errors that nodes raise for the user into messages of the command line."""

    @hook_impl
    def after_context_created(self) -> None:
        """Keep secrets out of the log: Kedro takes no formatter of a project's own."""
        hide_secrets_in_logs()

    @hook_impl(trylast=True)  # after those that log the traceback
    def on_pipeline_error(self, error: Exception) -> None:
        """Raise the message alone, when there is nothing more to know."""
        cause: BaseException | None = error
        # Kedro wraps what a dataset raises in an error of its own
        while isinstance(cause, DatasetError):
            cause = cause.__cause__
        message = without_secrets(" ".join(str(cause).split()))
        if isinstance(cause, CampaignStopped):
            raise StoppedError(message) from error
        if isinstance(cause, InputError):
            raise StudyError(message) from error
