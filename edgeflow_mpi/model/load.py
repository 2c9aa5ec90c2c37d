"""Load a model from torchvision, from a ``.pt2`` file or from a factory.

Whatever the source, the result is the same frozen value: a functional program for the
stages that follow, and beside it the plain torch module as the oracle.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram

from edgeflow_mpi.errors import InputError, ModelError
from edgeflow_mpi.model import torchvision_models
from edgeflow_mpi.model.calibrate import calibrate
from edgeflow_mpi.model.exporting import (
    brief,
    decompose,
    export_module,
    input_specs,
    integer_limit,
    output_names,
)
from edgeflow_mpi.model.images import GRAY, IMAGENET, Preprocessing
from edgeflow_mpi.model.info import InputSpec, ModelInfo
from edgeflow_mpi.model.weights import check_finite, load_weights, read_weights
from edgeflow_mpi.progress import Progress

_TORCHVISION = "torchvision:"
_DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "uint8": torch.uint8,
    "bool": torch.bool,
}


@dataclass(frozen=True)
class InputShape:
    """A shape that the user asked for; without a type it is float32."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True, kw_only=True)
class LoadedModel(ModelInfo):
    """A model, ready to be captured and to be compared with.

    Attributes
    ----------
    program : ExportedProgram
        Functional, of fixed shapes, with convolutions and linear layers kept whole. It
        shares its weights with ``module``.
    module : nn.Module
        Plain torch in inference mode. It must not be changed.
    """

    program: ExportedProgram
    module: nn.Module


@dataclass(frozen=True)
class _Origin:
    """What is known of a model before it is captured."""

    spec: str
    shapes: tuple[InputShape, ...] | None
    weights_note: str
    random_weights: bool = False
    preprocessing: Preprocessing | None = None
    categories: tuple[str, ...] | None = None


def parse_input_shape(text: str) -> InputShape:
    """Read ``1,3,224,224`` or, with a type, ``1,16:int64``; ``x`` separates as well.

    Raises
    ------
    InputError
        For anything else.
    """
    sizes, colon, type_name = text.strip().partition(":")
    dtype = _DTYPES.get(type_name.strip()) if colon else torch.float32
    try:
        shape = tuple(int(size) for size in sizes.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if dtype is None or not shape or min(shape) < 1:
        raise InputError(
            f"the input shape {text!r} is not understood: write positive sizes such as "
            f"1,3,224,224, with a type behind a colon where it is not float32 "
            f"({', '.join(_DTYPES)})."
        )
    return InputShape(shape, dtype)


def load_model(
    spec: str,
    *,
    weights: Path | None,
    input_shapes: Sequence[InputShape | tuple[int, ...]] | None,
    seed: int,
    progress: Progress,
) -> LoadedModel:
    """Load a model and capture it at fixed input shapes.

    Parameters
    ----------
    spec : str
        ``torchvision:NAME``, ``FILE.pt2`` or ``package.module:factory``.
    weights : Path or None
        A state dict for a torchvision model or a factory.
    input_shapes : sequence of InputShape or tuple of int, or None
        One per input. A factory needs them; a torchvision model has its published size
        without them; a program has its own.
    seed : int
        Of random weights.
    progress : Progress
        Told of every step that takes a while.

    Raises
    ------
    ModelError
        Where any of it cannot be loaded, run or captured.
    """
    shapes = (
        None
        if input_shapes is None
        else tuple(s if isinstance(s, InputShape) else InputShape(tuple(s)) for s in input_shapes)
    )
    if spec.startswith(_TORCHVISION):
        return _load_torchvision(spec, weights, shapes, seed, progress)
    if spec.endswith(".pt2"):
        if weights is not None:
            raise ModelError(f"{spec} has its weights inside: leave --weights out.")
        return _load_program(spec, shapes, progress)
    if ":" in spec:
        return _load_factory(spec, weights, shapes, seed, progress)
    raise ModelError(
        f"{spec!r} names no model: write torchvision:NAME, FILE.pt2 or package.module:factory."
    )


def _load_torchvision(
    spec: str,
    weights: Path | None,
    shapes: tuple[InputShape, ...] | None,
    seed: int,
    progress: Progress,
) -> LoadedModel:
    name = spec.removeprefix(_TORCHVISION)
    state = None if weights is None else read_weights(weights)
    with progress.step(f"construct {spec}"):
        built = torchvision_models.build(name, seed=seed, weight_keys=state)
    shapes = shapes or tuple(InputShape(shape) for shape in built.shapes)
    if weights is not None and state is not None:
        load_weights(built.module, torchvision_models.rename_published_keys(name, state), weights)
        note = f"weights from {weights}"
    else:
        with progress.step("calibrate random weights"):
            calibrated = calibrate(
                built.module, [s.shape for s in shapes], built.preprocessing, seed
            )
        note = f"random weights, seed {seed}, {calibrated}"
    origin = _Origin(spec, shapes, note, state is None, built.preprocessing, built.categories)
    return _capture(built.module, shapes, origin, progress)


def _load_factory(
    spec: str,
    weights: Path | None,
    shapes: tuple[InputShape, ...] | None,
    seed: int,
    progress: Progress,
) -> LoadedModel:
    factory = _find_factory(spec)
    if not shapes:
        raise ModelError(
            f"the shape of the input of {spec} is not known: give it with --input-shape, for "
            "example --input-shape 1,3,224,224."
        )
    with progress.step(f"construct {spec}"):
        module = _call_factory(factory, spec, seed)
    note = f"weights as {spec} made them"
    if any(nn.parameter.is_lazy(p) for p in (*module.parameters(), *module.buffers())):
        _initialise_lazy(module, shapes, spec)
    if weights is not None:
        load_weights(module, read_weights(weights), weights)
        note = f"weights from {weights}"
    return _capture(module, shapes, _Origin(spec, shapes, note), progress)


def _load_program(
    spec: str, shapes: tuple[InputShape, ...] | None, progress: Progress
) -> LoadedModel:
    if not Path(spec).is_file():
        raise ModelError(f"there is no model file {spec}.")
    with progress.step(f"read {spec}"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                original = torch.export.load(spec)
        except Exception as error:
            raise ModelError(
                f"{spec} is not a program written by torch.export.save, or is damaged "
                f"({brief(error)})."
            ) from error
    check_finite(original.named_parameters(), (*original.named_buffers(), *_constants(original)))
    if original.range_constraints:
        original = _fix_shapes(spec, original, shapes)
    origin = _Origin(spec, shapes, f"weights from {spec}")
    return _finish(original.module(), original, origin, progress)


def _fix_shapes(
    spec: str, program: ExportedProgram, shapes: tuple[InputShape, ...] | None
) -> ExportedProgram:
    """A program of varying shapes, captured again at one."""
    if shapes is not None:
        args: tuple[torch.Tensor, ...] = _examples(shapes)
    else:
        stored = program.example_inputs
        tensors = [] if stored is None else [*stored[0], *stored[1].values()]
        if not tensors or not all(isinstance(t, torch.Tensor) for t in tensors):
            raise ModelError(
                f"{spec} was exported for varying shapes: choose one with --input-shape."
            )
        args = tuple(tensors)
    return export_module(program.module(), args, spec)


def _capture(
    module: nn.Module, shapes: tuple[InputShape, ...], origin: _Origin, progress: Progress
) -> LoadedModel:
    module.requires_grad_(False)
    check_finite(module.named_parameters(), module.named_buffers())
    with progress.step("capture with torch.export"):
        program = export_module(module, _examples(shapes), origin.spec)
    check_finite((), _constants(program))
    return _finish(module, program, origin, progress)


def _finish(
    module: nn.Module, original: ExportedProgram, origin: _Origin, progress: Progress
) -> LoadedModel:
    spec, shapes, categories = origin.spec, origin.shapes, origin.categories
    inputs = input_specs(original, spec)
    if shapes is not None and tuple(s.shape for s in shapes) != tuple(i.shape for i in inputs):
        raise ModelError(
            f"{spec} takes {_shape_list(inputs)}, and --input-shape says {_shape_list(shapes)}."
        )
    with progress.step("make the program functional"):
        program = decompose(original, spec)
    names = output_names(program, spec)
    if categories is not None and _classes(program) != len(categories):
        categories = None
    return LoadedModel(
        name=spec,
        program=program,
        module=module,
        inputs=inputs,
        output_names=names,
        preprocessing=origin.preprocessing or _default_preprocessing(inputs),
        categories=categories,
        random_weights=origin.random_weights,
        weights_note=origin.weights_note,
        integer_limit=integer_limit(program),
    )


def _find_factory(spec: str) -> Callable[[], object]:
    module_name, _, attribute = spec.rpartition(":")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: object = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"the module {module_name} of --model {spec} cannot be imported ({brief(error)})."
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ModelError(f"the module {module_name} has no {attribute}.")
        found = getattr(found, part)
    if not callable(found):
        raise ModelError(f"{spec} is not something to call: name a function or a class.")
    return found


def _call_factory(factory: Callable[[], object], spec: str, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            module = factory()
        except (Exception, SystemExit) as error:
            raise ModelError(f"{spec} failed when called ({brief(error)}).") from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"{spec} returned {type(module).__name__}, which is no torch.nn.Module.")
    return module.cpu().eval()


def _initialise_lazy(module: nn.Module, shapes: tuple[InputShape, ...], spec: str) -> None:
    """Layers that learn their size from the first input exist only after a run."""
    try:
        with torch.no_grad():
            module(*_examples(shapes))
    except Exception as error:
        raise ModelError(f"{spec} does not run on the given shape ({brief(error)}).") from error


def _classes(program: ExportedProgram) -> int | None:
    """Length of axis 1 of the first output."""
    outputs = program.graph.output_node().args[0]
    assert isinstance(outputs, (tuple, list))
    first = next(v.meta["val"] for v in outputs if isinstance(v, torch.fx.Node))
    return int(first.shape[1]) if first.dim() > 1 else None


def _examples(shapes: tuple[InputShape, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.zeros(s.shape, dtype=s.dtype) for s in shapes)


def _constants(program: ExportedProgram) -> list[tuple[str, torch.Tensor]]:
    return [(k, v) for k, v in program.constants.items() if isinstance(v, torch.Tensor)]


def _default_preprocessing(inputs: tuple[InputSpec, ...]) -> Preprocessing | None:
    image = inputs[0]
    if len(inputs) != 1 or len(image.shape) != 4:
        return None
    if not (image.dtype.is_floating_point or image.dtype == torch.uint8):
        return None
    return {3: IMAGENET, 1: GRAY}.get(image.shape[1])


def _shape_list(shapes: Sequence[InputSpec | InputShape]) -> str:
    return " and ".join("x".join(map(str, s.shape)) for s in shapes)
