#!/usr/bin/env bash
# Fills VENV with torch TORCH and what the tests of the engine need.
#
#   PYTHON   the interpreter to build on
set -euo pipefail
cd "$(dirname "$0")/.."
: "${VENV:?}"
if [ -z "${TORCH:-}" ]; then
    echo "error: name the release of torch: make test-torch TORCH=2.1.2" >&2
    exit 1
fi

if [ ! -x "$VENV"/bin/pip ]; then
    "${PYTHON:-python3}" -m venv "$VENV"
fi

# Before 2.3, torch was compiled for NumPy 1.
numpy='numpy'
if [ "$(printf '%s\n' 2.3 "$TORCH" | sort -V | head -n 1)" = "$TORCH" ]; then
    numpy='numpy<2'
fi

install() {
    "$VENV"/bin/python -m pip install --quiet --disable-pip-version-check "$@"
}

install "torch==$TORCH" "$numpy"
install "torch==$TORCH" "$numpy" -r requirements/engine.txt
install --no-deps --no-build-isolation --editable .
