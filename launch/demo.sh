#!/usr/bin/env bash
# ResNet-50 on a photograph over 4 ranks of this machine, checked against plain torch.
# Options are added to the job's, and win: ./launch/demo.sh --model torchvision:vgg16
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

"$root/launch/setup.sh"
# The job's time begins here: this process, which becomes its launcher, is older.
read -r EDGEFLOW_BEGAN_S _ </proc/uptime 2>/dev/null || EDGEFLOW_BEGAN_S=
export EDGEFLOW_BEGAN_S
exec "$root/launch/local" 4 --model torchvision:resnet50 --verify --warmup 2 --repeat 10 "$@"
