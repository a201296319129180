#!/usr/bin/env bash
# `make setup`: the virtual environment $VENV with this checkout and its tools in it. Run in the repository's root.
# A stamp in the environment says for which checkout and which pyproject.toml it was made; nothing is done twice.
set -euo pipefail

venv=${VENV:-.venv}
stamp=$venv/.heatlens-setup
wanted=$(pwd; cksum <pyproject.toml)
check='import ensurepip, sys, venv; raise SystemExit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python3.10; do
        if "$candidate" -c "$check" 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
        if [[ -n ${PYTHON:-} ]]; then
            break
        fi
    done
    printf 'heatlens needs Python 3.10 to 3.13 with venv and pip; %s is none.\n' "${PYTHON:-no python3 on PATH}" >&2
    printf 'Install one (Debian, Ubuntu: python3-venv) or name one: make setup PYTHON=/path/to/python3.12\n' >&2
    return 4
}

if [[ -f $stamp && -x $venv/bin/python && $(<"$stamp") == "$wanted" ]]; then
    exit 0
fi
if [[ ! -x $venv/bin/python ]]; then
    python=$(find_python)
    printf 'setup: making %s with %s\n' "$venv" "$("$python" --version)"
    "$python" -m venv "$venv"
elif ! "$venv/bin/python" -c "$check"; then
    printf 'setup: %s holds a Python that is not 3.10 to 3.13 with pip; remove it or choose another VENV.\n' "$venv" >&2
    exit 4
fi
printf 'setup: installing heatlens and what it needs into %s (minutes, and some gigabytes for torch, the first time)\n' "$venv"
pip=("$venv/bin/python" -m pip --disable-pip-version-check install --quiet)
if [[ -n ${TORCH_INDEX:-} ]]; then
    "${pip[@]}" --index-url "$TORCH_INDEX" 'torch>=2.4,<3' 'torchvision>=0.19,<1'
fi
"${pip[@]}" -e '.[test,quality]'
# pydensecrf2 is compiled. Where it cannot be, everything else still works.
if ! "${pip[@]}" -e '.[crf]' >/dev/null 2>&1; then
    printf 'setup: dense CRF is left out and its tests are skipped: its package was not compiled (apt install g++ python3-dev)\n'
fi
printf '%s\n' "$wanted" >"$stamp"
printf 'setup: done\n'
