"""The entry point of the ``husai`` command: runs a command and reports errors in one line.

Heavy libraries are imported only when a command runs, so that ``--help`` and ``--version`` are
fast.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

import husai
from husai.commands.compare import compare
from husai.commands.features import consensus, features
from husai.commands.files import convert, inspect
from husai.commands.shared import BAD_INPUT, INTERRUPTED, OK
from husai.commands.studies import studies

cli = click.Group("husai")  # Kedro adds the commands of this group to its own; it has none


@click.group(context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]})
@click.version_option(husai.__version__, message="husai %(version)s")
def commands() -> None:
    """Would I find these SAE features again?"""


for command in (compare, convert, inspect, studies, features, consensus):
    commands.add_command(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the ``husai`` command and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with commands.make_context("husai", words) as context:
            code = commands.invoke(context)
    except click.exceptions.Exit as end:  # --help and --version
        return end.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return BAD_INPUT
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "husai"
        _complain(command, f"{error.format_message()} See {command} --help.")
        return BAD_INPUT
    except KeyboardInterrupt:
        _complain("husai", "interrupted")
        return INTERRUPTED
    except ValueError as error:
        # bad input raises a ValueError: InputError, or pydantic's ValidationError
        message = _one_line(error, context)
        if message is None:
            raise
        _complain(f"husai {context.invoked_subcommand}", message)
        return BAD_INPUT
    except BrokenPipeError:  # the reader of the pipe has ended, as `head` does
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - the last flush must not fail
        return OK
    return int(code)


def _complain(command: str, message: str) -> None:
    click.echo(f"{command}: {' '.join(message.split())}", err=True)


def _one_line(error: ValueError, context: click.Context) -> str | None:
    """Return the message for the user, or None if the error is not about the input."""
    from pydantic import ValidationError

    from husai.errors import InputError

    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, ValidationError):
        # name the option that sets the field
        command = commands.commands[str(context.invoked_subcommand)]
        typed = {parameter.name: parameter.opts[0] for parameter in command.params}
        return "; ".join(
            f"{typed.get(str(item['loc'][0]), item['loc'][0]) if item['loc'] else ''}: "
            f"{item['input']!r}: {item['msg']}"
            for item in error.errors()
        )
    return None


if __name__ == "__main__":
    sys.exit(main())
