"""The measured cells as pictures; every one says that they are emulated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bench.policies.claims import errors_of, measured
from bench.policies.grid import BANDWIDTH_MBPS, PARTITIONERS
from bench.policies.results import OURS, SINGLE, Cell, Results
from edgeflow_mpi.report.files import write_file

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _FAINT, _GRID = "#22272e", "#8b949e", "#e6e9ed"
_COLOURS = {
    "joint": "#0b7285", "equal": "#e8590c", "lp": "#2b8a3e", "single": "#868e96",
    "proportional": "#f59f00", "exact": "#c2255c", "fused": "#a61e4d", "aofl": "#7048e8",
    "layers": "#1c7ed6", "gather": "#5c940d",
}  # fmt: skip
_CURVES = ("joint", "equal", "lp")


class _Published(NamedTuple):
    """A speed-up from a paper: other devices, other software, for orientation."""

    label: str
    model: str | None
    devices: int
    speedup: float
    marker: str


_PUBLISHED = (
    _Published("AOFL, 8 Raspberry Pi 3B+, 93.7 Mbit/s", "vgg16", 8, 3.7, "*"),
    _Published("AOFL, 8 Raspberry Pi 3B+, 93.7 Mbit/s", "resnet50", 8, 2.3, "*"),
    _Published("PICO, 8 Raspberry Pi 4, 50 Mbit/s (ResNet-34, throughput)", None, 8, 5.0, "x"),
    _Published("DeepThings, 6 Raspberry Pi 3 (part of YOLOv2)", None, 6, 3.5, "+"),
)


def draw_all(results: Results, folder: Path) -> tuple[str, ...]:
    """Write every picture for which there are cells into ``folder``; their names.

    Raises
    ------
    InputError
        Where a file cannot be written.
    """
    cells = results.cells
    made = {
        "policies-speedup.png": speedups(cells),
        "policies-bandwidth.png": bandwidths(cells),
        "policies-devices.png": devices(cells),
        "policies-predicted.png": predictions(cells),
    }
    names = []
    for name, figure in made.items():
        if figure is not None:
            write_file(folder / name, "the plot", lambda f, fig=figure: fig.savefig(f, dpi=130))  # type: ignore[misc]
            names.append(name)
    return tuple(names)


def speedups(cells: Sequence[Cell]) -> Figure | None:
    """Speed-up over one device against the number of equal devices, a panel a model."""
    equal = [c for c in cells if c.kind.startswith("equal-") and c.bandwidth_mbps == BANDWIDTH_MBPS]
    models = _models(equal)
    if not models:
        return None
    figure, panels = _panels(len(models), "Speed-up over one device of 5 GFLOP/s, 93.7 Mbit/s")
    for axes, model in zip(panels, models, strict=True):
        mine = sorted((c for c in equal if c.model == model), key=lambda c: len(c.gflops))
        most = max(len(c.gflops) for c in mine)
        axes.plot([1, most], [1, most], color=_FAINT, linewidth=0.9, linestyle=":", label="ideal")
        for name in _CURVES:
            points = [(len(c.gflops), s) for c in mine if (s := c.speedup(name))]
            _curve(axes, [(1, 1.0), *points], name)
        for published in _PUBLISHED:
            if published.model in (model, None) and published.devices <= most:
                own = published.model == model
                axes.plot(
                    published.devices, published.speedup, marker=published.marker, linestyle="",
                    color=_INK if own else _FAINT, markersize=10 if own else 7,
                    label=published.label,
                )  # fmt: skip
        axes.set_xlabel("devices", color=_INK)
        axes.set_title(model, loc="left", size=10, color=_INK)
        axes.set_ylim(bottom=0)
    _legend(figure, panels)
    return figure


def bandwidths(cells: Sequence[Cell]) -> Figure | None:
    """Latency on the largest equal cluster against the bandwidth of its links."""
    from matplotlib.ticker import LogLocator

    rates = {c.bandwidth_mbps for c in cells}
    largest = max((c.kind for c in cells if c.kind.startswith("equal-")), default=None)
    here = [c for c in cells if c.kind == largest]
    models = _models(here)
    if len(rates) < 2 or not models:
        return None
    count = len(here[0].gflops)
    figure, panels = _panels(len(models), f"Latency on {count} equal devices, ms")
    for axes, model in zip(panels, models, strict=True):
        mine = sorted((c for c in here if c.model == model), key=lambda c: c.bandwidth_mbps)
        for name in (*_CURVES, SINGLE):
            _curve(axes, [(c.bandwidth_mbps, o.median_ms) for c in mine if (o := c.of(name))], name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        # The usual ticks are powers of ten, of which there is hardly one within so little.
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        ticks = [c.bandwidth_mbps for c in mine]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("Mbit/s", color=_INK)
        axes.set_title(model, loc="left", size=10, color=_INK)
    _legend(figure, panels)
    return figure


def devices(cells: Sequence[Cell]) -> Figure | None:
    """What every device does during a request under ours, and how busy its link is."""
    here = [c for c in cells if c.bandwidth_mbps == BANDWIDTH_MBPS and c.of(OURS)]
    most = max((len(c.gflops) for c in here), default=0)
    here = [c for c in here if len(c.gflops) == most]
    if not here:
        return None
    title = f"What {most} devices do during a request ({OURS}), ms"
    figure, panels = _panels(len(here), title)
    for axes, cell in zip(panels, here, strict=True):
        outcome = cell.of(OURS)
        assert outcome is not None
        places = range(len(outcome.devices))
        compute = [d.compute_ms for d in outcome.devices]
        axes.barh(places, compute, color=_COLOURS[OURS], label="compute")
        axes.barh(
            places, [d.wait_ms for d in outcome.devices], left=compute, color="#ced4da",
            label="wait for messages",
        )  # fmt: skip
        axes.plot(
            [d.send_ms for d in outcome.devices], places, marker="|", markersize=11, linestyle="",
            color="#e8590c", markeredgewidth=2, label="transfer: its link is busy so long",
        )  # fmt: skip
        axes.axvline(outcome.median_ms, color=_INK, linewidth=0.9, linestyle=":", label="latency")
        axes.set_yticks(
            list(places), [f"d{i}, {d.gflops:g}" for i, d in enumerate(outcome.devices)]
        )
        axes.invert_yaxis()
        axes.set_title(f"{cell.model}, {cell.kind}", loc="left", size=9, color=_INK)
    _legend(figure, panels)
    return figure


def predictions(cells: Sequence[Cell]) -> Figure:
    """Measured against predicted latency of every plan, with bands of 5 and 12 %."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 6.0), facecolor="white", layout="constrained")
    axes = figure.subplots()
    plans = measured(cells)
    times = [t for _, o in plans for t in (o.predicted_ms, o.median_ms)]
    ends = np.array([min(times) / 1.3, max(times) * 1.3])
    for share, colour in ((0.12, "#e7f5ff"), (0.05, "#a5d8ff")):
        axes.fill_between(
            ends, ends * (1 - share), ends * (1 + share), color=colour, linewidth=0,
            label=f"within {share:.0%}",
        )  # fmt: skip
    axes.plot(ends, ends, color=_FAINT, linewidth=0.8)
    for name in PARTITIONERS:
        points = [(o.predicted_ms, o.median_ms) for _, o in plans if o.partitioner == name]
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(
                x, y, marker="o", markersize=4, linestyle="", color=_COLOURS[name], label=name
            )
    errors = errors_of(cells)
    axes.set_title(
        f"Emulated: {len(errors)} plans, off by {np.median(errors):.1%} in the median, "
        f"{np.percentile(errors, 95):.1%} in the 95th percentile",
        loc="left", size=9.5, weight="bold", color=_INK,
    )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(*ends)
    axes.set_ylim(*ends)
    axes.set_xlabel("predicted, ms", color=_INK)
    axes.set_ylabel("measured on emulated devices, ms", color=_INK)
    _plain(axes)
    axes.legend(frameon=False, fontsize=8, ncols=2)
    return figure


def _models(cells: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.model for cell in cells))


def _panels(count: int, title: str) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    columns = min(count, 3)
    rows = -(-count // columns)
    figure = Figure(
        figsize=(max(4.1 * columns, 9.0), 3.1 * rows + 1.2), facecolor="white", layout="constrained"
    )
    figure.suptitle(f"Emulated: {title}", size=11, weight="bold", color=_INK)
    grid = figure.subplots(rows, columns, squeeze=False)
    panels = list(grid.flat)
    for axes in panels[count:]:
        axes.set_axis_off()
    for axes in panels[:count]:
        _plain(axes)
    return figure, panels[:count]


def _curve(axes: Axes, points: Sequence[tuple[float, float]], name: str) -> None:
    if points:
        x, y = zip(*points, strict=True)
        width = 2.2 if name == OURS else 1.3
        axes.plot(x, y, marker="o", markersize=4, color=_COLOURS[name], linewidth=width, label=name)


def _plain(axes: Axes) -> None:
    axes.grid(color=_GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8.5)


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    found: dict[str, Artist] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    figure.legend(
        list(found.values()), list(found), frameon=False, fontsize=8.5, ncols=2,
        loc="outside lower center",
    )  # fmt: skip
