"""Simulated annealing over genes: one chunk of it, compiled."""

from __future__ import annotations

from typing import NamedTuple

from edgeflow_mpi.partition.joint.critical import Path, draw, follow
from edgeflow_mpi.partition.joint.genes import Genes, copy_genes, same_genes, spread
from edgeflow_mpi.partition.joint.moves import Moves, change
from edgeflow_mpi.partition.simulator.jit import Floats, jit
from edgeflow_mpi.partition.simulator.problem import Problem
from edgeflow_mpi.partition.simulator.run import NEVER, simulate
from edgeflow_mpi.partition.simulator.state import Scratch


class Walk(NamedTuple):
    """Where the search is: the current point, the best one, and room for the next one.

    ``value_s`` are their makespans: [current, best]. ``patience`` is a table of quantiles of
    the exponential distribution.
    """

    current: Genes
    best: Genes
    trial: Genes
    path: Path
    value_s: Floats
    patience: Floats


@jit
def settle(problem: Problem, walk: Walk, work: Scratch) -> float:
    """Evaluate the current point and follow its critical path."""
    spread(problem, walk.current)
    walk.value_s[0] = simulate(problem, walk.current.choice, work, NEVER)
    walk.path.count[0] = 0
    if walk.value_s[0] < NEVER:
        follow(problem, work, walk.path)
    return walk.value_s[0]


@jit
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
        if same_genes(walk.current, walk.trial):
            continue
        spread(problem, walk.trial)
        patience = walk.patience[draw(moves.chance, len(walk.patience))]
        limit_s = walk.value_s[0] + temperature_s * patience
        value_s = simulate(problem, walk.trial.choice, work, limit_s)
        if value_s > limit_s:
            continue
        taken += 1
        copy_genes(problem, walk.trial, walk.current)
        walk.value_s[0] = value_s
        follow(problem, work, walk.path)
        if value_s < walk.value_s[1]:
            walk.value_s[1] = value_s
            copy_genes(problem, walk.trial, walk.best)
    return taken
