"""How to reach a tracking server, and what its errors say."""

from __future__ import annotations

import errno
import os
import re
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote, urlsplit, urlunsplit

if TYPE_CHECKING:
    from mlflow import MlflowClient

# these pass: the server is starting, is overloaded, or lacks our credentials
PASSING_STATUSES = frozenset({401, 403, 408, 429})
PASSING_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE})

# by default MLflow waits minutes for a server that does not answer, and training with it; and it
# draws a bar for every file
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


class Store(Protocol):
    """A tracking store, as what is recorded in it needs to know it.

    Attributes
    ----------
    client
        Reads and writes it.
    uri
        How it is reached.
    address
        The same without passwords, for messages and files.
    """

    client: MlflowClient
    uri: str
    address: str


def use_credentials(uri: str) -> str:
    """Move user and password from the address of an HTTP server to MLflow's variables for them.

    So the address, which messages and files repeat, does not hold them any more.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or "@" not in parts.netloc:
        return uri
    for name, value in (("USERNAME", parts.username), ("PASSWORD", parts.password)):
        if value:
            os.environ[f"MLFLOW_TRACKING_{name}"] = unquote(value)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def http_status(error: BaseException) -> int | None:
    """Give the HTTP status that an error of MLflow's client stands for, None for no answer."""
    from mlflow.exceptions import MlflowException, RestException
    from requests.exceptions import RequestException

    if isinstance(error, RequestException):
        return None if error.response is None else int(error.response.status_code)
    if not isinstance(error, MlflowException):
        return None
    if isinstance(error, RestException):
        # some servers give the status where MLflow's own name of it belongs
        code = str(error.json.get("error_code", ""))
        return int(code) if code.isdigit() else int(error.get_http_status_code())
    status_text = re.match(r"API request to endpoint .* failed with error code (\d+)", str(error))
    if status_text:
        return int(status_text[1])
    # raised by the client without a reason: not an answer of the store
    return None if error.error_code == "INTERNAL_ERROR" else int(error.get_http_status_code())


def is_away(error: BaseException | None) -> bool:
    """Whether an error says that the store is away, and not that it was asked the wrong thing."""
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
        # MLflow's words for having got no answer, or none that it understands
        if isinstance(error, MlflowException) and str(error).startswith("API request to"):
            return True
        error = error.__cause__ or error.__context__
    return False


def what_it_said(error: BaseException | None) -> str:
    """Say in a few words what a store that is away did: ``answers 401`` or ``does not answer``."""
    while error is not None:
        status = http_status(error)
        if status is not None:
            return f"answers {status}"
        error = error.__cause__ or error.__context__
    return "does not answer"
