#!/usr/bin/env bash
# Everything that only a GPU can show, in at most nine minutes, where there is PyTorch alone:
#
#     bash tests/benchmarks/device.sh               # device.json in the folder $OUT, or device/
#     bash tests/benchmarks/device.sh --dry-run     # the same on the CPU at toy size
#     python3 tests/benchmarks/device_table.py device/device.json
#
# device.py says how it goes about it, and device_parts.py what is measured.
set -euo pipefail
cd "$(dirname "$0")/../.."
for folder in . tests/benchmarks tests/bench tests/stages; do
  PYTHONPATH="$PWD/$folder${PYTHONPATH:+:$PYTHONPATH}"
done
export PYTHONPATH
exec "${PYTHON:-python3}" tests/benchmarks/device.py --out "${OUT:-device}" "$@"
