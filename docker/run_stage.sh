#!/usr/bin/env bash
# Runs a stage in a container, or without one, and sees to it that nothing of it outlives this script.
#
#   bash docker/run_stage.sh STAGE [FILE.conf] [--key value ...] [--check]
#
# STAGE       attn_map or bbox; merge [FILE.conf] [--stage STAGE] writes the tables of a run with many shards
# FILE.conf   absolute, or relative to the current folder, the stage's folder or the repository's root; by default
#             configs/gemex/exp_01_vqa.conf
# --check     find and check config, data, weights and image, and stop: exit 0 without a word, or 2 or 4
#
# CONTAINER_RUNTIME (docker, podman, apptainer, none) and CONTAINER_IMAGE come from a flag, the environment, the .conf
# or slurm/site.conf. Exit codes: 0 done, 2 settings or data, 3 too many failures, 4 environment, 75 stopped; the same
# command continues. In a Slurm job, limits, GPUs and shards are Slurm's, and USR1 has the job requeued.

# shellcheck disable=SC2154 # what settings.sh and inside.sh set
set -euo pipefail

root=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && printf '%s.' "$PWD")
root=${root%.}
# shellcheck source-path=SCRIPTDIR source=../slurm/supervise.sh
source "$root/slurm/supervise.sh"
# shellcheck source-path=SCRIPTDIR source=../slurm/lib.sh
source "$root/slurm/lib.sh"
# shellcheck source-path=SCRIPTDIR source=runtimes.sh
source "$root/docker/runtimes.sh"
# shellcheck source-path=SCRIPTDIR source=inside.sh
source "$root/docker/inside.sh"

# limits: memory_limit, cpu_limit, shm_size and gpus of the allocation: a container is outside the job's control group.
limits() {
    local cores
    site_word SHM_SIZE 1g
    shm_size=$REPLY
    find_gpus
    cpu_limit=$(number SLURM_CPUS_PER_TASK || number SLURM_CPUS_ON_NODE || :)
    if [[ -n $cpu_limit ]] && cores=$(getconf _NPROCESSORS_ONLN) && ((cpu_limit > cores)); then
        cpu_limit=$cores # docker refuses more than there are
    fi
    memory_limit=$(number SLURM_MEM_PER_NODE) ||
        memory_limit=$(product SLURM_MEM_PER_CPU "$(number SLURM_CPUS_ON_NODE)") ||
        memory_limit=$(product SLURM_MEM_PER_GPU "${#gpus[@]}") || memory_limit=
}

# number NAME: prints a variable of Slurm that is a whole number above 0 (memory 0: all of the node).
number() {
    [[ ${!1-} =~ ^[1-9][0-9]{0,11}$ ]] && printf '%s' "${!1}"
}

# product NAME COUNT: prints NAME's number times COUNT.
product() {
    local each
    each=$(number "$1") && ((${2:-0} > 0)) && printf '%d' "$((each * $2))"
}

# find_gpus: `gpus` as the node numbers them. CUDA_VISIBLE_DEVICES of a job may be renumbered, and count from 0 in each.
find_gpus() {
    local ids=
    gpus=()
    if [[ ${settings[DEVICE]} == cpu || $stage == merge ]]; then
        return 0
    fi
    if [[ -n ${SLURM_JOB_ID:-} ]]; then
        ids=${SLURM_STEP_GPUS:-${SLURM_JOB_GPUS:-}}
    elif [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
        ids=$CUDA_VISIBLE_DEVICES
        [[ $ids != -1 ]] || ids=
    elif [[ $(nvidia-smi -L 2>/dev/null) == *GPU\ * ]]; then
        ids=all
    fi
    if [[ $ids =~ ^[A-Za-z0-9-]+(,[A-Za-z0-9-]+)*$ ]]; then
        expand_ids "$ids"
    elif [[ -n $ids ]]; then
        fail "$EXIT_ENVIRONMENT" "the list of GPUs is not understood: $ids"
    elif [[ ${settings[DEVICE]} == cuda* ]]; then
        local why="nvidia-smi -L lists none."
        [[ -z ${SLURM_JOB_ID:-} ]] || why="Slurm gave this job none (sbatch --gres=gpu:1)."
        fail "$EXIT_ENVIRONMENT" "DEVICE=${settings[DEVICE]} (${origins[DEVICE]}), but there is no GPU here: $why"
    fi
}

# expand_ids LIST: 0,2-3 -> gpus=(0 2 3).
expand_ids() {
    local id number
    local -a ids
    IFS=, read -r -a ids <<<"$1"
    for id in "${ids[@]}"; do
        if [[ $id =~ ^([0-9]+)-([0-9]+)$ ]]; then
            for ((number = BASH_REMATCH[1]; number <= BASH_REMATCH[2]; number++)); do
                gpus+=("$number")
            done
        else
            gpus+=("$id")
        fi
    done
}

# find_image: image and image_digest. With --check only what can be known here: a login node may lack the runtime.
find_image() {
    image=${settings[CONTAINER_IMAGE]}
    if [[ $runtime == apptainer ]]; then
        [[ -n $image ]] || missing CONTAINER_IMAGE "apptainer needs the name of a .sif file"
        if [[ $image != *://* ]]; then
            absolute "$image" "$image_base"
            image=$REPLY
        fi
    fi
    : "${image:=heatlens:latest}"
    if ! type -P -- "$runtime" >/dev/null; then
        [[ -z $check_only ]] || return 0
        fail "$EXIT_ENVIRONMENT" "CONTAINER_RUNTIME=$runtime (${origins[CONTAINER_RUNTIME]})," \
            "but $runtime is not installed on ${HOSTNAME-this machine}."
    fi
    site_word CHECK_IMAGE yes
    [[ -n $check_only && $REPLY == no ]] || check_image "$runtime"
    if [[ $runtime == apptainer && -f $image && -z $check_only ]]; then
        image_digest=$(sha256sum <"$image")
        image_digest=sha256:${image_digest%% *}
    fi
}

# in_container: everything that the argument vector needs, then the run.
in_container() {
    find_image
    limits
    container=heatlens-${SLURM_JOB_ID:-$$}${SLURM_JOB_ID:+${SLURM_STEP_ID:+-$SLURM_STEP_ID-${SLURM_PROCID:-0}}}
    job_label=${SLURM_JOB_ID:-$$}
    user_id=$(id -u)
    user_groups=$(id -G) # the primary one first
    user_name=$(id -un 2>/dev/null) || user_name=$user_id
    site_list CONTAINER_OPTIONS
    extra_options=("${list[@]}")
    make_results
    find_mounts
    hand_on
    inner_command
    workdir=$conf_root
    if [[ $runtime == apptainer ]]; then
        run_apptainer
    fi
    run_detachable "$runtime"
}

# without_container: the stage's own script as a child of this one.
without_container() {
    local command
    find_python "$root"
    if [[ $stage == merge ]]; then
        export PYTHONPATH=$root/src${PYTHONPATH:+:$PYTHONPATH}
        command=("$python" -m heatlens.cli merge --config "$typed_config" "${rest[@]}")
    else
        command=("$python" "$folder/$script" --config "$typed_config" "${rest[@]}")
    fi
    [[ -z $check_only ]] || return 0
    export HEATLENS_WATCH_STDIN=1
    open_input
    stop_command=stop_process
    supervise "${command[@]}"
    finish "$child_code" false
}

# whole_number NAME: exit 2 unless the site setting NAME, which it sets as a variable, is one.
whole_number() {
    site_word "$1" "$2"
    [[ $REPLY =~ ^[0-9]{1,6}$ ]] || fail "$EXIT_CONFIG" "$1=$REPLY: allowed: a whole number"
    printf -v "$1" '%d' "$((10#$REPLY))"
}

stage=${1-}
[[ $# -eq 0 ]] || shift
take_words "$@"
kind=$stage
[[ $stage != merge ]] || kind=${flags[STAGE]:-attn_map}
stage_folder "$kind"
folder=$root/$REPLY
case $kind in
    attn_map) script=scripts/generate_heatmaps.py ;;
    bbox) script=scripts/bbox_preprocessing.py ;;
esac
[[ -d $folder ]] || fail "$EXIT_CONFIG" "stage $kind: there is no $folder in this version."
find_config "${config_name:-$DEFAULT_CONFIG}" "$folder"
typed_config=$config
read_site "$root"
read_settings "$kind" "${HEATLENS_DEFAULT_RUNTIME:-none}"
whole_number STOP_GRACE 20
whole_number MAX_REQUEUES 10
[[ $stage == merge ]] || find_shard
runtime=${settings[CONTAINER_RUNTIME]}
if [[ -n $check_only || $runtime != none ]]; then
    check_data
fi
if [[ $runtime == none ]]; then
    without_container
elif [[ -n $check_only ]]; then
    find_image
else
    in_container
fi
