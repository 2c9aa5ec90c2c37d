"""One function for every engine: the model of a folder, ready to run.

Each is what the engine's own documentation shows for repeated inference on a processor: its
default optimisations, the number of threads asked for, and 32-bit floating point, which has to be
asked for where the processor could do less. Input and output are numpy arrays, as an
application would have them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Run = Callable[[Array], Array]
_MNN_WINOGRAD = 3  # WINOGRAD_MEMORY_LEVEL, which its Python package does not name


def load(system: str, folder: Path, threads: int) -> Run:
    """The model in ``folder``, as :mod:`bench.engines.export` wrote it, in this engine."""
    return _LOADERS[system](folder, threads)


def _onnxruntime(folder: Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name

    def run(request: Array) -> Array:
        answer: Array = session.run(None, {name: request})[0]
        return answer

    return run


def _openvino(folder: Path, threads: int) -> Run:
    import openvino

    # Where the processor has bfloat16, that is this engine's default.
    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
    }
    model = openvino.Core().compile_model(str(folder / "model.onnx"), "CPU", config)
    request = model.create_infer_request()

    def run(given: Array) -> Array:
        answer: Array = request.infer([given], share_inputs=True, share_outputs=True)[0]
        return answer

    return run


def _ncnn(folder: Path, threads: int) -> Run:
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = False
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    if net.load_param(str(folder / "model.ncnn.param")) or net.load_model(
        str(folder / "model.ncnn.bin")
    ):
        raise RuntimeError("ncnn cannot read its files")

    def run(request: Array) -> Array:
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(request[0]))
        _, answer = extractor.extract("out0")
        return np.array(answer)

    return run


def _mnn(folder: Path, threads: int) -> Run:
    import MNN

    net = MNN.Interpreter(str(folder / "model.mnn"))
    # Its default allows Winograd tiles so large that a ResNet-50 is off by 2e-3; with smaller
    # ones it is as exact as the others, and 3 % slower.
    net.setSessionHint(_MNN_WINOGRAD, 1)
    session = net.createSession({"backend": "CPU", "precision": "high", "numThread": threads})
    inlet, outlet = net.getSessionInput(session), net.getSessionOutput(session)
    shapes = [inlet.getShape(), outlet.getShape()]
    kind, plain = MNN.Halide_Type_Float, MNN.Tensor_DimensionType_Caffe
    answer = np.empty(shapes[1], np.float32)

    def run(request: Array) -> Array:
        inlet.copyFrom(MNN.Tensor(shapes[0], kind, request, plain))
        net.runSession(session)
        host = MNN.Tensor(shapes[1], kind, answer, plain)
        outlet.copyToHostTensor(host)
        return np.array(host.getNumpyData())

    return run


def _torch(folder: Path, threads: int) -> Run:
    return _torch_run(_torch_module(folder, threads))


def _torch_compiled(folder: Path, threads: int) -> Run:
    module = _torch_module(folder, threads)
    import torch
    from torch._inductor import config

    config.freezing = True
    return _torch_run(torch.compile(module))


def _torch_module(folder: Path, threads: int) -> Any:
    import torch

    from edgeflow_mpi.model.torchvision_compat import import_torchvision

    torch.set_num_threads(threads)
    import_torchvision()
    return torch.load(folder / "module.pt", weights_only=False)


def _torch_run(module: Callable[[Any], Any]) -> Run:
    import torch

    def run(request: Array) -> Array:
        with torch.no_grad():
            answer: Array = module(torch.from_numpy(request)).numpy()
        return answer

    return run


_LOADERS: Mapping[str, Callable[[Path, int], Run]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "ncnn": _ncnn,
    "mnn": _mnn,
    "torch": _torch,
    "torch-compile": _torch_compiled,
}
