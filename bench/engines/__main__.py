"""Measure ours beside the engines: ``python -m bench.engines``."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from bench.engines.contenders import (
    ENGINES,
    OURS,
    SYSTEMS,
    Contender,
    Place,
    installed,
    parse_contender,
)
from bench.engines.page import page
from bench.engines.results import Entry, entry, read, write
from bench.engines.rounds import Effort, measure
from bench.latency import machine
from bench.mpirun import ROOT
from bench.notes import read_notes
from edgeflow_mpi.ending import end_as_on_interrupt
from edgeflow_mpi.errors import EdgeflowError, InputError
from edgeflow_mpi.progress import ConsoleProgress, Progress
from edgeflow_mpi.report.files import require_writable, write_file

MODELS = ("resnet50", "inception_v3", "vgg16", "mobilenet_v2", "googlenet")
DEFAULT = tuple(system for system in SYSTEMS if system != "torch-compile")
WORK = ROOT / "build" / "engines"
DOCS = ROOT / "docs"
_QUICK_MODEL, _QUICK_SHAPE = "resnet18", "1,3,64,64"


@dataclass(frozen=True)
class Bench:
    """What to measure, with what, and where it goes."""

    models: tuple[str, ...]
    contenders: tuple[Contender, ...]
    effort: Effort
    shape: str | None
    work: Path
    out: Path
    options: tuple[str, ...]
    again: bool
    notes: str = ""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see python -m bench.engines --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what has not been measured, and write the page; the exit status."""
    progress = ConsoleProgress()
    try:
        bench = _bench(_parser().parse_args(argv))
        results = bench.out / "engines.json"
        for path in (results, bench.out / "engines.md", bench.out / "engines.png"):
            require_writable(path, "the result")
        models = read(results)
        for model in bench.models:
            if model in models and not bench.again:
                progress.say(f"{model}: measured already (--again measures once more)")
                continue
            models[model] = _measure(bench, model, progress)
            write(results, _ordered(models))
            _present(bench, _ordered(models), progress)
        if not models:
            raise InputError("there is nothing to show")
    except EdgeflowError as error:
        print(f"bench.engines: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except SystemExit as done_early:  # --help, printed by argparse
        return int(done_early.code or 0)
    except KeyboardInterrupt:
        return 130
    _present(bench, _ordered(models), progress)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m bench.engines",
        description="Latency of ours beside inference engines, on the cores of this machine.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--models", nargs="+", metavar="MODEL",
        help=f"torchvision's names, or what --model of the job takes (default: {' '.join(MODELS)})",
    )  # fmt: skip
    parser.add_argument(
        "--contenders", nargs="+", metavar="NAME",
        help="who takes part, such as ncnn, or ncnn-2 for two cores alone: "
        f"{' '.join(SYSTEMS)} (default: all but torch-compile, which takes minutes)",
    )  # fmt: skip
    parser.add_argument(
        "--repeats", type=_positive, metavar="N",
        help=f"timed requests of every contender (default: {Effort.repeat})",
    )  # fmt: skip
    parser.add_argument(
        "--job-options", default="", metavar="OPTIONS",
        help="for the jobs of ours, in one argument, such as '--partitioner equal'",
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true",
        help="a small model, few requests: to see that all this works",
    )  # fmt: skip
    parser.add_argument(
        "--again", action="store_true", help="also models that the results have already"
    )
    parser.add_argument(
        "--work", type=Path, default=WORK, metavar="DIR",
        help="engines, converted models, logs (default: build/engines)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=DOCS, metavar="DIR",
        help="where engines.json, engines.md and engines.png go (default: docs)",
    )  # fmt: skip
    parser.add_argument(
        "--notes", type=Path, metavar="FILE.md", help="what to say on the page below the ratios"
    )
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


_positive.__name__ = "number"  # argparse shows it in "invalid ... value"


def _bench(options: argparse.Namespace) -> Bench:
    quick = options.quick
    effort = Effort(4, 2, 1) if quick else Effort()
    if options.repeats is not None:
        effort = Effort(options.repeats, effort.burst, effort.warmup)
    contenders: list[Contender] = []
    for text in options.contenders or DEFAULT:
        try:
            contenders += parse_contender(text)
        except ValueError:
            raise InputError(
                f"there is no contender {text}: name some of {', '.join(SYSTEMS)}, alone or with "
                "a number of cores, as in ncnn-2"
            ) from None
    if len(os.sched_getaffinity(0)) < 2:
        contenders = [each for each in contenders if each.cores == 1]
    return Bench(
        tuple(options.models or ((_QUICK_MODEL,) if quick else MODELS)),
        tuple(dict.fromkeys(contenders)),
        effort,
        _QUICK_SHAPE if quick else None,
        options.work.absolute(),
        options.out.absolute(),
        tuple(shlex.split(options.job_options)),
        options.again,
        read_notes(options.notes),
    )


def _measure(bench: Bench, model: str, progress: Progress) -> Entry:
    """One model in every contender.

    Raises
    ------
    EdgeflowError
        If the model cannot be loaded, or ours cannot answer.
    """
    began_s, started = time.monotonic(), datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    progress.say(f"{model}:")
    before = machine()
    folder = bench.work / re.sub(r"[^\w.-]+", "-", f"{model} {bench.shape or ''}".strip())
    exported = _export(bench, model, folder)
    cores = tuple(sorted(os.sched_getaffinity(0)))
    place = Place(folder, bench.work, cores, bench.options)
    versions = installed(place.python)
    absent = {
        each.name: f"{each.name} ({ENGINES[each.system]} is not installed; "
        "bench/engines/setup.sh does that)"
        for each in bench.contenders
        if each.system in ENGINES and each.system not in versions
    }
    absent |= {
        each.name: f"{each.name} ({exported['missing'][each.system]})"
        for each in bench.contenders
        if each.system in exported["missing"] and each.name not in absent
    }
    for reason in absent.values():
        progress.say(f"  LEFT OUT: {reason}")
    there = [each for each in bench.contenders if each.name not in absent]
    outcome = measure(there, place, bench.effort, progress)
    for name, reason in outcome.left_out.items():
        if name.startswith(f"{OURS}-"):
            raise EdgeflowError(reason)
    facts = {
        "started": started,
        "tree": _tree(),
        "machine": before,
        "cores": list(cores[-2:]),
        "versions": exported["made_of"]["versions"],
        "input_shape": exported["input_shape"],
        "weights": exported["weights"],
        "options": " ".join(bench.options),
    }
    found = entry(outcome, facts)
    found["left_out"] |= absent
    progress.say(f"{model}: done in {time.monotonic() - began_s:.0f} s")
    return found


def _export(bench: Bench, model: str, folder: Path) -> Mapping[str, Any]:
    """The model in every format, made in a process that ends before anything is measured."""
    name = model if re.search(r"[:/]|\.pt2$", model) else f"torchvision:{model}"
    command = [sys.executable, "-m", "bench.engines.export", name, str(folder)]
    command += [str(bench.work / "venv"), *([bench.shape] if bench.shape else [])]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise EdgeflowError(f"{model} cannot be exported")
    facts: Mapping[str, Any] = json.loads((folder / "export.json").read_text())
    return facts


def _tree() -> str:
    """Which state of the source was measured."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip() or "unknown"


def _ordered(models: Mapping[str, Entry]) -> dict[str, Entry]:
    """Those of the usual list first, in its order."""
    names = [*(name for name in MODELS if name in models), *(n for n in models if n not in MODELS)]
    return {name: models[name] for name in names}


def _present(bench: Bench, models: Mapping[str, Entry], progress: Progress) -> None:
    picture = None
    if importlib.util.find_spec("matplotlib") is not None:
        from bench.engines.plot import draw

        picture = "engines.png"
        draw(models, bench.out / picture)
    else:
        progress.say("no plot: matplotlib is not installed")
    text = page(models, picture, bench.notes).encode()
    write_file(bench.out / "engines.md", "the page", lambda file: file.write(text))


if __name__ == "__main__":
    end_as_on_interrupt()  # ends the contenders as well
    sys.exit(main())
