# shellcheck shell=bash
# What settings.sh runs in a bash of its own:  bash read_conf.sh FILE DESCRIPTOR
# Sources FILE under `set -eu` and writes to DESCRIPTOR, with a NUL after each field:
#   word NAME VALUE, list NAME COUNT VALUE...      upper-case variables that FILE set or changed
#   file PATH                                      FILE and what it sourced
#   failed FILE LINE COMMAND CODE                  a command that failed
#   end                                            everything was written
# `builtin` keeps functions of FILE out of the way.

readonly heatlens_answer=$2
declare -A heatlens_before=() heatlens_files=() heatlens_arrays=()
for heatlens_name in $(builtin compgen -A variable); do
    if [[ $heatlens_name == [A-Z]* ]]; then
        heatlens_before[$heatlens_name]=${!heatlens_name-}
    fi
done

# shellcheck disable=SC2329 # the trap below calls it
heatlens_failed() {
    builtin printf 'failed\0%s\0%s\0%s\0%s\0' "$@" >&"$heatlens_answer"
}

heatlens_dump() {
    builtin local -n heatlens_value=$1
    if [[ -n ${heatlens_arrays[$1]-} ]]; then
        builtin printf 'list\0%s\0%s\0' "$1" "${#heatlens_value[@]}" >&"$heatlens_answer"
        if ((${#heatlens_value[@]})); then
            builtin printf '%s\0' "${heatlens_value[@]}" >&"$heatlens_answer"
        fi
    elif [[ -n ${heatlens_value+set} ]]; then
        if [[ -z ${heatlens_before[$1]+set} || $heatlens_value != "${heatlens_before[$1]}" ]]; then
            builtin printf 'word\0%s\0%s\0' "$1" "$heatlens_value" >&"$heatlens_answer"
        fi
    fi
}

set -eETu
trap 'heatlens_failed "${BASH_SOURCE[0]-}" "$LINENO" "$BASH_COMMAND" "$?"' ERR
trap 'heatlens_files[${BASH_SOURCE[0]:-none}]=1' DEBUG
# shellcheck source=/dev/null
source "$1"
trap - DEBUG ERR EXIT
set +eETux
IFS=$' \t\n'

for heatlens_name in $(builtin compgen -A arrayvar); do
    heatlens_arrays[$heatlens_name]=1
done
for heatlens_name in $(builtin compgen -A variable); do
    case $heatlens_name in
        *[a-z]* | [!A-Z]*) ;;
        BASH* | COMP_* | COLUMNS | COPROC | DIRSTACK | EPOCH* | EUID | FUNCNAME | GROUPS | HISTCMD | IFS | LINENO) ;;
        LINES | MAILCHECK | MAPFILE | OLDPWD | OPTARG | OPTERR | OPTIND | PIPESTATUS | PPID | PS[1-4] | PWD) ;;
        RANDOM | REPLY | SECONDS | SHELLOPTS | SHLVL | SRANDOM | UID) ;;
        *) heatlens_dump "$heatlens_name" ;;
    esac
done
for heatlens_name in "${!heatlens_files[@]}"; do
    builtin printf 'file\0%s\0' "$heatlens_name" >&"$heatlens_answer"
done
builtin printf 'end\0' >&"$heatlens_answer"
exit 0
