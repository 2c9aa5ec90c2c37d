"""The page of the results: ratios first, with what they were hoped to be."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import count

import numpy as np

from bench.engines.contenders import APART, ENGINES, LABELS, OURS, SYSTEMS
from bench.engines.results import (
    TARGETS,
    Entry,
    at_best,
    best_engine,
    median_ms,
    ours,
    ratio,
    times_ms,
)

_APART = f"{APART}-2"
BUSY = 0.03
"""Share of the cores' time that others took, from which the page warns."""

_INTRODUCTION = """\
Ours, with one rank on one core and with two ranks of one thread on two cores, beside engines with
one and with two threads on the same cores. Same weights, same input (normalised, 32 bits), batch
1, fp32 everywhere. Every contender is a process of its own with the model loaded; they take turns
of a few requests, one at a time, while the others sleep. Requests beside which a core was slow do
not count, whoever's they are: cores of a virtual machine are at times threads of a single one. The
time is from the input as an array to the answer as an array; for ours, on rank 0. Ranks pass
messages; threads share memory. Weights are random and calibrated, so the answers mean nothing, but
they depend on every row. `bench/README.md` tells how to make this page again.
"""


def page(models: Mapping[str, Entry], picture: str | None, notes: str = "") -> str:
    """The page in Markdown; ``picture`` is the name of the plot beside it, ``notes`` what a person
    says of it, below the ratios.
    """
    lines = ["# Beside the inference engines of one machine", "", _INTRODUCTION]
    if picture is not None:
        lines += [f"![Latency beside the best engine, model by model]({picture})", ""]
    lines += ["## Ratios", "", *_ratios(models), ""]
    if notes:
        lines += [notes.strip(), ""]
    for cores, words in ((1, "one core"), (2, "two cores")):
        lines += [f"## Median latency in milliseconds, {words}", "", *_medians(models, cores), ""]
    lines += ["## Spread", "", *_spread(models), ""]
    lines += ["## What a request of ours is made of", "", *_parts(models), ""]
    lines += ["## Errors", "", *_errors(models), ""]
    lines += ["## Made on", "", *_made(models)]
    return "\n".join(lines) + "\n"


def _ratios(models: Mapping[str, Entry]) -> list[str]:
    head = ("model", "comparison", "ratio", "quartiles", "at best", "aim", "reached")
    rows: list[tuple[str, ...]] = []
    for model, entry in models.items():
        aims = TARGETS.get(model, {})
        for cores, key in ((1, "one"), (2, "two")):
            best = best_engine(entry, cores)
            found = ratio(entry, ours(cores), best)
            if found is not None and best is not None:
                what = f"{_who(ours(cores))} / {_who(best)}"
                least = at_best(entry, ours(cores), [f"{system}-{cores}" for system in ENGINES])
                rows.append((model, what, *_verdict(found, least, aims.get(key), at_most=True)))
        found = ratio(entry, ours(1), ours(2))
        if found is not None:
            least = at_best(entry, ours(1), [ours(2)])
            verdict = _verdict(found, least, aims.get("gain"), at_most=False)
            rows.append((model, "our 1 rank / our 2 ranks (speed-up)", *verdict))
        found = ratio(entry, ours(1), _APART)
        if found is not None:
            value, low, high = (2 * part for part in found)
            least = at_best(entry, ours(1), [_APART])
            verdict = _verdict((value, low, high), least and 2 * least, None, at_most=False)
            rows.append((model, "2 × our 1 rank / either of 2 apart", *verdict))
    before = (
        "Medians over medians, of the fastest engine among ONNX Runtime, OpenVINO, ncnn and MNN; "
        "in the speed-up more is better, in the others less. Ranks that are *apart* are two jobs "
        "of one rank at the same time, each with a core and requests of its own: what both cores "
        "give where nothing is divided, no message is sent and nobody waits, a yardstick for the "
        "speed-up. Quartiles are of the same ratio turn by turn. At best: our fastest request "
        "over the fastest one of all engines, in the moments in which the machine was disturbed "
        "least."
    )
    return [*textwrap.wrap(before, 96), "", *_table(head, rows, left=2)]


def _verdict(
    found: tuple[float, float, float], least: float | None, aim: float | None, *, at_most: bool
) -> tuple[str, ...]:
    value, low, high = found
    shown = f"{value:.2f}", f"{low:.2f} – {high:.2f}", "" if least is None else f"{least:.2f}"
    if aim is None:
        return *shown, "", ""
    reached = value <= aim if at_most else value >= aim
    return *shown, f"{'≤' if at_most else '≥'} {aim:g}", "yes" if reached else "**no**"


def _medians(models: Mapping[str, Entry], cores: int) -> list[str]:
    names = [f"{system}-{cores}" for system in SYSTEMS]
    there = {name for entry in models.values() for name in entry["contenders"]} - {_APART}
    names = [name for name in names if name in there]
    rows = []
    for model, entry in models.items():
        best = best_engine(entry, cores)
        cells = [
            "–" if n not in entry["contenders"] else f"{median_ms(entry, n):.1f}" for n in names
        ]
        rows.append(
            (model, *(f"**{c}**" if n == best else c for n, c in zip(names, cells, strict=True)))
        )
    return [
        *_table(("model", *(LABELS[n.rpartition("-")[0]] for n in names)), rows, left=1),
        "",
        "Bold: the best engine.",
    ]


def _spread(models: Mapping[str, Entry]) -> list[str]:
    head = ("model", "contender", "fastest", "quartile", "median", "quartile", "slowest", "n")
    rows = []
    for model, entry in models.items():
        for name in entry["contenders"]:
            times = times_ms(entry, name)
            quantiles = np.percentile(times, (0, 25, 50, 75, 100))
            rows.append((model, _who(name), *(f"{q:.1f}" for q in quantiles), str(len(times))))
    return _table(head, rows, left=2)


def _parts(models: Mapping[str, Entry]) -> list[str]:
    head = ("model", "ranks", "rank", "units", "waiting", "rest", "latency", "predicted", "memory")
    rows = []
    for model, entry in models.items():
        for cores in (1, 2):
            line = entry["contenders"].get(ours(cores))
            if line is None:
                continue
            latency = float(np.mean(times_ms(entry, ours(cores))))
            parts = zip(
                line["compute_ms"], line.get("wait_ms", (0.0,)), line["peak_bytes"], strict=True
            )
            for rank, (compute, wait, peak) in enumerate(parts):
                first = rank == 0
                rows.append((
                    model if first else "", str(cores) if first else "", str(rank),
                    f"{compute:.1f}", f"{wait:.1f}",
                    f"{latency - compute - wait:.1f}" if first else "",
                    f"{latency:.1f}" if first else "",
                    f"{line['plan']['predicted_s'] * 1e3:.1f}" if first else "",
                    f"{peak / 1e6:.0f} MB",
                ))  # fmt: skip
    before = (
        "Milliseconds of one request, means. *Units*: what a rank spends in its units, messages "
        "handed to MPI included. *Waiting*: nothing is ready until a message comes. *Rest*: "
        "beginning a request and choosing the next unit."
    )
    return [*textwrap.wrap(before, 96), "", *_table(head, rows, left=1)]


def _errors(models: Mapping[str, Entry]) -> list[str]:
    there = [s for s in SYSTEMS if any(_error(e, s) is not None for e in models.values())]
    names = [s for s in there if s != APART]
    rows = []
    for model, entry in models.items():
        errors = [_error(entry, name) for name in names]
        rows.append((model, *("–" if e is None else f"{e:.1e}" for e in errors)))
    before = (
        "The largest error of the answer against plain torch in float64, relative to the largest "
        "value; the larger one of both numbers of cores."
    )
    return [
        *textwrap.wrap(before, 96),
        "",
        *_table(("model", *(LABELS[n] for n in names)), rows, left=1),
    ]


def _error(entry: Entry, system: str) -> float | None:
    there = [entry["contenders"].get(f"{system}-{cores}") for cores in (1, 2)]
    return max((line["error"] for line in there if line is not None), default=None)


def _made(models: Mapping[str, Entry]) -> list[str]:
    lines = []
    for model, entry in models.items():
        machine = entry["machine"]
        versions = ", ".join(f"{name} {text}" for name, text in entry["versions"].items())
        sentence = (
            f"- **{model}**, {'×'.join(map(str, entry['input_shape']))}: {entry['started']}, tree "
            f"{entry['tree']}; {machine['processor']}, {len(entry['cores'])} of its "
            f"{machine['cores']} cores, {machine['system']}; {versions}; {entry['weights']}. "
            f"Load before: {entry['load_before']}. Others had {entry['foreign_share']:.1%} of the "
            "cores' time."
        )
        if "bursts" in entry:
            counted, repeated, disturbed = (
                entry["bursts"][name] for name in ("counted", "repeated", "disturbed")
            )
            sentence += f" {counted} bursts, {repeated} more that did not count"
            sentence += f", {disturbed} that do beside a slow core." if disturbed else "."
        if entry["foreign_share"] > BUSY:
            sentence += " **The machine was busy.**"
        for reason in entry["left_out"].values():
            sentence += f" Left out: {reason}."
        lines += textwrap.wrap(sentence, 96, subsequent_indent="  ")
    return lines


def _who(name: str) -> str:
    system, _, cores = name.rpartition("-")
    what = ("rank" if system in (OURS, APART) else "thread") + ("s" if cores != "1" else "")
    return f"{LABELS[system]}, {cores} {what}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> list[str]:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    widths = [max(width, 3) for width in widths]
    rule = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    lines = [
        [cell.ljust(w) if i < left else cell.rjust(w) for i, cell, w in zip(count(), row, widths)]
        for row in (head, *rows)
    ]  # fmt: skip
    return [f"| {' | '.join(cells)} |" for cells in (lines[0], rule, *lines[1:])]
