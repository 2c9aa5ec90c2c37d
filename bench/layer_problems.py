"""Random layer problems of all proportions that networks and clusters have."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeflow_mpi.partition.timeline import Floats, Ints, LayerProblem

HEIGHTS = (7, 8, 14, 17, 28, 35, 56, 71, 112)


@dataclass(frozen=True)
class RandomProblem:
    """A problem, and the breakpoints that a planner would start from."""

    problem: LayerProblem
    shares: tuple[int, ...]
    scaled: tuple[tuple[int, ...], ...]


def random_problem(rng: np.random.Generator) -> RandomProblem:
    """A layer of 7 to 112 rows and up to three producers on 2 to 8 devices.

    Devices differ in speed by up to a factor of eight, in a third of the problems not at all.
    The layer takes the fastest from 0.2 to 50 ms, plus 0 to 0.1 ms for each unit. Links have 10
    to 1000 Mbit/s and up to 2 ms of latency, in half of the problems all the same. A producer's
    rows are divided by speed, at random, or all on one device, and were finished at about the
    same time everywhere.
    """
    ranks, rows = int(rng.integers(2, 9)), int(rng.choice(HEIGHTS))
    slowness = 8.0 ** rng.random(ranks) if rng.random() < 2 / 3 else np.ones(ranks)
    layer_s = 10 ** rng.uniform(-3.7, -1.3)
    shares = _breakpoints(1 / slowness, rows)
    alike = rng.random() < 0.5
    drawn = (1, 1) if alike else (ranks, ranks)
    byte_s = np.broadcast_to(8e-6 / 10 ** rng.uniform(1, 3, drawn), (ranks, ranks))
    latency_s = np.broadcast_to(rng.choice([5e-5, 2e-4, 2e-3], drawn), (ranks, ranks))
    free_s = layer_s / ranks * rng.choice([0.0, 0.1, 1.0]) * rng.random(ranks)

    producers = int(rng.choice([1, 1, 1, 2, 3]))
    stride = int(rng.choice([1, 1, 1, 2])) if producers == 1 else 1
    halo = int(rng.choice([0, 1, 1, 2, 3])) if producers == 1 else 0
    height = stride * rows
    row = np.arange(rows + 1)
    low = np.clip(stride * row - halo, 0, height - 1)
    high = np.clip(stride * (row - 1) + 1 + halo, 1, height)
    places = ranks - 1
    shape = ranks, producers * places
    producer, start, stop = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    base_s, row_s = np.zeros(shape), np.zeros(shape)
    scaled = []
    for m in range(producers):
        owned = _owned(rng, slowness, height)
        scaled.append(tuple(int(x) for x in (2 * owned * rows + height) // (2 * height)))
        done_s = free_s * rng.uniform(0.5, 1.0)
        row_bytes = 10 ** rng.uniform(3, 4.8)
        for i in range(ranks):
            others = np.array([j for j in range(ranks) if j != i])
            here = slice(m * places, (m + 1) * places)
            producer[i, here] = m
            start[i, here], stop[i, here] = owned[others], owned[others + 1]
            base_s[i, here] = done_s[others] + latency_s[others, i]
            row_s[i, here] = row_bytes * byte_s[others, i]
    problem = LayerProblem(
        rows=rows,
        fixed_s=np.full(ranks, rng.choice([0.0, 5e-5, 1e-4])) * slowness,
        per_row_s=layer_s / rows * slowness,
        free_s=free_s,
        ready_s=free_s,
        low=np.tile(low, (producers, 1)),
        high=np.tile(high, (producers, 1)),
        producer=producer,
        start=start,
        stop=stop,
        base_s=base_s,
        row_s=row_s,
    )
    return RandomProblem(problem, tuple(int(x) for x in shares), tuple(scaled))


def _breakpoints(weights: Floats, rows: int) -> Ints:
    parts = np.concatenate([[0.0], np.cumsum(weights / weights.sum())])
    found: Ints = np.floor(rows * parts + 0.5).astype(np.int64)
    return found


def _owned(rng: np.random.Generator, slowness: Floats, height: int) -> Ints:
    """Breakpoints of a producer."""
    ranks = len(slowness)
    kind = rng.random()
    if kind < 0.6:
        return _breakpoints(1 / slowness * rng.uniform(0.8, 1.25, ranks), height)
    if kind < 0.8:
        cuts = np.sort(rng.integers(0, height + 1, ranks - 1))
        return np.array([0, *cuts, height], dtype=np.int64)
    owner = int(rng.integers(0, ranks))
    return np.array([0] * (owner + 1) + [height] * (ranks - owner), dtype=np.int64)
