#!/usr/bin/env bash
# Submits one stage to Slurm, after a look at its config, data and image; from any folder.
#
#   bash slurm/submit.sh STAGE [FILE.conf] [--shards N [--at-once M]] [--dry-run] [--parsable] [--key value ...]
#                        [-- sbatch options]
#
# STAGE            attn_map or bbox
# FILE.conf        absolute, or relative to the current folder, the stage's folder or the repository's root;
#                  by default configs/gemex/exp_01_vqa.conf
# --shards N       an array of N jobs, each with its part of the images, and a merge job without GPU behind them
# --at-once M      at most M of them run at the same time
# --dry-run        check and print, submit nothing
# --parsable       print nothing but the last job's ID[;CLUSTER], for scripts
# --key value      settings, handed to the stage; keys in the environment reach it too
# sbatch options   beat SBATCH_OPTIONS of slurm/site.conf, which beat the #SBATCH lines of the stage's submit script
#
# Exit codes: 2 wrong words, settings or missing files, 4 sbatch is missing or refuses. Nothing is submitted then, or the
# message says what was.

set -euo pipefail

root=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && printf '%s.' "$PWD") # the dot keeps a line break at the end
root=${root%.}
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$root/slurm/lib.sh"
# shellcheck source-path=SCRIPTDIR source=jobs.sh
source "$root/slurm/jobs.sh"

if [[ ${1:---help} == --help || $1 == -h ]]; then
    usage
    exit 0
fi
name=$1
shift
file=$DEFAULT_CONFIG
if (($#)) && [[ $1 != -* ]]; then
    file=$1
    shift
fi
read_options "$@"
prepare_submission "$file" "$name"
submit_stage "$name"
((!parsable || dry_run)) || printf '%s\n' "$job"
