#!/usr/bin/env bash
#SBATCH --job-name=merge
#SBATCH --cpus-per-task=2
#SBATCH --mem=8G
#SBATCH --time=01:00:00
#SBATCH --output=logs/%x-%j.out
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#
# The tables of a run whose shards are all finished; needs no GPU. submit.sh puts it behind every array:
#
#   sbatch --dependency=afterok:ARRAY ../slurm/merge.sh STAGE FILE.conf [--key value ...]     from the stage's folder

set -euo pipefail

# Slurm runs a copy that lies alone in a spool folder: the checkout is then above the folder where sbatch was called.
own_folder=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
for folder in "$own_folder/.." "${SLURM_SUBMIT_DIR:-.}/.." "${SLURM_SUBMIT_DIR:-.}"; do
    if [[ -f $folder/docker/run_stage.sh ]]; then
        exec bash "$folder/docker/run_stage.sh" merge "$2" --stage "$1" "${@:3}"
    fi
done
printf 'merge.sh: no checkout above %s. Call sbatch inside a stage folder.\n' "${SLURM_SUBMIT_DIR:-$own_folder}" >&2
exit 4
