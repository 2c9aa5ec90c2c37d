#!/usr/bin/env bash
# The engines of python -m bench.engines, in an environment of their own, at pinned versions:
#   bench/engines/setup.sh [DIR]        DIR/venv, by default build/engines/venv
# Where one has no wheel for this machine, the bench leaves it out and says so.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
work=${1:-$root/build/engines}

source "$root/launch/env.sh"
[ -x "$work/venv/bin/python" ] || python -m venv "$work/venv"
failed=
while read -r wheel; do
    # One by one, so that one without a wheel here does not cost the others.
    PIP_DISABLE_PIP_VERSION_CHECK=1 "$work/venv/bin/python" -m pip install --quiet --no-deps \
        "$wheel" || failed="$failed $wheel"
done < <(grep -v -e '^#' -e '^$' "$root/bench/engines/requirements.txt")
[ -z "$failed" ] || echo "setup: not installed:$failed" >&2
