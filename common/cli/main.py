"""A detector's command line: PyTorch and all that needs it, seconds to import, come when there is something to run."""

import os
import sys
from importlib import import_module

from ..errors import UserError
from .options import build_parser


def main(package: str, argv: list[str] | None = None) -> int:
    """Answers ``--help`` and mistakes, or runs the command; returns the exit code.

    Args:
        package: of the detector. Its module ``options`` has ``NAME`` and ``add_arguments``, and imports no PyTorch; its module
            ``recipe`` has ``DETECTOR``.
    """
    options = import_module(f"{package}.options")
    try:
        build_parser(options.NAME, options.add_arguments).parse_args(argv)
    except UserError as error:
        print(f"{options.NAME}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return hang_up()
    from .run import main as run

    return run(import_module(f"{package}.recipe").DETECTOR, argv)


def hang_up() -> int:
    """The end of a command whose output nobody reads on, as behind ``| head -1``: the exit code that shells give it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what the interpreter still has to print
    return 141
