#!/usr/bin/env bash
# Build the container image.
#
#   bash docker/build.sh [--base IMAGE] [--tag NAME:TAG] [options of `docker build` ...]
#
#   --base IMAGE      what it is built on: Ubuntu 24.04 or Debian 12 (default: the CUDA runtime that
#                     docker/Dockerfile.3090 names)
#   --tag NAME:TAG    the image's name (default heatlens:latest)
#
# From the environment:
#   CONTAINER_RUNTIME=podman                 build with podman (default docker)
#   PIP_CONFIG_FILE=FILE                     pip's configuration for the build (default: this machine's)
#   PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_TRUSTED_HOST    instead of that file: where pip finds packages
#   TORCH_INDEX=URL                          take torch from this package index: builds for an older CUDA, or for CPUs
# The build sees pip's configuration and TORCH_INDEX as secrets: nothing of them stays in the image.

set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
repository=${here%/*}
base=
tag=heatlens:latest
secrets=() # options that name the secret files
build=()   # the command that builds, up to its options
classic=   # set where only the builder before BuildKit is there

complain() {
    local code=$1
    shift
    printf 'build.sh: %s\n' "$*" >&2
    exit "$code"
}

usage() {
    sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
}

# The version of a Docker client, 0 where it does not tell: 18 to 22 have BuildKit in them, later ones need buildx.
client_major() {
    local version
    version=$("$1" version --format '{{.Client.Version}}' 2>/dev/null) || true
    version=${version%%.*}
    if [[ $version =~ ^[0-9]+$ ]]; then printf '%s\n' "$version"; else printf '0\n'; fi
}

# Several Docker clients may be installed: the first with buildx, else the first with BuildKit, else the first.
choose_docker() {
    local client clients=() major
    mapfile -t clients < <(type -aP docker)
    ((${#clients[@]})) || complain 4 'there is no docker command here; install Docker, or use CONTAINER_RUNTIME=podman'
    "${clients[0]}" info >/dev/null 2>&1 ||
        complain 4 'the Docker daemon does not answer (is it running, and may you use it?); see: docker info'
    for client in "${clients[@]}"; do
        if "$client" buildx version >/dev/null 2>&1; then
            build=("$client" buildx build --load)
            return
        fi
    done
    for client in "${clients[@]}"; do
        major=$(client_major "$client")
        if ((major >= 19 && major < 23)); then
            build=(env DOCKER_BUILDKIT=1 "$client" build)
            return
        fi
    done
    classic=yes
    build=(env DOCKER_BUILDKIT=0 "${clients[0]}" build)
}

choose_builder() {
    case ${CONTAINER_RUNTIME:-docker} in
        docker) choose_docker ;;
        podman)
            type -P podman >/dev/null || complain 4 'there is no podman command here'
            build=(podman build --format docker) # the other format has no SHELL
            ;;
        *) complain 2 "CONTAINER_RUNTIME=$CONTAINER_RUNTIME: images are built with docker or podman" ;;
    esac
}

# pip's configuration for the build, written to $1 or found on this machine.
pip_configuration() {
    local file
    if [[ -n ${PIP_INDEX_URL-}${PIP_EXTRA_INDEX_URL-}${PIP_TRUSTED_HOST-} ]]; then
        {
            printf '[global]\n'
            [[ -z ${PIP_INDEX_URL-} ]] || printf 'index-url = %s\n' "$PIP_INDEX_URL"
            [[ -z ${PIP_EXTRA_INDEX_URL-} ]] || printf 'extra-index-url = %s\n' "$PIP_EXTRA_INDEX_URL"
            [[ -z ${PIP_TRUSTED_HOST-} ]] || printf 'trusted-host = %s\n' "$PIP_TRUSTED_HOST"
        } >"$1"
        return
    fi
    if [[ -n ${PIP_CONFIG_FILE-} && ! -e $PIP_CONFIG_FILE ]]; then
        complain 2 "PIP_CONFIG_FILE=$PIP_CONFIG_FILE: there is no such file"
    fi
    for file in "${PIP_CONFIG_FILE-}" "${HOME-}/.config/pip/pip.conf" "${HOME-}/.pip/pip.conf" /etc/pip.conf; do
        if [[ -f $file && -r $file ]]; then
            cat -- "$file" >"$1"
            return
        fi
    done
}

# Secret files are copies in a folder whose name holds nothing that docker's option parser would split.
prepare_secrets() {
    pip_configuration "$work/pip_conf"
    [[ -z ${TORCH_INDEX-} ]] || printf '%s\n' "$TORCH_INDEX" >"$work/torch_index"
    if [[ -n $classic ]]; then
        [[ -z ${TORCH_INDEX-} ]] || complain 4 'TORCH_INDEX needs BuildKit: install docker-buildx'
        [[ ! -s $work/pip_conf ]] ||
            printf 'build.sh: this docker has no BuildKit: the build does not see pip'\''s configuration\n' >&2
        return
    fi
    local name
    for name in pip_conf torch_index; do
        [[ ! -s $work/$name ]] || secrets+=(--secret "id=$name,src=$work/$name")
    done
}

commit() {
    local hash
    hash=$(git -C "$repository" rev-parse HEAD 2>/dev/null) || return 0
    [[ -z $(git -C "$repository" status --porcelain --untracked-files=no) ]] || hash+=+changes
    printf '%s\n' "$hash"
}

options=()
while (($#)); do
    case $1 in
        --base | --tag)
            (($# > 1)) && [[ -n $2 ]] || complain 2 "$1 needs a value"
            printf -v "${1#--}" '%s' "$2"
            shift
            ;;
        --base=?*) base=${1#*=} ;;
        --tag=?*) tag=${1#*=} ;;
        -h | --help)
            usage
            exit 0
            ;;
        *)
            [[ $1 == -* || ${#options[@]} -gt 0 ]] || complain 2 "what is meant by $1? see: bash docker/build.sh --help"
            options+=("$1")
            ;;
    esac
    shift
done

choose_builder
work=$(mktemp -d /tmp/heatlens-build.XXXXXX)
trap 'rm -rf -- "$work"' EXIT
prepare_secrets

arguments=(--build-arg "HEATLENS_VERSION=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$repository/pyproject.toml")")
arguments+=(--build-arg "HEATLENS_COMMIT=$(commit)")
[[ -z $base ]] || arguments+=(--build-arg "BASE_IMAGE=$base")
# Builders do not look at secrets when they decide what to build anew: a digest tells them that the index is another.
[[ -z ${TORCH_INDEX-} ]] || arguments+=(--build-arg "TORCH_INDEX_DIGEST=$(sha256sum <"$work/torch_index" | cut -c1-16)")

dockerfile=$here/Dockerfile.3090
if [[ -n $classic ]]; then
    sed 's/--mount=[^ ]*//g' "$dockerfile" >"$work/Dockerfile"
    dockerfile=- # on standard input: the context stays the repository
    exec <"$work/Dockerfile"
fi
"${build[@]}" -f "$dockerfile" -t "$tag" "${arguments[@]}" "${secrets[@]}" "${options[@]}" "$repository"
printf 'build.sh: built %s\n' "$tag"
