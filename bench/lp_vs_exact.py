"""How far EdgeFlow's linear programs are from the optimum of their layers.

``python -m bench.lp_vs_exact`` solves random layer problems and those of real models in four
ways: exactly (:mod:`edgeflow_mpi.partition.exact`), by sequential linear programs as ``lp``
does, and by one linear program in the two ways of :mod:`edgeflow_mpi.partition.one_shot`. The gap
of a solution is its largest finish time over the least possible, minus one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.layer_problems import random_problem
from edgeflow_mpi.cluster.cluster_file import cluster_profile, parse_cluster
from edgeflow_mpi.cluster.profile import Profile
from edgeflow_mpi.errors import EdgeflowError, InputError
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph, Layer
from edgeflow_mpi.partition.baselines import equal, single, speed_shares
from edgeflow_mpi.partition.cost import predict
from edgeflow_mpi.partition.exact import exact, solve_exactly
from edgeflow_mpi.partition.lp import lp, scaled_breakpoints, solve_layer
from edgeflow_mpi.partition.one_shot import one_shot, solve_once
from edgeflow_mpi.partition.progressive import plan_progressively
from edgeflow_mpi.partition.timeline import LayerProblem, Timeline
from edgeflow_mpi.progress import ConsoleProgress, Progress
from edgeflow_mpi.report.files import require_writable, write_file
from edgeflow_mpi.report.model_graph import model_graph

METHODS = {
    "lp": "sequential linear programs (`lp`)",
    "once": "one linear program, absent messages kept out (`one-shot`)",
    "naive": "one linear program, absent messages ignored",
}
MODELS = ("vgg16", "resnet50", "inception_v3", "mobilenet_v2")
CLUSTER = """
devices:
  - {{name: board, gflops: 5, overhead_us: 50, count: {devices}}}
links:
  default: {{bandwidth_mbps: 93.7, latency_ms: 0.2}}
"""
OPTIMAL = 1e-9
"""A gap below this is none."""

INTRODUCTION = """\
# The linear programs beside the exact optimum

EdgeFlow divides one layer at a time: its breakpoints are to minimise the largest finish time,
with the layers before it fixed. The paper approximates this integer program by a linear one.
Bisection solves it exactly (`edgeflow_mpi/partition/exact.py` has the proof), so that our
reading of the approximation can be measured. The gap is the largest finish time over the least
possible, minus one.

Made by `{command}`.

## {count:,} random layer problems

Layers of 7 to 112 rows with up to three producers, on 2 to 8 devices of unlike speeds and links
(`bench/layer_problems.py`).
"""
REAL_MODELS = """\
## Layers of real models

{devices} devices of 5 GFLOP/s with 50 µs for each unit, links of 93.7 Mbit/s and 0.2 ms, the
image as 8-bit pixels. The problems are those that the exact planner meets on its way through
the model, all devices at work.
"""
WHOLE_PLANS = """\
### Whole plans

Predicted speed-up over one device, all devices at work. The optimum of every layer does not make
the best plan: each layer takes what the one before it left, and rows wander. On equal devices an
even split often does better.
"""

Solutions = Mapping[str, Sequence[int]]
Gaps = Mapping[str, list[float]]


@dataclass(frozen=True)
class ModelResult:
    """Gaps of every layer problem of one model, and what whole plans are predicted to take.

    Problems are those that an exact planner meets. ``predicted_ms`` is of plans over all
    devices, ``single_ms`` of one device.
    """

    model: str
    devices: int
    gaps: Gaps
    predicted_ms: Mapping[str, float]
    single_ms: float


@dataclass(frozen=True)
class Result:
    """All that was found. ``seconds`` is what each method took for all random problems."""

    seed: int
    random: Gaps
    seconds: Mapping[str, float]
    models: tuple[ModelResult, ...]


def solve(
    problem: LayerProblem, shares: Sequence[int], scaled: Iterable[Sequence[int]]
) -> tuple[dict[str, float], dict[str, float]]:
    """Gaps of all methods on one problem; processor seconds of each, ``exact`` included."""
    ways: dict[str, Callable[[], Any]] = {
        "exact": lambda: solve_exactly(problem),
        "lp": lambda: solve_layer(problem, [shares, *scaled]),
        "once": lambda: solve_once(problem, shares),
        "naive": lambda: solve_once(problem, shares, keep_out=False),
    }
    latest_s, seconds = {}, {}
    for name, way in ways.items():
        begun_s = time.process_time()  # what else the machine does is not counted
        found = way()
        seconds[name] = time.process_time() - begun_s
        latest_s[name] = float(problem.score(found)[0])
    gaps = {name: latest_s[name] / latest_s["exact"] - 1.0 for name in METHODS}
    return gaps, seconds


def random_gaps(problems: int, seed: int, progress: Progress) -> tuple[Gaps, dict[str, float]]:
    """Gaps on random problems, and total seconds of each method."""
    rng = np.random.default_rng(seed)
    solve_exactly(random_problem(rng).problem)  # compiled now, not while it is timed
    gaps: dict[str, list[float]] = {name: [] for name in METHODS}
    total_s = dict.fromkeys(("exact", *METHODS), 0.0)
    for number in range(problems):
        drawn = random_problem(rng)
        found, seconds = solve(drawn.problem, drawn.shares, drawn.scaled)
        for name, gap in found.items():
            gaps[name].append(gap)
        for name, spent_s in seconds.items():
            total_s[name] += spent_s
        progress.update(f"random problem {number + 1} of {problems}")
    return gaps, total_s


def model_result(name: str, devices: int, progress: Progress) -> ModelResult:
    """Gaps on the layers of a torchvision model over equal devices."""
    graph = model_graph(f"torchvision:{name}", None, progress=progress)
    needs = Needs(graph)
    cluster = parse_cluster(CLUSTER.format(devices=devices), "the bench's cluster")
    costs = cluster_profile(cluster, graph)
    gaps: dict[str, list[float]] = {method: [] for method in METHODS}

    def policy(timeline: Timeline, layer: Layer, ranks: Sequence[int]) -> Sequence[int]:
        problem = timeline.problem(layer, ranks)
        shares = speed_shares(timeline, layer, ranks)
        found, _ = solve(problem, shares, scaled_breakpoints(timeline, layer, ranks))
        for method, gap in found.items():
            gaps[method].append(gap)
        progress.update(f"{name}: {layer.name}")
        return tuple(int(x) for x in solve_exactly(problem))

    plan_progressively("exact", policy, graph, needs, costs, range(devices))
    plans = {
        policy.__name__.replace("_", "-"): policy(graph, needs, costs, range(devices))
        for policy in (exact, lp, one_shot, equal)
    }
    return ModelResult(
        name,
        devices,
        gaps,
        {name: _predicted_ms(graph, needs, costs, plan) for name, plan in plans.items()},
        _predicted_ms(graph, needs, costs, single(graph, needs, costs, [0])),
    )


def _predicted_ms(graph: Graph, needs: Needs, costs: Profile, plan: Any) -> float:
    return predict(graph, needs, costs, plan).makespan_s * 1e3


def page(result: Result, command: str, plot: str | None) -> str:
    """The result as Markdown."""
    count = len(result.random["lp"])
    lines = [INTRODUCTION.format(command=command, count=count), *_gap_table(result.random), ""]
    times = _times(result.seconds, count)
    lines.append(f"Mean processor time for one problem on this machine: {times}.")
    if plot is not None:
        lines += ["", f"![share of problems with a larger gap]({plot})"]
    if result.models:
        lines += ["", REAL_MODELS.format(devices=result.models[0].devices)]
        for model in result.models:
            lines += [f"### {model.model}, {len(model.gaps['lp'])} layers", ""]
            lines += [*_gap_table(model.gaps), ""]
        planners = list(result.models[0].predicted_ms)
        lines += [WHOLE_PLANS, "| model | " + " | ".join(planners) + " |"]
        lines.append("|---|" + "---:|" * len(planners))
        for model in result.models:
            speedups = [f"{model.single_ms / ms:.2f}" for ms in model.predicted_ms.values()]
            lines.append(f"| {model.model} | " + " | ".join(speedups) + " |")
    return "\n".join(lines) + "\n"


def _gap_table(gaps: Gaps) -> list[str]:
    head = "| method | optimal | mean gap | median | 90 % | 99 % | largest |"
    rows = [head, "|---|---:|---:|---:|---:|---:|---:|"]
    for name, words in METHODS.items():
        found = np.array(gaps[name])
        numbers = [found.mean(), *np.quantile(found, [0.5, 0.9, 0.99]), found.max()]
        cells = [f"{(found <= OPTIMAL).mean():.1%}", *(f"{number:.2%}" for number in numbers)]
        rows.append(f"| {words} | " + " | ".join(cells) + " |")
    return rows


def _times(seconds: Mapping[str, float], count: int) -> str:
    words = {"exact": "exact", "lp": "`lp`", "once": "one linear program"}
    return ", ".join(f"{word} {seconds[name] / count * 1e3:.2g} ms" for name, word in words.items())


def draw(result: Result, path: Path) -> None:
    """The share of random problems whose gap is larger, over the gap.

    Raises
    ------
    InputError
        matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            "--plot needs matplotlib: install it with pip install 'edgeflow-mpi[plots]', or leave "
            "the option out"
        ) from error
    colours = {"lp": "#0b7285", "once": "#e8590c", "naive": "#8b949e"}
    with rc_context({"svg.hashsalt": "edgeflow", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        axes = figure.add_subplot()
        for name, words in METHODS.items():
            shares = np.linspace(0.0, 1.0, 401)
            found = np.quantile(np.array(result.random[name]), shares)
            label = words.replace("`", "")
            axes.plot(100 * found, 100 * (1 - shares), label=label, color=colours[name])
        axes.set_xscale("symlog", linthresh=0.01)
        axes.set_xlim(left=0)
        axes.set_ylim(0, 100)
        axes.set_xlabel("gap to the exact optimum, %")
        axes.set_ylabel("problems with a larger gap, %")
        axes.grid(color="#e6e9ed")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        metadata = {"Date": None} if path.suffix == ".svg" else None
        kind = path.suffix.lstrip(".") or "svg"
        write_file(
            path, "the plot", lambda file: figure.savefig(file, format=kind, metadata=metadata)
        )


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    progress = ConsoleProgress()
    problems = options.problems or (300 if options.small else 10_000)
    models = MODELS if options.models is None else tuple(options.models)
    if options.small and options.models is None:
        models = ()
    try:
        for path, what in (
            (options.markdown, "page"),
            (options.json, "gaps"),
            (options.plot, "plot"),
        ):
            if path is not None:
                require_writable(path, f"the {what}")
        with progress.step(f"{problems} random layer problems"):
            gaps, seconds = random_gaps(problems, options.seed, progress)
        found = tuple(model_result(name, options.devices, progress) for name in models)
        result = Result(options.seed, gaps, seconds, found)
        if options.plot is not None:
            draw(result, options.plot)
        shown = None if options.plot is None else options.plot.name
        text = page(result, _command(arguments), shown)
        if options.markdown is not None:
            _write(options.markdown, "the page", text)
        if options.json is not None:
            _write(options.json, "the gaps", json.dumps(asdict(result)) + "\n")
    except EdgeflowError as error:
        print(f"lp_vs_exact: {error}", file=sys.stderr)
        return 1
    print(text, end="")
    return 0


def _write(path: Path, what: str, text: str) -> None:
    write_file(path, what, lambda file: file.write(text.encode()))


def _command(arguments: Sequence[str] | None) -> str:
    given = sys.argv[1:] if arguments is None else list(arguments)
    return " ".join(["python -m bench.lp_vs_exact", *given])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.lp_vs_exact",
        description="Gaps of the layer problem's linear programs to its exact optimum.",
    )
    add = parser.add_argument
    add("--problems", type=int, help="random problems (default: 10000, or 300 with --small)")
    add("--seed", type=int, default=2022, help="of the random problems (default: %(default)s)")
    add("--models", nargs="*", help=f"torchvision's names (default: {' '.join(MODELS)})")
    add("--devices", type=int, default=8, help="for the models (default: %(default)s)")
    add("--small", action="store_true", help="few problems, no models unless named")
    add("--markdown", type=Path, help="write the page here")
    add("--plot", type=Path, help="draw the distribution of gaps here: .svg or .png")
    add("--json", type=Path, help="write every gap here")
    return parser


if __name__ == "__main__":
    sys.exit(main())
