"""A plan drawn: who computes and sends what when, and what more devices would bring.

Needs matplotlib, which is not a requirement of the package but of its extra ``plots``.
"""

from __future__ import annotations

import importlib.util
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeflow_mpi.errors import InputError
from edgeflow_mpi.partition.flow import transfer_bytes
from edgeflow_mpi.report.candidates import Candidate
from edgeflow_mpi.report.files import write_file
from edgeflow_mpi.report.planning import Comparison
from edgeflow_mpi.report.scaling import Scaling
from edgeflow_mpi.report.wording import ms, size, times

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")

_INK = "#22272e"
_FAINT = "#8b949e"
_GRID = "#e6e9ed"
_SEND = "#d9480f"
_SEA = "#0b7285"
_LINES = ("#0b7285", "#e8590c", "#7048e8", "#2b8a3e", "#c2255c")
_LANE = 0.62
_LEFT = 0.1
_MOST_NAMED = 32


def require_matplotlib(path: Path) -> None:
    """Find out before a long search whether a plot can be drawn to ``path``.

    Raises
    ------
    InputError
        matplotlib is not installed, or the file's name does not end in a known format.
    """
    if path.suffix.lower().lstrip(".") not in FORMATS:
        raise InputError(
            f"--plot {path}: the name must end in .{', .'.join(FORMATS[:-1])} or .{FORMATS[-1]}"
        )
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError(
            "--plot needs matplotlib: install it with pip install 'edgeflow-mpi[plots]', or leave "
            "the option out"
        )


def draw(comparison: Comparison, scaling: Scaling, words: str, path: Path) -> None:
    """Write one picture: the best plan's timeline, speed-ups by devices, all partitioners.

    Raises
    ------
    InputError
        The file cannot be written.
    """
    figure = picture(comparison, scaling, words)
    form = path.suffix.lower().lstrip(".")
    write_file(path, "the plot", lambda file: figure.savefig(file, format=form, dpi=160))


def picture(comparison: Comparison, scaling: Scaling, words: str) -> Figure:
    """The figure that :func:`draw` writes."""
    from matplotlib.figure import Figure

    lanes = len(comparison.task.names)
    timeline_in = min(max(0.42 * lanes, 2.2), 9.0)
    note = "\n".join(textwrap.wrap(words, 155, break_on_hyphens=False))
    note_in = 0.2 * (note.count("\n") + 1)
    height_in = timeline_in + 4.1 + note_in + 1.4
    figure = Figure(figsize=(13, height_in), facecolor="white")
    top = 1 - (0.62 + note_in + 0.62) / height_in
    middle = top - timeline_in / height_in
    figure.text(
        _LEFT, 1 - 0.22 / height_in, _heading(comparison), va="top", size=15, weight="bold",
        color=_INK,
    )  # fmt: skip
    figure.text(_LEFT, 1 - 0.6 / height_in, note, va="top", size=9.5, color=_INK, linespacing=1.35)
    upper = figure.add_axes((_LEFT, middle, 0.935 - _LEFT, top - middle))
    depth = figure.add_axes((0.945, middle, 0.010, top - middle))
    lower = middle - 1.2 / height_in
    left = figure.add_axes((_LEFT, 0.55 / height_in, 0.43, lower - 0.55 / height_in))
    right = figure.add_axes((0.645, 0.55 / height_in, 0.29, lower - 0.55 / height_in))
    draw_timeline(upper, depth, comparison, comparison.best)
    draw_scaling(left, scaling)
    draw_partitioners(right, comparison)
    return figure


def draw_timeline(axes: Axes, depth: Axes, comparison: Comparison, best: Candidate) -> None:
    """A lane for every device: boxes are units, slanted lines messages on their way."""
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection, PatchCollection
    from matplotlib.patches import Rectangle

    names = comparison.task.names
    layers = [layer for layer in best.graph.layers if layer.kind == "compute"]
    place = {layer.name: k / max(len(layers) - 1, 1) for k, layer in enumerate(layers)}
    colours = colormaps["viridis"]
    boxes, tints, again = [], [], []
    for (name, rank), interval in best.prediction.units.items():
        if name not in place:
            continue
        start, width = interval.start_s * 1e3, (interval.finish_s - interval.start_s) * 1e3
        boxes.append(Rectangle((start, rank - _LANE / 2), width, _LANE))
        tints.append(colours(0.08 + 0.84 * place[name]))
        spans = best.plan.layers[name]
        extra = 1 - spans.owned[rank].rows / spans.computed[rank].rows
        if extra > 0:
            again.append(Rectangle((start, rank - _LANE / 2), width, _LANE * extra))
    for rank in range(len(names)):
        axes.axhline(rank, color=_GRID, lw=5 if len(names) <= 16 else 1, zorder=0)
    axes.add_collection(
        PatchCollection(boxes, facecolors=tints, edgecolors="white", linewidths=0.25, zorder=2)
    )
    axes.add_collection(PatchCollection(again, facecolors="#ffffffb0", edgecolors="none", zorder=3))
    lines, weights = [], []
    for flow, interval in best.prediction.transfers.items():
        side = _LANE / 2 if flow.dest > flow.source else -_LANE / 2
        lines.append(
            [
                (interval.start_s * 1e3, flow.source + side),
                (interval.finish_s * 1e3, flow.dest - side),
            ]
        )
        weights.append(transfer_bytes(best.graph.by_name[flow.producer], flow.rows))
    heaviest = max(weights, default=1)
    axes.add_collection(
        LineCollection(
            lines,
            colors=_SEND,
            linewidths=[0.5 + 2.2 * (weight / heaviest) ** 0.5 for weight in weights],
            alpha=min(0.8, max(0.3, 60 / max(len(lines), 1))),
            zorder=4,
            capstyle="round",
        )
    )
    end_ms, bound_ms = best.predicted_s * 1e3, comparison.lower_bound_s * 1e3
    axes.set_xlim(0, end_ms * 1.005 if end_ms else 1)
    axes.set_ylim(len(names) - 0.45, -0.55)
    if 0 < bound_ms < end_ms:
        axes.axvline(bound_ms, color=_INK, lw=1, ls=(0, (4, 3)), zorder=5)
    _plain(axes)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    if len(names) <= _MOST_NAMED:
        axes.set_yticks(range(len(names)), _lane_labels(comparison, best))
    else:
        axes.set_yticks([0, *range(7, len(names), 8)])
        axes.set_yticklabels([names[0], *(names[k] for k in range(7, len(names), 8))])
    axes.set_xlabel("milliseconds after the request", color=_INK, size=9.5)
    moved = (
        f"{best.messages:,} messages, {size(best.bytes_moved)}" if best.messages else "no messages"
    )
    share = ", % of the time" if len(names) <= _MOST_NAMED else ""
    _title(
        axes,
        f"{best.partitioner}: {ms(best.predicted_s)}",
        f"boxes: computing{share} (pale: as another device does too); lines: {moved}; "
        f"dashed: no plan can end before {ms(comparison.lower_bound_s)}",
    )
    depth.imshow(
        [[k / 255] for k in range(256)], aspect="auto", cmap="viridis", vmin=-0.1, vmax=1.1
    )
    depth.set_xticks([])
    depth.set_yticks([0, 255], ["first", "last"], size=8, color=_INK)
    depth.yaxis.tick_right()
    depth.tick_params(length=0)
    depth.set_title("layer", size=8.5, color=_INK)
    for spine in depth.spines.values():
        spine.set_visible(False)


def draw_scaling(axes: Axes, scaling: Scaling) -> None:
    """Speed-up over the best single device against the number of devices."""
    counts = scaling.counts
    best = max(
        (v for values in scaling.by_partitioner.values() for v in values if v is not None),
        default=1.0,
    )
    top = max(1.15 * best, min(scaling.bound[-1], 1.6 * best), 1.5)
    bound = [min(value, 1e3 * top) for value in scaling.bound]
    axes.fill_between(counts, bound, max(top, *bound), color="#eef1f4", zorder=0, lw=0)
    axes.plot(counts, bound, color=_FAINT, lw=1, zorder=1, clip_on=True)
    axes.axhline(1, color=_FAINT, lw=1, ls=(0, (4, 3)), zorder=1)
    for colour, (name, values) in zip(_LINES, scaling.by_partitioner.items(), strict=False):
        known = [(n, v) for n, v in zip(counts, values, strict=True) if v is not None]
        if known:
            axes.plot(
                *zip(*known, strict=True), color=colour, lw=2, marker="o", ms=4.5, label=name,
                zorder=3, markeredgecolor="white", markeredgewidth=0.8,
            )  # fmt: skip
    axes.set_ylim(0, top)
    if counts[-1] > 16:
        axes.set_xscale("log", base=2)
        axes.set_xlim(0.93, counts[-1] * 1.07)
    else:
        axes.set_xlim(0.7, counts[-1] + 0.3)
    shown = [c for c in counts if counts[-1] <= 16 or c & (c - 1) == 0 or c == counts[-1]]
    axes.set_xticks(shown, [str(c) for c in shown])
    axes.minorticks_off()
    axes.set_xlabel("devices: the first, and the fastest others", color=_INK, size=9.5)
    axes.legend(loc="upper left", frameon=False, fontsize=9, labelcolor=_INK)
    axes.grid(axis="y", color=_GRID, lw=0.8, zorder=0)
    axes.set_axisbelow(True)
    _plain(axes)
    _title(axes, "speed-up over the best single device", "grey: where no plan can be")


def draw_partitioners(axes: Axes, comparison: Comparison) -> None:
    """Predicted latency of every partitioner, the fastest on top."""
    ranked = comparison.ranked[:14]
    longest = _longest_bar_s(comparison, [c.predicted_s for c in ranked])
    for k, candidate in enumerate(ranked):
        best = candidate is comparison.best
        alone = candidate.partitioner == "single"
        shown_s = min(candidate.predicted_s, longest)
        axes.barh(
            k, shown_s * 1e3, height=0.68, color=_SEA if best else _FAINT if alone else "#b8d4da"
        )
        speedup = comparison.speedup(candidate)
        factor = "" if speedup is None else f"   {times(speedup)}"
        cut = " …" if shown_s < candidate.predicted_s else ""
        axes.annotate(
            f"{cut} {ms(candidate.predicted_s)}{factor}", (shown_s * 1e3, k), va="center", size=8.5,
            color=_INK, xytext=(3, 0), textcoords="offset points", annotation_clip=False,
        )  # fmt: skip
    axes.axvline(comparison.lower_bound_s * 1e3, color=_INK, lw=1, ls=(0, (4, 3)))
    axes.set_yticks(range(len(ranked)), [c.partitioner for c in ranked])
    axes.set_ylim(max(len(ranked), 5) - 0.4, -0.6)
    axes.set_xlim(0, longest * 1.28e3)
    axes.set_xlabel("predicted latency, ms", color=_INK, size=9.5)
    axes.tick_params(axis="y", length=0)
    _plain(axes)
    axes.spines["left"].set_visible(False)
    _title(axes, "all partitioners", "dashed: no plan can be faster")


def _longest_bar_s(comparison: Comparison, seconds: Sequence[float]) -> float:
    """Where bars are cut off, so that one hopeless partitioner does not flatten the others."""
    single = comparison.single
    reference = min(seconds) if single is None else single.predicted_s
    return min(max(seconds), 1.5 * reference) or 1.0


def _lane_labels(comparison: Comparison, best: Candidate) -> list[str]:
    labels = []
    for rank, name in enumerate(comparison.task.names):
        busy = best.prediction.compute_s[rank] / best.predicted_s if best.predicted_s else 0.0
        state = "excluded" if rank in comparison.task.excluded else f"{100 * busy:.0f} %"
        short = name if len(name) <= 14 else name[:13] + "…"
        labels.append(
            f"{short}  {state}" if rank in best.used or state == "excluded" else f"{short}  –"
        )
    return labels


def _heading(comparison: Comparison) -> str:
    graph = comparison.task.graph
    shape = " and ".join("×".join(map(str, layer.out.shape)) for layer in graph.inputs)
    count = len(comparison.task.names)
    return (
        f"{graph.name.removeprefix('torchvision:')}, {shape}, on {count} device{'s' * (count > 1)}"
    )


def _title(axes: Axes, text: str, more: str) -> None:
    axes.set_title(text, loc="left", size=11.5, weight="bold", color=_INK, pad=20 if more else 8)
    if more:
        axes.annotate(
            more, (0, 1), xycoords="axes fraction", xytext=(0, 6), textcoords="offset points",
            size=9, color="#57606a", annotation_clip=False,
        )  # fmt: skip


def _plain(axes: Any) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_FAINT)
    axes.tick_params(colors=_INK, labelsize=9, color=_FAINT)
