#!/bin/sh
# Trains the fastest CIFAR-10 recipe on one GPU with several seeds; prints top-1 and seconds.
#   benchmarks/gpu_cifar10.sh DIR [RUNS]     DIR holds train/ and test/, one folder per class
# Training seconds do not include set-up, the first decoding of the images, and evaluation. A run
# that has to compile and tune kernels first counts like the others.
set -eu
images=${1:?"usage: $0 DIR [RUNS]"}
runs=${2:-5}
here=$(dirname "$0")/..
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
seed=0
while [ "$seed" -lt "$runs" ]; do
    hvdtrain train "$here/configs/cifar10_fast_gpu.yaml" "data.train=$images/train" \
        "data.val=$images/test" "seed=$seed" --run-dir "$work/$seed" >"$work/$seed.log" 2>&1 || {
        tail -5 "$work/$seed.log" >&2
        exit 1
    }
    seed=$((seed + 1))
done
python - "$work" <<'END'
import json, statistics, sys
from pathlib import Path

summaries = [json.loads(p.read_text()) for p in sorted(Path(sys.argv[1]).glob("*/summary.json"))]
for key in ("top1", "train_seconds", "wall_seconds"):
    values = [f[key] for f in summaries]
    print(f"{key:<14} median {statistics.median(values):.4f}  {min(values):.4f}-{max(values):.4f}")
print(json.dumps({k: [f[k] for f in summaries] for k in ("top1", "train_seconds")}))
END
