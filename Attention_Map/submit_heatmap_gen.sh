#!/usr/bin/env bash
#SBATCH --job-name=attn_map
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=32G
#SBATCH --time=24:00:00
#SBATCH --output=logs/%x-%j.out
#SBATCH --open-mode=append
#
# One heat map per question: overlay pictures and vqa_manifest.csv.
#
#   sbatch submit_heatmap_gen.sh [FILE.conf] [--key value ...]     from Attention_Map/, so that logs/ is found
#   bash   submit_heatmap_gen.sh [FILE.conf] [--key value ...]     without a scheduler, from anywhere
#
# FILE.conf: absolute, or relative to the current folder, to this stage's folder or to the repository's root;
# by default configs/gemex/exp_01_vqa.conf. --help lists every key.
# HEATLENS_PYTHON names the Python to use; otherwise .venv/bin/python (made by `make setup`) or python3.

set -euo pipefail

script=scripts/generate_heatmaps.py
default_config=configs/gemex/exp_01_vqa.conf

# Slurm runs a copy of this file that lies alone in a spool folder; the stage is then where sbatch was called.
own_folder=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
submit_folder=${SLURM_SUBMIT_DIR:-}
stage=
for folder in "$own_folder" "$submit_folder" "$submit_folder/Attention_Map"; do
    if [[ -n $folder && -f $folder/$script ]]; then
        stage=$(cd -P -- "$folder" && pwd)
        break
    fi
done
if [[ -z $stage ]]; then
    printf 'submit_heatmap_gen.sh: %s is neither beside this script (%s) nor where sbatch was called (%s).\n' \
        "$script" "$own_folder" "${submit_folder:-SLURM_SUBMIT_DIR is not set}" >&2
    printf 'Call sbatch inside Attention_Map/.\n' >&2
    exit 4
fi

# shellcheck source-path=SCRIPTDIR source=../slurm/lib.sh
source "$stage/../slurm/lib.sh"
run_stage "$stage" "$script" "$default_config" "$@"
