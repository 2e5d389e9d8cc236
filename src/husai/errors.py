"""Errors that the user can fix, and their messages for missing packages."""

from __future__ import annotations

from importlib.util import find_spec


class InputError(ValueError):
    """Bad input: the message names the field or file, the value, and what to do.

    Command-line entry points print the message as one line and exit with code 2.
    """


class CampaignStopped(RuntimeError):
    """A campaign ended before all of its SAEs were trained; the next start continues it.

    The message says why, what was done, and what to do. Kedro's command line prints it as one
    line and exits with code 3.
    """


def needs(package: str, extra: str) -> None:
    """Raise an error with advice if an optional package is not installed.

    Parameters
    ----------
    package
        The name of the package in an import.
    extra
        The extra of HUSAI that installs it.

    Raises
    ------
    InputError
        When it is not installed: one line that says how to install it.
    """
    if find_spec(package) is None:
        also = ", and work in a copy of its repository" if extra == "project" else ""
        raise InputError(
            f"{package} is not installed: this part of HUSAI needs it; "
            f"pip install 'husai[{extra}]'{also}"
        )
