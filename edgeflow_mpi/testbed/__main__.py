"""The command ``launch/testbed``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from edgeflow_mpi.ending import end_as_on_interrupt
from edgeflow_mpi.errors import EdgeflowError, InputError
from edgeflow_mpi.testbed import bed
from edgeflow_mpi.testbed.state import State, bed_name, load_state

PROG = "launch/testbed"
_LESS_THAN_STATED = 0.95


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        hint = f"see {PROG} --help"
        if message.startswith("unrecognized arguments"):
            hint = f"options of a job and commands come behind --; {hint}"
        raise InputError(f"{message} ({hint})")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit status: 1 for a failure, 2 for a wrong command line."""
    try:
        return _command(build_parser().parse_args(argv))
    except InputError as error:
        return _complain(error, 2)
    except EdgeflowError as error:
        return _complain(error, 1)
    except KeyboardInterrupt:
        return 130


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROG,
        description="A cluster of devices on this machine: hosts with links of real rates.",
        epilog="EDGEFLOW_TESTBED=NAME keeps several testbeds apart.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    up = commands.add_parser("up", help="make the hosts and links of a cluster file")
    up.add_argument("file", type=Path, metavar="FILE", help="such as clusters/pi3-8-ethernet.yaml")
    up.add_argument(
        "--ignore-latency", action="store_true",
        help="where the kernel cannot delay packets, leave links their natural latency",
    )  # fmt: skip
    run = commands.add_parser("run", help="run the job on all hosts, one rank each")
    run.add_argument(
        "--network-only", action="store_true",
        help="do not slow the devices down: only the links are those of the cluster file",
    )  # fmt: skip
    run.add_argument(
        "--module", default="edgeflow_mpi.run", metavar="NAME",
        help="another job that takes the same options (default: %(default)s)",
    )  # fmt: skip
    run.add_argument("options", nargs="*", metavar="-- OPTIONS", help="of edgeflow_mpi.run")
    execute = commands.add_parser("exec", help="run a command on one host")
    execute.add_argument("host", metavar="HOST")
    execute.add_argument("words", nargs="+", metavar="-- COMMAND")
    commands.add_parser("status", help="what is up; status 1 if nothing is")
    commands.add_parser("down", help="end what runs on the hosts and remove them")
    return parser


def _command(options: argparse.Namespace) -> int:
    name = bed_name()
    if options.command == "up":
        _describe(bed.up(name, options.file, ignore_latency=options.ignore_latency, say=print))
    elif options.command == "run":
        bed.run_job(name, options.options, network_only=options.network_only, module=options.module)
    elif options.command == "exec":
        bed.execute(name, options.host, options.words)
    elif options.command == "status":
        if load_state(name) is None:
            print("no testbed is up")
            return 1
        state = bed.require_up(name)
        _describe(state)
        _list(state)
    else:
        gone = bed.down(name)
        print("no testbed is up" if gone is None else f"{gone.cluster} is down")
    return 0


def _describe(state: State) -> None:
    count = len(state.hosts)
    print(f"{state.cluster}: {count} host{'s' * (count != 1)}, {', '.join(state.hosts)}")
    for link in state.measured:
        print(
            f"  {link.sender} to {link.receiver}: {link.bandwidth_mbps:.1f} Mbit/s and "
            f"{link.latency_ms:.2f} ms measured, {link.stated_bandwidth_mbps:g} Mbit/s and "
            f"{link.stated_latency_ms:g} ms in the file"
        )
        if link.bandwidth_mbps < _LESS_THAN_STATED * link.stated_bandwidth_mbps:
            print(f"  warning: this machine carries less than {link.sender}'s link should")


def _list(state: State) -> None:
    running = bed.running(state)
    width = max(len(host) for host in state.hosts)
    for host, address in zip(state.hosts, state.addresses, strict=True):
        count = running[host]
        busy = f"{count} process{'es' * (count != 1)}" if count else "idle"
        print(f"  {host:{width}}  {address:12}  {busy}")


def _complain(error: EdgeflowError, status: int) -> int:
    print(f"{PROG}: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    end_as_on_interrupt()  # a testbed that is not up yet is taken down
    sys.exit(main())
