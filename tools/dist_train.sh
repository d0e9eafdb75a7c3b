#!/usr/bin/env bash
# Trains in several processes: one for each GPU, or on the CPU.
# Usage: tools/dist_train.sh CONFIG PROCESSES [OPTIONS OF tools/train.py]
set -euo pipefail

config=$1
processes=$2
tools=$(cd "$(dirname "$0")" && pwd)

PYTHONPATH="$tools/..${PYTHONPATH:+:$PYTHONPATH}" \
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$processes" \
    "$tools/train.py" "$config" --launcher pytorch "${@:3}"
