"""All ranks of a job in this process, with plain torch beside them as the oracle.

Memory is poisoned before every request, so that a row which nobody wrote shows as NaN. Ranks take
turns at random and messages arrive as late as they may, so that an answer which depends on who is
faster shows too.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.utils import _pytree as pytree

from edgeflow_mpi.graph.capture import capture
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.model.exporting import decompose, export_module, output_names
from edgeflow_mpi.partition.plan import Plan
from edgeflow_mpi.partition.random import random_plan
from edgeflow_mpi.runtime.executor import Executor
from edgeflow_mpi.runtime.memory import MemoryNetwork
from edgeflow_mpi.units.compile import compile_tables
from edgeflow_mpi.units.tables import Transfer, UnitTables
from edgeflow_mpi.units.verify import verify_tables

Tensor = torch.Tensor


@dataclass(frozen=True)
class Model:
    """A module with everything that the ranks make of it."""

    module: nn.Module
    program: ExportedProgram
    graph: Graph
    weights: Mapping[str, Tensor]
    needs: Needs


def build(module: nn.Module, *inputs: Tensor, name: str = "model") -> Model:
    """Capture ``module`` in eval mode at the shapes of ``inputs``."""
    program = decompose(export_module(module.eval(), inputs, name), name)
    return from_program(module, program, name)


def from_program(module: nn.Module, program: ExportedProgram, name: str) -> Model:
    """A model whose program is there already; ``module`` is what it must agree with."""
    graph, weights = capture(program, name, output_names(program, name))
    return Model(module, program, graph, weights, Needs(graph))


def plain(module: nn.Module, *inputs: Tensor) -> tuple[Tensor, ...]:
    """What the unsplit module answers: its tensors, in order."""
    with torch.no_grad():
        outputs = module(*inputs)
    return tuple(leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor))


def widened(module: nn.Module, *inputs: Tensor) -> tuple[Tensor, ...]:
    """What the unsplit module answers in float64."""
    wide = [x.double() if x.is_floating_point() else x for x in inputs]
    return plain(copy.deepcopy(module).double(), *wide)


class _Recorder(fx.Interpreter):
    """Plain evaluation of an exported program that remembers every value by node name."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.values: dict[str, object] = {}

    def run_node(self, n: fx.Node) -> object:
        self.values[n.name] = super().run_node(n)
        return self.values[n.name]


def node_values(program: ExportedProgram, *inputs: Tensor) -> dict[str, Tensor]:
    """Every tensor of the program by the name of its node, computed by plain torch."""
    given = iter(inputs)
    arguments: list[object] = []
    for spec in program.graph_signature.input_specs:
        if spec.kind == InputKind.USER_INPUT:
            constant = isinstance(spec.arg, ConstantArgument)
            arguments.append(spec.arg.value if constant else next(given))
        else:
            stores: tuple[Mapping[str, object], ...] = (program.state_dict, program.constants)
            arguments.append(next(s[str(spec.target)] for s in stores if spec.target in s))
    recorder = _Recorder(program.graph_module)
    with torch.no_grad():
        recorder.run(*arguments)
    return {name: value for name, value in recorder.values.items() if isinstance(value, Tensor)}


def relative_error(made: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest difference over the largest magnitude, worst output; infinite for a NaN."""
    assert [tuple(t.shape) for t in made] == [tuple(t.shape) for t in expected]
    worst = 0.0
    for one, other in zip(made, expected, strict=True):
        if other.numel() == 0:
            continue
        if not other.is_floating_point():
            worst = max(worst, 0.0 if torch.equal(one, other) else float("inf"))
            continue
        difference = float((one.double() - other.double()).abs().max())
        scale = float(other.abs().max())
        error = difference if difference == 0.0 else difference / scale if scale else float("inf")
        worst = max(worst, error if error == error else float("inf"))
    return worst


def tolerance(module: nn.Module, *inputs: Tensor) -> tuple[tuple[Tensor, ...], float]:
    """The float64 answer, and how far from it a correct float32 run may be.

    A module in float64 is its own reference: then only the order of sums may differ.
    """
    if all(x.dtype == torch.float64 for x in inputs if x.is_floating_point()):
        return plain(module, *inputs), 1e-11
    reference = widened(module, *inputs)
    return reference, max(1e-5, 4 * relative_error(plain(module, *inputs), reference))


class Job:
    """Every rank of one plan, ready for any number of requests."""

    def __init__(
        self,
        model: Model,
        plan: Plan,
        *,
        dropped: Transfer | None = None,
        seed: int = 0,
        late: bool = True,
    ) -> None:
        self.model = model
        self.plan = plan
        self.tables: UnitTables = compile_tables(model.graph, model.needs, plan)
        verify_tables(model.graph, model.needs, self.tables)
        self._random = Random(seed)
        self.network = MemoryNetwork(plan.ranks, late=Random(seed + 1) if late else None)
        self.executors = [
            Executor(
                model.graph,
                model.needs,
                self.tables,
                rank,
                model.weights,
                self.network.transport(rank),
                dropped=dropped if dropped is not None and dropped.dest == rank else None,
            )
            for rank in range(plan.ranks)
        ]

    @property
    def transfers(self) -> tuple[Transfer, ...]:
        """Every message of one request, in a fixed order."""
        return tuple(
            sorted(t for units in self.tables.ranks for unit in units for t in unit.forwards)
        )

    def run(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """One request: the outputs on rank 0. A deadlock is an AssertionError."""
        graph, before = self.model.graph, self.network.delivered
        for executor in self.executors:
            executor.storage.memory.fill_(0xFF)
        named = dict(zip((layer.name for layer in graph.inputs), inputs, strict=True))
        with torch.no_grad():
            for rank, executor in enumerate(self.executors):
                executor.begin(named if rank == 0 else {})
            while not all(executor.finished for executor in self.executors):
                turns = self._random.sample(self.executors, len(self.executors))
                stepped = any(e.step(one=self._random.random() < 0.3) for e in turns)
                assert stepped or self.network.moving, self._stuck()
        assert all(executor.sends_complete for executor in self.executors), self._stuck()
        assert self.network.delivered - before == len(self.transfers)
        assert not self.network.sending
        assert not self.network.receiving
        outputs = self.executors[0].outputs()
        return tuple(outputs[layer.name] for layer in graph.outputs)

    def _stuck(self) -> str:
        return "no rank can go on: " + "; ".join(
            f"rank {rank}: {executor.waiting_for()}"
            for rank, executor in enumerate(self.executors)
            if not (executor.finished and executor.sends_complete)
        )


def random_job(model: Model, ranks: int, seed: int) -> Job:
    """A job under a random valid plan."""
    plan = random_plan(model.graph, model.needs, ranks, Random(seed))
    return Job(model, plan, seed=seed)
