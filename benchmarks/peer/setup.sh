#!/usr/bin/env bash
# Makes the peer's virtual environment: bash benchmarks/peer/setup.sh VENV [PYTHON]
set -euo pipefail
if [ $# -lt 1 ]; then
  echo "usage: $0 VENV [PYTHON]    (VENV: a folder outside the repository)" >&2
  exit 2
fi
venv=$1
python=${2:-python3}
here=$(cd "$(dirname "$0")/.." && pwd)
"$python" -m venv "$venv"
# torch alone first: with a CPU wheel at hand pip then keeps it instead of the CUDA build
"$venv/bin/pip" install --quiet "$(grep '^torch==' "$here/requirements-peer.txt")"
"$venv/bin/pip" install --quiet -r "$here/requirements-peer.txt"
"$venv/bin/python" -c 'import torch, transformers, trl; print(trl.__version__, transformers.__version__, torch.__version__)'
