"""What the tests of the testbed share."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

BED = f"eftest{os.getpid()}"[:16]
"""The name of the tests' own testbed."""

Launch = Callable[..., subprocess.CompletedProcess[str]]
"""``launch/testbed`` with these words."""
