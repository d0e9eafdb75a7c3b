# Sourced by dist_train.sh and dist_test.sh.
# Usage: launch PROCESSES TOOL [ARGUMENTS]; one process for each GPU, or on the CPU.
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

launch() {
    PYTHONPATH="$tools/..${PYTHONPATH:+:$PYTHONPATH}" \
    exec "${PYTHON:-python}" -m torch.distributed.run \
        --nnodes="${NNODES:-1}" \
        --node_rank="${NODE_RANK:-0}" \
        --master_addr="${MASTER_ADDR:-127.0.0.1}" \
        --master_port="${PORT:-29500}" \
        --nproc_per_node="$1" \
        "$tools/$2" "${@:3}" --launcher pytorch
}
