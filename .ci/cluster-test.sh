#!/usr/bin/env bash
# `make cluster-test`: the launcher and the submit scripts on a real Slurm and a real Docker of this machine's own.
#
#   bash .ci/cluster-test.sh [--if-possible] [pytest words...]
#
# Needs root on Debian, and installs what is missing (Slurm, munge, Docker, podman). Starts a private Slurm and, where
# none runs, a Docker daemon; makes a base image from Debian packages, builds docker/Dockerfile.3090 on it, runs
# tests/cluster/real, and takes everything down that it started: processes, containers, mounts, folders, the user.
# Packages and images stay, so that a second call is quick.
#
#   --if-possible         elsewhere: one line and exit 0, instead of exit 4
#   HEATLENS_TEST_IMAGE   use this image and build none
#   HEATLENS_PYTHON       the Python with heatlens and pytest (default .venv/bin/python)
#   TORCH_INDEX           where the image takes torch from; a build for CPUs is a tenth of the download

set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
machine=$PWD/tests/cluster/machine
user=heatlens-test
state=
made_user=
child=

refuse() {
    if [[ $if_possible ]]; then
        printf 'cluster-test: skipped: %s\n' "$*"
        exit 0
    fi
    printf 'cluster-test: %s\n' "$*" >&2
    exit 4
}

check_machine() {
    ((EUID == 0)) || refuse 'needs root, to start a private Slurm and Docker.'
    [[ -f /etc/debian_version && -x /usr/bin/apt-get ]] || refuse 'needs Debian and its packages of Slurm and Docker.'
    [[ $(stat -f -c %T /sys/fs/cgroup 2>/dev/null) != cgroup2fs ]] ||
        refuse 'needs control groups of version 1: the limits of version 2 need systemd, in Slurm as Debian has it.'
}

# timed WHAT COMMAND...: in the background, so that a signal to this script is heard at once.
timed() {
    local what=$1 start=$SECONDS
    shift
    "$@" &
    child=$!
    wait "$child"
    child=
    printf 'cluster-test: %s: %s s\n' "$what" "$((SECONDS - start))"
}

# ours: the processes that this test started and that name its folder in their environment.
ours() {
    local folder
    for folder in /proc/[0-9]*; do
        if [[ ${folder#/proc/} != "$$" ]] && grep -qsF -- "$state/" "$folder/environ"; then
            printf '%s\n' "${folder#/proc/}"
        fi
    done
}

# stop_ours: launchers that were started by hand end their containers when they get TERM.
stop_ours() {
    local name processes tenth
    for name in TERM KILL; do
        for ((tenth = 0; tenth < 300; tenth++)); do
            mapfile -t processes < <(ours)
            ((${#processes[@]})) || return 0
            ((tenth)) || kill "-$name" "${processes[@]}" 2>/dev/null
            sleep 0.1
        done
    done
}

# podman's own default asks for more open files than a container's root may allow, where this is a container itself.
have_podman() {
    local files processes
    if ! type -P podman >/dev/null || ! [[ -x /usr/bin/catatonit ]]; then
        DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends \
            podman catatonit >"$state/podman.log" 2>&1 || {
            tail -n 20 "$state/podman.log" >&2
            printf 'cluster-test: apt-get could not install podman; its tests are skipped\n' >&2
            return 0
        }
    fi
    files=$(ulimit -Sn) processes=$(ulimit -Su) # a job has no more than the shell that submits it
    if [[ $files == unlimited ]] || ((files > 4096)); then files=4096; fi
    if [[ $processes == unlimited ]] || ((processes > 4096)); then processes=4096; fi
    printf '[containers]\ndefault_ulimits = ["nofile=%s:%s", "nproc=%s:%s"]\n' \
        "$files" "$files" "$processes" "$processes" >"$state/containers.conf"
    export CONTAINERS_CONF=$state/containers.conf
}

make_user() {
    if ! id "$user" >/dev/null 2>&1; then
        useradd --create-home --home-dir "$state/home" --shell /bin/bash --groups docker "$user"
        made_user=1
    fi
}

tear_down() {
    local code=$?
    trap '' INT TERM HUP
    set +e
    if [[ $child ]] && kill -TERM "$child" 2>/dev/null; then
        wait "$child"
    fi
    bash "$machine/slurm-down.sh" "$state" || code=$((code ? code : 1))
    stop_ours
    if [[ $made_user ]]; then
        userdel "$user" 2>/dev/null
    fi
    bash "$machine/docker-down.sh" || code=$((code ? code : 1))
    rm -rf -- "$state"
    exit "$code"
}

if_possible=
if [[ ${1-} == --if-possible ]]; then
    if_possible=1
    shift
fi
check_machine
python=${HEATLENS_PYTHON:-$PWD/.venv/bin/python}
[[ -x $python ]] || refuse "$python is no program; make setup, or set HEATLENS_PYTHON."

umask 022
state=$(mktemp -d "${TMPDIR:-/tmp}/heatlens-cluster.XXXXXX")
trap tear_down EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
# Debian's docker first: another client, earlier on PATH, may lack BuildKit.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin:$PATH

timed 'Slurm' bash "$machine/slurm-up.sh" "$state"
timed 'Docker' bash "$machine/docker-up.sh"
have_podman # exports, so not in the background
make_user
if [[ -z ${HEATLENS_TEST_IMAGE:-} ]]; then
    export HEATLENS_TEST_IMAGE=heatlens-test/heatlens:latest
    timed 'base image' bash "$machine/docker-base.sh" heatlens-test/base:bookworm
    timed 'image' bash docker/build.sh --base heatlens-test/base:bookworm --tag "$HEATLENS_TEST_IMAGE"
fi
mkdir "$state/tmp"
timed 'tests' env HEATLENS_CLUSTER_TEST=1 TMPDIR="$state/tmp" "SLURM_CONF=$state/etc/slurm.conf" "HEATLENS_TEST_USER=$user" \
    PYTHONPATH="$PWD/src" "$python" -m pytest -p no:cacheprovider -n 2 --dist loadfile tests/cluster/real "$@"
