"""Open MPI hostfiles: read, checked, and shown before a job is started on them."""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeflow_mpi.errors import HostfileError

_HOST = re.compile(r"(?:(?P<user>[^\s@=#]+)@)?(?P<host>[A-Za-z0-9_][A-Za-z0-9_.:-]*)")
_SETTING = re.compile(r"(?P<key>slots|max[_-]slots)=(?P<value>[0-9]+)")


@dataclass(frozen=True)
class HostEntry:
    """One line of a hostfile.

    Attributes
    ----------
    host
        Name or address, without the user.
    slots
        Ranks that mpirun starts there; None when the line leaves it to mpirun, which then
        starts one per core.
    max_slots
        The most it may start there; None when there is no limit.
    user
        Login name given as ``user@host``; None when there is none.
    line
        Where it stands in the file, from 1.
    """

    host: str
    slots: int | None
    max_slots: int | None
    user: str | None
    line: int


def check_hostfile(path: str | Path) -> tuple[HostEntry, ...]:
    """The hosts of a hostfile, in its order, which is the order of the ranks.

    Raises
    ------
    HostfileError
        When the file cannot be read, names no host, or has a line that mpirun would refuse or
        understand in another way than it was meant.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise HostfileError(f"the hostfile {path} does not exist") from None
    except IsADirectoryError:
        raise HostfileError(f"the hostfile {path} is a directory, not a file") from None
    except UnicodeDecodeError:
        raise HostfileError(f"the hostfile {path} is not a text file") from None
    except OSError as error:
        raise HostfileError(f"the hostfile {path} cannot be read: {error.strerror}") from None
    return parse_hostfile(text, str(path))


def parse_hostfile(text: str, name: str) -> tuple[HostEntry, ...]:
    """As :func:`check_hostfile`, from the text of a file; ``name`` is for messages."""
    entries: list[HostEntry] = []
    lines_of: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = re.sub(r"\s*=\s*", "=", line.split("#", 1)[0]).split()
        if not words:
            continue
        where = f"line {number} of the hostfile {name}"
        entry = _parse_words(words, number, where)
        if entry.host in lines_of:
            raise HostfileError(
                f"{where} names {entry.host} again, after line {lines_of[entry.host]}; "
                "give each host one line, with slots= for the number of ranks there"
            )
        lines_of[entry.host] = number
        entries.append(entry)
    if not entries:
        raise HostfileError(
            f"the hostfile {name} names no host; write a line such as 'pi-1 slots=1' for each"
        )
    return tuple(entries)


def hostfile_warnings(entries: Sequence[HostEntry]) -> tuple[str, ...]:
    """What will work but is probably not meant, a sentence each."""
    unset = [entry for entry in entries if entry.slots is None]
    if not unset:
        return ()
    names = ", ".join(entry.host for entry in unset)
    sentence = (
        f"no slots= for {names}: Open MPI starts one rank per core there; "
        "write slots=1, as one rank uses all cores of its host"
    )
    return (sentence,)


def crowding_warning(hosts_of_ranks: Sequence[str], intended: bool) -> str | None:
    """A sentence when a host carries several ranks of the job and nobody said that it should.

    Parameters
    ----------
    hosts_of_ranks
        The host name of every rank, in rank order.
    intended
        Whether several ranks on a host are wanted (``EDGEFLOW_LOCAL=1``).
    """
    crowded = [(host, count) for host, count in Counter(hosts_of_ranks).items() if count > 1]
    if intended or not crowded:
        return None
    listed = ", ".join(f"{host} ({count} ranks)" for host, count in crowded)
    return (
        f"several ranks share a host and its cores: {listed}; if that is not meant, give each "
        "line of the hostfile slots=1, and if it is, set EDGEFLOW_LOCAL=1"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Check a hostfile and show which ranks will run where; 1 when it cannot be used."""
    parser = argparse.ArgumentParser(
        prog="edgeflow-mpi hosts",
        description="Check an Open MPI hostfile and show which ranks will run where.",
    )
    parser.add_argument("file", help="hostfile: a line such as 'pi-1 slots=1' for each host")
    path = parser.parse_args(argv).file
    try:
        entries = check_hostfile(path)
    except HostfileError as error:
        print(f"edgeflow-mpi hosts: {error}", file=sys.stderr)
        return 1
    print(format_hosts(entries))
    for warning in hostfile_warnings(entries):
        print(f"warning: {warning}", file=sys.stderr)
    return 0


def format_hosts(entries: Sequence[HostEntry]) -> str:
    """A table of hosts, slots and the ranks that mpirun gives them, for people."""
    width = max(len("host"), *(len(entry.host) for entry in entries))
    lines = [f"{'host':{width}}  slots  ranks"]
    first: int | None = 0
    for entry in entries:
        slots = "-" if entry.slots is None else str(entry.slots)
        if first is None or entry.slots is None:
            first, ranks = None, "?"
        else:
            last = first + entry.slots - 1
            ranks = f"{first}" if last == first else f"{first}-{last}"
            first = last + 1
        lines.append(f"{entry.host:{width}}  {slots:>5}  {ranks}")
    return "\n".join(lines)


def _parse_words(words: Sequence[str], number: int, where: str) -> HostEntry:
    host = _HOST.fullmatch(words[0])
    if host is None:
        raise HostfileError(f"{where} starts with '{words[0]}', which is no host name")
    name, _, count = host["host"].partition(":")
    if count.isdecimal():
        raise HostfileError(f"{where} says '{words[0]}'; Open MPI wants '{name} slots={count}'")
    values: dict[str, int] = {}
    for word in words[1:]:
        setting = _SETTING.fullmatch(word)
        if setting is None:
            raise HostfileError(
                f"{where} says '{word}' after the host; write slots=N and, if needed, max_slots=N"
            )
        values[setting["key"].replace("-", "_")] = int(setting["value"])
    slots, max_slots = values.get("slots"), values.get("max_slots")
    if slots == 0 or max_slots == 0:
        raise HostfileError(f"{where} gives {host['host']} no slot; leave the line out instead")
    if slots is not None and max_slots is not None and slots > max_slots:
        raise HostfileError(f"{where} gives {slots} slots, more than its max_slots={max_slots}")
    return HostEntry(host["host"], slots, max_slots, host["user"], number)


if __name__ == "__main__":
    sys.exit(main())
