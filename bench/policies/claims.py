"""What the measured cells show, and what they do not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import exp, log

import numpy as np

from bench.policies.grid import BANDWIDTH_MBPS, KINDS
from bench.policies.results import OURS, SINGLE, Cell, Outcome, Results

SPEEDUPS = {"vgg16": 6.8, "resnet50": 5.7, "inception_v3": 4.5, "mobilenet_v2": 2.3}
"""That ours is to reach on eight equal devices at 93.7 Mbit/s."""
MEDIAN_ERROR, P95_ERROR = 0.05, 0.12
NOISE = 0.02
"""Within which two latencies are the same, or within half their spread if that is more."""
_GAIN, _GAIN_LIGHT = 1.08, 2.0
_LIGHT = "mobilenet_v2"
_EIGHT = "equal-8"


@dataclass(frozen=True)
class Claim:
    """A sentence, and whether the cells that are there show it."""

    text: str
    holds: bool

    @property
    def line(self) -> str:
        return f"{'holds' if self.holds else 'DOES NOT HOLD'}: {self.text}"


def claims(results: Results) -> list[Claim]:
    """All that can be said of these cells."""
    cells = results.cells
    found = [_answers(cells), _errors(cells), *_comparisons(cells), *_speedups(cells)]
    return [claim for claim in [*found, *_gains(cells)] if claim is not None]


def measured(cells: Iterable[Cell]) -> list[tuple[Cell, Outcome]]:
    """Every plan that was measured, once."""
    return [(cell, o) for cell in cells for o in cell.outcomes if o.alike is None]


def errors_of(cells: Iterable[Cell]) -> list[float]:
    """By what share predictions were off, for every plan."""
    return [abs(outcome.excess) for _, outcome in measured(cells)]


def slower(cell: Cell, other: Outcome) -> bool:
    """Whether ours took longer than another plan, beyond noise."""
    ours = cell.of(OURS)
    if ours is None:
        return False
    noise = max(NOISE, ours.spread / 2, other.spread / 2)
    return ours.median_ms > other.median_ms * (1 + noise)


def geometric_mean(values: Sequence[float]) -> float:
    return exp(sum(map(log, values)) / len(values))


def _answers(cells: Sequence[Cell]) -> Claim:
    plans = measured(cells)
    wrong = [f"{cell.key} ({o.partitioner})" for cell, o in plans if not o.right]
    worst = max((o.error / o.allowed for _, o in plans), default=0.0)
    text = f"all {len(plans)} answers are those of the undivided model (at worst {worst:.2f} of"
    return Claim(f"{text} what is allowed){_but(wrong)}", not wrong)


def _errors(cells: Sequence[Cell]) -> Claim:
    errors = errors_of(cells)
    median, p95 = float(np.median(errors)), float(np.percentile(errors, 95))
    return Claim(
        f"predictions of {_count(errors, 'plan')} are off by {median:.1%} in the median (allowed: "
        f"{MEDIAN_ERROR:.0%}), {p95:.1%} in the 95th percentile (allowed: {P95_ERROR:.0%}) and "
        f"{max(errors):.1%} at worst",
        median <= MEDIAN_ERROR and p95 <= P95_ERROR,
    )


def _comparisons(cells: Sequence[Cell]) -> list[Claim]:
    pairs = [(c, o) for c in cells for o in c.outcomes if c.of(OURS) and o.partitioner != OURS]
    behind = [f"{c.key} ({o.partitioner})" for c, o in pairs if slower(c, o)]
    alone = [c.key for c, o in pairs if o.partitioner == SINGLE and slower(c, o)]
    compared = [c for c, o in pairs if o.partitioner == SINGLE]
    return [
        Claim(
            f"{OURS} is as fast as every other policy within noise, in "
            f"{_count(pairs, 'comparison')}{_but(behind)}",
            not behind,
        ),
        Claim(
            f"{OURS} is not slower than the best single device, in "
            f"{_count(compared, 'cell')}{_but(alone)}",
            not alone,
        ),
    ]


def _speedups(cells: Sequence[Cell]) -> list[Claim]:
    found = []
    for cell in cells:
        goal, speedup = SPEEDUPS.get(cell.model), cell.speedup(OURS)
        if (cell.kind, cell.bandwidth_mbps) == (_EIGHT, BANDWIDTH_MBPS) and goal and speedup:
            text = f"{cell.model} on 8 equal devices is {speedup:.2f} times as fast as on one"
            found.append(Claim(f"{text} (wanted: {goal})", speedup >= goal))
    return found


def _gains(cells: Sequence[Cell]) -> list[Claim | None]:
    here = [c for c in cells if c.bandwidth_mbps == BANDWIDTH_MBPS and c.kind in KINDS]
    gains = [gain for c in here if c.model != _LIGHT and (gain := c.gain("equal"))]
    light = [
        gain for c in here if (c.model, c.kind) == (_LIGHT, _EIGHT) and (gain := c.gain("equal"))
    ]
    heavy = None
    if gains:
        mean = geometric_mean(gains)
        heavy = Claim(
            f"over {_count(gains, 'cell')} without {_LIGHT} the even split takes {mean:.3f} times "
            f"as long as {OURS}, in the geometric mean (wanted: {_GAIN})",
            mean >= _GAIN,
        )
    lighter = None
    if light:
        lighter = Claim(
            f"{_LIGHT} on 8 equal devices: the even split takes {light[0]:.2f} times as long as "
            f"{OURS} (wanted: {_GAIN_LIGHT:g})",
            light[0] >= _GAIN_LIGHT,
        )
    return [heavy, lighter]


def _count(of: Sequence[object], what: str) -> str:
    return f"{len(of)} {what}{'s' * (len(of) != 1)}"


def _but(exceptions: Sequence[str]) -> str:
    return f", except {'; '.join(exceptions)}" if exceptions else ""
