"""Errors that the user can fix."""


class InputError(ValueError):
    """Bad input: the message names the field or file, the value, and what to do.

    Command-line entry points print the message as one line and exit with code 2.
    """


class CampaignStopped(RuntimeError):
    """A campaign ended before all of its SAEs were trained; started again, it continues.

    The message says why, what was done, and what to do. Kedro's command line prints it as one
    line and exits with 3.
    """
