#!/usr/bin/env bash
# Have a Docker daemon: start one by hand where none runs. Debian, root, no systemd needed. A second call finds it up.
#
#   bash docker-up.sh        missing packages (docker.io and what it needs) are installed first
#   bash docker-down.sh      stops the daemon again, if docker-up.sh started it
#
# HEATLENS_DOCKER_STATE (default /run/heatlens-docker) remembers the daemon that was started here.

set -euo pipefail

client=/usr/bin/docker # Debian's; another client, earlier on PATH, may lack BuildKit
state=${HEATLENS_DOCKER_STATE:-/run/heatlens-docker}
log=$state/dockerd.log

complain() {
    printf 'docker-up: %s\n' "$*" >&2
    exit 4
}

install_packages() {
    local missing=() package apt=(apt-get -q -o DPkg::Lock::Timeout=300)
    for package in docker.io iptables cgroupfs-mount ca-certificates; do
        [[ $(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    printf 'docker-up: installing %s\n' "${missing[*]}"
    # Package scripts must not start the services: without an init system they would fail, or start a second daemon.
    if ! { "${apt[@]}" update &&
        DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 "${apt[@]}" install -y --no-install-recommends "${missing[@]}"; } \
        >"$state/apt.log" 2>&1; then
        tail -n 20 "$state/apt.log" >&2
        complain "apt-get could not install ${missing[*]}"
    fi
}

# Where no NVIDIA runtime is installed, a hook that does nothing makes this daemon accept --gpus. It looks for the hook
# on its own PATH when it starts.
pretend_gpus() {
    command -v nvidia-container-runtime-hook >/dev/null && return 0
    mkdir -p -- "$state/bin"
    printf '#!/bin/sh\nexit 0\n' >"$state/bin/nvidia-container-runtime-hook"
    chmod 755 "$state/bin/nvidia-container-runtime-hook"
}

start_daemon() {
    local i
    if [[ ! -f /sys/fs/cgroup/cgroup.controllers ]] && ! mountpoint -q /sys/fs/cgroup/devices; then
        cgroupfs-mount
    fi
    pretend_gpus
    PATH=$PATH:/usr/sbin:/sbin:$state/bin setsid nohup dockerd >"$log" 2>&1 </dev/null &
    printf '%s\n' "$!" >"$state/dockerd.pid"
    for ((i = 0; i < 300; i++)); do
        "$client" info >/dev/null 2>&1 && return 0
        kill -0 "$!" 2>/dev/null || break
        sleep 0.2
    done
    tail -n 20 "$log" >&2
    rm -f -- "$state/dockerd.pid"
    complain "dockerd did not come up; its last words are above"
}

((EUID == 0)) || complain 'needs root'
command -v apt-get >/dev/null || complain 'needs Debian: there is no apt-get'
mkdir -p -- "$state"
exec 9>"$state/lock" # two calls at the same time start one daemon
flock 9
install_packages
if "$client" info >/dev/null 2>&1; then
    printf 'docker-up: a daemon is up\n'
else
    start_daemon 9>&-
    printf 'docker-up: started dockerd %s\n' "$("$client" version --format '{{.Server.Version}}')"
fi
