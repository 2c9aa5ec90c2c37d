"""The command ``edgeflow-mpi plan``: will distributing this model help, and how?

No MPI, nothing measured: a model, and a cluster described by hand or measured before.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from edgeflow_mpi.cluster.cluster_file import (
    ClusterSpec,
    cluster_profile,
    load_cluster,
    ranks_of,
)
from edgeflow_mpi.cluster.profile_yaml import load_profile
from edgeflow_mpi.cluster.yaml_fields import did_you_mean
from edgeflow_mpi.errors import InputError

if TYPE_CHECKING:
    from edgeflow_mpi.graph.types import Graph
    from edgeflow_mpi.report.candidates import Candidate, Task

PROG = "edgeflow-mpi plan"
DEFAULT_MODEL = "torchvision:resnet50"
ALL = "all"
APART = ("random", "one-shot")
"""Partitioners that ``all`` leaves out: one to test with, one kept to show what it lacks."""


@dataclass(frozen=True)
class Options:
    """What the user asked for; field by field the options of the command."""

    model: str
    input_shapes: tuple[str, ...]
    input_dtype: str
    wire: str
    cluster: Path | None
    profile: Path | None
    exclude: tuple[str, ...]
    partitioners: tuple[str, ...]
    plan_seconds: float
    plan_simulations: int | None
    seed: int
    json: Path | None
    plot: Path | None
    save_plan: Path | None
    quiet: bool


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help.")


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROG,
        description="Predict what dividing a model among devices brings, with every partitioner, "
        "and say whether it is worth it. Needs no MPI and runs nothing.",
        epilog=f"Example: {PROG} --model torchvision:vgg16 --cluster clusters/pi3-8-ethernet.yaml",
        allow_abbrev=False,
    )
    what = parser.add_argument_group("model")
    what.add_argument(
        "--model", default=DEFAULT_MODEL, metavar="MODEL",
        help="torchvision:NAME, FILE.pt2 or package.module:factory (default: %(default)s)",
    )  # fmt: skip
    what.add_argument(
        "--input-shape", action="append", default=[], metavar="SHAPE", dest="input_shapes",
        help="such as 1,3,224,224, once per input (default: the model's own)",
    )  # fmt: skip
    what.add_argument(
        "--input-dtype", default="auto", choices=("auto", "uint8", "float32"),
        help="how an image travels: as pixels, normalised where they are used, or normalised; "
        "auto: as pixels where the model takes an image",
    )  # fmt: skip
    what.add_argument(
        "--wire", default="fp32", choices=("fp32", "fp16", "bf16"),
        help="how activations travel (default: %(default)s)",
    )  # fmt: skip
    where = parser.add_argument_group("devices (give one of the first two)")
    source = where.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--cluster", type=Path, metavar="FILE.yaml", help="a cluster described by hand"
    )
    source.add_argument(
        "--profile", type=Path, metavar="FILE.yaml", help="a profile that a run has measured"
    )
    where.add_argument(
        "--exclude", nargs="+", default=[], metavar="NAME", help="devices to leave without work"
    )
    how = parser.add_argument_group("plans")
    how.add_argument(
        "--partitioner", nargs="+", default=[ALL], metavar="NAME", dest="partitioners",
        help=f"one, several, or {ALL} (default: {ALL})",
    )  # fmt: skip
    how.add_argument(
        "--plan-seconds", type=_seconds, default=10.0, metavar="S",
        help="how long the joint planner may search at most (default: %(default)s s)",
    )  # fmt: skip
    how.add_argument(
        "--plan-simulations", type=_positive, metavar="N",
        help="search for so many evaluations of a plan instead: the same plan every time",
    )  # fmt: skip
    how.add_argument("--seed", type=int, default=0, metavar="N", help="of planners that draw lots")
    out = parser.add_argument_group("results")
    out.add_argument("--json", type=Path, metavar="FILE", help="write the comparison as JSON")
    out.add_argument(
        "--plot", type=Path, metavar="FILE.png",
        help="draw the best plan's timeline and the speed-up against the number of devices",
    )  # fmt: skip
    out.add_argument(
        "--save-plan", type=Path, metavar="FILE",
        help="keep the unit tables of the best plan, for a run with --plan FILE",
    )  # fmt: skip
    out.add_argument("--quiet", action="store_true", help="no progress, only the result")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command; 0 whether or not distributing helps.

    Raises
    ------
    EdgeflowError
        With one sentence, where the model, the devices or an option cannot be used.
    """
    options = _parse(argv)

    # Late, so that --help and a wrong option are answered at once.
    from edgeflow_mpi.model.load import parse_input_shape
    from edgeflow_mpi.progress import ConsoleProgress
    from edgeflow_mpi.report import planning, plots
    from edgeflow_mpi.report.files import require_writable
    from edgeflow_mpi.report.model_graph import model_graph
    from edgeflow_mpi.report.plan_report import page, write_json
    from edgeflow_mpi.report.scaling import speedups
    from edgeflow_mpi.report.verdict import verdict

    names = _chosen(options.partitioners)
    shapes = [parse_input_shape(text) for text in options.input_shapes] or None
    for path, text in (
        (options.json, "the comparison"),
        (options.plot, "the plot"),
        (options.save_plan, "the plan"),
    ):
        if path is not None:
            require_writable(path, text)
    if options.plot is not None:
        plots.require_matplotlib(options.plot)
    spec = None if options.cluster is None else load_cluster(options.cluster)
    progress = ConsoleProgress(quiet=options.quiet)
    graph = model_graph(
        options.model,
        shapes,
        input_dtype=options.input_dtype,
        wire=options.wire,
        progress=progress,
    )
    task = _task(options, spec, graph)
    comparison = planning.compare_partitioners(task, names, progress)
    with progress.step("verdict"):
        words = verdict(comparison, progress)
    print(page(comparison, words))
    if options.json is not None:
        write_json(comparison, words, options.json)
    if options.save_plan is not None:
        _save(comparison.best, options.save_plan)
    if options.plot is not None:
        with progress.step("speed-up by number of devices"):
            scaling = speedups(comparison, progress)
        plots.draw(comparison, scaling, words, options.plot)
    return 0


def _parse(argv: Sequence[str]) -> Options:
    values = vars(build_parser().parse_args(argv))
    for name in ("input_shapes", "exclude", "partitioners"):
        values[name] = tuple(values[name])
    return Options(**values)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


_seconds.__name__ = "number of seconds"  # argparse shows it in "invalid ... value"
_positive.__name__ = "number"


def _chosen(wanted: Sequence[str]) -> tuple[str, ...]:
    """Names of partitioners, each once; ``all`` stands for every one that may win."""
    from edgeflow_mpi.partition.search import PARTITIONERS

    chosen: dict[str, None] = {}
    for name in wanted:
        if name == ALL:
            chosen.update((other, None) for other in PARTITIONERS if other not in APART)
        elif name in PARTITIONERS:
            chosen[name] = None
        else:
            raise InputError(
                f"there is no partitioner {name!r}{did_you_mean(name, (*PARTITIONERS, ALL))}: "
                f"choose {ALL} or some of {', '.join(PARTITIONERS)}"
            )
    return tuple(chosen)


def _task(options: Options, spec: ClusterSpec | None, graph: Graph) -> Task:
    from edgeflow_mpi.graph.needs import Needs
    from edgeflow_mpi.report.candidates import Task

    if spec is not None:
        profile, excluded = cluster_profile(spec, graph), spec.excluded
    else:
        assert options.profile is not None
        profile, excluded = load_profile(options.profile, graph=graph), frozenset()
    known = [device.name for device in profile.devices]
    excluded |= ranks_of(options.exclude, known, "--exclude")
    return Task(
        graph,
        Needs(graph),
        profile,
        excluded,
        seed=options.seed,
        plan_seconds=options.plan_seconds,
        plan_simulations=options.plan_simulations,
    )


def _save(candidate: Candidate, path: Path) -> None:
    """The plan as verified unit tables in their text form."""
    from edgeflow_mpi.graph.needs import Needs
    from edgeflow_mpi.units.compile import compile_tables
    from edgeflow_mpi.units.text import save_tables
    from edgeflow_mpi.units.verify import verify_tables

    needs = Needs(candidate.graph)
    tables = compile_tables(candidate.graph, needs, candidate.plan)
    verify_tables(candidate.graph, needs, tables)
    save_tables(tables, path)
