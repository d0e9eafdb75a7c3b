#!/usr/bin/env bash
# Trains in several processes: one for each GPU, or on the CPU.
# Usage: tools/dist_train.sh CONFIG PROCESSES [OPTIONS OF tools/train.py]
set -euo pipefail
. "$(dirname "$0")/launch.sh"

launch "$2" train.py "$1" "${@:3}"
