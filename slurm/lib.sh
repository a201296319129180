# shellcheck shell=bash
# What the submit scripts of all stages share. Sourced, never run; needs set -euo pipefail in the caller.
# Values are only ever passed on in quotes: nothing here parses a .conf and nothing is evaluated a second time.

EXIT_CONFIG=2
EXIT_ENVIRONMENT=4

# fail CODE LINE...: the lines on stderr, then exit.
fail() {
    local code=$1
    shift
    printf '%s\n' "$@" >&2
    exit "$code"
}

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

# run_stage STAGE SCRIPT DEFAULT_CONFIG [FILE.conf] [FLAG...]: becomes the stage's Python process.
# exec, not a call: bash would keep a signal from Slurm until the run had ended.
run_stage() {
    local stage=$1 script=$2 name=$3
    local config python
    shift 3
    if (($#)) && [[ $1 != -* ]]; then
        name=$1
        shift
    fi
    find_config "$name" "$stage"
    find_python "${stage%/*}"
    exec "$python" "$stage/$script" --config "$config" "$@"
}
