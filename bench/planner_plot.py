"""The results of the planners' bench as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.planner_cells import OURS, PARTITIONERS, Cell, Results
from bench.planner_page import REFERENCE
from edgeflow_mpi.report.files import write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _FAINT, _GRID = "#22272e", "#8b949e", "#e6e9ed"
_COLOURS = {
    OURS: "#0b7285", "equal": "#e8590c", "aofl": "#7048e8", "lp": "#2b8a3e", "exact": "#c2255c",
    "fused": "#f59f00",
}  # fmt: skip
_BARS = ("equal", "lp", "fused", "aofl", OURS)
_WIDTH_IN = 12.5


def draw(results: Results, path: Path) -> None:
    """Write the picture; raises InputError where the file cannot be written."""
    figure = picture([cell for cell in results.cells if cell.outcomes])
    form = path.suffix.lower().lstrip(".")
    write_file(path, "the plot", lambda file: figure.savefig(file, format=form, dpi=130))


def picture(cells: Sequence[Cell]) -> Figure:
    """Gains in every cell, the gaps of every policy, speed-ups at the reference cluster."""
    from matplotlib.figure import Figure

    clusters = list(dict.fromkeys(cell.cluster for cell in cells))
    reference = [cell for cell in cells if cell.cluster == REFERENCE]
    map_in = 0.36 * len(clusters) + 1.4
    figure = Figure(
        figsize=(_WIDTH_IN, map_in + (4.2 if reference else 0.4)),
        facecolor="white",
        layout="constrained",
    )
    heights = (map_in, 3.8) if reference else (map_in,)
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    left, right = parts[0].subplots(1, 2, width_ratios=(1.55, 1))
    draw_gains(left, cells)
    draw_gaps(right, cells)
    if reference:
        draw_reference(parts[1].subplots(), reference)
    return figure


def draw_gains(axes: Axes, cells: Sequence[Cell]) -> None:
    """A coloured square with the gain over the best other policy for each cell."""
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    models = list(dict.fromkeys(cell.model for cell in cells))
    clusters = list(dict.fromkeys(cell.cluster for cell in cells))
    devices = {cell.cluster: cell.devices for cell in cells}
    colours, norm = colormaps["GnBu"], LogNorm(1, 2)
    for cell in cells:
        gain = cell.gain()
        if gain is None:
            continue
        x, y = models.index(cell.model), clusters.index(cell.cluster)
        depth = min(float(norm(max(gain, 1.0))), 1.0)
        square = Rectangle((x, y), 1, 1, facecolor=colours(0.06 + 0.86 * depth), edgecolor="white")
        axes.add_patch(square)
        ours = cell.of(OURS)
        alone = ours is not None and ours.devices_used == 1
        text = "alone" if alone else f"{gain:.2f}"
        colour = "white" if depth > 0.6 else _FAINT if alone else _INK
        axes.text(
            x + 0.5, y + 0.5, text, ha="center", va="center", size=7.5 if alone else 8.5,
            color=colour,
        )  # fmt: skip
    axes.set_xlim(0, len(models))
    axes.set_ylim(len(clusters), 0)
    axes.set_xticks([k + 0.5 for k in range(len(models))], models, rotation=35, ha="right")
    names = [f"{cluster} ({devices[cluster]})" for cluster in clusters]
    axes.set_yticks([k + 0.5 for k in range(len(clusters))], names)
    axes.tick_params(length=0, labelsize=8.5)
    axes.spines[:].set_visible(False)
    axes.set_title(
        "Gain of joint over the best other policy (alone: one device is best)",
        loc="left", size=10.5, weight="bold", color=_INK,
    )  # fmt: skip


def draw_gaps(axes: Axes, cells: Sequence[Cell]) -> None:
    """For every policy the share of cells whose plan is within a gap of the bound."""
    for name in PARTITIONERS:
        gaps = sorted(gap for cell in cells if (o := cell.of(name)) and (gap := o.gap) is not None)
        if name not in _COLOURS or not gaps:
            continue
        shares = [100 * (k + 1) / len(gaps) for k in range(len(gaps))]
        axes.step(
            [0.0, *(100 * gap for gap in gaps)], [0.0, *shares], where="post", label=name,
            color=_COLOURS[name], linewidth=2.4 if name == OURS else 1.3,
        )  # fmt: skip
    axes.set_xscale("symlog", linthresh=10)
    axes.set_xlim(0, 1000)
    axes.set_ylim(0, 100)
    axes.set_xticks(
        [0, 5, 10, 25, 50, 100, 250, 1000], ["0", "5", "10", "25", "50", "100", "250", "1000"]
    )
    axes.minorticks_off()
    axes.set_xlabel("gap to the lower bound, %", color=_INK)
    axes.set_ylabel("cells with at most this gap, %", color=_INK)
    axes.grid(color=_GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    axes.set_title("Certified gaps", loc="left", size=10.5, weight="bold", color=_INK)


def draw_reference(axes: Axes, cells: Sequence[Cell]) -> None:
    """Bars of speed-ups, model by model, under the bound."""
    width = 0.8 / len(_BARS)
    for k, cell in enumerate(cells):
        for b, name in enumerate(_BARS):
            outcome = cell.of(name)
            if outcome is None or outcome.speedup is None:
                continue
            x = k + (b - len(_BARS) / 2 + 0.5) * width
            axes.bar(x, outcome.speedup, width * 0.92, color=_COLOURS[name],
                     label=name if k == 0 else None)  # fmt: skip
            if name == OURS:
                axes.text(x, outcome.speedup + 0.08, f"{outcome.speedup:.1f}", ha="center",
                          size=8.5, color=_COLOURS[OURS], weight="bold")  # fmt: skip
        if cell.single_ms and cell.bound_ms:
            most = cell.single_ms / cell.bound_ms
            axes.plot([k - 0.42, k + 0.42], [most, most], color=_INK, linewidth=1.2,
                      label="no plan can exceed" if k == 0 else None)  # fmt: skip
    axes.axhline(1.0, color=_FAINT, linewidth=0.8, linestyle=":")
    axes.set_xticks(range(len(cells)), [cell.model for cell in cells])
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel("speed-up over one device", color=_INK)
    axes.set_ylim(0, 8.6)
    axes.grid(axis="y", color=_GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, ncols=6, loc="upper center", bbox_to_anchor=(0.5, 1.02))
    axes.set_title(
        f"Speed-up on 8 devices of 5 GFLOP/s, 93.7 Mbit/s, 0.2 ms ({REFERENCE})",
        loc="left", size=10.5, weight="bold", color=_INK, pad=14,
    )  # fmt: skip
