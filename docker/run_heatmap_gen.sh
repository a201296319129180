#!/usr/bin/env bash
# The heat-map stage in a container, by hand, without Slurm:
#
#   bash docker/run_heatmap_gen.sh [FILE.conf] [--key value ...]
#
# docker, unless CONTAINER_RUNTIME is set somewhere; everything else as in run_stage.sh.

set -euo pipefail
HEATLENS_DEFAULT_RUNTIME=docker exec bash "$(dirname -- "${BASH_SOURCE[0]}")/run_stage.sh" attn_map "$@"
