#!/usr/bin/env bash
# Trains ${DETECTOR} on the COCO-format dataset mounted at /data/coco if COCO_PATH is set, else on the built-in shapes.
# Continues from the last checkpoint if there is one. Further arguments go to main.py, so `--eval` evaluates it.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
detector=${DETECTOR:-DETR-ENACT}

if [[ ! -f $root/$detector/main.py ]]; then
    echo "DETECTOR=$detector is no detector here: choose one of $(cd "$root" && for main in */main.py; do printf '%s ' "${main%/main.py}"; done)" >&2
    exit 2
fi

# The demo's small model has a folder of its own: a run on COCO could not continue from its checkpoint.
if [[ -n ${COCO_PATH:-} ]]; then
    output=/outputs/$detector
    arguments=(--coco_path /data/coco --output_dir "$output")
else
    output=/outputs/$detector-demo
    arguments=(--demo --output_dir "$output")
fi
if [[ -f $output/checkpoint.pth ]]; then
    arguments+=(--resume "$output/checkpoint.pth")
fi

exec python "$root/$detector/main.py" "${arguments[@]}" "$@"
