#!/usr/bin/env bash
# The suite with each pair of torch and torchvision that is supported, each in an environment of its
# own in FOLDER: tests/versions.sh FOLDER [flags of pytest]
set -uo pipefail
cd "$(dirname "$0")/.."
folder=${1:?where the environments go}
shift
for pair in "2.9.1 0.24.1" "2.11.0 0.26.0" "2.14.1 0.29.1"; do
  read -r torch torchvision <<<"$pair"
  python=$folder/torch-$torch/bin/python
  if [ ! -x "$python" ]; then
    python3 -m venv "$folder/torch-$torch"
    "$python" -m pip install --quiet "torch==$torch" "torchvision==$torchvision" -r requirements.txt -r requirements-dev.txt
  fi
  result=$("$python" -m pytest -n 2 --color=no "$@" 2>&1 | tee "$folder/torch-$torch.txt" | tail -n 1)
  echo "torch $torch, torchvision $torchvision, $("$python" --version): $result"
done
