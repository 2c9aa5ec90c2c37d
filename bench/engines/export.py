"""One model in every format: ``python -m bench.engines.export MODEL FOLDER VENV [SHAPE]``.

The model is loaded as the job loads it, random weights calibrated. FOLDER then has

============================  ============================================================
``model.pt2``, ``module.pt``  the exported program, for ours, and the plain module, for torch
``input.npy``                 the request, normalised
``reference.npy``             its answer by plain torch in float64
``model.onnx``                for ONNX Runtime and OpenVINO
``model.mnn``                 made of that by MNN's converter
``model.ncnn.param``, `.bin`  made by pnnx of a TorchScript trace, in 32 bits
``export.json``               what it was made of and with; how far plain float32 is off;
                              which formats could not be made, and why
============================  ============================================================

A folder that was made of the same with the same versions is left as it is.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.engines.contenders import installed
from edgeflow_mpi.model.inputs import load_inputs
from edgeflow_mpi.model.load import LoadedModel, load_model, parse_input_shape
from edgeflow_mpi.model.reference import reference_outputs
from edgeflow_mpi.progress import ConsoleProgress, Progress

FORMAT = 1
"""Of the folder; to be raised when the code below writes something else."""


def main(argv: Sequence[str]) -> int:
    model, folder, venv, *shape = argv
    export(model, Path(folder), Path(venv), shape[0] if shape else None, ConsoleProgress())
    return 0


def export(model: str, folder: Path, venv: Path, shape: str | None, progress: Progress) -> None:
    """Fill ``folder``, unless that has been done.

    Raises
    ------
    EdgeflowError
        If the model cannot be loaded.
    """
    wanted = {
        "model": model,
        "shape": shape,
        "format": FORMAT,
        "versions": _versions(venv),
    }
    stamp = folder / "export.json"
    if stamp.exists() and json.loads(stamp.read_text())["made_of"] == wanted:
        return
    folder.mkdir(parents=True, exist_ok=True)
    shapes = None if shape is None else [parse_input_shape(shape)]
    loaded = load_model(model, weights=None, input_shapes=shapes, seed=0, progress=progress)
    (request,) = load_inputs(None, loaded)[0].tensors
    error = _write_reference(folder, loaded, request)
    torch.save(loaded.module, folder / "module.pt")
    torch.export.save(torch.export.export(loaded.module, (request,)), folder / "model.pt2")
    missing: dict[str, str] = {}
    for formats in _formats(venv):
        with progress.step(f"{formats.file} for {' and '.join(formats.systems)}"):
            try:
                formats.write(folder, loaded.module, request, venv)
            except (OSError, RuntimeError, ImportError, torch.onnx.OnnxExporterError) as problem:
                reason = next(iter(str(problem).strip().splitlines()), type(problem).__name__)
                missing |= dict.fromkeys(
                    formats.systems, f"{formats.file} cannot be made: {reason}"
                )
    facts = {
        "made_of": wanted,
        "weights": loaded.weights_note,
        "input_shape": list(request.shape),
        "torch_error": error,
        "missing": missing,
    }
    stamp.write_text(json.dumps(facts, indent=1) + "\n")


@dataclass(frozen=True)
class _Format:
    file: str
    systems: tuple[str, ...]
    write: Callable[[Path, Any, torch.Tensor, Path], None]


def _formats(venv: Path) -> list[_Format]:
    """What the installed engines need, in an order in which one can be made of another."""
    there = installed(venv / "bin" / "python")
    known = (
        _Format("model.onnx", ("onnxruntime", "openvino", "mnn"), _write_onnx),
        _Format("model.mnn", ("mnn",), _write_mnn),
        _Format("model.ncnn.bin", ("ncnn",), _write_ncnn),
    )
    return [each for each in known if any(system in there for system in each.systems)]


def _versions(venv: Path) -> dict[str, str]:
    own = {name: metadata.version(name) for name in ("torch", "torchvision", "numpy")}
    return own | installed(venv / "bin" / "python")


def _write_reference(folder: Path, loaded: LoadedModel, request: torch.Tensor) -> float:
    """Input and exact answer; the error of plain torch relative to the largest value."""
    np.save(folder / "input.npy", request.numpy())
    (exact,) = reference_outputs(loaded, (request,), torch.float64)
    (plain,) = reference_outputs(loaded, (request,), torch.float32)
    np.save(folder / "reference.npy", exact.numpy())
    return float((plain.double() - exact).abs().max() / exact.abs().max())


def _write_onnx(folder: Path, module: Any, request: torch.Tensor, venv: Path) -> None:
    # The exporter needs onnx and onnxscript, which only the engines' environment has. Behind
    # everything of our own, it can hide nothing.
    sys.path += [str(path) for path in venv.glob("lib/python*/site-packages")]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (request,), str(folder / "model.onnx"),
            input_names=["input"], output_names=["answer"],
            dynamo=True, external_data=False, verbose=False,
        )  # fmt: skip


def _write_mnn(folder: Path, module: Any, request: torch.Tensor, venv: Path) -> None:
    # The converter itself: MNN's command line for it installs packages and reports to a server.
    command = ["mnnconvert", "-f", "ONNX", "--modelFile", str(folder / "model.onnx")]
    command += ["--MNNModel", str(folder / "model.mnn"), "--bizCode", "bench"]
    _call([venv / "bin" / "python", "-c", f"import _tools; _tools.mnnconvert({command!r})"])
    if not (folder / "model.mnn").is_file():
        raise RuntimeError("the converter has written nothing")


def _write_ncnn(folder: Path, module: Any, request: torch.Tensor, venv: Path) -> None:
    (converter,) = venv.glob("lib/python*/site-packages/pnnx/pnnx")
    trace = folder / "model.ts"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        traced: Any = torch.jit.trace(module, (request,))  # type: ignore[no-untyped-call]
        traced.save(trace)
    shape = ",".join(map(str, request.shape))
    _call([converter, trace, f"inputshape=[{shape}]", "fp16=0"])
    for path in (trace, *folder.glob("model*pnnx*"), *folder.glob("model_ncnn.py")):
        path.unlink(missing_ok=True)
    if not (folder / "model.ncnn.bin").is_file():
        raise RuntimeError("the converter has written nothing")


def _call(command: Sequence[str | Path]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()
        raise RuntimeError(lines[-1] if lines else f"{command[0]} failed")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
