"""The command ``edgeflow-mpi``, also ``python -m edgeflow_mpi``.

``run`` is the MPI job (:mod:`edgeflow_mpi.run`); every other command is one process.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from edgeflow_mpi import __version__
from edgeflow_mpi.errors import EdgeflowError, InputError

PROG = "edgeflow-mpi"
USAGE_STATUS = 2

_DESCRIPTION = "One inference of any PyTorch vision model, split over the ranks of an MPI job."
_COMMANDS: Mapping[str, str] = {
    "run": "the job itself: mpirun -hostfile edges.txt edgeflow-mpi run OPTIONS",
    "plan": "will distributing a model help, and how: every partitioner's plan, predicted",
    "hosts": "check a hostfile and show which ranks will run where",
    "coverage": "how much of a model's work can be divided, as a table",
}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit status: 1 for a failure, 2 for a wrong command line."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no "×" shows "?"
    commands: Mapping[str, Callable[[Sequence[str]], int]] = {
        "run": _run,
        "plan": _plan,
        "hosts": _hosts,
        "coverage": _coverage,
    }
    try:
        return commands[_command(arguments)](arguments[1:])
    except InputError as error:
        return _say(error, USAGE_STATUS)
    except EdgeflowError as error:
        return _say(error, 1)
    except SystemExit as done:  # --help and --version, which argparse has printed
        return done.code if isinstance(done.code, int) else 0
    except ModuleNotFoundError as error:
        # Another python than that of the environment, most likely.
        return _say(
            f"{error.name or error} is not installed for {sys.executable}; "
            "run ./launch/setup.sh, then source .venv/bin/activate",
            1,
        )
    except KeyboardInterrupt:
        return 130


def _command(arguments: Sequence[str]) -> str:
    """The command's name; what stands behind it is the command's own to read."""
    listed = "\n".join(f"  {name:10} {text}" for name, text in _COMMANDS.items())
    parser = _Parser(
        prog=PROG,
        usage=f"{PROG} COMMAND …",
        description=_DESCRIPTION,
        epilog=f"commands:\n{listed}\n\n{PROG} COMMAND --help explains a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{PROG} {__version__}")
    parser.add_argument("command", nargs="?", choices=tuple(_COMMANDS), help=argparse.SUPPRESS)
    command: str | None = parser.parse_args(arguments[:1]).command
    if command is None:
        parser.error(f"give a command: {', '.join(_COMMANDS)}")
    return command


def _run(arguments: Sequence[str]) -> int:
    # Late, because this starts MPI, which the other commands do without.
    from edgeflow_mpi.run import main as run

    return run(arguments)


def _plan(arguments: Sequence[str]) -> int:
    from edgeflow_mpi.planner_cli import main as plan

    return plan(arguments)


def _hosts(arguments: Sequence[str]) -> int:
    from edgeflow_mpi.cluster.hosts import main as hosts

    return hosts(arguments)


def _coverage(arguments: Sequence[str]) -> int:
    parser = _Parser(
        prog=f"{PROG} coverage",
        description=(
            "Show the share of multiply-adds in layers whose rows can be divided among ranks."
        ),
    )
    parser.add_argument(
        "--models",
        nargs="+",
        metavar="MODEL",
        help="torchvision:NAME, FILE.pt2 or package.module:factory (default: the documented ones)",
    )
    parser.add_argument(
        "--input-shape",
        action="append",
        metavar="SHAPE",
        help="such as 1,3,224,224, once per input (default: the models' own)",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write a Markdown page (default: print it)"
    )
    options = parser.parse_args(arguments)

    from edgeflow_mpi.model.load import parse_input_shape
    from edgeflow_mpi.progress import ConsoleProgress
    from edgeflow_mpi.report import coverage
    from edgeflow_mpi.report.files import require_writable, write_file

    if options.output is not None:
        require_writable(options.output, "the page")
    shapes = [parse_input_shape(text) for text in options.input_shape or ()] or None
    progress = ConsoleProgress()
    rows = [
        coverage.coverage(coverage.graph_of(model, shapes, progress))
        for model in options.models or coverage.MODELS
    ]
    if options.output is None:
        print(coverage.markdown_table(rows))
    else:
        command = " ".join((PROG, "coverage", *arguments))
        page = coverage.page(rows, command).encode()
        write_file(options.output, "the page", lambda file: file.write(page))
    return 0


def _say(error: EdgeflowError | str, status: int) -> int:
    print(f"{PROG}: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
