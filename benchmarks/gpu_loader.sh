#!/usr/bin/env bash
# Measures the loader on a machine with a GPU: its speed when CPU and GPU share the decoding
# ("mixed"), and whether it keeps ResNet-50 busy (goal: a ratio of 0.97). Not run yet, as it was
# written on a machine without a GPU.
#
#   benchmarks/gpu_loader.sh DIR [THREADS]      DIR: a folder of JPEGs; THREADS: default all cores
set -euo pipefail
images=$(realpath "${1:?usage: benchmarks/gpu_loader.sh DIR [THREADS]}")
threads=${2:-$(nproc)}
cd "$(dirname "$0")/.."
python=.venv/bin/python
packed=$(mktemp -d)
trap 'rm -rf "$packed"' EXIT

$python benchmarks/loader.py --images "$images" --device cuda --threads "$threads" --most 20000
.venv/bin/hvdtrain data pack "$images" "$packed" --short-side 160,256
for size in 128 224; do
    for data in "$images" "$packed"; do
        echo "ResNet-50 at $size px on $data"
        $python benchmarks/real_synthetic.py --images "$data" --image-size $size --threads "$threads"
    done
done
