"""Simulated annealing over genes: one chunk of it, compiled."""

from __future__ import annotations

import math
from typing import NamedTuple

from edgeflow_mpi.partition.joint.critical import Path, draw, follow
from edgeflow_mpi.partition.joint.genes import Genes, copy_genes, first_settled, new_genes, spread
from edgeflow_mpi.partition.joint.moves import Moves, change
from edgeflow_mpi.partition.joint.slack import find_latest
from edgeflow_mpi.partition.simulator.jit import Floats, Ints, floats, ints, jit, part
from edgeflow_mpi.partition.simulator.problem import Problem
from edgeflow_mpi.partition.simulator.run import NEVER, simulate
from edgeflow_mpi.partition.simulator.state import Scratch

BEGIN, ANNEAL = -1, -2
"""Tasks of :func:`step`."""


class Walk(NamedTuple):
    """Where the search is: the current point, the best one, and room for the next one.

    ``value_s`` are the makespans of the first two, ``path`` is the critical path of the
    current one and ``latest_s`` how late its pieces may begin. ``patience`` is a table of
    quantiles of the exponential distribution.
    """

    current: Genes
    best: Genes
    trial: Genes
    value_s: Floats
    path: Path
    latest_s: Floats
    bar_s: Floats
    following: Ints
    next_piece: Ints
    patience: Floats


@part
def settle(problem: Problem, walk: Walk, work: Scratch) -> float:
    """Evaluate the current point; its makespan."""
    spread(problem, walk.current)
    walk.value_s[0] = simulate(
        problem, walk.current.choice, work, NEVER, walk.latest_s, problem.layers
    )
    if walk.value_s[0] < NEVER:
        follow(problem, work, walk.path)
        find_latest(
            problem, walk.current.choice, work, walk.latest_s, walk.following, walk.next_piece
        )
    return walk.value_s[0]


@part
def climb(problem: Problem, walk: Walk, work: Scratch, marks: int, passes: int) -> int:
    """Turn whole layers' marks over as long as that helps; how many points were tried.

    ``marks`` are ABOVE and BELOW together (exchange or recompute the halo of a layer), or 0 for
    boundary rows first. The current point, which must be settled, only gets better.
    """
    n = problem.ranks
    tried = 0
    for _ in range(passes):
        before_s = walk.value_s[0]
        for layer in range(problem.layers):
            if problem.pinned[layer] or (marks == 0 and problem.sends_early[layer] == 0):
                continue
            copy_genes(problem, walk.current, walk.trial)
            for u in range(layer * n, layer * n + n):
                if marks == 0:
                    walk.trial.choice.first[u] = 1 - walk.current.choice.first[layer * n]
                else:
                    walk.trial.halo[u] = marks - walk.current.halo[layer * n]
            spread(problem, walk.trial)
            if first_settled(problem, walk.current, walk.trial) == 0:
                continue
            limit_s = walk.value_s[0]
            value_s = simulate(
                problem, walk.trial.choice, work, limit_s, walk.latest_s, problem.layers
            )
            tried += 1
            if value_s < limit_s:
                copy_genes(problem, walk.trial, walk.current)
                walk.value_s[0] = value_s
        if walk.value_s[0] == before_s:
            break
    settle(problem, walk, work)
    return tried


@part
def anneal(
    problem: Problem,
    walk: Walk,
    moves: Moves,
    work: Scratch,
    temperature_s: float,
    evaluations: int,
) -> int:
    """Try ``evaluations`` moves at one temperature; how many were taken.

    A trial is taken when it is worse by no more than a random amount of mean
    ``temperature_s``, which is drawn first: so its simulation can stop as soon as it is seen
    to be too late.
    """
    taken = 0
    for _ in range(evaluations):
        copy_genes(problem, walk.current, walk.trial)
        change(problem, walk.trial, moves, walk.path)
        if draw(moves.chance, 4) == 0:
            change(problem, walk.trial, moves, walk.path)
        spread(problem, walk.trial)
        settled = first_settled(problem, walk.current, walk.trial)
        if settled == 0:
            # The same plan, though its marks may differ.
            copy_genes(problem, walk.trial, walk.current)
            continue
        spare_s = temperature_s * walk.patience[draw(moves.chance, len(walk.patience))]
        for q in range(len(walk.latest_s)):
            walk.bar_s[q] = walk.latest_s[q] + spare_s
        limit_s = walk.value_s[0] + spare_s
        value_s = simulate(problem, walk.trial.choice, work, limit_s, walk.bar_s, settled)
        if value_s > limit_s:
            continue
        taken += 1
        copy_genes(problem, walk.trial, walk.current)
        walk.value_s[0] = value_s
        follow(problem, work, walk.path)
        find_latest(
            problem, walk.current.choice, work, walk.latest_s, walk.following, walk.next_piece
        )
        if value_s < walk.value_s[1]:
            walk.value_s[1] = value_s
            copy_genes(problem, walk.trial, walk.best)
    return taken


@jit
def step(
    problem: Problem,
    walk: Walk,
    moves: Moves,
    work: Scratch,
    task: int,
    temperature_s: float,
    count: int,
) -> int:
    """All that Python asks of a walk, so that there is one function to compile.

    ``task`` is BEGIN (make the current point the best one), ANNEAL (``count`` moves) or else the
    marks to climb over (in at most ``count`` passes), from the best point on. Returns how
    many points were simulated.
    """
    if task == ANNEAL:
        anneal(problem, walk, moves, work, temperature_s, count)
        return count
    if task == BEGIN:
        walk.value_s[1] = settle(problem, walk, work)
        copy_genes(problem, walk.current, walk.best)
        return 1
    tried = climb(problem, walk, work, task, count)
    walk.value_s[1] = walk.value_s[0]
    copy_genes(problem, walk.current, walk.best)
    return tried


def new_walk(problem: Problem) -> Walk:
    """A walk that has not begun."""
    steps, pieces = 4 * problem.layers * problem.ranks, 3 * problem.layers * problem.ranks
    return Walk(
        current=new_genes(problem),
        best=new_genes(problem),
        trial=new_genes(problem),
        value_s=floats([NEVER, NEVER]),
        path=Path(
            layer=ints([0] * steps),
            rank=ints([0] * steps),
            sender=ints([0] * steps),
            reader=ints([0] * steps),
            length=ints([0]),
        ),
        latest_s=floats([0.0] * pieces),
        bar_s=floats([0.0] * pieces),
        following=ints([0] * problem.ranks),
        next_piece=ints([0] * pieces),
        patience=floats(-math.log((k + 0.5) / 256) for k in range(256)),
    )
