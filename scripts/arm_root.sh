#!/bin/sh
# Makes FOLDER an arm64 Linux to run under emulation, on a Debian or Ubuntu for x86-64: qemu, Python, and the packages that
# rescoldo needs. Needs no root and changes nothing outside FOLDER; does nothing where that has been done. About 700 MB.
#
#   scripts/arm_root.sh FOLDER
#
# Then: FOLDER/python SCRIPT.py
set -eu
cd "$(dirname "$0")/.."
root=$(mkdir -p "$1" && cd "$1" && pwd)
python=${PYTHON:-.venv/bin/python}
stamp=$(cat scripts/arm_root.sh requirements/base.txt | sha256sum)
[ "$(cat "$root/.done" 2>/dev/null)" != "$stamp" ] || exit 0
fail() { echo "[arm] error: $*" >&2; exit 1; }
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || fail "this needs apt-get and dpkg-deb (Debian, Ubuntu)"

# the wheels, while apt fetches its part
# PyPI's torch for aarch64 is a build without CUDA up to this version
packages="torch==2.9.1 $(grep -E '^[A-Za-z]' requirements/base.txt | grep -v '^torch==')"
# shellcheck disable=SC2086
"$python" -m pip install --disable-pip-version-check --no-input --quiet --no-deps --only-binary=:all: --no-compile \
    --platform manylinux_2_31_aarch64 --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64 \
    --platform manylinux2014_aarch64 --python-version 311 --implementation cp --abi cp311 --abi abi3 --abi none \
    --upgrade --target "$root/packages" $packages >"$root/pip.log" 2>&1 &
wheels=$!

# apt with lists and a status of its own: the system's stay as they are
mkdir -p "$root/apt/lists/partial" "$root/apt/cache/archives/partial" "$root/deb"
: >"$root/apt/status"
cd "$root/deb"
apt() {
    apt-get -q -o APT::Architecture="$1" -o APT::Architectures="$1" -o Dir::State="$root/apt" \
        -o Dir::State::status="$root/apt/status" -o Dir::State::lists="$root/apt/lists" \
        -o Dir::Cache="$root/apt/cache" -o APT::Sandbox::User=root "$2" $3
}
log=$root/apt.log
for architecture in arm64 amd64; do
    if [ $architecture = arm64 ]; then
        names="libc6 libgcc-s1 libstdc++6 python3.11 python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libexpat1
            zlib1g libssl3 libffi8 libbz2-1.0 liblzma5 libsqlite3-0 libuuid1 libreadline8 libncursesw6 libtinfo6 libcrypt1 libdb5.3 libnsl2 libtirpc3
            media-types"
    else
        names=qemu-user-static
    fi
    # shellcheck disable=SC2086
    { apt $architecture update "" && apt $architecture download "$(echo $names)"; } >"$log" 2>&1 </dev/null ||
        { tail -n 20 "$log" >&2; fail "apt could not fetch packages for $architecture"; }
    for package in *.deb; do dpkg-deb -x "$package" "$root" && rm "$package"; done
done
wait $wheels || { tail -n 20 "$root/pip.log" >&2; fail "pip could not fetch packages for aarch64"; }

cat >"$root/python" <<END
#!/bin/sh
export PYTHONPATH="$root/packages\${PYTHONPATH:+:\$PYTHONPATH}" PYTHONDONTWRITEBYTECODE=\${PYTHONDONTWRITEBYTECODE-} QEMU_LD_PREFIX="$root"
exec "$root/usr/bin/qemu-aarch64-static" -cpu max "$root/usr/bin/python3.11" "\$@"
END
chmod +x "$root/python"
rm -rf "$root/apt" "$root/deb"
echo "$stamp" >"$root/.done"
