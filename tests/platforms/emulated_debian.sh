#!/usr/bin/env bash
# Builds this checkout and runs its tests in a Debian 13 of another architecture, emulated by QEMU:
#
#     tests/platforms/emulated_debian.sh arm64 [arguments of pytest]
#
# Needs Linux 6.7 or newer, root, and Debian's mmdebstrap, qemu-user, git and python3-pip. Nothing is left behind: the
# emulator is registered in its own namespace. Packages are unpacked but not configured, which needs no emulation.
set -euo pipefail
cd "$(dirname "$0")/../.."
architecture=${1:?"Debian's name of an architecture, such as arm64"}
shift

step() { printf '\n== %s, %s\n' "$(date +%T)" "$*"; }

root=$(mktemp -d)
trap 'rm -rf --one-file-system "$root"' EXIT

step "Debian 13, $architecture"
# the mirror that this machine uses, if it is one of Debian's
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Codename: trixie' | head -n 1)
mmdebstrap --quiet --variant=extract --architectures="$architecture" \
    --include=bash,dash,coreutils,gcc,libpython3-dev,python3-setuptools,python3-numpy \
    --include=python3-pytest,python3-pytest-xdist,python3-hypothesis,python3-scipy,python3-safetensors \
    --include=python3-rich,python3-distributed,python3-matplotlib \
    trixie "$root" ${mirror:+"$mirror"}
echo "root:x:0:0:root:/root:/bin/sh" >"$root/etc/passwd"
libraries=$(echo "$root"/usr/lib/*-linux-gnu)
triplet=$(basename "$libraries")
machine=${triplet%%-*}
machine=${machine/powerpc/ppc}

step "what Debian has not, or too old"
install_wheel() {
    python3 -m pip install --quiet --no-deps --only-binary=:all: --target "$root/opt/wheels" --python-version 3.13 \
        --platform "manylinux_2_28_$machine" --platform "manylinux2014_$machine" --platform "linux_$machine" "$@"
}
for package in 'cython>=3.1' ml_dtypes pyarrow 'zarr>=3 numcodecs google_crc32c donfig' numpydoc; do
    # shellcheck disable=SC2086
    install_wheel $package || echo "$package has no wheel"
done
mkdir "$root/checkout"
git ls-files -z | tar --create --null --files-from=- | tar --extract --directory="$root/checkout"

# the ELF header of the architecture's programs, where neither the ABI's version nor the kind of file matters
magic=$(od --address-radix=n --format=x1 --read-bytes=20 --output-duplicates "$root/usr/bin/env" | tr -d '\n' | sed 's/ /\\x/g')
mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00\xff\xff'
emulator=$(command -v "qemu-$machine")
# a processor without pointer authentication, whose codes QEMU is slow to compute: tests take half as long
case $architecture in arm64) processor=neoverse-n1 ;; *) processor= ;; esac

within='
    mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
    echo "$2" >/proc/sys/fs/binfmt_misc/register
    mount --rbind /proc "$1/proc"
    mount --rbind /dev "$1/dev"
    exec chroot "$1" env --ignore-environment --chdir=/checkout "${@:3}"
'
# the directories of BLAS and LAPACK are what configuring would have chosen
emulated() {
    nice unshare --user --map-root-user --mount bash -euc "$within" - "$root" ":emulated:M::$magic:$mask:$emulator:F" \
        HOME=/root LANG=C.UTF-8 PATH=/usr/bin PYTHONPATH=/opt/wheels PATIENCE=30 ${processor:+QEMU_CPU="$processor"} \
        LD_LIBRARY_PATH="/usr/lib/$triplet/blas:/usr/lib/$triplet/lapack" python3 "$@"
}

step "build"
emulated -c 'from setuptools.build_meta import build_wheel; build_wheel("/opt")'
install_wheel "$(echo "$root"/opt/*.whl)"

step "tests"
emulated -m pytest -p no:cacheprovider "$@"
step "done"
