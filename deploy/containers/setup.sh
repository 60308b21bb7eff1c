#!/bin/sh
# Runs make setup while an image is built. An image without CUDA gets torch's CPU build.
set -eu
cd "$(dirname "$0")/../.."
if [ ! -x /usr/local/cuda/bin/nvcc ]; then
    pin=$(grep -m 1 '^torch==' requirements/torch.txt)
    export HVDTRAIN_TORCH="$pin --index-url https://download.pytorch.org/whl/cpu"
fi
export HVDTRAIN_CACHE=/tmp/hvdtrain-cache PIP_NO_CACHE_DIR=1
make setup
rm -rf "$HVDTRAIN_CACHE" .setup
