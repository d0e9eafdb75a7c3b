#!/usr/bin/env bash
# Tests in several processes: one for each GPU, or on the CPU.
# Usage: tools/dist_test.sh CONFIG CHECKPOINT PROCESSES [OPTIONS OF tools/test.py]
set -euo pipefail
. "$(dirname "$0")/launch.sh"

launch "$3" test.py "$1" "$2" "${@:4}"
