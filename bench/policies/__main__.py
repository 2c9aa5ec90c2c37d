"""Measure the cells that are not done yet, and show all of them: ``python -m bench.policies``."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from bench.notes import read_notes
from bench.policies.claims import claims
from bench.policies.grid import (
    KINDS,
    MODELS,
    PARTITIONERS,
    Cluster,
    Place,
    clusters,
    places,
    slowdown,
    weight,
)
from bench.policies.measuring import Effort, Running, measure_place, take_down
from bench.policies.page import page
from bench.policies.results import OURS, SINGLE, Cell, Results, load_results
from edgeflow_mpi.ending import end_as_on_interrupt
from edgeflow_mpi.errors import ClusterError, EdgeflowError, InputError
from edgeflow_mpi.progress import ConsoleProgress, Progress
from edgeflow_mpi.report.files import require_writable, write_file
from edgeflow_mpi.report.plots import require_matplotlib
from edgeflow_mpi.testbed.state import NAME_VARIABLE

_SMALL = Cluster("small-2", (0.5, 0.5))
_RESULTS = Path("docs/policies.json")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see python -m bench.policies --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Status 1 for a failure, and where an answer is wrong; 2 for a wrong command line."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(arguments)
    except EdgeflowError as error:
        print(f"bench.policies: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except SystemExit as done_early:  # --help, printed by argparse
        return int(done_early.code or 0)
    except KeyboardInterrupt:
        return 130


def _run(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    progress = ConsoleProgress()
    wanted = _places(options)
    notes = _checked(options)
    results = load_results(options.results)
    left = wanted if options.again else _left_of(results, wanted)
    if options.seconds != 0:
        results = _measure(results, left, options, progress)
        left = _left_of(results, left)
        if left:
            progress.say(f"{len(left)} cells are left: run the same command again")
    shown = Results(tuple(
        cell for place in wanted if (cell := results.of(place.model, place.cluster.name))
    ))  # fmt: skip
    if not shown.cells:
        raise EdgeflowError(
            f"none of these cells is in {options.results} yet: leave out --seconds 0 to measure"
        )
    names: tuple[str, ...] = ()
    if options.plots is not None:
        from bench.policies.plots import draw_all

        names = draw_all(shown, options.plots)
    text = page(shown, " ".join(["python -m bench.policies", *arguments]), names, notes)
    if options.markdown is not None:
        write_file(options.markdown, "the page", lambda file: file.write(text.encode()))
    for claim in claims(shown):
        print(claim.line)
    wrong = [cell.key for cell in shown.cells if not all(o.right for o in cell.outcomes)]
    if wrong:
        print(f"bench.policies: wrong answers: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


def _checked(options: argparse.Namespace) -> str:
    """The text of the notes, after a look at whether all files can be used: measuring takes hours.

    Raises
    ------
    InputError
        Where one cannot be.
    """
    if options.markdown is not None:
        for name, other in (("--results", options.results), ("--notes", options.notes)):
            if other is not None and other.resolve() == options.markdown.resolve():
                raise InputError(f"--markdown would overwrite what {name} names, {other}")
        require_writable(options.markdown, "the page")
    require_writable(options.results, "the results")
    if options.plots is not None:
        require_matplotlib(Path("policies.png"))
        require_writable(options.plots / "policies-speedup.png", "the plots")
    return read_notes(options.notes)


def _places(options: argparse.Namespace) -> tuple[Place, ...]:
    if options.small:
        for name in ("models", "clusters", "bandwidths", "partitioners"):
            if getattr(options, name) is not None:
                raise InputError(f"--small is one cell of its own: leave out --{name}, or --small")
        return places(("squeezenet1_1",), (_SMALL,), ("joint", "equal", "single"))
    where = [c for c in clusters(options.bandwidths) if c.kind in (options.clusters or KINDS)]
    return places(options.models or MODELS, where, options.partitioners)


def _left_of(results: Results, wanted: Sequence[Place]) -> tuple[Place, ...]:
    """The cells that lack a partitioner, each with those that it lacks.

    A cell of other devices, or of a testbed with another slowdown, lacks all.
    """
    found = []
    for place in wanted:
        cell = results.of(place.model, place.cluster.name)
        fits = cell is not None and (cell.gflops, cell.slowdown) == (
            place.cluster.gflops, slowdown(place)
        )  # fmt: skip
        had = frozenset(cell.had) if cell is not None and fits else frozenset()
        if lacking := tuple(name for name in place.partitioners if name not in had):
            found.append(replace(place, partitioners=lacking))
    return tuple(found)


def _measure(
    results: Results, left: Sequence[Place], options: argparse.Namespace, progress: Progress
) -> Results:
    """Cell after cell, each kept at once; none is begun that would not end in time."""
    effort = Effort(options.repeat, plan_seconds=options.plan_seconds)
    if options.small:
        effort = replace(effort, options=("--input-shape", "1,3,64,64", "--plan-seconds", "0.2"))
    waiting = list(left)
    began_s = time.monotonic()

    def begins() -> bool:
        """Whether there is time for the next cell."""
        if not waiting or options.seconds is None or len(waiting) == len(left):
            return bool(waiting)
        expected_s = _pace(results) * weight(waiting[0])
        return bool(time.monotonic() - began_s + expected_s <= options.seconds)

    with _testbeds(options.beds, keep_up=options.keep_up) as (turns, beds):
        running = Running()
        with ThreadPoolExecutor(options.beds) as pool:
            under_way: dict[Future[Cell], str] = {}
            try:
                while begins() or under_way:
                    while beds and begins():
                        bed = beds.pop(0)
                        mine = replace(effort, bed=bed, turns=turns if options.beds > 1 else None)
                        place = waiting.pop(0)
                        job = pool.submit(measure_place, place, mine, progress, running)
                        under_way[job] = bed
                    for job in wait(under_way, return_when=FIRST_COMPLETED).done:
                        beds.append(under_way.pop(job))
                        cell = job.result()
                        results = results.joined(cell, again=options.again)
                        if options.results is not None:
                            results.save(options.results)
                        rest_s = sum(map(weight, waiting)) * _pace(results) / options.beds
                        more = _left(len(waiting), rest_s)
                        progress.say(f"{_headline(cell)} ({cell.took_s:.0f} s; {more})")
            except BaseException:
                running.end()
                raise
    return results


@contextlib.contextmanager
def _testbeds(count: int, *, keep_up: bool) -> Iterator[tuple[Path, list[str]]]:
    """Names of testbeds, which are down afterwards, and a file for their jobs to take turns by."""
    first = os.environ.get(NAME_VARIABLE) or Effort.bed
    beds = [first, *(f"{first}{number}" for number in range(2, count + 1))]
    with (
        contextlib.ExitStack() as held,
        tempfile.TemporaryDirectory(prefix="edgeflow-turns-") as folder,
    ):
        for bed in beds:
            held.enter_context(_alone_on(bed))
        try:
            yield Path(folder) / "turns", list(beds)
        finally:
            if not keep_up:
                for bed in beds:
                    take_down(bed)


@contextlib.contextmanager
def _alone_on(bed: str) -> Iterator[None]:
    """While no other bench uses this testbed; two would measure each other.

    Raises
    ------
    ClusterError
        Where one does.
    """
    with (Path(tempfile.gettempdir()) / f"edgeflow-bench-{bed}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ClusterError(
                f"another bench.policies is at work on the testbed {bed}: wait for its end "
                f"({NAME_VARIABLE}=NAME keeps testbeds apart, but not what they measure)"
            ) from None
        yield


def _pace(results: Results) -> float:
    """Seconds here for one second of :func:`weight`, by the cells that are done."""
    spent_s = expected_s = 0.0
    for cell in results.cells:
        cluster = Cluster(cell.kind, cell.gflops, cell.bandwidth_mbps)
        spent_s += cell.took_s
        names = tuple(outcome.partitioner for outcome in cell.outcomes)
        expected_s += weight(Place(cell.model, cluster, names))
    return spent_s / expected_s if expected_s else 1.0


def _headline(cell: Cell) -> str:
    parts = [f"{o.partitioner} {o.median_ms:.0f}" for o in cell.outcomes if o.alike is None]
    ours, alone = cell.of(OURS), cell.of(SINGLE)
    gain = f", {alone.median_ms / ours.median_ms:.2f}× one device" if ours and alone else ""
    return f"{cell.key}, emulated: {', '.join(parts)} ms{gain}"


def _left(count: int, rest_s: float) -> str:
    return f"{count} cells left, about {math.ceil(rest_s / 60)} min" if count else "all begun"


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def _number(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 on")
    return value


def _rate(text: str) -> float:
    value = _number(text)
    if value == 0:
        raise argparse.ArgumentTypeError("links of 0 Mbit/s bring nothing")
    return value


# argparse shows it in "invalid ... value".
_positive.__name__ = _rate.__name__ = _number.__name__ = "number"


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m bench.policies",
        description="Every partitioner on emulated clusters of this machine, measured: a cell is a "
        "model on a cluster. Wants root, for the testbed, and a quiet machine.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--models", nargs="+", metavar="NAME",
        help=f"torchvision's names, or what --model of the job takes (default: {' '.join(MODELS)})",
    )  # fmt: skip
    add(
        "--clusters", nargs="+", choices=tuple(KINDS), metavar="KIND",
        help=f"some of {', '.join(KINDS)} (default: all)",
    )  # fmt: skip
    add(
        "--bandwidths", nargs="+", type=_rate, metavar="MBPS",
        help="of all links (default: 93.7, 1000 and 25; few partitioners at the last two)",
    )  # fmt: skip
    add(
        "--partitioners", nargs="+", choices=PARTITIONERS, metavar="NAME",
        help=f"some of {', '.join(PARTITIONERS)}",
    )  # fmt: skip
    add(
        "--repeat", type=_positive, default=Effort.repeat, metavar="N",
        help="timed requests of every plan; up to three times as many where they differ by more "
        "than 2%% (default: %(default)s)",
    )  # fmt: skip
    add(
        "--plan-seconds", type=_number, default=Effort.plan_seconds, metavar="S",
        help="how long joint may search (default: %(default)s)",
    )  # fmt: skip
    add(
        "--results", type=Path, default=_RESULTS, metavar="FILE.json",
        help="keep finished cells here, and do not do again those that are there "
        "(default: %(default)s)",
    )  # fmt: skip
    add("--again", action="store_true", help="also cells that are done")
    add(
        "--beds", type=_positive, default=1, metavar="N",
        help="testbeds at once, which take turns with requests (default: %(default)s)",
    )  # fmt: skip
    add(
        "--seconds", type=_number, metavar="S",
        help="begin another cell only where it would end within so many seconds from now (the "
        "first one is always begun); 0: measure nothing",
    )  # fmt: skip
    add("--small", action="store_true", help="one small cell: does it work at all?")
    add("--keep-up", action="store_true", help="leave the testbeds up")
    add("--markdown", type=Path, metavar="FILE.md", help="write the page here")
    add("--notes", type=Path, metavar="FILE.md", help="what to say on the page below the claims")
    add("--plots", type=Path, metavar="DIR", help="draw the results into this folder")
    return parser


if __name__ == "__main__":
    end_as_on_interrupt()  # ends the job under way as well
    sys.exit(main())
