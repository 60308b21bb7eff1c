#!/usr/bin/env bash
# The loader on a machine with a GPU: decoding shared between CPU and GPU ("mixed"), and whether
# it keeps ResNet-50 busy (goal: a ratio of 0.97). Written on a machine without one: not run yet.
#
#   benchmarks/gpu_loader.sh DIR [THREADS]      DIR: a folder of JPEGs; THREADS: all cores
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
