"""Errors that the user can fix."""

from __future__ import annotations

from importlib.util import find_spec


class InputError(ValueError):
    """Bad input: the message names the field or file, the value, and what to do.

    Command-line entry points print the message as one line and exit with code 2.
    """


class CampaignStopped(RuntimeError):
    """A campaign ended before all of its SAEs were trained; started again, it continues.

    The message says why, what was done, and what to do. Kedro's command line prints it as one
    line and exits with 3.
    """


def needs(package: str, extra: str) -> None:
    """Refuse what needs a package that the library alone does not bring.

    Parameters
    ----------
    package
        The name it is imported by.
    extra
        The extra of HUSAI's package that brings it.

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
