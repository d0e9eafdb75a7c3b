#!/usr/bin/env bash
# What shall be known of a GPU, on a machine with torch and CUDA and no network:
#
#   python tools/gpu_check.py --pack           beforehand, where there is a network
#   bash tools/gpu_check.sh                    there, with the folder that it made
#
#   --pack DIR   that folder (.gpu_check)
#   --out DIR    where results go (work_dirs/gpu_check)
#   Whatever follows goes to tools/gpu_check.py: --minutes, --stages, --device.
set -uo pipefail
cd "$(dirname "$0")/.."
pack=.gpu_check
out=work_dirs/gpu_check
more=()
while [ $# -gt 0 ]; do
    case "$1" in
        --pack) pack=$2; shift 2 ;;
        --out) out=$2; shift 2 ;;
        *) more+=("$1"); shift ;;
    esac
done
python=${PYTHON:-python3}
mkdir -p "$out/logs"
pack=$(realpath "$pack")
out=$(realpath "$out")
work=$(mktemp -d)

install() {
    "$python" -m pip install --quiet --no-index --no-deps --no-compile \
        --disable-pip-version-check --target "$@"
}

# mmcv, compiled or from an earlier run, and MMDetection, which needs it, in
# $work/mmdet; it is complete when there is a file `done`.
provide_mmdet() {
    local wheels=$pack/mmcv
    if ! ls "$wheels"/*.whl >/dev/null 2>&1; then
        wheels=$out/mmcv
        # One architecture, that of the GPU that is there, as torch asks for.
        MMCV_WITH_OPS=1 CFLAGS='-g0 -O1' MAX_JOBS=$(nproc) nice -n 19 \
            "$python" -m pip wheel --no-index --no-deps --no-build-isolation \
            --no-cache-dir -v -w "$wheels" "$pack"/sources/mmcv-*.tar.gz || return
    fi
    install "$work/mmdet" "$pack"/mmdet/*.whl "$wheels"/*.whl &&
        touch "$work/mmdet/done"
}

install "$work/site" "$pack"/wheels/*.whl
export PYTHONPATH=$PWD:$work/site PYTHONUNBUFFERED=1
"$python" setup.py --quiet build_ext --inplace >"$out/logs/kernels.log" 2>&1
if ninja=$(command -v ninja); then
    # A log should have all that does not compile, not the first.
    mkdir "$work/bin"
    printf '#!/bin/sh\nexec %s -k 0 "$@"\n' "$ninja" >"$work/bin/ninja"
    chmod +x "$work/bin/ninja"
    export PATH=$work/bin:$PATH
fi
# A group of its own, so that compilers end with it.
set -m
provide_mmdet >"$out/logs/mmcv.log" 2>&1 &
provider=$!
"$python" tools/gpu_check.py --mmdet "$work/mmdet" --out "$out" ${more[@]+"${more[@]}"}
result=$?
kill -- -$provider 2>/dev/null
tar -C "$out" -czf "$out/logs.tar.gz" logs && rm -r "$out/logs"
rm -rf "$work"
exit $result
