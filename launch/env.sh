# Sourced by the launchers with $root set: which Python and mpirun, and what mpirun must find in
# its environment. What the ranks need is set by the package itself, so that a plain mpirun line
# works too; edgeflow_mpi/cluster/mpi_env.py tells which setting is for what.
# shellcheck shell=bash

if [ -d "$root/.venv/bin" ]; then
    PATH=$root/.venv/bin:$PATH
fi
for tool in python mpirun; do
    if ! command -v "$tool" >/dev/null; then
        echo "edgeflow: there is no $tool on PATH; run $root/launch/setup.sh first" >&2
        exit 1
    fi
done
# The package of this tree, installed or not, whatever directory this is called from.
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
export PATH PYTHONPATH

# Root is meant (containers); more ranks than cores are meant; the package places the ranks.
# The names are Open MPI 5's, then Open MPI 4's; MPICH needs none of them and ignores them.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export PRTE_MCA_rmaps_default_mapping_policy=${PRTE_MCA_rmaps_default_mapping_policy:-slot:oversubscribe}
export PRTE_MCA_hwloc_default_binding_policy=${PRTE_MCA_hwloc_default_binding_policy:-none}
export OMPI_MCA_rmaps_base_oversubscribe=${OMPI_MCA_rmaps_base_oversubscribe:-1}
export OMPI_MCA_hwloc_base_binding_policy=${OMPI_MCA_hwloc_base_binding_policy:-none}
