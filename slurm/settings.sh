# shellcheck shell=bash
# The few settings that the shell needs, read by the rules of src/heatlens/conf_file.py: bash sources a .conf once, in
# a child without the keys in its environment, and hands the variables back with NUL bytes between them.
# Sourced by lib.sh. Callers read (after read_site, take_words and read_settings):
#   settings[KEY] and origins[KEY]     value and where it comes from; paths absolute; also DEMO, MODEL_PATH, HF_HOME
#   flags[KEY]                         what stood on the command line
#   site[NAME], site_list NAME         slurm/site.conf
# shellcheck disable=SC2034 # they are used by those who source this file

# Every key of src/heatlens/settings.py (a test compares them): hidden from the child, handed to the container.
HEATLENS_KEYS=(
    DATASET DATASET_PATH IMAGE_ROOT SPLIT VIEW QUESTION_TYPES SAMPLE SEED STOP_AFTER PROMPT_TEMPLATE REGIONS BLIND
    MODEL MODEL_REVISION TARGET_LAYER PREPROCESS DEVICE PRECISION BATCH_SIZE COMPILE CAM_VERSION TOPK RISE_MASKS
    ALLOW_ZERO_GRADIENT ENABLE_BODY_MASK SKIP_CRF CRF_GAUSSIAN_SXY CRF_GAUSSIAN_COMPAT CRF_BILATERAL_SXY
    CRF_BILATERAL_SRGB CRF_BILATERAL_COMPAT CRF_TAU CRF_EPS CRF_STEPS CRF_SIZE
    SAVE_RAW_CAM ALPHA COLORMAP BACKGROUND OUTPUT_SIZE OUTPUT_FORMAT
    RESULTS_DIR OVERWRITE RETRY_FAILED MAX_FAILURE_RATE NUM_WORKERS NUM_SHARDS SHARD_INDEX UMASK CONTAINER_RUNTIME
    CONTAINER_IMAGE BOX_THRESHOLD MAX_BOXES MIN_AREA BOX_PADDING
)
# Data sets that are written on first use, and where below .demo/ (a test compares them with Python's registry).
declare -A DEMO_FOLDERS=([phantom]=phantom [phantom_findings]=held_out)
SITE_WORDS=(CONTAINER_RUNTIME CONTAINER_IMAGE HF_HOME MAX_REQUEUES STOP_GRACE SHM_SIZE CHECK_IMAGE)
SITE_LISTS=(MOUNTS SBATCH_OPTIONS MERGE_SBATCH_OPTIONS CONTAINER_OPTIONS) # and every STAGE_SUBMIT
BIOMEDCLIP=hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224

READER=${BASH_SOURCE[0]%/*}/read_conf.sh

declare -A flags=() settings=() origins=() site=() conf=() conf_lists=()
config='' conf_root='' conf_tree='' image_base=''
rest=()        # the command line without the .conf and without the launcher's own words
check_only=    # --check was among them
conf_reads=()  # exported variables that the .conf and what it sources mention by name

# source_file FILE FOLDER [HIDDEN...]: sets conf[NAME], conf_lists[NAME] (how many; the words are in conf_words_NAME)
# and conf_files from FILE, sourced in FOLDER. Exit 2 with file and line when that fails.
source_file() {
    local file=$1 folder=$2 name code=0 answer out back said heard last=
    local hidden=(-u BASH_ENV -u ENV -u SHELLOPTS -u BASHOPTS -u POSIXLY_CORRECT -u CDPATH) fields=() lines=()
    for name in "${HEATLENS_KEYS[@]}" "${@:3}"; do
        hidden+=(-u "$name")
    done
    while IFS= read -r -d '' name; do # exported functions
        [[ $name != BASH_FUNC_* ]] || hidden+=(-u "${name%%=*}")
    done < <(env -0)
    # Files that have no name any more: a process that FILE leaves behind cannot keep the reader waiting.
    answer=$(mktemp) || fail "$EXIT_ENVIRONMENT" "no temporary file can be made in ${TMPDIR:-/tmp}"
    exec {out}>"$answer"
    exec {back}<"$answer"
    : >"$answer.said"
    exec {said}>"$answer.said"
    exec {heard}<"$answer.said"
    rm -f -- "$answer" "$answer.said"
    (
        cd -- "$folder"
        exec env "${hidden[@]}" timeout 60 "$BASH" --noprofile --norc "$READER" "$file" "$out" </dev/null >&"$said" 2>&1
    ) || code=$?
    mapfile -d '' -t fields <&"$back"
    mapfile -t lines <&"$heard"
    exec {out}>&- {back}<&- {said}>&- {heard}<&-
    if ((${#lines[@]})); then
        last=${lines[-1]}
    fi
    take_fields "$file" "$code" "$last" "${fields[@]}"
}

# take_fields FILE CODE LAST_LINE FIELD...: the child's answer.
take_fields() {
    local file=$1 code=$2 last=$3 failed=() ended=
    shift 3
    conf=() conf_lists=() conf_files=()
    while (($#)); do
        case $1 in
            word) conf[$2]=$3 && shift 3 ;;
            list)
                conf_lists[$2]=$3
                declare -g -a "conf_words_$2=()"
                local -n words="conf_words_$2"
                words=("${@:4:$3}")
                shift $((3 + $3))
                ;;
            failed) failed=("${@:2:4}") && shift 5 ;;
            file) conf_files+=("$2") && shift 2 ;;
            *) ended=1 && break ;;
        esac
    done
    [[ -z $ended ]] || return 0
    if ((code == 124)); then
        fail "$EXIT_CONFIG" "$file: bash read it for more than 60 s; does it wait?"
    elif ((${#failed[@]})); then
        [[ $last != *": line "* ]] || last=${last#*": line "*: }
        fail "$EXIT_CONFIG" \
            "${failed[0]}:${failed[1]}: \`${failed[2]}\` failed with exit code ${failed[3]}${last:+: $last}"
    fi
    fail "$EXIT_CONFIG" "${last:-$file: the file ends the shell with exit code $code; a .conf only sets variables}"
}

# read_site ROOT: the site's settings. HEATLENS_SITE_CONF names another file than slurm/site.conf.
read_site() {
    local file=${HEATLENS_SITE_CONF:-$1/slurm/site.conf} name
    if [[ ! -e $file && -z ${HEATLENS_SITE_CONF:-} ]]; then
        return 0
    fi
    [[ -f $file ]] || fail "$EXIT_CONFIG" "HEATLENS_SITE_CONF=$file: no such file"
    source_file "$file" "$1" "${SITE_WORDS[@]}" "${SITE_LISTS[@]}"
    for name in "${!conf[@]}"; do
        if [[ " ${SITE_LISTS[*]} " == *" $name "* || $name == *_SUBMIT ]]; then
            fail "$EXIT_CONFIG" "$file: $name is a list: write $name=(WORD WORD), each word quoted if it has blanks"
        elif [[ " ${SITE_WORDS[*]} " != *" $name "* ]]; then
            fail "$EXIT_CONFIG" "$file: $name is no site setting;" \
                "there are ${SITE_WORDS[*]} ${SITE_LISTS[*]} and STAGE_SUBMIT"
        fi
        site[$name]=${conf[$name]}
    done
    for name in "${!conf_lists[@]}"; do
        if [[ " ${SITE_LISTS[*]} " != *" $name "* && $name != *_SUBMIT ]]; then
            fail "$EXIT_CONFIG" "$file: $name is no list of this file; lists are ${SITE_LISTS[*]} and STAGE_SUBMIT"
        fi
        local -n from="conf_words_$name"
        declare -g -a "site_words_$name=()"
        local -n to="site_words_$name"
        to=("${from[@]}")
    done
}

# site_word NAME DEFAULT: sets `REPLY` to the environment's, the site's or the default value.
site_word() {
    REPLY=${!1-${site[$1]-$2}}
}

# site_list NAME: sets the array `list` to the site's words; from the environment, one word a line.
site_list() {
    list=()
    if [[ -n ${!1+set} ]]; then
        [[ -z ${!1} ]] || mapfile -t list <<<"${!1}"
    elif declare -p "site_words_$1" &>/dev/null; then
        local -n found="site_words_$1"
        list=("${found[@]}")
    fi
}

# take_words WORD...: takes a command line apart into config_name, flags, check_only and rest.
take_words() {
    local word key
    config_name=
    if [[ ${1-} == --check ]]; then
        check_only=1
        shift
    fi
    if (($#)) && [[ $1 != -* ]]; then
        config_name=$1
        shift
    fi
    while (($#)); do
        word=$1
        shift
        if [[ $word == --check ]]; then
            check_only=1
            continue
        elif [[ $word == --config || $word == --config=* ]]; then
            [[ -z $config_name ]] || fail "$EXIT_CONFIG" "two .conf files: $config_name and $word ${1-}"
            [[ $word == *=* || $# -gt 0 ]] || fail "$EXIT_CONFIG" "--config needs the name of a .conf file"
            if [[ $word == *=* ]]; then config_name=${word#*=}; else config_name=$1 && shift; fi
            continue
        fi
        rest+=("$word")
        if [[ $word == --*=* ]]; then
            key=${word%%=*} word=${word#*=}
        elif [[ $word == --* && $# -gt 0 && $1 != --* ]]; then
            key=$word word=$1
            rest+=("$1")
            shift
        elif [[ $word == --* ]]; then
            key=$word word=true # a switch such as --overwrite
        else
            continue
        fi
        key=${key#--}
        key=${key//-/_}
        flags[${key^^}]=$word
    done
}

# absolute TEXT BASE: sets `REPLY` to TEXT as an absolute path, ~ expanded, links kept.
absolute() {
    local path=$1 part home='' kept=
    part=${path%%/*}
    if [[ $part == \~ ]]; then
        path=${HOME-}${path#\~}
    elif [[ $part == \~* ]] && home=$(getent passwd -- "${part#\~}"); then
        home=${home%:*}
        path=${home##*:}${path#"$part"}
    fi
    [[ $path == /* ]] || path=$2/$path
    path+=/
    while [[ -n $path ]]; do
        part=${path%%/*}
        path=${path#*/}
        case $part in
            '' | .) ;;
            ..) kept=${kept%/*} ;;
            *) kept+=/$part ;;
        esac
    done
    REPLY=${kept:-/}
}

# real_folder FOLDER: sets `REPLY` to it without links.
real_folder() {
    REPLY=$(cd -P -- "$1" && printf '%s.' "$PWD") # the dot keeps a line break at the end
    REPLY=${REPLY%.}
}

# locate_conf FILE: sets config (its folder without links), conf_root (what relative paths in it start at) and
# conf_tree (the folder that it may source its neighbours from).
locate_conf() {
    real_folder "${1%/*}/"
    config=${REPLY%/}/${1##*/}
    conf_root=$REPLY
    while [[ $conf_root == */* && ${conf_root##*/} != configs ]]; do
        conf_root=${conf_root%/*}
    done
    conf_tree=${conf_root:-$REPLY}
    conf_root=${conf_root%/configs}
    [[ $conf_tree != "$REPLY" || $REPLY == */configs ]] || conf_root=$REPLY
}

# setting KEY DEFAULT: sets settings[KEY], origins[KEY] and `base`, the folder that a relative path starts at.
setting() {
    base=$PWD
    if [[ -n ${flags[$1]+set} ]]; then
        settings[$1]=${flags[$1]} origins[$1]="flag"
    elif [[ -n ${!1+set} ]]; then
        settings[$1]=${!1} origins[$1]="environment"
    elif [[ -n ${conf_lists[$1]+set} ]]; then
        fail "$EXIT_CONFIG" "$config: $1 is a bash array; write one value, quoted if it has blanks"
    elif [[ -n ${conf[$1]+set} ]]; then
        settings[$1]=${conf[$1]} origins[$1]=$config base=$conf_root
    elif [[ -n ${site[$1]+set} ]]; then
        settings[$1]=${site[$1]} origins[$1]=slurm/site.conf base=$conf_root
    else
        settings[$1]=$2 origins[$1]="default" base=$conf_root
    fi
}

# choice KEY: lower case, no blanks around it.
choice() {
    local text=${settings[$1],,}
    text=${text#"${text%%[![:space:]]*}"}
    settings[$1]=${text%"${text##*[![:space:]]}"}
}

# read_settings STAGE DEFAULT_RUNTIME: everything above for `config`; STAGE is attn_map or bbox.
read_settings() {
    local key
    locate_conf "$config"
    source_file "$config" "$conf_root"
    find_reads
    setting DATASET gemex && choice DATASET
    find_demo
    setting DEVICE auto && choice DEVICE
    setting CONTAINER_RUNTIME "$2" && choice CONTAINER_RUNTIME
    setting CONTAINER_IMAGE '' && image_base=$base
    setting NUM_SHARDS ''
    setting OVERWRITE false && choice OVERWRITE
    setting UMASK 077
    [[ ${settings[UMASK]} =~ ^[0-7]{3,4}$ ]] || missing UMASK "allowed: three or four octal digits"
    case ${settings[CONTAINER_RUNTIME]} in
        docker | podman | apptainer | none) ;;
        *) missing CONTAINER_RUNTIME "allowed: docker, podman, apptainer, none" ;;
    esac
    for key in DATASET_PATH IMAGE_ROOT RESULTS_DIR; do
        setting "$key" ''
        [[ -z ${settings[$key]} ]] || { absolute "${settings[$key]}" "$base" && settings[$key]=$REPLY; }
    done
    if [[ -z ${settings[DATASET_PATH]} && -n ${settings[DEMO]} ]]; then
        settings[DATASET_PATH]=${conf_root%/}/.demo/${settings[DEMO]}
    fi
    if [[ -z ${settings[RESULTS_DIR]} ]]; then
        stage_folder "$1"
        local name=${config##*/}
        [[ $config != "$conf_root/configs/"* ]] || name=${config#"$conf_root/configs/"}
        [[ $name != *?.* || ${name##*/} == .* ]] || name=${name%.*}
        settings[RESULTS_DIR]=${conf_root%/}/$REPLY/results/$name
    fi
    read_model
    find_weights
}

# find_demo: settings[DEMO], the folder's name of a DATASET that is written on first use, else empty. As in the registry,
# hyphens, underscores and blanks in DATASET do not matter.
find_demo() {
    local name
    settings[DEMO]=
    for name in "${!DEMO_FOLDERS[@]}"; do
        if [[ ${settings[DATASET]//[[:space:]_-]/} == "${name//_/}" ]]; then
            settings[DATASET]=$name settings[DEMO]=${DEMO_FOLDERS[$name]}
        fi
    done
}

# read_model: settings[MODEL] as the run understands it, and settings[MODEL_PATH], its folder or file, if it is one.
read_model() {
    local name rest_of
    setting MODEL "$BIOMEDCLIP"
    name=${settings[MODEL]}
    settings[MODEL_PATH]=
    if [[ $name == local-dir:?* ]]; then
        absolute "${name#local-dir:}" "$base"
        settings[MODEL]=local-dir:$REPLY settings[MODEL_PATH]=$REPLY
    elif absolute "$name" "$base" &&
        [[ $name =~ ^(/|\./|\.\./|~|\.\.?$) || $name == */* && $name != *:* && -d $REPLY ]]; then
        settings[MODEL]=$REPLY settings[MODEL_PATH]=$REPLY
    elif [[ $name == */?* && $name != *:* ]]; then
        rest_of=${name#*/}
        absolute "$rest_of" "$base"
        [[ ! -f $REPLY ]] || settings[MODEL]=${name%%/*}/$REPLY settings[MODEL_PATH]=$REPLY
    fi
}

# find_weights: settings[HF_HOME], the hub's cache: environment, site.conf, else ~/.cache/huggingface if it is there.
find_weights() {
    setting HF_HOME ''
    if [[ -n ${settings[HF_HOME]} ]]; then
        absolute "${settings[HF_HOME]}" "$base"
        settings[HF_HOME]=$REPLY
    elif [[ -d ${HOME-}/.cache/huggingface ]]; then
        settings[HF_HOME]=$HOME/.cache/huggingface
    fi
}

# find_reads: conf_reads, the environment variables that the .conf (or a file that it sourced) mentions, such as
# $SCRATCH: the container sources it again and `set -u` would stop it there.
find_reads() {
    local file name
    local -A seen=()
    conf_reads=()
    for name in "${HEATLENS_KEYS[@]}" PATH HOME USER LOGNAME PWD OLDPWD SHLVL TMPDIR IFS HOSTNAME BASH_ENV ENV _; do
        seen[$name]=1
    done
    for file in "${conf_files[@]}"; do
        [[ -f $file && -r $file ]] || continue
        while IFS= read -r name; do
            name=${name#\$}
            name=${name#\{}
            if [[ -n ${seen[$name]+set} || $name == LD_* || $name == PYTHON* || -z ${!name+set} ]]; then
                continue
            elif [[ ${!name@a} == *x* ]]; then # exported
                conf_reads+=("$name")
            fi
            seen[$name]=1
        done < <(grep -a -o -E '\$\{?[A-Za-z_][A-Za-z0-9_]*' -- "$file" || :)
    done
}
