# shellcheck shell=bash
# What the container gets to see: folders, environment and command. Sourced by run_stage.sh.
# shellcheck disable=SC2034,SC2154 # variables shared with it

mount_paths=() mount_modes=()
env_names=() env_values=()

# make_results: the results folder, made here so that it belongs to who submits.
make_results() {
    local path=${settings[RESULTS_DIR]}
    (umask "${settings[UMASK]}" && mkdir -p -- "$path") ||
        fail "$EXIT_ENVIRONMENT" "RESULTS_DIR=$path (${origins[RESULTS_DIR]}) cannot be made."
    [[ -d $path ]] || missing RESULTS_DIR "it is a file; name a folder"
    refuse_system RESULTS_DIR "$path"
}

# find_mounts: mount_paths and mount_modes. One place to write, everything else read-only.
find_mounts() {
    local path results=${settings[RESULTS_DIR]}
    local -A modes=()
    mount_config
    mount_data
    if [[ -n ${settings[MODEL_PATH]} ]]; then
        mount_model "${settings[MODEL_PATH]}"
    fi
    if [[ -n ${settings[HF_HOME]} ]]; then
        see HF_HOME "${settings[HF_HOME]}"
    fi
    site_list MOUNTS
    for path in "${list[@]}"; do
        absolute "$path" "$root"
        [[ -e $REPLY ]] || fail "$EXIT_CONFIG" "MOUNTS: no such file or folder: $REPLY"
        see MOUNTS "$REPLY"
    done
    # A folder that is a mount cannot be moved aside, so OVERWRITE gets the folder around it.
    if [[ ${settings[OVERWRITE]} =~ ^(true|yes|on|1)$ && -n ${results%/*} ]] && ! is_system "${results%/*}"; then
        results=${results%/*}
    fi
    modes[$results]=rw
    sort_mounts
}

mount_config() {
    local real
    if is_system "$conf_tree"; then
        modes[$config]=ro
    else
        modes[$conf_tree]=ro
    fi
    real=$(readlink -f -- "$config" && printf .)
    real=${real%$'\n'.}
    [[ $real == "$config" ]] || modes[$real]=ro
}

# mount_data: the data set's file, its folder where the images may lie beside it, or the folder that a glob starts in.
mount_data() {
    local path=${settings[DATASET_PATH]}
    inner_dataset=$path
    if [[ -n ${settings[DEMO]} && ! -f $path/complete.json ]]; then
        inner_dataset=/tmp/${settings[DEMO]} # made on the spot, inside
        path=
    elif [[ ! -e $path ]]; then # a glob
        path=${path%%[*?[]*}
        path=${path%/*}
    elif [[ ! -d $path && -z ${settings[IMAGE_ROOT]} ]]; then
        path=${path%/*}
    fi
    [[ -z $path ]] || see DATASET_PATH "$path"
    if [[ -n ${settings[IMAGE_ROOT]} ]]; then
        see IMAGE_ROOT "${settings[IMAGE_ROOT]}"
    fi
}

# mount_model PATH: with the blobs that a snapshot of the hub's cache links to.
mount_model() {
    local path=$1
    if [[ $path == */snapshots/* && -d ${path%/snapshots/*}/blobs ]]; then
        path=${path%/snapshots/*}
    fi
    see MODEL "$path"
}

# see KEY PATH: PATH read-only.
see() {
    refuse_system "$1" "$2"
    modes[$2]=ro
}

# is_system PATH: whether a mount there would hide what the image itself needs.
is_system() {
    case $1 in
        / | /bin | /boot | /dev | /etc | /lib | /lib64 | /opt | /proc | /run | /sbin | /sys | /tmp | /usr | /var) ;;
        /proc/* | /sys/* | /dev/* | /bin/* | /etc/* | /lib/* | /lib64/* | /sbin/* | /usr/bin/* | /usr/lib/*) ;;
        *) return 1 ;;
    esac
}

refuse_system() {
    ! is_system "$2" ||
        fail "$EXIT_CONFIG" "$1: $2 cannot be mounted: the container has its own; name a folder inside it or elsewhere."
}

# sort_mounts: parents before what lies in them; else the inner one would be hidden.
sort_mounts() {
    local path slashes
    mount_paths=() mount_modes=()
    while IFS= read -r -d '' path; do
        path=${path#* }
        mount_paths+=("$path")
        mount_modes+=("${modes[$path]}")
    done < <(
        for path in "${!modes[@]}"; do
            slashes=${path//[!\/]/}
            printf '%04d %s\0' "${#slashes}" "$path"
        done | LC_ALL=C sort -z
    )
}

# hand NAME VALUE: a variable of the container.
hand() {
    env_names+=("$1")
    env_values+=("$2")
}

# hand_on: env_names and env_values: settings, paths resolved, and what the run wants to know of Slurm and the image.
hand_on() {
    local key resolved=
    env_names=() env_values=()
    for key in "${HEATLENS_KEYS[@]}"; do
        case $key in
            CONTAINER_RUNTIME) hand "$key" none ;;
            DATASET_PATH) hand "$key" "$inner_dataset" ;;
            IMAGE_ROOT | RESULTS_DIR)
                [[ -z ${settings[$key]} && ${origins[$key]} != flag && ${origins[$key]} != environment ]] ||
                    hand "$key" "${settings[$key]}"
                ;;
            MODEL) [[ -z ${settings[MODEL_PATH]}${MODEL+set} ]] || hand_model ;;
            *) [[ -z ${!key+set} ]] || hand "$key" "${!key}" ;;
        esac
    done
    for key in SLURM_{JOB_ID,ARRAY_JOB_ID,ARRAY_TASK_ID,RESTART_COUNT,CPUS_PER_TASK} HEATLENS_TRACEBACK; do
        [[ -z ${!key+set} ]] || hand "$key" "${!key}"
    done
    if [[ -n ${OMP_NUM_THREADS:-$cpu_limit} ]]; then # else torch starts a thread for every core of the node
        hand OMP_NUM_THREADS "${OMP_NUM_THREADS:-$cpu_limit}"
    fi
    if [[ $runtime == apptainer && -n ${CUDA_VISIBLE_DEVICES+set} ]]; then # it stays in the job's control group
        hand CUDA_VISIBLE_DEVICES "$CUDA_VISIBLE_DEVICES"
    fi
    for key in DATASET_PATH IMAGE_ROOT RESULTS_DIR MODEL; do
        [[ ${origins[$key]} == environment || " ${env_names[*]} " != *" $key "* ]] || resolved+=,$key
    done
    hand HEATLENS_RESOLVED "CONTAINER_RUNTIME$resolved" # in the environment, but not of the user's
    [[ -z ${settings[HF_HOME]} ]] || hand HF_HOME "${settings[HF_HOME]}"
    hand HF_HUB_OFFLINE 1
    hand HEATLENS_CONTAINER "$runtime"
    hand HEATLENS_IMAGE "$image"
    hand HEATLENS_IMAGE_DIGEST "$image_digest"
    hand HEATLENS_WATCH_STDIN 1
    host_command
    hand HEATLENS_HOST_COMMAND "$REPLY"
    for key in "${conf_reads[@]}"; do
        hand "$key" "${!key}"
    done
}

# hand_model: a folder by its absolute path; another model as the environment says it, unless a flag does.
hand_model() {
    if [[ -n ${settings[MODEL_PATH]} ]]; then
        hand MODEL "${settings[MODEL]}"
    else
        hand MODEL "$MODEL"
    fi
}

# inner_command: stage_command, without the flags whose values reach the container in its environment.
inner_command() {
    local word
    local -a gone=(--dataset-path --image-root --results-dir --container-runtime --container-image)
    [[ -z ${settings[MODEL_PATH]} ]] || gone+=(--model)
    if [[ $stage == merge ]]; then
        stage_command=(heatlens merge --config "$config")
    else
        stage_command=(heatlens run "$stage" --config "$config")
    fi
    set -- "${rest[@]}"
    while (($#)); do
        word=${1%%=*}
        if [[ " ${gone[*]} " == *" $word "* && $word != *' '* ]]; then
            [[ $1 == *=* || $# -eq 1 ]] || shift
        else
            stage_command+=("$1")
        fi
        shift
    done
}

# host_command: sets `REPLY` to the line that continues this run here, for messages and failures.csv.
host_command() {
    local key flag
    local words=(bash "$root/docker/run_stage.sh" "$kind" "$config")
    for key in "${HEATLENS_KEYS[@]}"; do
        flag=--${key,,}
        if [[ $key == OVERWRITE || $key == RETRY_FAILED || $key == NUM_SHARDS || $key == SHARD_INDEX ]]; then
            continue # as in heatlens/batch/retry.py: for all shards together, and nothing is moved away
        elif [[ -n ${flags[$key]+set} || -n ${!key+set} ]]; then
            case $key in
                DATASET_PATH | IMAGE_ROOT | RESULTS_DIR | MODEL) words+=("${flag//_/-}" "${settings[$key]}") ;;
                *) words+=("${flag//_/-}" "${flags[$key]-${!key-}}") ;;
            esac
        fi
    done
    printf -v REPLY '%q ' "${words[@]}"
    REPLY=${REPLY% }
}
