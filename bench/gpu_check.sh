#!/usr/bin/env bash
# Check everything that needs an NVIDIA GPU: bench/gpu_check.sh [--output DIR] [--model MODEL], see --help.
# Makes a virtual environment of its own in .venv-gpu; needs Python 3.11 or newer, NVIDIA's driver, and PyTorch's
# CUDA build from PyPI (several gigabytes). Exports what it needs, with random weights unless --model names others.
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
# The limits of the parts are for 16 cores and a fast GPU.
exec "$venv/bin/python" -m ebca.bench.gpu_check --export --patience 4 "$@"
