"""Small changes of a plan, drawn at random, most of them where the critical path is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from random import Random
from typing import NamedTuple

from edgeflow_mpi.partition.joint.critical import Path, draw
from edgeflow_mpi.partition.joint.genes import ABOVE, BELOW, Genes
from edgeflow_mpi.partition.simulator.jit import Floats, Ints, Longs, floats, ints, longs, part
from edgeflow_mpi.partition.simulator.problem import Problem
from edgeflow_mpi.partition.simulator.state import NOBODY


class Moves(NamedTuple):
    """What the moves draw from.

    ``chance`` is the generator's state. ``divided`` and ``whole`` list the layers that can be
    split among ranks and the others that are not pinned. ``share[i]`` is the part of the
    devices' summed speed that ranks before i have. ``run`` holds the layers of one move.
    """

    chance: Longs
    divided: Ints
    whole: Ints
    share: Floats
    run: Ints


def new_moves(problem: Problem, speeds: Sequence[float], seed: int) -> Moves:
    """Moves whose chances follow from ``seed``; ``speeds`` are the devices' relative ones."""
    rng = Random(seed)
    layers = range(problem.layers)
    return Moves(
        chance=longs(rng.randint(1, 2147483000) for _ in range(2)),
        divided=ints(k for k in layers if problem.splits[k]),
        whole=ints(k for k in layers if not problem.splits[k] and not problem.pinned[k]),
        share=floats(accumulate((speed / sum(speeds) for speed in speeds), initial=0.0)),
        run=ints([0] * problem.layers),
    )


@part
def change(problem: Problem, genes: Genes, moves: Moves, path: Path) -> None:
    """Make one random move, in place; it may turn out to change nothing."""
    n = problem.ranks
    chance = moves.chance
    layer, rank, sender = NOBODY, draw(chance, n), NOBODY
    reader = NOBODY
    if path.length[0] > 0 and draw(chance, 4) > 0:
        k = draw(chance, path.length[0])
        layer, rank, sender = path.layer[k], path.rank[k], path.sender[k]
        if sender != NOBODY:
            reader = path.reader[k]
            if draw(chance, 2) == 0:
                layer = reader
    kind = draw(chance, 100)
    if layer != NOBODY and problem.pinned[layer]:
        layer = NOBODY
    if kind < 4 and len(moves.whole) > 0:
        if layer == NOBODY or problem.splits[layer]:
            layer = moves.whole[draw(chance, len(moves.whole))]
        change_whole(problem, genes, moves, layer)
        return
    if kind < 10:
        if layer == NOBODY:
            layer = draw(chance, problem.layers)
        change_order(problem, genes, moves, layer)
        return
    if layer == NOBODY or not problem.splits[layer]:
        if len(moves.divided) == 0:
            return
        layer = moves.divided[draw(chance, len(moves.divided))]
    if kind < 60:
        shift(problem, genes, moves, layer, rank, sender)
    elif kind < 68:
        copy_cuts(problem, genes, moves, layer, reader)
    elif kind < 72:
        drop(problem, genes, moves, layer, rank)
    elif kind < 75:
        share_out(problem, genes, moves, layer)
    elif kind < 88:
        mark_halo(problem, genes, moves, layer, rank, sender)
    else:
        mark_first(problem, genes, moves, layer, rank, sender)


@part
def find_run(problem: Problem, moves: Moves, layer: int, longest: int) -> int:
    """Put ``layer`` and divided layers near it into ``moves.run``; how many there are."""
    chance = moves.chance
    moves.run[0] = layer
    count = 1
    kind = draw(chance, 8)
    if kind < 2:
        return count
    if kind < 4:  # layers of the same height that follow
        most = 1 + draw(chance, longest)
        at = layer + 1
        while at < problem.layers and count < most:
            if problem.splits[at] and problem.rows[at] == problem.rows[layer]:
                moves.run[count] = at
                count += 1
            at += 1
        return count
    if kind < 6:  # along a path of readers
        most = 1 + draw(chance, longest)
        at = layer
        while count < most and problem.out_at[at] < problem.out_at[at + 1]:
            readers = problem.out_at[at + 1] - problem.out_at[at]
            at = problem.reader[problem.out_at[at] + draw(chance, readers)]
            if not problem.splits[at]:
                break
            moves.run[count] = at
            count += 1
        return count
    if kind < 7:  # all of the same height
        for at in range(problem.layers):
            if at != layer and problem.splits[at] and problem.rows[at] == problem.rows[layer]:
                moves.run[count] = at
                count += 1
        return count
    forward = draw(chance, 2) == 0
    for at in range(problem.layers):  # all that come later, or earlier
        if problem.splits[at] and ((at > layer) if forward else (at < layer)):
            moves.run[count] = at
            count += 1
    return count


@part
def shift(problem: Problem, genes: Genes, moves: Moves, layer: int, rank: int, sender: int) -> None:
    """Give some rows of a rank to another one, those between them giving up as many."""
    n = problem.ranks
    chance = moves.chance
    if n < 2:
        return
    other = rank + 1 - 2 * draw(chance, 2)
    far = draw(chance, 4)
    if sender != NOBODY and far > 0:
        other = sender
    elif far == 0:
        other = draw(chance, n)
    if other < 0 or other >= n or other == rank:
        return
    # One row of a map; of channels, of which there are many more, some.
    rows = (
        1 + problem.rows[layer] // 256
        if draw(chance, 3) > 0
        else 1 + draw(chance, 1 + problem.rows[layer] // (2 * n))
    )
    if sender != NOBODY and draw(chance, 2) == 0:
        rows = -rows
    count = find_run(problem, moves, layer, 12)
    single = draw(chance, 4) == 0  # only the one breakpoint, not all between the two
    for r in range(count):
        at = moves.run[r]
        move = rows
        if problem.rows[at] != problem.rows[layer]:
            move = rows * problem.rows[at] // problem.rows[layer]
        base = at * (n + 1)
        if other < rank:
            low, high = other + 1, rank
        else:
            low, high = rank + 1, other
            move = -move
        if single:
            low = high = rank if other < rank else rank + 1
        cut = genes.choice.cut
        if move > 0:
            for k in range(high, low - 1, -1):
                cut[base + k] = min(cut[base + k] + move, cut[base + k + 1])
        else:
            for k in range(low, high + 1):
                cut[base + k] = max(cut[base + k] + move, cut[base + k - 1])


@part
def copy_cuts(problem: Problem, genes: Genes, moves: Moves, layer: int, reader: int) -> None:
    """Divide layers as one of their neighbours is divided, at the same shares of the height."""
    n = problem.ranks
    chance = moves.chance
    model = NOBODY
    ins = problem.in_at[layer + 1] - problem.in_at[layer]
    outs = problem.out_at[layer + 1] - problem.out_at[layer]
    which = draw(chance, ins + outs)
    if which < ins:
        model = problem.source[problem.in_at[layer] + which]
    else:
        model = problem.reader[problem.out_at[layer] + which - ins]
    if not problem.splits[model]:
        return
    count = find_run(problem, moves, layer, 6)
    only = draw(chance, 2 * n)  # one breakpoint, or all of them
    cut = genes.choice.cut
    full = problem.rows[model]
    for r in range(count):
        at = moves.run[r]
        if at == model:
            continue
        for k in range(1, n):
            x = (2 * cut[model * (n + 1) + k] * problem.rows[at] + full) // (2 * full)
            base = at * (n + 1) + k
            if only < n:
                if k == only:
                    cut[base] = min(max(x, cut[base - 1]), cut[base + 1])
            else:
                cut[base] = x


@part
def drop(problem: Problem, genes: Genes, moves: Moves, layer: int, rank: int) -> None:
    """Leave a rank out of some layers: its neighbours take its rows."""
    n = problem.ranks
    if n < 2:
        return
    part = draw(moves.chance, 3)
    count = find_run(problem, moves, layer, 12)
    cut = genes.choice.cut
    for r in range(count):
        base = moves.run[r] * (n + 1) + rank
        a, b = cut[base], cut[base + 1]
        x = a if part == 0 else b if part == 1 else (a + b) // 2
        if rank == 0:
            x = 0
        elif rank == n - 1:
            x = b
        cut[base] = x
        cut[base + 1] = x


@part
def share_out(problem: Problem, genes: Genes, moves: Moves, layer: int) -> None:
    """Divide some layers by the speeds of those ranks that have rows of one of them."""
    n = problem.ranks
    chance = moves.chance
    cut = genes.choice.cut
    flipped = draw(chance, 2 * n)
    offset = 0.5 if draw(chance, 2) == 0 else draw(chance, 16) / 16.0
    total = 0.0
    for i in range(n):
        uses = cut[layer * (n + 1) + i] < cut[layer * (n + 1) + i + 1]
        if uses != (i == flipped):
            total += moves.share[i + 1] - moves.share[i]
    if total <= 0.0:
        return
    count = find_run(problem, moves, layer, 12)
    base = layer * (n + 1)
    # The layer itself comes last, since it says who takes part.
    for r in range(count - 1, -1, -1):
        at = moves.run[r]
        so_far = 0.0
        before = cut[base]
        for i in range(n):
            after = cut[base + i + 1]
            if (before < after) != (i == flipped):
                so_far += moves.share[i + 1] - moves.share[i]
            before = after
            if i < n - 1:
                x = int(problem.rows[at] * so_far / total + offset)
                cut[at * (n + 1) + i + 1] = min(x, problem.rows[at])


@part
def mark_halo(
    problem: Problem, genes: Genes, moves: Moves, layer: int, rank: int, sender: int
) -> None:
    """Compute rows in place of receiving them, or the other way round, over a few layers."""
    n = problem.ranks
    chance = moves.chance
    sides = 1 + draw(chance, 3)
    if sender != NOBODY and draw(chance, 2) == 0:
        sides = ABOVE if sender < rank else BELOW
    who = draw(chance, 4)
    count = find_run(problem, moves, layer, 4)
    if count > 4 and draw(chance, 2) == 0:
        count = 4
    compute = (genes.halo[layer * n + rank] & sides) != sides
    for r in range(count):
        for i in range(n):
            both = sides
            if who > 0 and i != rank:
                if who == 1 and i == rank - 1 and sides & ABOVE:
                    both = BELOW
                elif who == 1 and i == rank + 1 and sides & BELOW:
                    both = ABOVE
                else:
                    continue
            u = moves.run[r] * n + i
            if compute:
                genes.halo[u] = genes.halo[u] | both
            else:
                genes.halo[u] = genes.halo[u] & (3 - both)


@part
def mark_first(
    problem: Problem, genes: Genes, moves: Moves, layer: int, rank: int, sender: int
) -> None:
    """Compute boundary rows first, or no longer, over a few layers."""
    n = problem.ranks
    chance = moves.chance
    if sender != NOBODY and draw(chance, 4) > 0:
        rank = sender
    everyone = draw(chance, 4) == 0
    count = find_run(problem, moves, layer, 4)
    if count > 4 and draw(chance, 2) == 0:
        count = 4
    mark = 1 - genes.choice.first[layer * n + rank]
    for r in range(count):
        for i in range(n):
            if everyone or i == rank:
                genes.choice.first[moves.run[r] * n + i] = mark


@part
def change_whole(problem: Problem, genes: Genes, moves: Moves, layer: int) -> None:
    """Put a layer that is not divided, and those that follow it, elsewhere or everywhere."""
    n = problem.ranks
    chance = moves.chance
    kind = draw(chance, 3)
    to = draw(chance, n)
    follow = draw(chance, 3) > 0
    mark = 3 - genes.halo[layer * n + to]
    at = layer
    while True:
        for i in range(n):
            if kind == 0:
                genes.choice.cut[at * (n + 1) + i + 1] = 0 if i < to else problem.rows[at]
            elif kind == 1 or i == to:
                genes.halo[at * n + i] = mark
        if not follow or problem.out_at[at + 1] - problem.out_at[at] != 1:
            break
        at = problem.reader[problem.out_at[at]]
        if problem.pinned[at] or problem.splits[at]:
            break


@part
def change_order(problem: Problem, genes: Genes, moves: Moves, layer: int) -> None:
    """Move a layer forward or back in the order, as far as its inputs and readers allow."""
    order, position = genes.choice.order, genes.choice.position
    here = position[layer]
    if draw(moves.chance, 2) == 0:
        first = 0
        for e in range(problem.in_at[layer], problem.in_at[layer + 1]):
            first = max(first, position[problem.source[e]] + 1)
        if first >= here:
            return
        to = here - 1 - draw(moves.chance, min(here - first, 12))
        for p in range(here, to, -1):
            order[p] = order[p - 1]
            position[order[p]] = p
    else:
        last = problem.layers - 1
        for k in range(problem.out_at[layer], problem.out_at[layer + 1]):
            last = min(last, position[problem.reader[k]] - 1)
        if last <= here:
            return
        to = here + 1 + draw(moves.chance, min(last - here, 12))
        for p in range(here, to):
            order[p] = order[p + 1]
            position[order[p]] = p
    order[to] = layer
    position[layer] = to
