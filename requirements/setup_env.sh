#!/usr/bin/env bash
# Fills .venv with what the demo, the tests and the linter need.
# It may be interrupted and run again: pip passes over what is there already.
#
#   VENV            another folder than .venv
#   FORKS           not empty: OneDL's forks of MMEngine, MMCV and MMDetection, in place of
#                   OpenMMLab's; without its sister libraries, which refuse them
#   OTHERS          not empty: also OpenMMLab's other libraries, of requirements/libraries.txt
#   PEERS           not empty: also the libraries that benchmarks/peers.py compares
#   PYTHON          the interpreter to build on (3.9 to 3.12)
#   PIP_FIND_LINKS  folders with ready wheels (mmcv, a CPU build of torch), as for
#                   any pip command
set -euo pipefail
cd "$(dirname "$0")/.."
VENV=${VENV:-.venv}
LIBRARIES=openmmlab MMCV=mmcv
if [ -n "${FORKS:-}" ]; then
    LIBRARIES=forks MMCV=mmcv_forks
fi

# mmcv 2.1.0 cannot be built on Python 3.13: its setup.py reads names back from
# locals() after exec().
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python python3.12 python3.11 python3.10 python3.9}; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 9) <= sys.version_info < (3, 13))' \
            2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: no Python 3.9 to 3.12 found; name one: make PYTHON=/path/to/python" >&2
    return 1
}

if [ ! -x "$VENV"/bin/pip ]; then
    python=$(find_python)
    "$python" -m venv "$VENV"
fi

say() {
    echo "set-up: $*"
}

install() {
    "$VENV"/bin/python -m pip install --quiet --disable-pip-version-check "$@"
}

# An mmcv compiled for another torch installs without complaint and fails here.
mmcv_works() {
    "$VENV"/bin/python -c 'import mmcv.ops' 2>/dev/null
}

install_mmcv_wheel() {
    local links=()
    if [ -d ../shared/wheels ]; then
        links=(--find-links ../shared/wheels)
    fi
    install --no-deps --only-binary :all: ${links[@]+"${links[@]}"} \
        -r requirements/$MMCV.txt 2>/dev/null && mmcv_works
}

compile_mmcv() {
    say "compiling mmcv: about 15 minutes on 2 cores, and only this once"
    MMCV_WITH_OPS=1 FORCE_CUDA=0 MAX_JOBS=${MAX_JOBS:-$(getconf _NPROCESSORS_ONLN)} \
        install --no-deps --no-binary :all: --no-build-isolation --no-cache-dir \
        --force-reinstall -r requirements/$MMCV.txt
    "$VENV"/bin/python -c 'import mmcv.ops'
}

say "PyTorch"
install -r requirements/torch.txt
say "runtime and development packages"
install -r requirements/runtime.txt -r requirements/export.txt -r requirements/dev.txt
say "mmengine, mmdet, openmim"
install --no-deps -r requirements/$LIBRARIES.txt
if [ -z "${FORKS:-}" ]; then
    say "mmpretrain, mmsegmentation, mmyolo"
    install --no-deps -r requirements/sister_libraries.txt ||
        say "not installed: their tests will be skipped"
    say "mmrazor"
    install --no-deps -r requirements/mmrazor.txt ||
        say "not installed: its tests will be skipped"
fi
if [ -n "${OTHERS:-}" ]; then
    say "mmpose, mmrotate, mmocr, mmaction2, mmdet3d"
    install --no-deps -r requirements/libraries.txt
fi
say "what families of MMDetection's zoo need"
install --no-deps -r requirements/zoo.txt ||
    say "not installed: the sweep will say which models do not run"
say "mmcv"
mmcv_works || install_mmcv_wheel || compile_mmcv
if [ -n "${PEERS:-}" ]; then
    say "the libraries to compare with"
    install -r requirements/torch.txt -r requirements/peers.txt
fi
say "mmquant_jacinto"
install --no-deps --no-build-isolation --editable .
say "done"
