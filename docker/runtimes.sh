# shellcheck shell=bash
# The argument vectors of docker, podman and apptainer, as bash arrays: a value is always one word, whatever is in it.
# Sourced by run_stage.sh after lib.sh and supervise.sh, which fills:
#   image, stage_command (what runs inside)            container, job_label, workdir
#   mount_paths, mount_modes (ro | rw; parents first)  env_names, env_values
#   gpus (indexes, UUIDs or all)                       memory_limit (MB), cpu_limit, shm_size, extra_options
#   user_id, user_groups (primary first), user_name    runtime
# Paths are the same inside and outside, so that messages and records name paths of the host.
# shellcheck disable=SC2034,SC2154 # variables shared with those two and run_stage.sh

# Everything that wants a home or a cache gets one in the container's own /tmp.
INNER_FOLDERS=(
    HOME=/tmp/home XDG_CACHE_HOME=/tmp/cache MPLCONFIGDIR=/tmp/matplotlib
    TORCHINDUCTOR_CACHE_DIR=/tmp/inductor TRITON_CACHE_DIR=/tmp/triton
)

# csv_field TEXT: sets `REPLY` to TEXT as one field of the CSV line that --mount is.
csv_field() {
    REPLY=$1
    if [[ $1 == *[,\"$'\n\r']* || $1 == ' '* ]]; then
        REPLY="\"${1//\"/\"\"}\""
    fi
}

# create_words RUNTIME: sets `words` to the whole `docker create` or `podman create` line.
create_words() {
    words=("$1" create --init -i "--name=$container" "--label=heatlens.job=$job_label")
    words+=("--label=heatlens.user=$user_id" "--label=heatlens.launcher=$$")
    if [[ ${HOSTNAME-} =~ ^[A-Za-z0-9][A-Za-z0-9-]{0,62}(\.|$) ]]; then
        words+=("--hostname=${HOSTNAME%%.*}") # locks and messages name the node
    fi
    user_words "$1"
    words+=(--network=none --read-only --cap-drop=ALL --security-opt=no-new-privileges)
    if [[ $1 == podman ]]; then
        words+=(--security-opt=label=disable --http-proxy=false) # SELinux would have files of the host relabelled
    fi
    # exec: COMPILE=true loads what it has compiled there.
    words+=("--tmpfs=/tmp:rw,exec,nosuid,nodev,mode=1777" "--shm-size=$shm_size")
    if [[ -n $memory_limit ]]; then
        words+=("--memory=${memory_limit}m" "--memory-swap=${memory_limit}m")
    fi
    if [[ -n $cpu_limit ]]; then
        words+=("--cpus=$cpu_limit")
    fi
    gpu_words "$1"
    mount_words
    local name
    for name in "${INNER_FOLDERS[@]}" "USER=$user_name" "LOGNAME=$user_name" "${env_names[@]}"; do
        words+=("--env=$name")
    done
    words+=("--workdir=$workdir" "${extra_options[@]}" -- "$image" "${stage_command[@]}")
}

# user_words RUNTIME: files belong to who submits, and what its groups may read can be read. A rootless podman is
# already this user; keep-id says so inside, too.
user_words() {
    local group
    if [[ $1 == podman && $user_id != 0 ]]; then
        words+=(--userns=keep-id)
        if [[ $user_groups == *' '* && $(aside podman info -f '{{.Host.OCIRuntime.Name}}' 2>/dev/null) == crun ]]; then
            words+=(--group-add=keep-groups)
        fi
        return
    fi
    words+=("--user=$user_id:${user_groups%% *}")
    for group in $user_groups; do
        if [[ $group != "${user_groups%% *}" ]]; then
            words+=("--group-add=$group")
        fi
    done
}

gpu_words() {
    local gpu ids
    ((${#gpus[@]})) || return 0
    if [[ $1 == podman ]]; then # which ignores --gpus silently
        for gpu in "${gpus[@]}"; do
            words+=("--device=nvidia.com/gpu=$gpu")
        done
    elif [[ ${gpus[0]} == all ]]; then
        words+=(--gpus=all)
    else
        printf -v ids ',%s' "${gpus[@]}"
        words+=("--gpus=\"device=${ids:1}\"") # without the quotes, docker reads the second index as an option
    fi
}

mount_words() {
    local at path mode source target
    for at in "${!mount_paths[@]}"; do
        path=${mount_paths[at]} mode=
        if [[ $path == *$'\r\n'* ]]; then # Go's CSV reader makes one line feed of the two
            fail "$EXIT_CONFIG" "$runtime cannot mount a path with CR LF in it: ${path@Q}"
        fi
        csv_field "source=$path" && source=$REPLY
        csv_field "target=$path" && target=$REPLY
        if [[ ${mount_modes[at]} == ro ]]; then
            mode=,readonly
        fi
        words+=("--mount=type=bind,$source,$target$mode")
    done
}

# apptainer_words SCRATCH: sets `words` to the `apptainer exec` line; SCRATCH becomes /tmp and /var/tmp inside.
apptainer_words() {
    local at path
    words=(apptainer exec --containall --no-home --no-eval "--workdir=$1" "--pwd=$workdir")
    if ((${#gpus[@]})); then
        words+=(--nv)
    fi
    for at in "${!mount_paths[@]}"; do
        path=${mount_paths[at]}
        if [[ $path == *[:,\"$'\n']* ]]; then
            fail "$EXIT_CONFIG" "apptainer cannot mount a path with a colon, comma, quote or line break in it: $path"
        fi
        words+=("--bind=$path:$path:${mount_modes[at]}")
    done
    words+=("${extra_options[@]}" "$image" "${stage_command[@]}")
}

# with_environment PREFIX COMMAND...: the command with what the container shall have in its environment, as data.
with_environment() {
    local prefix=$1 at
    shift
    for at in "${!env_names[@]}"; do
        export "$prefix${env_names[at]}=${env_values[at]}"
    done
    exec "$@"
}

# check_image RUNTIME: sets `image_digest`. Exit 4 with the command that gets the image when it is not there.
check_image() {
    local said get="$1 pull $image" named="CONTAINER_IMAGE=$image (${origins[CONTAINER_IMAGE]})"
    local digest='{{if .RepoDigests}}{{index .RepoDigests 0}}{{else}}{{.Id}}{{end}}'
    image_digest=
    if [[ $1 == apptainer ]]; then
        [[ $image != *://* ]] || return 0
        [[ -f $image && -r $image ]] || fail "$EXIT_ENVIRONMENT" "$named: no such file." \
            "Make it of the Docker image: apptainer build $image docker-daemon:heatlens:latest"
        return 0
    fi
    if ! said=$(aside "$1" image inspect -f "$digest" "$image" 2>&1); then
        [[ $image != heatlens:* ]] || get="make docker-build"
        fail "$EXIT_ENVIRONMENT" "$named: $1 has no such image on ${HOSTNAME-this machine}." \
            "$1 says: ${said##*$'\n'}" "Get it with: $get"
    fi
    image_digest=${said##*$'\n'}
}

# run_detachable RUNTIME: docker or podman: create, start with the FIFO as input, wait, look at the result.
run_detachable() {
    local state=
    aside "$1" rm -f "$container" &>/dev/null || : # a killed predecessor's; a requeued job keeps its id
    sweep_orphans "$1"
    create_words "$runtime"
    clean_up=remove_container
    if [[ -z $stop_signal ]]; then
        (with_environment '' "${words[@]}") >/dev/null </dev/null ||
            fail "$EXIT_ENVIRONMENT" "The container could not be made: $runtime create failed."
    fi
    open_input
    stop_command=stop_container
    supervise "$runtime" start -a -i "$container"
    while state=$(container_state) && [[ $state == still ]]; do # only the client has ended
        aside "$runtime" wait "$container" &>/dev/null &
        child=$!
        await_child
    done
    case $state in
        ended*) state=${state#ended } && finish "${state% *}" "${state#* }" ;;
        unknown) finish "$child_code" false ;; # someone removed it; the client has handed its exit code on
        *) not_started ;;
    esac
}

# sweep_orphans RUNTIME: removes what is left of containers whose launcher was killed with -9: they have stopped by
# themselves. Those of this user whose launcher is gone, and of any job after ten minutes.
sweep_orphans() {
    local id launcher
    while read -r id launcher; do
        [[ -d /proc/$launcher ]] || aside "$1" rm "$id" &>/dev/null || :
    done < <(
        aside "$1" ps -a --filter "label=heatlens.user=$user_id" --filter status=exited --filter status=created \
            --format '{{.ID}} {{.Label "heatlens.launcher"}}' 2>/dev/null || :
    )
    aside "$1" container prune -f --filter label=heatlens.job --filter until=10m &>/dev/null || :
}

# container_state: prints still, ended CODE OUT_OF_MEMORY, unknown (no answer), or nothing: it was never started.
container_state() {
    local state format='{{.State.Status}} {{.State.ExitCode}} {{.State.OOMKilled}}'
    state=$(aside "$runtime" inspect -f "$format" "$container" 2>/dev/null) || state=unknown
    case $state in
        exited\ * | stopped\ * | dead\ *) printf 'ended %s' "${state#* }" ;;
        unknown) [[ -n $stop_signal ]] || printf unknown ;; # a stop before the start leaves no container
        running\ * | paused\ * | restarting\ * | stopping\ *) printf still ;;
    esac
}

not_started() {
    [[ -z $stop_signal ]] || finish 143 false
    local lines=("The container was not started (see above).")
    if ((${#gpus[@]})); then
        lines+=("With GPUs $runtime needs NVIDIA's container toolkit on this node; DEVICE=cpu does without.")
    fi
    fail "$EXIT_ENVIRONMENT" "${lines[@]}"
}

# stop_container PID: asks until the process that waits for the container, PID, is gone: a stop that comes while the
# container is being started does nothing, and Slurm's signals may hit the client that asks.
stop_container() {
    local attempt
    trap '' TERM INT USR1
    for ((attempt = 0; attempt < 50; attempt++)); do
        "$runtime" stop -t "$STOP_GRACE" "$container" &>/dev/null || :
        sleep 0.2
        kill -0 "$1" 2>/dev/null || return 0
    done
}

remove_container() {
    aside "$runtime" rm -f "$container" &>/dev/null || :
}

# run_apptainer: an ordinary child process, which ends with the job.
run_apptainer() {
    scratch=$(mktemp -d) || fail "$EXIT_ENVIRONMENT" "no temporary folder can be made in ${TMPDIR:-/tmp}"
    clean_up=remove_scratch
    local at
    for at in "${INNER_FOLDERS[@]}"; do
        [[ $at == HOME=* ]] || { env_names+=("${at%%=*}") && env_values+=("${at#*=}"); }
    done
    apptainer_words "$scratch"
    open_input
    stop_command=stop_process
    supervise with_environment APPTAINERENV_ "${words[@]}"
    finish "$child_code" false
}

remove_scratch() {
    rm -rf -- "$scratch"
}
