#!/usr/bin/env bash
# Check everything that needs an NVIDIA GPU and write one JSON file: bench/gpu_check.sh [--model MODEL] [--json FILE]
# Makes a virtual environment of its own in .venv-gpu; needs Python 3.11 or newer, NVIDIA's driver, and PyTorch's
# CUDA build from PyPI (several gigabytes).
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv-gpu
if [ ! -x "$venv/bin/ebca-doctor" ]; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet -e ".[dev]"
  # The two packages hold the same module, and the one without CUDA would win.
  "$venv/bin/pip" uninstall --quiet --yes onnxruntime
  "$venv/bin/pip" install --quiet --force-reinstall --no-deps onnxruntime-gpu
fi
exec "$venv/bin/python" -m ebca.bench.gpu_check "$@"
