"""Errors that are the user's to mend."""


class InputError(ValueError):
    """Bad input: the message names the field or file, the value, and what to do.

    Command-line entry points print the message as one line and exit with code 2.
    """
