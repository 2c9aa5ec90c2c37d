"""The joint planner beside every published policy, over models and clusters.

``python -m bench.planners`` plans every model on every cluster with every partitioner and
judges all plans by the same model of time. Finished cells are kept in a file, so that it may be
stopped at any time, or run in slices (``--seconds``).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NoReturn

from bench.planner_cells import Cell, Results, load_results, measure_cell
from bench.planner_page import page
from bench.planner_timing import PLANNED, measure_timing
from edgeflow_mpi.cluster.cluster_file import ClusterSpec, load_cluster
from edgeflow_mpi.errors import EdgeflowError, InputError
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.partition.joint.search import Search
from edgeflow_mpi.partition.search import PLAN_SECONDS
from edgeflow_mpi.progress import ConsoleProgress, NoProgress
from edgeflow_mpi.report.files import require_writable, write_file
from edgeflow_mpi.report.model_graph import model_graph
from edgeflow_mpi.report.plots import require_matplotlib

MODELS = (
    "squeezenet1_1", "vgg16", "resnet34", "resnet50", "mobilenet_v2", "googlenet",
    "efficientnet_b0", "inception_v3", "densenet121",
)  # fmt: skip
"""From few layers to many, since that decides how long planning takes."""
CLUSTERS = Path("clusters")
_SMALL_MODELS, _SMALL_CLUSTERS = ("squeezenet1_1",), ("two-laptops", "pi3-2-wifi")
_SIZES = (3, 6, 12, 24, 48)
"""Clusters of about as many devices are done model by model, which saves loading models."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Status 1 for bad input, and where some plan is better than the joint planner's."""
    try:
        return _run(list(sys.argv[1:]) if arguments is None else list(arguments))
    except EdgeflowError as error:
        print(f"planners: {error}", file=sys.stderr)
        return 1


def _run(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    progress = ConsoleProgress()
    for path, what in ((options.results, "the results"), (options.markdown, "the page")):
        if path is not None:
            require_writable(path, what)
    if options.plot is not None:
        require_matplotlib(options.plot)
        require_writable(options.plot, "the plot")
    clusters = _clusters(options)
    models = options.models or (_SMALL_MODELS if options.small else MODELS)
    plan_seconds = options.plan_seconds or (0.2 if options.small else PLAN_SECONDS)
    kept = None if options.results is None else load_results(options.results)
    results = kept or Results(plan_seconds, options.seed)
    if (results.plan_seconds, results.seed) != (plan_seconds, options.seed):
        raise InputError(
            f"{options.results} was made with --plan-seconds {results.plan_seconds:g} and --seed "
            f"{results.seed}: give the same, or another file"
        )

    @cache
    def graph_of(model: str) -> Graph:
        return model_graph(f"torchvision:{model}", None, progress=NoProgress())

    left = _missing(results, models, clusters)
    if options.seconds != 0:
        results = _measure(results, left, graph_of, clusters, options, progress)
    if options.timing:
        timing = measure_timing(graph_of, models, PLANNED, progress)
        results = replace(results, timing=timing)
        _save(results, options.results)
    if left := _missing(results, models, clusters):
        progress.say(f"{len(left)} cells are left: run the same command again")
    shown = _chosen(results, models, clusters)
    if not shown.cells:
        return 0
    if options.plot is not None:
        from bench.planner_plot import draw

        draw(shown, options.plot)
    plot = None if options.plot is None else options.plot.name
    text = page(shown, " ".join(["python -m bench.planners", *arguments]), plot)
    if options.markdown is not None:
        write_file(options.markdown, "the page", lambda file: file.write(text.encode()))
    print(text, end="")
    slower = [f"{cell.model} on {cell.cluster}" for cell in shown.cells if cell.is_slower]
    if slower:
        print(
            f"planners: joint is slower than another policy: {', '.join(slower)}", file=sys.stderr
        )
    return 1 if slower else 0


def _clusters(options: argparse.Namespace) -> dict[str, ClusterSpec]:
    """Cluster files by their names."""
    paths = options.clusters
    if not paths:
        paths = sorted(CLUSTERS.glob("*.yaml"))
        if options.small:
            paths = [path for path in paths if path.stem in _SMALL_CLUSTERS]
        if not paths:
            raise InputError(f"there is no folder {CLUSTERS} here: run in the repository's root")
    return {path.stem: load_cluster(path) for path in paths}


_Pair = tuple[str, str]


def _missing(
    results: Results, models: Sequence[str], clusters: dict[str, ClusterSpec]
) -> list[_Pair]:
    """Models and clusters that are not done yet, the cheapest first."""

    def cost(pair: _Pair) -> tuple[int, int, int, str]:
        devices = len(clusters[pair[1]].names)
        size = sum(devices > most for most in _SIZES)
        return size, models.index(pair[0]), devices, pair[1]

    every = [(model, cluster) for model in models for cluster in clusters]
    return sorted((pair for pair in every if not results.has(*pair)), key=cost)


def _chosen(results: Results, models: Sequence[str], clusters: dict[str, ClusterSpec]) -> Results:
    cells = (c for c in results.cells if c.model in models and c.cluster in clusters)

    def place(cell: Cell) -> tuple[int, str, int]:
        return cell.devices, cell.cluster, models.index(cell.model)

    return replace(results, cells=tuple(sorted(cells, key=place)))


def _measure(
    results: Results,
    left: Sequence[_Pair],
    graph_of: Callable[[str], Graph],
    clusters: dict[str, ClusterSpec],
    options: argparse.Namespace,
    progress: ConsoleProgress,
) -> Results:
    """Cell after cell, each kept at once; none is begun that would not end in time."""
    if left:
        with progress.step("compile the search (kept for the next time)"):
            Search.compile()
    begun_s = time.monotonic()
    for done, (model, cluster) in enumerate(left):
        pace = _Pace(results, clusters)
        expected_s = pace.seconds(model, cluster)
        spent_s = time.monotonic() - begun_s
        if options.seconds is not None and done and spent_s + expected_s > options.seconds:
            break
        rest_s = sum(pace.seconds(*pair) for pair in left[done:])
        progress.update(f"{model} on {cluster}")
        cell = measure_cell(
            model, graph_of(model), cluster, clusters[cluster], results.plan_seconds, results.seed
        )
        results = results.plus(cell)
        _save(results, options.results)
        gain = cell.gain()
        progress.say(
            f"  {model} on {cluster}: "
            + ("no plan fits" if gain is None else f"{gain:.3f}× the best other policy")
            + f", {cell.took_s:.0f} s; {len(left) - done - 1} cells left, "
            f"about {max(rest_s - cell.took_s, 0) / 60:.0f} min"
        )
    return results


class _Pace:
    """How long cells take, judged by those that are done."""

    def __init__(self, results: Results, clusters: dict[str, ClusterSpec]) -> None:
        self._clusters = clusters
        self._budget_s = results.plan_seconds
        spent = [(cell.took_s, self._weight(cell.model, cell.devices)) for cell in results.cells]
        weight = sum(weight for _, weight in spent)
        self._scale = sum(seconds for seconds, _ in spent) / weight if weight else 1.0

    def seconds(self, model: str, cluster: str) -> float:
        return self._scale * self._weight(model, len(self._clusters[cluster].names))

    def _weight(self, model: str, devices: int) -> float:
        heavy = 1 + (MODELS.index(model) if model in MODELS else 0) / 2
        return min(devices / 8, 1) * self._budget_s + heavy * devices**2 / 16


def _save(results: Results, path: Path | None) -> None:
    if path is not None:
        results.save(path)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
    return value


def _limit(text: str) -> float:
    return 0.0 if float(text) == 0 else _seconds(text)


_limit.__name__ = "number of seconds"
_seconds.__name__ = "number of seconds"  # argparse shows it in "invalid ... value"


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m bench.planners",
        description="The joint planner beside every other partitioner, over models and clusters.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--models", nargs="+", metavar="NAME", help="torchvision's names (default: nine families)")
    add(
        "--clusters", nargs="+", type=Path, metavar="FILE.yaml",
        help="cluster files (default: all in clusters/)",
    )  # fmt: skip
    add(
        "--plan-seconds", type=_seconds, metavar="S",
        help=f"how long joint may search in each cell (default: {PLAN_SECONDS:g})",
    )  # fmt: skip
    add("--seed", type=int, default=0, help="of the joint planner (default: %(default)s)")
    add(
        "--results", type=Path, metavar="FILE.json",
        help="keep finished cells here, and do not do again those that are there",
    )  # fmt: skip
    add(
        "--seconds", type=_limit, metavar="S",
        help="begin no cell that would end later than so many seconds from now, but one; 0: none",
    )  # fmt: skip
    add(
        "--timing", action="store_true",
        help="measure, too, how fast plans are evaluated and found; wants a quiet machine",
    )  # fmt: skip
    add("--small", action="store_true", help="one model on two clusters: does it work at all?")
    add("--markdown", type=Path, metavar="FILE.md", help="write the page here")
    add("--plot", type=Path, metavar="FILE.png", help="draw the results here")
    return parser


if __name__ == "__main__":
    sys.exit(main())
