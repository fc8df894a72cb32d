#!/usr/bin/env bash
# Downloads and unpacks, without installing: the kernel and the busybox of the tiny guest, into .cache/guest.
# The machine's own boot loader and kernels stay as they are. Needs apt's package lists, but not root.
set -euo pipefail
cd "$(dirname "$0")/.."
tree=.cache/guest

# The small kernels made for virtual machines: Debian's, then Ubuntu's. Each is a name for the newest real one.
pick_kernel() {
    local meta image
    for meta in linux-image-cloud-amd64 linux-image-kvm linux-image-virtual; do
        image=$(apt-cache depends "$meta" 2>/dev/null | sed -nE 's/^ *Depends: (linux-image-[0-9].*)/\1/p' | head -n 1)
        if [ -n "$image" ]; then
            echo "$image"
            # Ubuntu keeps the modules in a package of their own.
            apt-cache depends "$image" | sed -nE 's/^ *Depends: (linux-modules-[0-9].*)/\1/p'
            return
        fi
    done
    echo "setup: apt knows no kernel for the tiny guest (run 'apt-get update' as root)" >&2
    return 1
}

if [ -e "$tree/.complete" ]; then exit 0; fi
if [ "$(dpkg --print-architecture)" != amd64 ]; then
    echo "setup: the tiny guest is built for amd64 machines only; this is $(dpkg --print-architecture)" >&2
    exit 1
fi
mapfile -t packages < <(pick_kernel)
[ ${#packages[@]} != 0 ] || exit 1
rm -rf "$tree"
mkdir -p "$tree/packages"
trap '[ -e "$tree/.complete" ] || rm -rf "$tree"' EXIT
echo "setup: downloading, not installing: ${packages[*]} (the demo guest's kernel), busybox-static (its programs)"
# apt drops its rights to download, and says so at length where the directory is ours alone: root keeps them here.
(cd "$tree/packages" && apt-get -qq -o APT::Sandbox::User=root download "${packages[@]}" busybox-static)
for package in "$tree"/packages/*.deb; do dpkg-deb -x "$package" "$tree"; done
rm -rf "${tree:?}/packages" "${tree:?}/usr/share"
touch "$tree/.complete"
