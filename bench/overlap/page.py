"""The measured cases as a page of text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from bench.overlap.results import Case, Plan, Results

_WIDTH = 98
_HEAD = (
    "model", "plan", "under way", "held up", "late", "hidden", "behind units", "all hidden",
    "by the rates", "measured", "blocking", "gain", "units late",
)  # fmt: skip
_THREAD = ("hidden, thread", "measured, thread")
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
- **behind units**: the share of the time under way in which the rank ran a unit. What else is
  hidden passed while it waited for a sender that still computed. Waits that were late are held
  against what is hidden, not against this.
- **all hidden**: the latency if messages took no time: units take what they took, in the same
  order, in a model of time. **by the rates**: the same with messages that take what their links
  say.
- **blocking**: measured, the same plan with a transport that completes every message before it goes
  on: after a unit the rank waits until MPI has done with its messages and their links have carried
  them. **gain**: what overlap saves of that. A receiver still computes while a message comes, so
  blocking hides something, too.
- **units late**: by what share of their time units ended late, as the machine was too busy to be
  all the devices. Beyond a few percent all latencies are upper bounds.
- *joint in one piece* is the plan of *joint* without its boundary rows first
  ([planning.md](planning.md)), where it has such.
"""

_THREAD_TOLD = """\
- **thread**: with Open MPI's progress thread (`--progress-thread on`). All other columns are
  without it, as jobs on emulated devices run: while such a rank sleeps, the kernel wakes it for
  whatever arrives.
"""


def line_of(case: Case, plan: Plan) -> str:
    """What was found of one plan, in a line."""
    inner = plan.inner
    thread = "with" if case.progress_thread else "without"
    return (
        f"{case.model}, {case.setting}, {plan.name}, {thread} the progress thread: "
        f"{100 * inner.hidden:.0f} % of {1e3 * inner.transfer_s:.1f} ms hidden; latency "
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
    if len(usual(results)) < len(results.cases):
        lines += _THREAD_TOLD.splitlines()
    lines += ["", *_shown(results), ""]
    for setting in dict.fromkeys(case.setting for case in usual(results)):
        lines += [f"## {TITLES.get(setting, setting)}", "", *_table(results, setting), ""]
    return "\n".join(lines)


def _shown(results: Results) -> Iterator[str]:
    """What emulated hosts show, from the lowest to the highest."""
    found: dict[str, list[Plan]] = {}
    for case in usual(results):
        if case.setting.startswith("testbed"):
            for plan in case.plans:
                found.setdefault(plan.name, []).append(plan)
    for name, plans in found.items():
        apart = sum(min(plan.blocking_ms) > max(plan.latency_ms) for plan in plans)
        text = (
            f"- *{name}* on emulated hosts: {_range([p.inner.hidden for p in plans])} hidden; "
            f"{_range([p.measured_ms / p.linked_ms - 1 for p in plans])} over the latency by the "
            f"rates, which takes overlap for granted; blocking takes "
            f"{_range([p.without_ms / p.measured_ms - 1 for p in plans])} longer than overlap, and "
            f"in {apart} of {len(plans)} cases every request of it took longer than any with "
            "overlap."
        )
        yield from textwrap.wrap(text, _WIDTH, subsequent_indent="  ")


def _range(shares: Sequence[float]) -> str:
    low, high = round(100 * min(shares)), round(100 * max(shares))
    return f"{low} %" if low == high else f"{low} to {high} %"


def usual(results: Results) -> list[Case]:
    """A case for each setting and model, as jobs run there if that was measured; in order."""
    found: dict[tuple[str, str], Case] = {}
    for case in sorted(results.cases, key=lambda c: c.progress_thread, reverse=True):
        found[case.setting, case.model] = case
    order = list(TITLES)
    known = {name: place for place, name in enumerate(order)}
    return sorted(found.values(), key=lambda c: (known.get(c.setting, len(order)), c.model))


def _intro(results: Results) -> Iterator[str]:
    facts = results.facts or {}
    yield from textwrap.wrap(
        "Made by `python -m bench.overlap`. Devices of 5 GFLOP/s are **emulated**: ranks of one "
        f"machine ({facts.get('processor', '?')}, {facts.get('cores', '?')} cores) that sleep "
        "for the rest of what a unit takes there. Messages, TCP and Open MPI are real; links of "
        "emulated hosts are those of [launch/testbed](testbed.md), with the rates and latencies of "
        "the cluster file. Times are medians over requests, in milliseconds; the "
        "requests of all plans, with overlap and without, took turns in one job. "
        "[bench/README.md](../bench/README.md) says how to repeat it. "
        + str(facts.get("note", "")),
        _WIDTH,
    )


def _table(results: Results, setting: str) -> list[str]:
    cases = [case for case in usual(results) if case.setting == setting]
    rest = [c for c in results.cases if c.setting == setting and c not in cases]
    threaded = {case.model: case for case in rest}
    rows: list[tuple[str, ...]] = [_HEAD + (_THREAD if threaded else ())]
    for case in cases:
        other = threaded.get(case.model)
        rows += [
            (case.model, *_row(plan), *(_compared(plan, other) if threaded else ()))
            for plan in case.plans
        ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |"

    rule = ["-" * w if i < 2 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return [line(rows[0]), line(rule), *map(line, rows[1:])]


def _row(plan: Plan) -> tuple[str, ...]:
    inner = plan.inner
    return (
        plan.name, f"{1e3 * inner.transfer_s:.1f}", f"{1e3 * inner.exposed_s:.1f}",
        f"{1e3 * inner.late_s:.1f}",
        f"{100 * inner.hidden:.0f} %", f"{100 * inner.computed:.0f} %",
        f"{plan.hidden_ms:.1f}", f"{plan.linked_ms:.1f}",
        f"{plan.measured_ms:.1f}", f"{plan.without_ms:.1f}",
        f"{plan.without_ms - plan.measured_ms:.1f}", f"{100 * plan.late:.0f} %",
    )  # fmt: skip


def _compared(plan: Plan, other: Case | None) -> tuple[str, str]:
    """The same plan with the progress thread, where that was measured."""
    same = next((p for p in other.plans if p.name == plan.name), None) if other else None
    if same is None:
        return "", ""
    return f"{100 * same.inner.hidden:.0f} %", f"{same.measured_ms:.1f}"
