"""What the unsplit model answers, computed by plain torch: the oracle.

In float64 the reference is the plain module with every weight widened. Where the model
itself asks for narrower types on the way, or cannot be widened, its program is evaluated
operator by operator with the types replaced.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, InputSpec
from torch.utils import _pytree as pytree

from edgeflow_mpi.errors import ModelError
from edgeflow_mpi.model.exporting import brief
from edgeflow_mpi.model.load import LoadedModel

_NARROW = (torch.float16, torch.bfloat16, torch.float32)
_SAME_MODEL = 1e-2

# A float64 copy of the weights is large and slow to make: one per module, and no longer
# than the module itself.
_widened: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()


def reference_outputs(
    model: LoadedModel, tensors: Sequence[torch.Tensor], dtype: torch.dtype
) -> tuple[torch.Tensor, ...]:
    """Outputs of the whole model on one request, by plain torch.

    Parameters
    ----------
    model : LoadedModel
        Not changed.
    tensors : sequence of torch.Tensor
        One per input of the model, with its shape and type.
    dtype : torch.dtype
        ``torch.float32`` runs the module as it is; ``torch.float64`` runs it widened.

    Returns
    -------
    tuple of torch.Tensor
        One per name in ``model.output_names``.

    Raises
    ------
    ModelError
        Where the module fails, or in float64 turns out to compute something else.
    """
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"a reference is made in float32 or float64, not in {dtype}")
    if dtype == torch.float64 and not _asks_for_narrow_types(model.program):
        try:
            return _call(model, _widened_module(model.module), tensors, wide=True)
        except (RuntimeError, TypeError, ValueError, AssertionError):
            pass  # it makes narrow tensors in a way that widening the weights misses
    try:
        plain = _call(model, model.module, tensors, wide=False)
    except RuntimeError as error:
        raise ModelError(f"{model.name} fails in plain torch ({brief(error)}).") from error
    if dtype == torch.float32:
        return plain
    outputs = _program_outputs(model.program, tensors)
    _require_same_model(outputs, plain, model.name)
    return outputs


def reference_layers(
    program: ExportedProgram,
    tensors: Sequence[torch.Tensor],
    dtype: torch.dtype,
    names: Collection[str],
) -> dict[str, torch.Tensor]:
    """Values of named nodes of the program on one request.

    Only the named values are kept; for a large model, take them one at a time from
    :func:`evaluate`.

    Raises
    ------
    ValueError
        Where the program has no tensor of such a name.
    """
    wanted = set(names)
    values: dict[str, torch.Tensor] = {}
    for name, value in evaluate(program, tensors, dtype):
        if name in wanted and isinstance(value, torch.Tensor):
            values[name] = value
            if len(values) == len(wanted):
                break
    if missing := wanted - values.keys():
        raise ValueError(f"the program has no tensors {sorted(missing)}")
    return values


def evaluate(
    program: ExportedProgram, tensors: Sequence[torch.Tensor], dtype: torch.dtype
) -> Iterator[tuple[str, object]]:
    """Run a functional program node by node.

    A value is let go after its last use, so that the peak of memory is that of the model
    and not the sum of its layers.

    Parameters
    ----------
    program : ExportedProgram
        Decomposed.
    tensors : sequence of torch.Tensor
        One per tensor input.
    dtype : torch.dtype
        ``torch.float32`` leaves every type as the model has it; ``torch.float64`` widens
        weights, inputs, and the types that operators are told to make.

    Yields
    ------
    tuple of str and object
        Name and value of every node that computes something, in the program's order; at
        last ``"output"`` and the tuple of all outputs.
    """
    given = iter(tensors)
    wide = dtype == torch.float64
    entries = {entry.arg.name: entry for entry in program.graph_signature.input_specs}
    last_use = {used: node for node in program.graph.nodes for used in node.all_input_nodes}
    values: dict[fx.Node, object] = {}

    def here(argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            return values[argument]
        return dtype if wide and _is_narrow(argument) else argument

    for node in program.graph.nodes:
        if node.op == "placeholder":
            values[node] = _widen(_input_value(program, entries[node.name], given), wide)
            continue
        if node.op == "get_attr":
            values[node] = _widen(getattr(program.graph_module, str(node.target)), wide)
            continue
        args, kwargs = (fx.node.map_aggregate(a, here) for a in (node.args, node.kwargs))
        if node.op == "output":
            yield "output", tuple(args[0])
            return
        with _wide_defaults(wide):
            values[node] = node.target(*args, **kwargs)
        yield node.name, values[node]
        for used in node.all_input_nodes:
            if last_use[used] is node:
                del values[used]


def _input_value(
    program: ExportedProgram, entry: InputSpec, given: Iterator[torch.Tensor]
) -> object:
    """What a placeholder of the program stands for."""
    if entry.kind == InputKind.USER_INPUT:
        return entry.arg.value if isinstance(entry.arg, ConstantArgument) else next(given)
    target = str(entry.target)
    return program.state_dict[target] if target in program.state_dict else program.constants[target]


def _program_outputs(
    program: ExportedProgram, tensors: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    outputs: tuple[object, ...] = ()
    for name, value in evaluate(program, tensors, torch.float64):
        if name == "output" and isinstance(value, tuple):
            outputs = value
    return tuple(value for value in outputs if isinstance(value, torch.Tensor))


def _call(
    model: LoadedModel, module: nn.Module, tensors: Sequence[torch.Tensor], *, wide: bool
) -> tuple[torch.Tensor, ...]:
    """Run a module on flat inputs, in the containers that its signature has."""
    given = iter(tensors)
    leaves = [
        _widen(_input_value(model.program, entry, given), wide)
        for entry in model.program.graph_signature.input_specs
        if entry.kind == InputKind.USER_INPUT
    ]
    in_spec = model.program.call_spec.in_spec
    assert in_spec is not None
    args, kwargs = pytree.tree_unflatten(leaves, in_spec)
    with _wide_defaults(wide):
        outputs = module(*args, **kwargs)
    return tuple(v for v in pytree.tree_leaves(outputs) if isinstance(v, torch.Tensor))


def _widened_module(module: nn.Module) -> nn.Module:
    if module not in _widened:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _widened[module] = copy.deepcopy(module).double()
    return _widened[module]


def _asks_for_narrow_types(program: ExportedProgram) -> bool:
    """Whether an operator is told a floating type that would narrow a wide computation."""
    found: list[bool] = []
    for node in program.graph.nodes:
        if node.op == "call_function":
            for arguments in (node.args, node.kwargs):
                fx.node.map_aggregate(arguments, lambda a: found.append(_is_narrow(a)))
    return any(found)


def _is_narrow(argument: object) -> bool:
    return isinstance(argument, torch.dtype) and argument in _NARROW


def _widen(value: object, wide: bool) -> object:
    if wide and isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.detach().to(torch.float64)
    return value.detach() if isinstance(value, torch.Tensor) else value


def _require_same_model(
    wide: Sequence[torch.Tensor], plain: Sequence[torch.Tensor], name: str
) -> None:
    """The program must be the module; a difference beyond rounding is not tolerance."""
    for one, other in zip(wide, plain, strict=True):
        largest = float(one.abs().max()) if one.numel() else 0.0
        if float((one - other).abs().max() if one.numel() else 0.0) > _SAME_MODEL * largest:
            raise ModelError(
                f"the captured program of {name} does not compute what the module does, so there "
                "is no reference to compare with."
            )


@contextmanager
def _wide_defaults(wide: bool) -> Iterator[None]:
    """No gradients, and float64 for tensors that are made without a type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if wide else before)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_default_dtype(before)
