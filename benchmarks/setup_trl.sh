#!/usr/bin/env bash
# An environment of its own for TRL, with the versions that the comparison was made with.
#   benchmarks/setup_trl.sh [folder, default .venv-trl]
set -euo pipefail
folder="${1:-.venv-trl}"
if [ ! -x "$folder/bin/python" ]; then
    "${PYTHON:-python3}" -m venv "$folder"
fi
"$folder/bin/pip" install --quiet "torch==2.13.0" "transformers==5.23.0" "trl==1.16.0" "datasets>=4,<6" "accelerate>=1.10"
"$folder/bin/python" -c "import trl, torch, transformers; print('TRL', trl.__version__, 'torch', torch.__version__, 'transformers', transformers.__version__)"
