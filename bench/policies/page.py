"""The measured cells as a page of text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from bench.policies.claims import claims, measured
from bench.policies.grid import LATENCY_MS, MODELS, PARTITIONERS, clusters, places
from bench.policies.results import OURS, Cell, Outcome, Results

_WIDTH = 96
_CAPTIONS = {
    "speedup": "Speed-up over one device",
    "bandwidth": "Latency against bandwidth",
    "devices": "What the devices do",
    "predicted": "Predicted and measured latency",
}


def page(results: Results, command: str, plots: Sequence[str], notes: str = "") -> str:
    """Markdown; ``plots`` are the names of pictures beside it, ``notes`` what a person says."""
    cells = sorted(results.cells, key=lambda c: (c.kind, c.bandwidth_mbps, c.model))
    lines = ["# Every partitioner on emulated clusters, measured", "", *_intro(cells, command), ""]
    lines += ["## What holds, and what does not", ""]
    for claim in claims(results):
        mark = "" if claim.holds else "**does not hold:** "
        text = f"- {mark}{claim.text}."
        lines += textwrap.wrap(text, _WIDTH, subsequent_indent="  ")
    if notes:
        lines += ["", notes.strip()]
    for name in plots:
        kind = next((kind for kind in _CAPTIONS if kind in name), "")
        lines += ["", f"![{_CAPTIONS.get(kind, 'Results')}, emulated]({name})"]
    lines += ["", "## Latency, measured", "", *_latencies(cells)]
    lines += ["", "## Predicted and measured", "", *_predictions(cells), ""]
    return "\n".join(lines)


def _intro(cells: Sequence[Cell], command: str) -> Iterator[str]:
    first = cells[0].facts
    grid = len(places(MODELS, clusters()))
    text = (
        f"Made by `{command}`: {len(cells)} of the {grid} cells of the whole grid. All "
        "devices and links are **emulated**: ranks of one machine "
        f"({first['processor']}, {first['cores']} cores) in network namespaces, with links limited "
        "to the rates in the table, and ranks slowed down to the speeds there. A message takes "
        f"{LATENCY_MS:g} ms beside what its bytes take, until its rank takes note of it. Units "
        "take what kernels take on this machine, times one factor for each device. They compute "
        "in the first request; timed requests repeat it. In the column *slowdown* is how many "
        "times slower than the cluster the testbed was, so that what the machine itself takes "
        "counts less; all times and rates are the cluster's. Times are medians in milliseconds, "
        "of requests of all plans in turn in one job. [bench/README.md](../bench/README.md) says "
        "more."
    )
    yield from textwrap.wrap(text, _WIDTH)


def _latencies(cells: Sequence[Cell]) -> list[str]:
    names = [n for n in PARTITIONERS if any(cell.of(n) for cell in cells)]
    rows = []
    for cell in cells:
        best = cell.best_other
        ours = cell.of(OURS)
        gain = f"{best.median_ms / ours.median_ms:.2f}" if best and ours else "–"
        times = [_time(cell, cell.of(name)) for name in names]
        speedup = cell.speedup(OURS)
        rows.append((*_where(cell), *times, f"{speedup:.2f}" if speedup else "–", gain))
    head = ("model", "devices", "Mbit/s", *names, "speed-up", "best other / ours")
    after = (
        f"*speed-up*: of {OURS} over the best single device. *best other / ours*: how many times "
        f"as long as {OURS} the fastest other policy took, the single device included. Bold: the "
        "fastest. ≡: the very same plan as another partitioner's, measured once."
    )
    return [*_table(head, rows, left=2), "", *textwrap.wrap(after, _WIDTH)]


def _time(cell: Cell, outcome: Outcome | None) -> str:
    if outcome is None:
        return "–"
    text = f"{outcome.median_ms:.0f}"
    if outcome.median_ms == min(o.median_ms for o in cell.outcomes):
        text = f"**{text}**"
    return f"{text} ≡" if outcome.alike else text


def _predictions(cells: Sequence[Cell]) -> list[str]:
    rows = [
        (
            *_where(cell), o.partitioner, str(cell.slowdown), f"{o.predicted_ms:.1f}",
            f"{o.median_ms:.1f}",
            f"{o.excess:+.1%}", f"{o.spread:.1%}", f"{o.on_time:.0%}", f"{o.late:.1%}",
        )
        for cell, o in measured(cells)
    ]  # fmt: skip
    head = (
        "model", "devices", "Mbit/s", "partitioner", "slowdown", "predicted", "measured", "off by",
        "spread", "units on time", "late",
    )  # fmt: skip
    after = (
        "*spread*: from the 10th to the 90th percentile. *units on time*: ended late by at most "
        "3 % of their time. *late*: by what share of their time units ended late. The machine, not "
        "the plan, makes units late."
    )
    return [*_table(head, rows, left=2), "", *textwrap.wrap(after, _WIDTH)]


def _where(cell: Cell) -> tuple[str, str, str]:
    speeds = " ".join(
        f"{cell.gflops.count(speed)}×{speed:g}" for speed in dict.fromkeys(cell.gflops)
    )
    return cell.model, speeds, f"{cell.bandwidth_mbps:g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> list[str]:
    widths = [max(3, *(len(row[i]) for row in (head, *rows))) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |"

    rule = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return [line(head), line(rule), *map(line, rows)]
