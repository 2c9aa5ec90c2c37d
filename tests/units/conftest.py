"""Makes the hand-made graphs and random cases importable as ``unit_cases``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
