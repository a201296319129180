# shellcheck shell=bash
# How jobs are handed to Slurm: the words that people type, and the sbatch lines of a stage and its merge.
# Sourced by submit.sh and pipeline.sh after lib.sh; `root` is the checkout.
# shellcheck disable=SC2154 # root and config are set by those who source this file, and by lib.sh

declare -A results_of=() # stage -> its results folder
submitted=() # ID or ID;CLUSTER of what this call has submitted, for the message when a later job is refused
prefix=()    # KEY=value before a command: what of the environment had to be changed or is meant for it alone
job=         # the last one submitted

# usage: the comment at the head of the script that calls it.
usage() {
    awk 'NR > 1 && /^#/ { print substr($0, 3); next } NR > 1 { exit }' "${BASH_SOURCE[1]}"
}

# read_options WORD...: sets `shards` (empty: not said), `at_once`, `dry_run`, `parsable`, `arguments` (the stage's own)
# and `extra` (sbatch's own options, after --).
read_options() {
    shards='' at_once='' dry_run=0 parsable=0 arguments=() extra=()
    while (($#)); do
        case $1 in
            --shards | --at-once)
                (($# > 1)) || fail "$EXIT_CONFIG" "$1 needs a number."
                set -- "$1=$2" "${@:3}"
                continue
                ;;
            --shards=*) shards=${1#*=} ;;
            --at-once=*) at_once=${1#*=} ;;
            --dry-run) dry_run=1 ;;
            --parsable) parsable=1 ;;
            --check | --config | --config=*) fail "$EXIT_CONFIG" "$1 has no place here; the .conf stands before all options." ;;
            --)
                extra=("${@:2}")
                break
                ;;
            *) arguments+=("$1") ;;
        esac
        shift
    done
    check_options
}

# check_options: numbers are numbers, and nothing says twice how many shards there are.
check_options() {
    local word name
    for name in shards at_once; do
        [[ -z ${!name} || ${!name} =~ ^[1-9][0-9]{0,5}$ ]] ||
            fail "$EXIT_CONFIG" "--${name//_/-} ${!name}: allowed: a whole number from 1 to 999999."
    done
    for word in "${arguments[@]}"; do
        [[ -z $shards || ! $word =~ ^--(num-shards|shard-index)(=|$) ]] ||
            fail "$EXIT_CONFIG" "--shards $shards and $word: give one of them. --shards N submits all N shards;" \
                "--num-shards N --shard-index K without it submits one of them again."
    done
    for word in "${extra[@]}"; do
        [[ ! $word =~ ^(--array(=|$)|-a) ]] ||
            fail "$EXIT_CONFIG" "$word after --: --shards N makes the array, and its merge job."
    done
}

# enter_stage NAME: sets `stage` (its folder) and `script` (its submit script, in the folder).
enter_stage() {
    stage_folder "$1"
    stage=$root/$REPLY
    case $1 in
        attn_map) script=submit_heatmap_gen.sh ;;
        bbox) script=submit_bbox_gen.sh ;;
    esac
    [[ -f $stage/$script ]] || fail "$EXIT_CONFIG" "stage $1: this version has no $stage/$script."
}

# prepare_submission FILE NAME...: everything that can be wrong with our stages NAME, before anything is submitted.
# Sets `config` and results_of[NAME].
prepare_submission() {
    local file=$1 name code=0
    local stage script
    shift
    clean_environment
    read_site "$root"
    enter_stage "$1"
    find_config "$file" "$stage"
    locate_conf "$config"
    take_words "$config" "${arguments[@]}"
    for name in "$@"; do
        enter_stage "$name"
        bash "$stage/$script" "$config" --check "${arguments[@]}" </dev/null || code=$?
        ((code == 0)) || exit "$code"
        read_settings "$name" none
        # shellcheck disable=SC2034 # pipeline.sh reads it
        results_of["$name"]=${settings[RESULTS_DIR]}
    done
    keep_paths
    find_shards
    ((dry_run)) || type -P sbatch >/dev/null ||
        fail "$EXIT_ENVIRONMENT" "there is no sbatch on this machine's PATH: submit on a login node of the cluster."
}

# clean_environment: sbatch hands its whole environment on. What belongs to a job that this is typed in stays behind.
clean_environment() {
    unset "${!SLURM_JOB@}" "${!SLURM_ARRAY@}" "${!SLURM_STEP@}" "${!SLURM_TASK@}" "${!SLURM_GPU@}" SLURM_RESTART_COUNT
}

# find_shards: `shards` from NUM_SHARDS where --shards did not say it, and no index may reach the cluster's MaxArraySize.
# Where scontrol does not answer, sbatch will.
find_shards() {
    local answer largest
    setting SHARD_INDEX ''
    if [[ -z $shards && -z ${settings[SHARD_INDEX]} && ${settings[NUM_SHARDS]} =~ ^[1-9][0-9]{0,5}$ ]]; then
        shards=${settings[NUM_SHARDS]}
    fi
    [[ -n $shards ]] || return 0
    unset NUM_SHARDS SHARD_INDEX
    ((shards > 1)) || return 0
    answer=$(scontrol show config 2>/dev/null) || return 0
    [[ $answer =~ (^|$'\n')MaxArraySize[[:space:]]*=[[:space:]]*([0-9]+) ]] || return 0
    largest=${BASH_REMATCH[2]}
    ((shards <= largest)) ||
        fail "$EXIT_CONFIG" "--shards $shards: this cluster's MaxArraySize is $largest, so the indexes of an array" \
            "are 0 to $((largest - 1)) and $largest shards are the most."
}

# keep_paths: the job starts in the stage's folder, so paths that are relative to the current folder become absolute.
keep_paths() {
    local key
    for key in DATASET_PATH IMAGE_ROOT RESULTS_DIR MODEL HF_HOME; do
        case ${origins[$key]:-} in
            flag) replace_flag "$key" "${settings[$key]}" ;;
            environment) replace_variable "$key" "${settings[$key]}" ;;
        esac
    done
    for key in HEATLENS_PYTHON HEATLENS_SITE_CONF CONTAINER_IMAGE; do
        if [[ ${!key:-} == */* && -f ${!key} ]]; then
            absolute "${!key}" "$PWD"
            replace_variable "$key" "$REPLY"
        fi
    done
}

# replace_flag KEY VALUE: in `arguments`, where the value is a relative one.
replace_flag() {
    local flag=${1,,} at
    flag=--${flag//_/-}
    for at in "${!arguments[@]}"; do
        if [[ ${arguments[at]} == "$flag="[!/]* ]]; then
            arguments[at]=$flag=$2
        elif ((at)) && [[ ${arguments[at - 1]} == "$flag" && ${arguments[at]} == [!/]* ]]; then
            arguments[at]=$2
        fi
    done
}

# replace_variable KEY VALUE: in the environment of what is submitted, where the value is a relative one.
replace_variable() {
    [[ ${!1} != [!/]* || ${!1} == "$2" ]] || prefix+=("$1=$2")
}

# show [KEY=VALUE...] -- WORD...: a line that can be typed as it stands; with --parsable only in a dry run.
show() {
    ((!parsable || dry_run)) || return 0
    while [[ $1 != -- ]]; do
        printf '%s=%q ' "${1%%=*}" "${1#*=}"
        shift
    done
    printf '%q' "$2"
    (($# == 2)) || printf ' %q' "${@:3}"
    printf '\n'
}

# send NAME WORD...: shows the command and runs it; sets `job` to the id that it answers with, in a dry run to a
# placeholder made of NAME. The command's own messages go to stderr as they are.
send() {
    local name=$1 answer code=0
    shift
    show "${prefix[@]}" -- "$@"
    if ((dry_run)); then
        job=ID_OF_${name^^}
        return
    fi
    answer=$(env -- "${prefix[@]}" "$@") || code=$?
    ((code == 0)) || refused "$name: ${1##*/} refused the job with exit code $code${answer:+: $answer}"
    read_job_id "$answer" || refused "$name: no job id in the answer of ${1##*/}: ${answer:-(it is empty)}"
    submitted+=("$job")
    ((parsable)) || printf '%s: job %s\n' "$name" "${job%%;*}"
}

# read_job_id TEXT: sets `job` from the last line that is ID, ID;CLUSTER or sbatch's sentence.
read_job_id() {
    local line sentence='^Submitted batch job ([0-9]+)( on cluster ([^[:space:]]+))?$'
    job=
    while IFS= read -r line; do
        if [[ $line =~ ^[0-9]+(';'[^[:space:]';']+)?$ ]]; then
            job=$line
        elif [[ $line =~ $sentence ]]; then
            job=${BASH_REMATCH[1]}${BASH_REMATCH[3]:+;${BASH_REMATCH[3]}}
        fi
    done <<<"$1"
    [[ -n $job ]]
}

# refused LINE...: the end, with the jobs that are queued already and how to cancel them.
refused() {
    local one lines=("$@")
    if ((${#submitted[@]})); then
        lines+=("Queued already, and to be cancelled by:")
        for one in "${submitted[@]}"; do
            if [[ $one == *';'* ]]; then
                lines+=("  scancel --clusters=${one#*;} ${one%%;*}")
            else
                lines+=("  scancel $one")
            fi
        done
    fi
    fail "$EXIT_ENVIRONMENT" "${lines[@]}"
}

# after JOB: sets `dependency`: wait for JOB's success, and leave the queue when it can no longer come.
after() {
    dependency=("--dependency=afterok:${1%%;*}" --kill-on-invalid-dep=yes)
    [[ $1 != *';'* ]] || dependency+=("--clusters=${1#*;}")
}

# general_options WORD...: sets `general` to the sbatch options that say who submits and where to; what is asked for
# (GPUs, memory, time, ...) is left out: a merge needs little of it, and no GPU.
general_options() {
    local kept='account|partition|qos|clusters|reservation|export|mail-type|mail-user|comment|wckey|nice|priority'
    general=()
    while (($#)); do
        if [[ $1 =~ ^--($kept)= || $1 =~ ^-[ApqM]. ]]; then
            general+=("$1")
        elif [[ $1 =~ ^--($kept)$ || $1 =~ ^-[ApqM]$ ]] && (($# > 1)); then
            general+=("$1" "$2")
            shift
        fi
        shift
    done
}

# submit_stage NAME [OPTION...]: the stage as a job, or as an array of `shards` and a merge job after it. OPTION: more
# sbatch options of the first job. Sets `job` to the last one.
submit_stage() {
    local name=$1 output=logs/%x-%j.out
    local stage script list=() options=(--parsable) count=() general=() dependency=()
    shift
    enter_stage "$name"
    site_list SBATCH_OPTIONS
    if [[ -n $shards && -z ${flags[NUM_SHARDS]+set} ]]; then
        count=(--num-shards "$shards")
    fi
    if ((${shards:-1} > 1)); then
        options+=("--array=0-$((shards - 1))${at_once:+%$at_once}")
        output=logs/%x-%A_%a.out
    fi
    # Without the folder of --output a job fails and leaves no word anywhere.
    ((dry_run)) || mkdir -p -- "$stage/logs" || fail "$EXIT_ENVIRONMENT" "$stage/logs cannot be made."
    show -- cd "$stage"
    cd -- "$stage" || fail "$EXIT_ENVIRONMENT" "$stage cannot be entered."
    options+=("--job-name=$name" "--output=$output" "${list[@]}" "${extra[@]}" "$@")
    send "$name" sbatch "${options[@]}" "$script" "$config" "${arguments[@]}" "${count[@]}"
    ((${shards:-1} == 1)) || submit_merge
}

# submit_merge: the tables of submit_stage's array `job`, once all of it has succeeded.
submit_merge() {
    general_options "${list[@]}" "${extra[@]}"
    site_list MERGE_SBATCH_OPTIONS
    ((${#list[@]} == 0)) || general=("${list[@]}")
    after "$job"
    options=(--parsable "--job-name=${name}_merge" "${general[@]}" "${dependency[@]}")
    send "${name}_merge" sbatch "${options[@]}" ../slurm/merge.sh "$name" "$config" "${arguments[@]}" "${count[@]}"
}
