#!/usr/bin/env bash
#SBATCH --job-name=bbox
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=32G
#SBATCH --time=24:00:00
#SBATCH --output=logs/%x-%j.out
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#
# Boxes from the heat map of every question: boxes.jsonl and overlay pictures.
#
#   sbatch submit_bbox_gen.sh [FILE.conf] [--key value ...]     from Bounding_Box/, so that logs/ is found
#   sbatch --array=0-7 submit_bbox_gen.sh [FILE.conf] ...       the same in 8 shards
#   bash   submit_bbox_gen.sh [FILE.conf] [--key value ...]     without a scheduler, from anywhere
#   bash   submit_bbox_gen.sh --check [FILE.conf] ...           are config, data and image there?
#
# FILE.conf: absolute, or relative to the current folder, to this stage's folder or to the repository's root;
# by default configs/gemex/exp_01_vqa.conf. --help lists every key. What the site sets is in slurm/site.conf.
# HEATLENS_PYTHON names the Python to use; otherwise .venv/bin/python (made by `make setup`) or python3.

set -euo pipefail

stage=bbox folder=Bounding_Box
# Slurm runs a copy of this file that lies alone in a spool folder; the stage is then where sbatch was called.
own_folder=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
submit_folder=${SLURM_SUBMIT_DIR:-}
for root in "$own_folder/.." "$submit_folder/.." "$submit_folder"; do
    if [[ $root == /* && -f $root/docker/run_stage.sh && -d $root/$folder ]]; then
        exec bash "$root/docker/run_stage.sh" "$stage" "$@"
    fi
done
printf '%s: neither this script (%s) nor the folder where sbatch was called (%s) lies in %s/ of the repository.\n' \
    "${BASH_SOURCE[0]##*/}" "$own_folder" "${submit_folder:-SLURM_SUBMIT_DIR is not set}" "$folder" >&2
printf 'Call sbatch inside %s/.\n' "$folder" >&2
exit 4
