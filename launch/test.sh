#!/usr/bin/env bash
# Everything that must pass: lint, format, types, tests. Arguments go to pytest:
#   ./launch/test.sh -k hosts
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

"$root/launch/setup.sh"
cd "$root"
source launch/env.sh
ruff check .
ruff format --check .
mypy --strict
exec python -m pytest "$@"
