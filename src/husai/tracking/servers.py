"""Access to a tracking server, and the meaning of its errors."""

from __future__ import annotations

import errno
import os
import re
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote, urlsplit, urlunsplit

if TYPE_CHECKING:
    from mlflow import MlflowClient

# errors that may pass: the server is starting or overloaded, or credentials are missing
PASSING_STATUSES = frozenset({401, 403, 408, 429})
PASSING_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE})

# by default MLflow waits minutes for a server that does not answer, which would stop training, and
# it draws a progress bar for every file
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


class Store(Protocol):
    """A tracking store, as the operations use it.

    Attributes
    ----------
    client
        MLflow's client, which reads and writes it.
    uri
        Its URI.
    address
        The URI without passwords, for messages and files.
    """

    client: MlflowClient
    uri: str
    address: str


def use_credentials(uri: str) -> str:
    """Move user and password from the address of an HTTP server to MLflow's variables for them.

    Returns the address without them, which may be shown in messages and files.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or "@" not in parts.netloc:
        return uri
    for name, value in (("USERNAME", parts.username), ("PASSWORD", parts.password)):
        if value:
            os.environ[f"MLFLOW_TRACKING_{name}"] = unquote(value)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status of an error of MLflow's client; None if there was no answer."""
    from mlflow.exceptions import MlflowException, RestException
    from requests.exceptions import RequestException

    if isinstance(error, RequestException):
        return None if error.response is None else int(error.response.status_code)
    if not isinstance(error, MlflowException):
        return None
    if isinstance(error, RestException):
        # some servers give the number of the status instead of MLflow's name for it
        code = str(error.json.get("error_code", ""))
        return int(code) if code.isdigit() else int(error.get_http_status_code())
    status_text = re.match(r"API request to endpoint .* failed with error code (\d+)", str(error))
    if status_text:
        return int(status_text[1])
    # INTERNAL_ERROR is raised by the client itself, without an answer of the store
    return None if error.error_code == "INTERNAL_ERROR" else int(error.get_http_status_code())


def is_away(error: BaseException | None) -> bool:
    """Whether an error means that the store cannot be reached, not that it refused a request."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import OperationalError

    while error is not None:
        status = http_status(error)
        if status is not None:
            return status in PASSING_STATUSES or status >= 500
        if isinstance(error, RequestException | ConnectionError | TimeoutError | OperationalError):
            return True
        if isinstance(error, OSError) and error.errno in PASSING_ERRORS:
            return True
        # MLflow's message when there was no answer, or an answer that it does not understand
        if isinstance(error, MlflowException) and str(error).startswith("API request to"):
            return True
        error = error.__cause__ or error.__context__
    return False


def what_it_said(error: BaseException | None) -> str:
    """Describe the error of a store that is away: ``answers 401`` or ``does not answer``."""
    while error is not None:
        status = http_status(error)
        if status is not None:
            return f"answers {status}"
        error = error.__cause__ or error.__context__
    return "does not answer"
