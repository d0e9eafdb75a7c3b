#!/usr/bin/env bash
# Tests in several processes: one for each GPU, or on the CPU.
# Usage: tools/dist_test.sh CONFIG CHECKPOINT PROCESSES [OPTIONS OF tools/test.py]
set -euo pipefail

config=$1
checkpoint=$2
processes=$3
tools=$(cd "$(dirname "$0")" && pwd)

PYTHONPATH="$tools/..${PYTHONPATH:+:$PYTHONPATH}" \
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$processes" \
    "$tools/test.py" "$config" "$checkpoint" --launcher pytorch "${@:4}"
