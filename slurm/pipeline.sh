#!/usr/bin/env bash
# Submits a chain of stages to Slurm: each starts when the one before it, with its merge, has succeeded; when one
# fails, the later ones are taken out of the queue.
#
#   bash slurm/pipeline.sh FILE.conf STAGE... [--shards N [--at-once M]] [--dry-run] [--parsable] [--key value ...]
#                          [-- sbatch options]
#
# STAGE    attn_map and bbox are of this repository and take the options as submit.sh does. Any other, such as vqa_gen,
#          is submitted by the command in the array VQA_GEN_SUBMIT of slurm/site.conf, in the repository's root:
#              VQA_GEN_SUBMIT=(sbatch --parsable --gres=gpu:1 /shared/vqa/vqa.sh {manifest})
#          {dependency}, alone    becomes --dependency=afterok:ID --kill-on-invalid-dep=yes
#          {dependency} in a word becomes afterok:ID
#          {manifest}, {results}  become vqa_manifest.csv's path (boxes.jsonl's if the chain begins with bbox) and the
#                                 results folder
#          Without {dependency} in it, a command that begins with sbatch gets the options after its first word.
#          The command must answer with a job id (ID, ID;CLUSTER or "Submitted batch job ID").
#
# In a downstream stage's environment: HEATLENS_CONFIG (the .conf), RESULTS_DIR and VQA_MANIFEST (the results folder and
# {manifest} of the chain's first stage), and ATTN_MAP_RESULTS, BBOX_RESULTS for each of our stages before it.
#
# --dry-run prints the whole chain, --parsable nothing but the last job's ID[;CLUSTER]. Exit codes as submit.sh.

set -euo pipefail

root=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && printf '%s.' "$PWD") # the dot keeps a line break at the end
root=${root%.}
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$root/slurm/lib.sh"
# shellcheck source-path=SCRIPTDIR source=jobs.sh
source "$root/slurm/jobs.sh"

# read_downstream NAME: sets `words` to the submit command of a stage that is not ours.
read_downstream() {
    local setting=${1^^}_SUBMIT list=()
    site_list "$setting"
    ((${#list[@]})) ||
        fail "$EXIT_CONFIG" "pipeline.sh: $1 is not a stage of this repository, and $setting is not set." \
            "Give its submit command in $root/slurm/site.conf:  $setting=(sbatch --parsable FILE.sh)"
    words=("${list[@]}")
    [[ ${words[0]##*/} == sbatch || ${words[*]} == *'{dependency}'* ]] ||
        fail "$EXIT_CONFIG" "pipeline.sh: $setting does not begin with sbatch: put {dependency} where the options" \
            "--dependency=afterok:ID --kill-on-invalid-dep=yes belong, or inside a word for afterok:ID."
    ((dry_run)) || (cd -- "$root" && type -P -- "${words[0]}" >/dev/null) ||
        fail "$EXIT_ENVIRONMENT" "pipeline.sh: $setting: there is no program ${words[0]}."
}

# fill_words MANIFEST RESULTS: the fields in `words`, as data; reads `dependency`.
fill_words() {
    local word filled=()
    if [[ ${words[*]} != *'{dependency}'* ]]; then
        words=("${words[0]}" '{dependency}' "${words[@]:1}")
    fi
    for word in "${words[@]}"; do
        if [[ $word == '{dependency}' ]]; then
            filled+=("${dependency[@]}")
        else
            fill_word "$word" "$@"
            filled+=("$word")
        fi
    done
    words=("${filled[@]}")
}

# fill_word WORD MANIFEST RESULTS: sets `word`. From left to right, so that a path that holds a field's name stays.
fill_word() {
    local text=$1
    word=
    while [[ $text == *'{'* ]]; do
        word+=${text%%'{'*}
        text="{${text#*'{'}"
        case $text in
            '{dependency}'*) word+=${dependency[0]#--dependency=} text=${text#'{dependency}'} ;;
            '{manifest}'*) word+=$2 text=${text#'{manifest}'} ;;
            '{results}'*) word+=$3 text=${text#'{results}'} ;;
            *) word+='{' text=${text:1} ;;
        esac
    done
    word+=$text
}

# check_chain FILE: everything that can be wrong with any stage, before the first is submitted.
check_chain() {
    local name own=() words=()
    local -A writer=()
    for name in "${stages[@]}"; do
        if [[ $name == attn_map || $name == bbox ]]; then
            own+=("$name")
        elif [[ ! $name =~ ^[A-Za-z][A-Za-z0-9_]*$ ]]; then
            fail "$EXIT_CONFIG" "pipeline.sh: ${name@Q} is no stage's name."
        elif ((${#own[@]} == 0)); then
            fail "$EXIT_CONFIG" "pipeline.sh: a chain begins with attn_map or bbox, not with $name."
        fi
    done
    prepare_submission "$1" "${own[@]}"
    for name in "${own[@]}"; do
        [[ -z ${writer[${results_of[$name]}]:-} ]] ||
            fail "$EXIT_CONFIG" "pipeline.sh: ${writer[${results_of[$name]}]} and $name would both write to" \
                "${results_of[$name]}. Name each stage once, and leave RESULTS_DIR out: each has a folder of its own."
        writer[${results_of[$name]}]=$name
    done
    for name in "${stages[@]}"; do
        [[ -n ${results_of[$name]:-} ]] || read_downstream "$name"
    done
}

# submit_downstream NAME: a stage that is not ours, behind `job`.
submit_downstream() {
    local one results=${results_of[${stages[0]}]} manifest=vqa_manifest.csv
    [[ ${stages[0]} != bbox ]] || manifest=boxes.jsonl
    local words=() dependency=()
    read_downstream "$1"
    after "$job"
    fill_words "$results/$manifest" "$results"
    local prefix=("HEATLENS_CONFIG=$config" "RESULTS_DIR=$results" "VQA_MANIFEST=$results/$manifest")
    for one in "${stages[@]}"; do
        [[ -z ${results_of[$one]:-} ]] || prefix+=("${one^^}_RESULTS=${results_of[$one]}")
    done
    show -- cd "$root"
    cd -- "$root"
    send "$1" "${words[@]}"
}

if [[ ${1:---help} == --help || $1 == -h ]]; then
    usage
    exit 0
fi
file=$1
shift
stages=()
while (($#)) && [[ $1 != -* ]]; do
    stages+=("$1")
    shift
done
((${#stages[@]})) || fail "$EXIT_CONFIG" "pipeline.sh: which stages? For example: pipeline.sh $file attn_map vqa_gen"
read_options "$@"
check_chain "$file"
for name in "${stages[@]}"; do
    if [[ -z ${results_of[$name]:-} ]]; then
        submit_downstream "$name"
    elif [[ -n $job ]]; then
        dependency=()
        after "$job"
        submit_stage "$name" "${dependency[@]}"
    else
        submit_stage "$name"
    fi
done
((!parsable || dry_run)) || printf '%s\n' "$job"
