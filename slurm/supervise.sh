# shellcheck shell=bash
# Runs the work as a background child and stops it in good order. Sourced first of all by docker/run_stage.sh: the
# traps are set before anything can be started.
#
# bash runs a trap only when its foreground command has ended, so the work is never in the foreground. The work's
# standard input is a FIFO whose other end only this shell holds: when the shell is killed with -9, the work reads the
# end of its input, and stops by itself (HEATLENS_WATCH_STDIN).
#
# Signals: USR1 (Slurm's --signal=B:USR1@120: the time is nearly up) stops the work, and the job is requeued. TERM and
# INT stop it for good, because scancel sends TERM. CONT is not trapped: beside TERM, that loses the TERM.

stop_signal=   # what stops us; TERM and INT outweigh USR1
interrupted=   # a signal has come since the last wait
child=         # the process that is waited for
child_code=0   # its exit code
stopper=       # the process that makes `child` end
stop_command=: # what that process runs; $child is its argument
clean_up=:     # run once at the end, and before a requeue
hold=          # descriptor: the FIFO's other end

trap 'on_signal TERM' TERM
trap 'on_signal INT' INT
trap 'on_signal USR1' USR1
trap on_exit EXIT

on_signal() {
    interrupted=1
    if [[ -z $stop_signal || $1 != USR1 ]]; then
        stop_signal=$1
    fi
    printf '%(%F %T)T: signal %s, stopping\n' -1 "$1" >&2
    begin_stop
}

on_exit() {
    local code=$?
    trap '' TERM INT USR1
    if [[ -n $child ]]; then
        kill -KILL "$child" 2>/dev/null || :
    fi
    finish_up || :
    exit "$code"
}

finish_up() {
    local command=$clean_up
    clean_up=:
    if [[ -n $stopper ]]; then
        wait "$stopper" || : # it ends by itself, as the work is gone
        stopper=
    fi
    "$command"
}

begin_stop() {
    [[ -n $child ]] || return 0
    if [[ -z $stopper ]] || ! kill -0 "$stopper" 2>/dev/null; then
        aside "$stop_command" "$child" &
        stopper=$!
    fi
}

# aside COMMAND...: without the FIFO's other end, which no other process may hold.
aside() {
    if [[ -n $hold ]]; then
        "$@" {hold}>&-
    else
        "$@"
    fi
}

# open_input: makes the FIFO; sets `hold`, and `feed`, the end that the work reads. It has no name afterwards.
open_input() {
    local folder
    folder=$(mktemp -d) || fail "$EXIT_ENVIRONMENT" "no temporary folder can be made in ${TMPDIR:-/tmp}"
    mkfifo -m 600 -- "$folder/input"
    exec {hold}<>"$folder/input"
    exec {feed}<"$folder/input"
    rm -r -- "$folder"
}

# supervise COMMAND...: runs it in the background, waits for its end, however often signals come; sets `child_code`.
# Does not start it when a signal has come before; child_code is then 143. Needs open_input before it.
supervise() {
    child_code=143
    [[ -z $stop_signal ]] || return 0
    "$@" <&"$feed" {feed}<&- {hold}>&- &
    child=$!
    exec {feed}<&-
    await_child
}

# await_child: waits for `child`.
await_child() {
    local got
    if [[ -n $stop_signal ]]; then # it came before `child` was known
        begin_stop
    fi
    while :; do
        interrupted=''
        got=0
        wait "$child" || got=$?
        if ((got != 127)); then
            # shellcheck disable=SC2034 # callers read it
            child_code=$got
        fi
        [[ -n $interrupted ]] || break
    done
    child=
}

# stop_process PID: TERM, and after STOP_GRACE seconds KILL. Runs beside the wait, deaf to the signals that Slurm sends
# to every process of a job.
stop_process() {
    local tenth
    trap '' TERM INT USR1
    kill -TERM "$1" 2>/dev/null || return 0
    for ((tenth = 0; tenth < STOP_GRACE * 10; tenth++)); do
        sleep 0.1
        kill -0 "$1" 2>/dev/null || return 0
    done
    kill -KILL "$1" 2>/dev/null
}

# final_code CODE OUT_OF_MEMORY: sets `code` to one of 0, 2, 3, 4, 75 and says on stderr what is not the work's own.
final_code() {
    code=$1
    case $code in
        0 | 2 | 3 | 4 | "$EXIT_STOPPED") ;;
        *)
            code=$EXIT_ENVIRONMENT
            if [[ -n $stop_signal ]]; then
                code=$EXIT_STOPPED
                if (($1 == 137)); then
                    printf 'The run did not end within %s s and was killed; ' "$STOP_GRACE" >&2
                    printf 'finished heat maps are kept.\n' >&2
                fi
            elif [[ $2 != true ]]; then
                explain_code "$1"
            fi
            ;;
    esac
    if [[ $2 == true ]]; then
        printf 'The run was killed by the kernel because its memory was used up%s.\n%s\n' \
            "${memory_limit:+ (limit: $memory_limit MB)}" \
            'Ask for more (sbatch --mem=64G), or take a lower NUM_WORKERS; the same command continues.' >&2
        if ((code != 0 && code != EXIT_STOPPED)); then
            code=$EXIT_ENVIRONMENT
        fi
    fi
}

explain_code() {
    case $1 in
        12[567]) printf 'The container could not be started (%s: exit code %s).\n' "${runtime:-none}" "$1" ;;
        137) printf 'The run was killed (signal KILL); if its memory was used up, ask for more (sbatch --mem=64G).\n' ;;
        *) printf 'The run ended with exit code %s.\n' "$1" ;;
    esac >&2
}

# finish CODE OUT_OF_MEMORY: the end: cleans up, has the job requeued if its time was up, and exits.
finish() {
    local code
    final_code "$@"
    finish_up
    if [[ $code == "$EXIT_STOPPED" && $stop_signal == USR1 && -n ${SLURM_JOB_ID:-} ]]; then
        requeue
    fi
    exit "$code"
}

requeue() {
    local job=$SLURM_JOB_ID count=${SLURM_RESTART_COUNT:-0}
    [[ $count =~ ^[0-9]{1,9}$ ]] || count=0
    if [[ -n ${SLURM_ARRAY_JOB_ID:-} && -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
        job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    fi
    if ((count >= MAX_REQUEUES)); then
        printf 'Job %s was requeued %s times already (MAX_REQUEUES); submit it again to continue.\n' "$job" "$count" >&2
        return 0
    fi
    printf 'Job %s is requeued to continue (%s of at most %s).\n' "$job" "$((count + 1))" "$MAX_REQUEUES" >&2
    trap '' TERM INT USR1 # the requeue itself ends this job's processes
    aside scontrol requeue "$job" || printf 'Job %s could not be requeued; submit it again to continue.\n' "$job" >&2
}
