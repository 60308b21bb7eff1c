#!/bin/sh
# Inside an image that is being built: make setup, without CUDA's wheels where there is no CUDA.
set -eu
cd "$(dirname "$0")/../.."
if [ ! -x /usr/local/cuda/bin/nvcc ]; then
    pin=$(grep -m 1 '^torch==' requirements/torch.txt)
    export HVDTRAIN_TORCH="$pin --index-url https://download.pytorch.org/whl/cpu"
fi
export HVDTRAIN_CACHE=/tmp/hvdtrain-cache PIP_NO_CACHE_DIR=1
make setup
rm -rf "$HVDTRAIN_CACHE" .setup
