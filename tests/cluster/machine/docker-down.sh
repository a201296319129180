#!/usr/bin/env bash
# Stop the Docker daemon that docker-up.sh started; one that was up before is left alone. Images are kept.
#
#   bash docker-down.sh

set -euo pipefail

state=${HEATLENS_DOCKER_STATE:-/run/heatlens-docker}
[[ -s $state/dockerd.pid ]] || exit 0
daemon=$(<"$state/dockerd.pid")

# A number alone may by now belong to another process.
running() {
    [[ $(cat "/proc/$daemon/comm" 2>/dev/null) == dockerd ]]
}

if running; then
    kill -TERM "$daemon"
    for ((i = 0; i < 300; i++)); do
        running || break
        sleep 0.2
    done
    if running; then
        printf 'docker-down: dockerd (process %s) does not stop\n' "$daemon" >&2
        exit 1
    fi
    printf 'docker-down: stopped dockerd\n'
fi
rm -rf -- "$state"
