#!/usr/bin/env bash
# Trains on a cluster that Slurm shares out.
# Usage: tools/slurm_train.sh PARTITION JOB CONFIG [OPTIONS OF tools/train.py]
#
#   GPUS           processes, one for each GPU (8)
#   GPUS_PER_NODE  of them on one machine (8, or GPUS where that is less)
#   CPUS_PER_TASK  cores of each (5)
#   SRUN_ARGS      further options of srun
set -euo pipefail
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
gpus=${GPUS:-8}
gpus_per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}

# Options of srun are several words.
# shellcheck disable=SC2086
PYTHONPATH="$tools/..${PYTHONPATH:+:$PYTHONPATH}" exec srun \
    --partition="$1" \
    --job-name="$2" \
    --gres="gpu:$gpus_per_node" \
    --ntasks="$gpus" \
    --ntasks-per-node="$gpus_per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$tools/train.py" "$3" "${@:4}" --launcher slurm
