"""What share of the messages' time is hidden, case by case: ``python -m bench.overlap``."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from bench.latency import machine
from bench.mpirun import ROOT, mpirun
from bench.overlap.page import line_of, page
from bench.overlap.results import Case, load_results, plan_from
from bench.policies.grid import Cluster
from edgeflow_mpi.ending import end_as_on_interrupt
from edgeflow_mpi.errors import ClusterError, EdgeflowError, InputError
from edgeflow_mpi.progress import ConsoleProgress, Progress
from edgeflow_mpi.report.files import require_writable, write_file
from edgeflow_mpi.testbed.state import NAME_VARIABLE

MODELS = ("mobilenet_v2", "resnet18", "resnet50")
PARTITIONERS = ("joint", "equal")
WAYS = ("on", "off")
BED = "overlap"
_RESULTS = Path("docs/overlap.json")
_TESTBED = str(ROOT / "launch" / "testbed")


@dataclass(frozen=True)
class Setting:
    """Devices, and what joins them: links of a testbed, or TCP within this machine."""

    name: str
    cluster: Cluster
    testbed: bool


SETTINGS = {
    setting.name: setting
    for setting in (
        Setting("tcp-4", Cluster("equal-4", (5.0,) * 4), testbed=False),
        Setting("testbed-4", Cluster("equal-4", (5.0,) * 4), testbed=True),
        Setting("testbed-8", Cluster("equal-8", (5.0,) * 8), testbed=True),
    )
}
_SMALL = Setting("tcp-2", Cluster("equal-2", (0.5,) * 2), testbed=False)
_SMALL_OPTIONS = ("--input-shape", "1,3,64,64", "--plan-simulations", "200", "--warmup", "1")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see python -m bench.overlap --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m bench.overlap",
        description="The share of the messages' time that is hidden behind computation.",
        epilog="What else is given goes to the jobs.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--settings", nargs="+", choices=tuple(SETTINGS), default=list(SETTINGS), metavar="NAME",
        help="tcp-4: four ranks over TCP within this machine; testbed-4, testbed-8: on "
        "launch/testbed, as root (default: all)",
    )  # fmt: skip
    add(
        "--models", nargs="+", default=list(MODELS), metavar="NAME",
        help=f"torchvision's names (default: {' '.join(MODELS)})",
    )  # fmt: skip
    add(
        "--partitioners", nargs="+", default=list(PARTITIONERS), metavar="NAME",
        help=f"who plans (default: {' '.join(PARTITIONERS)})",
    )  # fmt: skip
    add(
        "--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="on|off",
        help="with Open MPI's progress thread, without it, or both (default)",
    )  # fmt: skip
    add(
        "--repeat", type=int, default=9, metavar="N",
        help="timed requests of every plan, with overlap and as many without "
        "(default: %(default)s)",
    )  # fmt: skip
    add(
        "--results", type=Path, default=_RESULTS, metavar="FILE.json",
        help="keep finished cases here, and do not do again those that are there "
        "(default: %(default)s)",
    )  # fmt: skip
    add("--again", action="store_true", help="also cases that are done")
    add("--measure-nothing", action="store_true", help="only make the page and the picture")
    add("--note", metavar="TEXT", help="a sentence for the page; kept with the results")
    add("--small", action="store_true", help="two ranks, a small model: does it work at all?")
    add("--markdown", type=Path, metavar="FILE.md", help="write the page here")
    add("--plot", type=Path, metavar="FILE.png", help="draw the picture")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Status 1 for a failure, 2 for a wrong command line."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(arguments)
    except EdgeflowError as error:
        print(f"bench.overlap: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except SystemExit as done_early:  # --help, printed by argparse
        return int(done_early.code or 0)
    except KeyboardInterrupt:
        return 130


def _run(arguments: Sequence[str]) -> int:
    options, rest = _parser().parse_known_args(arguments)
    if options.repeat < 1:
        raise InputError(f"--repeat {options.repeat} is not at least 1")
    for path, what in (
        (options.results, "the results"), (options.markdown, "the page"),
        (options.plot, "the picture"),
    ):  # fmt: skip
        if path is not None:
            require_writable(path, what)
    settings = [SETTINGS[name] for name in options.settings]
    models = options.models
    if options.small:
        settings, models, rest = [_SMALL], ["resnet18"], [*_SMALL_OPTIONS, *rest]
    results = load_results(options.results)
    facts = dict(results.facts or {}) if options.measure_nothing else machine()
    note = options.note or (results.facts or {}).get("note")
    results = replace(results, facts=facts | ({"note": note} if note else {}))
    progress = ConsoleProgress()
    wanted = [(setting, model) for setting in settings for model in models]
    for setting, model in () if options.measure_nothing else wanted:
        keys = [(setting.name, model, way == "on") for way in options.ways]
        if not options.again and all(results.of(key) for key in keys):
            continue
        for case in measure_setting(setting, model, options, rest, progress):
            results = results.plus(case)
            results.save(options.results)
            for plan in case.plans:
                print(line_of(case, plan), flush=True)
    if options.plot is not None:
        from bench.overlap.plot import draw

        draw(results, options.plot)
    if options.markdown is not None:
        picture = None if options.plot is None else options.plot.name
        text = page(results, picture)
        write_file(options.markdown, "the page", lambda file: file.write(text.encode()))
    return 0


def measure_setting(
    setting: Setting, model: str, options: argparse.Namespace, rest: Sequence[str],
    progress: Progress,
) -> Iterator[Case]:  # fmt: skip
    """One job for every way, one after the other, with the same profile and so the same plans.

    Raises
    ------
    ClusterError
        If there can be no testbed here, or the job fails, with its own sentence.
    """
    with tempfile.TemporaryDirectory(prefix="edgeflow-overlap-") as name:
        folder = Path(name)
        file, profile, result = folder / "cluster.yaml", folder / "profile.yaml", folder / "found"
        file.write_text(setting.cluster.text())
        with _network(setting, file):
            for way in options.ways:
                started = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
                source = ["--profile-from-cluster"]
                if not setting.testbed:
                    # What TCP within the machine takes is measured, once for both ways.
                    known = profile.exists()
                    source = ["--profile" if known else "--save-profile", str(profile)]
                job = [
                    "--result", str(result), "--partitioners", ",".join(options.partitioners),
                    "--model", f"torchvision:{model}", "--emulate-units", "stated",
                    "--progress-thread", way, "--repeat", str(options.repeat), *source, *rest,
                ]  # fmt: skip
                with progress.step(f"{model}, {setting.name}, progress thread {way}"):
                    _call(_command(setting, file, job), _environment(setting))
                plans = tuple(map(plan_from, json.loads(result.read_text())))
                yield Case(setting.name, model, way == "on", plans, started)


@contextmanager
def _network(setting: Setting, file: Path) -> Iterator[None]:
    if not setting.testbed:
        yield
        return
    try:
        _call([_TESTBED, "up", str(file), "--ignore-latency"], _environment(setting))
        yield
    finally:
        subprocess.run(
            [_TESTBED, "down"], env=_environment(setting), capture_output=True, check=False
        )


def _command(setting: Setting, file: Path, job: Sequence[str]) -> list[str]:
    module = "bench.overlap.job"
    if setting.testbed:
        return [_TESTBED, "run", "--module", module, "--", *job]
    return mpirun(setting.cluster.devices, module, "--emulate", str(file), *job)


def _environment(setting: Setting) -> dict[str, str]:
    # Between ranks of one machine messages would go through shared memory.
    return os.environ | ({NAME_VARIABLE: BED} if setting.testbed else {"OMPI_MCA_btl": "tcp,self"})


def _call(command: Sequence[str], environ: dict[str, str]) -> None:
    """Run a command to its end; what it says is shown only where it fails."""
    with subprocess.Popen(
        command, cwd=ROOT, env=environ, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    ) as job:  # fmt: skip
        try:
            said, _ = job.communicate()
        except BaseException:
            job.terminate()  # mpirun ends its ranks
            raise
    if job.returncode:
        own = ("edgeflow_mpi: ", "launch/testbed: ")
        lines = [line for line in said.splitlines() if line.startswith(own)]
        last = (lines or said.splitlines() or ["it failed"])[-1]
        raise ClusterError(last.partition(": ")[2] or last)


if __name__ == "__main__":
    end_as_on_interrupt()  # ends the job under way as well
    sys.exit(main())
