"""Latency of one request under every partitioner, over 1 to 4 ranks of this machine.

``bench/latency``, ``python -m bench.latency`` and ``python bench/latency.py`` are the same
command. For every model and number of ranks it starts one mpirun job, in which all partitioners
and the single device with all cores take turns (:mod:`bench.latency_cell`).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from edgeflow_mpi.ending import end_as_on_interrupt
from edgeflow_mpi.errors import ClusterError, EdgeflowError, InputError
from edgeflow_mpi.progress import ConsoleProgress, Progress
from edgeflow_mpi.report.files import require_writable, write_file

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("resnet18", "resnet34", "resnet50", "resnet101", "googlenet", "inception_v3")
PARTITIONERS = ("lp", "equal", "proportional", "single")
BUSY = 0.25
"""Load, per core, from which the page warns: something else was running."""

# The job's Python and mpirun, and what mpirun must find in its environment.
_MPIRUN = 'root=$0; source "$root/launch/env.sh"; export EDGEFLOW_LOCAL=1; exec mpirun "$@"'

Run = Mapping[str, Any]
"""What ``--json`` of the job writes for one plan."""


@dataclass(frozen=True)
class Bench:
    """What to measure: every model on every number of ranks."""

    models: tuple[str, ...]
    ranks: tuple[int, ...]
    repeat: int
    warmup: int
    input_shape: str | None = None

    @property
    def cells(self) -> list[tuple[str, int]]:
        return [(model, ranks) for model in self.models for ranks in self.ranks]


SMALL = Bench(("resnet18",), (1, 2), repeat=3, warmup=1, input_shape="1,3,64,64")
FULL = Bench(MODELS, (1, 2, 3, 4), repeat=30, warmup=3)


@dataclass(frozen=True)
class Result:
    """What was measured, when and on what."""

    command: str
    bench: Bench
    machine: Mapping[str, Any]
    started: str
    runs: tuple[Run, ...] = ()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see bench/latency --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print the table; the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    progress = ConsoleProgress()
    try:
        options = _parser().parse_args(arguments)
        for path in (options.json, options.markdown):
            if path is not None:
                require_writable(path, "the result")
        bench = _bench(options)
        started = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        command = shlex.join(["bench/latency", *arguments])
        result = Result(command, bench, machine(), started)
        began_s = time.monotonic()
        for done, (model, ranks) in enumerate(bench.cells):
            found = measure(bench, model, ranks, progress)
            result = replace(result, runs=(*result.runs, *found))
            _save(result, options.json, options.markdown)
            left = _time_left(done + 1, len(bench.cells), time.monotonic() - began_s)
            progress.say(_headline(found) + left)
    except EdgeflowError as error:
        print(f"bench/latency: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except SystemExit as done_early:  # --help, printed by argparse
        return int(done_early.code or 0)
    except KeyboardInterrupt:
        return 130
    print(markdown(result))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="bench/latency",
        description="Measure the latency of one request under every partitioner, on ranks of this "
        "machine, beside the single device with all cores.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--models", nargs="+", metavar="MODEL",
        help=f"torchvision's names, or what --model of the job takes (default: {' '.join(MODELS)})",
    )  # fmt: skip
    parser.add_argument(
        "--ranks",
        nargs="+",
        type=_positive,
        metavar="N",
        help="numbers of ranks (default: 1 2 3 4)",
    )
    parser.add_argument(
        "--repeat", type=_positive, metavar="N",
        help=f"timed requests of every plan (default: {FULL.repeat})",
    )  # fmt: skip
    parser.add_argument(
        "--warmup", type=_count, metavar="N", help=f"untimed ones before (default: {FULL.warmup})"
    )
    parser.add_argument(
        "--small", action="store_true",
        help="one small model at 64x64, 1 and 2 ranks, 3 requests: to see that all this works",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table")
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


for _type, _name in ((_count, "count"), (_positive, "number")):
    _type.__name__ = _name  # argparse shows it in "invalid ... value"


def _bench(options: argparse.Namespace) -> Bench:
    base = SMALL if options.small else FULL

    def chosen(value: Any, default: Any) -> Any:
        return default if value is None else value

    return Bench(
        tuple(chosen(options.models, base.models)),
        tuple(chosen(options.ranks, base.ranks)),
        chosen(options.repeat, base.repeat),
        chosen(options.warmup, base.warmup),
        base.input_shape,
    )


def measure(bench: Bench, model: str, ranks: int, progress: Progress) -> list[Run]:
    """One job: ``model`` on ``ranks`` ranks under all partitioners, in the order of their list.

    Raises
    ------
    ClusterError
        If the job fails, with its own sentence.
    """
    name = model if re.search(r"[:/]|\.pt2$", model) else f"torchvision:{model}"
    where = f"{model} on {_ranks(ranks)}"
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.json"
        command = ["bash", "-c", _MPIRUN, str(ROOT), "-n", str(ranks)]
        command += ["python", "-m", "bench.latency_job", str(results), ",".join(PARTITIONERS)]
        # A profile of its own: an old one may be of another state of the machine.
        command += ["--model", name, "--remeasure"]
        command += ["--repeat", str(bench.repeat), "--warmup", str(bench.warmup)]
        if bench.input_shape is not None:
            command += ["--input-shape", bench.input_shape]
        said = _follow(command, where, progress)
        if not results.is_file():
            sentences = [line for line in said if line.startswith("edgeflow")]
            raise ClusterError(f"{where}: {_last(sentences) or _last(said) or 'the job failed'}")
        found: list[Run] = json.loads(results.read_text())
    return found


def _follow(command: Sequence[str], where: str, progress: Progress) -> list[str]:
    """Run a command to its end and pass on what it says; its last lines."""
    said: list[str] = []
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as job:
        assert job.stdout is not None
        try:
            for line in job.stdout:
                said = [*said[-100:], line.strip()]
                progress.update(f"{where}: {line.strip(' …' + chr(10))}")
        except BaseException:
            job.terminate()  # mpirun ends its ranks
            raise
    return [line for line in said if line]


def _last(lines: Sequence[str]) -> str:
    return re.sub(r"^edgeflow\w*: ", "", lines[-1]) if lines else ""


def machine() -> dict[str, Any]:
    """What the numbers depend on, and how busy it is."""
    from edgeflow_mpi.cluster.devices import cpu_model, host_memory_bytes

    return {
        "processor": cpu_model(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_bytes": host_memory_bytes(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def _save(result: Result, json_path: Path | None, markdown_path: Path | None) -> None:
    """Write what there is so far, so that an end before time loses little."""
    if json_path is not None:
        bench = result.bench
        text = json.dumps(
            {
                "command": result.command,
                "started": result.started,
                "machine": result.machine,
                "repeat": bench.repeat,
                "warmup": bench.warmup,
                "runs": result.runs,
            },
            indent=1,
            allow_nan=False,
        )
        write_file(json_path, "the result", lambda file: file.write(text.encode() + b"\n"))
    if markdown_path is not None:
        page = markdown(result).encode() + b"\n"
        write_file(markdown_path, "the result", lambda file: file.write(page))


def markdown(result: Result) -> str:
    """A page: what was measured on what, and a table with a line for every plan."""
    facts, versions = result.machine, result.runs[0]["versions"]
    made = (
        f"Made by `{result.command}` on {result.started}: {facts['processor']}, {facts['cores']} "
        f"cores, {facts['memory_bytes'] / 2**30:.0f} GiB, {facts['system']}, Python "
        f"{facts['python']}, torch {versions['torch']}, {versions['mpi']}; load average before: "
        f"{facts['load_before']}. Times are medians of {result.bench.repeat} requests in "
        "milliseconds. All lines of one model and number of ranks were measured in turn in one job."
    )
    if facts["load_before"] > facts["cores"] * BUSY:
        made += (
            " **The machine was busy.** The single device, with a thread on every core, suffers "
            "most from that, so the speed-ups are too high."
        )
    lines = ["# Latency on ranks of one machine", "", *textwrap.wrap(made, 96), ""]
    return "\n".join([*lines, *_table(result.runs)])


_HEAD = (
    "model", "ranks", "partitioner", "latency", "95th percentile", "single device", "speed-up",
    "predicted", "predicted / measured", "ranks used", "messages", "sent",
)  # fmt: skip
_LEFT = ("model", "partitioner")


def _table(runs: Sequence[Run]) -> list[str]:
    rows = [_HEAD, *(_row(run) for run in runs)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    rule = [
        "-" * w if h in _LEFT else "-" * (w - 1) + ":" for h, w in zip(_HEAD, widths, strict=True)
    ]
    lines = [
        [
            c.ljust(w) if h in _LEFT else c.rjust(w)
            for c, h, w in zip(row, _HEAD, widths, strict=True)
        ]
        for row in rows
    ]
    lines.insert(1, rule)
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _row(run: Run) -> tuple[str, ...]:
    latency, predicted = run["latency_ms"], run["predicted_ms"]
    return (
        run["model"].removeprefix("torchvision:"),
        str(run["ranks"]),
        run["partitioner"],
        f"{latency['median']:.1f}",
        f"{latency['p95']:.1f}",
        f"{run['single_device_ms']['median']:.1f}",
        f"{run['speedup']:.2f}",
        f"{predicted:.1f}",
        f"{predicted / latency['median']:.2f}",
        str(len(run["used_ranks"])),
        str(run["messages"]),
        f"{run['bytes_sent'] / 1e6:.2f} MB",
    )


def _headline(runs: Sequence[Run]) -> str:
    """One line about a cell."""
    parts = [f"{r['partitioner']} {r['latency_ms']['median']:.1f}" for r in runs]
    model, ranks = runs[0]["model"].removeprefix("torchvision:"), _ranks(runs[0]["ranks"])
    single = runs[0]["single_device_ms"]["median"]
    return (
        f"{model} on {ranks}: {', '.join(parts)} ms; single device with all cores {single:.1f} ms"
    )


def _ranks(count: int) -> str:
    return f"{count} rank{'s' * (count != 1)}"


def _time_left(done: int, total: int, spent_s: float) -> str:
    if done == total:
        return f" ({done} of {total} done in {_minutes(spent_s)})"
    return f" ({done} of {total} done, about {_minutes(spent_s / done * (total - done))} left)"


def _minutes(seconds: float) -> str:
    return f"{math.ceil(seconds)} s" if seconds < 100 else f"{math.ceil(seconds / 60)} min"


if __name__ == "__main__":
    end_as_on_interrupt()  # ends the job under way as well
    sys.exit(main())
