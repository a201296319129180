# shellcheck shell=bash
# What all scripts that submit or start a stage share. Sourced, never run; needs set -euo pipefail in the caller.
# Values are only ever passed on in quotes: nothing here parses a .conf and nothing is evaluated a second time.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
    printf 'heatlens needs bash 4.4 or newer; this is bash %s.\n' "$BASH_VERSION" >&2
    exit 4
fi

EXIT_CONFIG=2
EXIT_ENVIRONMENT=4
EXIT_STOPPED=75
# shellcheck disable=SC2034 # the submit scripts read it
DEFAULT_CONFIG=configs/gemex/exp_01_vqa.conf

# fail CODE LINE...: the lines on stderr, then exit. What fails because a stop signal hit it is no error.
fail() {
    local code=$1
    shift
    printf '%s\n' "$@" >&2
    if [[ -n ${stop_signal:-} ]]; then
        code=$EXIT_STOPPED
    fi
    exit "$code"
}

# shellcheck source-path=SCRIPTDIR source=settings.sh
source "${BASH_SOURCE[0]%/*}/settings.sh"

# find_config NAME STAGE: sets `config` to the absolute path of the .conf that NAME means.
find_config() {
    local name=$1 stage=$2 candidate
    local tried=()
    if [[ $name == /* ]]; then
        tried=("$name")
    else
        tried=("$PWD/$name" "$stage/$name" "${stage%/*}/$name")
    fi
    for candidate in "${tried[@]}"; do
        if [[ -f $candidate ]]; then
            config=$candidate
            return
        fi
    done
    fail "$EXIT_CONFIG" "no such .conf file: $name. Looked for:" "${tried[@]/#/  }"
}

# find_python ROOT: sets `python` to the one that runs the stage.
find_python() {
    local root=$1
    if [[ -n ${HEATLENS_PYTHON:-} ]]; then
        python=$(type -P -- "$HEATLENS_PYTHON") ||
            fail "$EXIT_ENVIRONMENT" "HEATLENS_PYTHON=$HEATLENS_PYTHON is no program that can be run."
    elif [[ -x $root/.venv/bin/python ]]; then
        python=$root/.venv/bin/python
    elif python=$(type -P python3) && "$python" -c 'import heatlens' 2>/dev/null; then
        :
    else
        fail "$EXIT_ENVIRONMENT" \
            "No Python with heatlens was found: $root/.venv is not there and python3 cannot import heatlens." \
            "Run \`make setup\` in $root, or set HEATLENS_PYTHON to a Python that has heatlens."
    fi
}

# stage_folder STAGE: sets `REPLY` to the stage's folder in the repository.
stage_folder() {
    case $1 in
        attn_map) REPLY=Attention_Map ;;
        bbox) REPLY=Bounding_Box ;;
        *) fail "$EXIT_CONFIG" "unknown stage $1; allowed: attn_map, bbox, merge" ;;
    esac
}

# find_shard: in a Slurm array, sets and exports SHARD_INDEX and, where nobody said it, NUM_SHARDS.
find_shard() {
    local index=${SLURM_ARRAY_TASK_ID:-} count=${SLURM_ARRAY_TASK_COUNT:-} first last
    [[ $index =~ ^[0-9]{1,9}$ ]] || return 0
    if [[ -n ${flags[SHARD_INDEX]+set} ]]; then
        fail "$EXIT_CONFIG" "--shard-index ${flags[SHARD_INDEX]} would make every task of the array do the same shard." \
            "Leave it out."
    fi
    if [[ -n ${settings[NUM_SHARDS]:-} ]]; then
        if [[ ${settings[NUM_SHARDS]} =~ ^[0-9]{1,6}$ ]] && ((index >= 10#${settings[NUM_SHARDS]})); then
            last=$((10#${settings[NUM_SHARDS]} - 1))
            fail "$EXIT_CONFIG" "task $index of the array has no shard:" \
                "NUM_SHARDS=${settings[NUM_SHARDS]} (${origins[NUM_SHARDS]}) means --array=0-$last or some of these."
        fi
    else
        first=${SLURM_ARRAY_TASK_MIN:-} last=${SLURM_ARRAY_TASK_MAX:-}
        if [[ ! $count =~ ^[0-9]{1,9}$ || $first != 0 || $last != "$((count - 1))" ]]; then
            fail "$EXIT_CONFIG" \
                "an array without NUM_SHARDS must be --array=0-N; this one has $count tasks from $first to $last." \
                "To redo shard 3 of 8: NUM_SHARDS=8 sbatch --array=3 ..."
        fi
        export NUM_SHARDS=$count
    fi
    export SHARD_INDEX=$index
}

# check_data: exit 2 unless data set, images and model folder are there; the rules are those of the run.
check_data() {
    local pattern
    if [[ -z ${settings[DATASET_PATH]} ]]; then
        fail "$EXIT_CONFIG" "DATASET_PATH is not set: give the data set's file, folder or glob"
    elif [[ -z ${settings[DEMO]} ]]; then
        pattern=${settings[DATASET_PATH]}
        [[ -e $pattern ]] || compgen -G "$pattern" >/dev/null || missing DATASET_PATH "no such file or folder"
    fi
    [[ -z ${settings[IMAGE_ROOT]} || -d ${settings[IMAGE_ROOT]} ]] || missing IMAGE_ROOT "no such folder"
    [[ -z ${settings[MODEL_PATH]} || -e ${settings[MODEL_PATH]} ]] || missing MODEL "no such folder"
    [[ -z ${settings[HF_HOME]} || -d ${settings[HF_HOME]} ]] || missing HF_HOME "no such folder"
}

# missing KEY TEXT: exit 2 with key, value, origin and TEXT.
missing() {
    fail "$EXIT_CONFIG" "$1=${settings[$1]} (${origins[$1]}): $2"
}
