#!/bin/sh
# Makes an arm64 user-space with Python, NumPy and ONNX Runtime below a folder: tests/device/arm64.sh FOLDER PACKAGE ...
# It needs Debian's apt and dpkg, uv, and package registries. Nothing of this machine is changed.
set -eu
root=$1
shift
apt=$root.apt
mkdir -p "$root" "$apt/lists/partial" "$apt/archives/partial"
: > "$apt/status"
get() {
    apt-get -q -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State::Lists="$apt/lists" \
        -o Dir::State::status="$apt/status" -o Dir::Cache::Archives="$apt/archives" -o Dir::Cache::pkgcache="" \
        -o Dir::Cache::srcpkgcache="" -o Debug::NoLocking=true "$@"
}
get update
get -y --download-only --no-install-recommends install python3 libstdc++6
for package in "$apt"/archives/*.deb; do
    dpkg-deb -x "$package" "$root"
done
version=$(basename "$root"/usr/bin/python3.[0-9]* | sed s/python//)
uv pip install -q --python-platform aarch64-manylinux_2_28 --python-version "$version" \
    --target "$root/usr/lib/python3/dist-packages" "$@"
# qemu shows these files in the place of this machine's, whose processor ONNX Runtime would not know: a Neoverse N1.
mkdir -p "$root/proc" "$root/sys/devices/system/cpu"
for core in 0 1; do
    printf 'processor\t: %s\nBogoMIPS\t: 50.00\nFeatures\t: %s\n' $core \
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
    printf 'CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x3\nCPU part\t: 0xd0c\nCPU revision\t: 1\n\n'
done > "$root/proc/cpuinfo"
for file in present possible online; do
    echo 0-1 > "$root/sys/devices/system/cpu/$file"
done
echo "$root/usr/bin/python$version"
