"""The measured cases as a page of text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from bench.overlap.results import Case, Plan, Results

_WIDTH = 98
_HEAD = (
    "model", "plan", "under way", "held up", "late", "hidden", "all hidden", "by the rates",
    "measured", "blocking", "gain", "hidden, no thread", "measured, no thread",
)  # fmt: skip
TITLES = {
    "tcp-4": "Four ranks over TCP within one machine",
    "testbed-4": "Four emulated hosts, links of 93.7 Mbit/s",
    "testbed-8": "Eight emulated hosts, links of 93.7 Mbit/s",
}


_READING = """\
A message is *under way* from when its sender hands it over until its link has carried it at its
rate: what the sender handed over before, the latency, its bytes. A rank is *held up* while it has
nothing to run and would have something, had all arrived that was handed over by then. Waiting for a
sender that still computes does not count, and a wait counts once, however many messages end with
it. Both are summed over ranks:

    hidden = 1 - held up / under way

Messages of the model's input are left out of it, as nothing can be computed before them; they are
part of all latencies.

- **late**: of the time held up, what passed after the links should have delivered all: links slower
  than their rate, and ranks that noticed late. Where messages take tens of microseconds this is
  most of it, and the share says little.
- **all hidden**: the latency if messages took no time: units take what they took, in the same
  order, in a model of time. **by the rates**: the same with messages that take what their links
  say.
- **blocking**: measured, the same plan with a transport that completes every message before it goes
  on: after a unit the rank waits until MPI has done with its messages and their links have carried
  them. **gain**: what overlap saves of that. A receiver still computes while a message comes, so
  blocking hides something, too.
- **no thread**: without Open MPI's progress thread (`--progress-thread off`); all other columns are
  with it.
- *joint in one piece* is the plan of *joint* without its boundary rows first
  ([planning.md](planning.md)), where it has such.
"""


def line_of(case: Case, plan: Plan) -> str:
    """What was found of one plan, in a line."""
    inner = plan.inner
    thread = "with" if case.progress_thread else "without"
    return (
        f"{case.model}, {case.setting}, {plan.name}, {thread} the progress thread: "
        f"{100 * inner.hidden:.0f} % of {inner.transfer_s:.1f} ms hidden; latency "
        f"{plan.hidden_ms:.1f} ms with all hidden, {plan.measured_ms:.1f} measured, "
        f"{plan.without_ms:.1f} blocking"
    )


def page(results: Results, picture: str | None) -> str:
    """Markdown; ``picture`` is the name of one beside it."""
    lines = ["# What share of the messages is hidden behind computation", ""]
    lines += [*_intro(results), ""]
    if picture is not None:
        lines += [f"![Latency over what it would be with all messages hidden]({picture})", ""]
    lines += _READING.splitlines()
    lines.append("")
    for setting in dict.fromkeys(case.setting for case in _sorted(results)):
        cases = [case for case in _sorted(results) if case.setting == setting]
        lines += [f"## {TITLES.get(setting, setting)}", "", *_table(cases), ""]
    return "\n".join(lines)


def _sorted(results: Results) -> list[Case]:
    order = list(TITLES)
    known = {name: place for place, name in enumerate(order)}
    return sorted(results.cases, key=lambda c: (known.get(c.setting, len(order)), c.model))


def _intro(results: Results) -> Iterator[str]:
    facts = results.facts or {}
    yield from textwrap.wrap(
        "Made by `python -m bench.overlap`. Devices of 5 GFLOP/s are **emulated**: ranks of one "
        f"machine ({facts.get('processor', '?')}, {facts.get('cores', '?')} cores) that sleep "
        "for the rest of what a unit takes there. Messages, TCP and Open MPI are real; links of "
        "93.7 Mbit/s are token buckets. Times are medians over requests, in milliseconds; the "
        "requests of all plans, with overlap and without, took turns in one job. "
        "[bench/README.md](../bench/README.md) says how to repeat it.",
        _WIDTH,
    )


def _table(cases: Sequence[Case]) -> list[str]:
    rows: list[tuple[str, ...]] = [_HEAD]
    for case in cases:
        if not case.progress_thread:
            continue
        without = next((c for c in cases if c.model == case.model and not c.progress_thread), None)
        rows += [_row(case, plan, without) for plan in case.plans]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |"

    rule = ["-" * w if i < 2 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return [line(rows[0]), line(rule), *map(line, rows[1:])]


def _row(case: Case, plan: Plan, without: Case | None) -> tuple[str, ...]:
    inner = plan.inner
    other = next((p for p in without.plans if p.name == plan.name), None) if without else None
    return (
        case.model, plan.name, f"{inner.transfer_s:.1f}", f"{inner.exposed_s:.1f}",
        f"{inner.late_s:.1f}", f"{100 * inner.hidden:.0f} %", f"{plan.hidden_ms:.1f}",
        f"{plan.linked_ms:.1f}", f"{plan.measured_ms:.1f}", f"{plan.without_ms:.1f}",
        f"{plan.without_ms - plan.measured_ms:.1f}",
        f"{100 * other.inner.hidden:.0f} %" if other else "",
        f"{other.measured_ms:.1f}" if other else "",
    )  # fmt: skip
