#!/usr/bin/env bash
# Stop the Slurm that slurm-up.sh started: cancel its jobs, end its processes, take its control groups away.
#
#   bash slurm-down.sh STATE [--delete]      --delete: the folder STATE, too

set -uo pipefail # one thing that fails must not keep the rest running

state=${1:?usage: slurm-down.sh STATE [--delete]}
state=$(cd -P -- "$state" 2>/dev/null && pwd) || exit 0 # gone already
export SLURM_CONF=$state/etc/slurm.conf
left=0

# stop FILE: the process whose number is in FILE, first politely.
stop() {
    local process i
    [[ -s $1 ]] || return 0
    process=$(<"$1")
    kill -TERM "$process" 2>/dev/null || return 0
    for ((i = 0; i < 100; i++)); do
        kill -0 "$process" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -KILL "$process" 2>/dev/null
}

# until_none COMMAND...: waits at most 40 seconds until COMMAND prints nothing.
until_none() {
    local i
    for ((i = 0; i < 200; i++)); do
        [[ -z $("$@" 2>/dev/null) ]] && return 0
        sleep 0.2
    done
    return 1
}

# Processes that this slurmd started and still look after, its own name aside.
step_daemons() {
    local folder
    for folder in /proc/[0-9]*; do
        if [[ $(tr '\0' '\n' <"$folder/environ" 2>/dev/null) == *"SLURM_CONF=$SLURM_CONF"* &&
            $(<"$folder/comm") == slurmstepd ]]; then
            printf '%s\n' "${folder#/proc/}"
        fi
    done 2>/dev/null
}

if [[ -s $SLURM_CONF ]] && squeue -h >/dev/null 2>&1; then
    mapfile -t jobs < <(squeue -h -o %i -r)
    ((${#jobs[@]} == 0)) || scancel "${jobs[@]}"
    until_none squeue -h -o %i || {
        printf 'slurm-down: jobs that do not end: %s\n' "$(squeue -h -o '%i %T' | tr '\n' ' ')" >&2
        left=1
    }
fi
stop "$state/slurmd.pid"
stop "$state/slurmctld.pid"
stop "$state/munge/munged.pid"
for process in $(step_daemons); do
    printf 'slurm-down: slurmstepd %s was still there\n' "$process" >&2
    kill -KILL "$process" 2>/dev/null
    left=1
done
# Empty groups only: rmdir refuses where another Slurm of this machine has a process.
for folder in /sys/fs/cgroup/*/slurm*; do
    [[ -d $folder ]] && find "$folder" -depth -type d -exec rmdir -- {} + 2>/dev/null
done
if [[ -f $state/cgroups-mounted ]]; then
    cgroupfs-umount 2>/dev/null && rm -f -- "$state/cgroups-mounted"
fi
if [[ ${2-} == --delete ]]; then
    rm -rf -- "$state"
fi
exit "$left"
