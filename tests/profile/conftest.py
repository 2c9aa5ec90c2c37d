"""Makes the shared graph and the ranks that are threads importable as ``profile_cases``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
