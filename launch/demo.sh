#!/usr/bin/env bash
# ResNet-50 on a photograph over 4 ranks of this machine, checked against plain torch.
# Options are added to the job's, and win: ./launch/demo.sh --model torchvision:vgg16
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

"$root/launch/setup.sh"
exec "$root/launch/local" 4 --model torchvision:resnet50 --verify --warmup 2 --repeat 10 "$@"
