"""Import torchvision, also where its compiled part does not load.

The torchvision wheel of the package index is built for the CUDA build of torch. Next to
a CPU build its shared library does not load, and the import fails because Python code
registers shape functions for two operators that the library would have defined. Their
schemas are enough for the import; the models of classification and segmentation never
call the operators.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from types import ModuleType

import torch

from edgeflow_mpi.errors import ModelError

_MISSING_OPERATORS = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

# A Library object withdraws its definitions when it is collected: kept for the process.
_libraries: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """The ``torchvision`` package with ``torchvision.models`` imported.

    Returns
    -------
    ModuleType
        The package, usable for building models.

    Raises
    ------
    ModelError
        Where torchvision is not installed, or fails for another reason than the two
        operators.
    """
    try:
        return _import()
    except ModuleNotFoundError as error:
        if error.name == "torchvision":
            raise ModelError(
                "torchvision models need the torchvision package: install it next to torch with "
                "'pip install --no-deps torchvision', or give --model FILE.pt2 or "
                "package.module:factory."
            ) from error
        raise _broken(error) from error
    except (RuntimeError, AttributeError, ImportError, OSError) as error:
        first = error
    if not _libraries:
        try:
            library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
            for name in _MISSING_OPERATORS:
                library.define(name + _SCHEMA)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            # The operators are there, so the import failed for a reason of its own.
            raise _broken(first) from error
        _libraries.append(library)
    for name in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    try:
        return _import()
    except Exception as error:
        raise _broken(error) from error


def _import() -> ModuleType:
    with warnings.catch_warnings():
        # The image codecs are in the compiled part too; nothing here decodes with them.
        warnings.filterwarnings("ignore", message="Failed to load image Python extension")
        package = importlib.import_module("torchvision")
        importlib.import_module("torchvision.models")
        return package


def _broken(error: BaseException) -> ModelError:
    reason = str(error).strip().split("\n")[0]
    return ModelError(
        f"torchvision is installed but cannot be imported ({type(error).__name__}: {reason}): "
        f"install the version that belongs to torch {torch.__version__}."
    )
