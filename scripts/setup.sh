#!/usr/bin/env bash
# Brings a Debian or Ubuntu machine to where the other make targets work: packages by apt (only those that are
# missing), the tiny guest's kernel and busybox (unpacked into .cache, not installed), and a virtual environment in
# .venv. Run again it looks, finds everything in place, and ends at once without touching the network.
set -euo pipefail
cd "$(dirname "$0")/.."

# package | why the project wants it
packages='
qemu-system-x86|boots the virtual machines of the demo and of the tests
qemu-utils|qemu-img, whose writing to a volume is tested
e2fsprogs|mkfs.ext4 and fsck, for file systems in virtual disks
fio|measures the volume and the disk beneath it
mount|losetup and mount, for disks within disks
systemd|systemd-analyze and the fstab generator, which check the mount units
libiscsi7|LUNs over iSCSI
tgt|an iSCSI target without COMPARE AND WRITE, for the tests
'
# Wanted only where no interpreter that is new enough can make virtual environments.
python_reasons='
python3|runs the project
python3-venv|makes the environment it runs in
python3.11|runs the project
python3.11-venv|makes the environment it runs in
'
stamp=.venv/.azekura-stamp
lists_good_for_minutes=1440

say() { echo "setup: $*"; }
give_up() { echo "setup: $*" >&2; exit 1; }

# The first interpreter that is new enough and can make virtual environments.
find_python() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

# Ubuntu 22.04's python3 is too old, but it has a newer one beside it.
python_packages() {
    if python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        apt-cache show python3 2>/dev/null | grep -qE '^Version: 3\.1[1-9]'; then
        printf '%s\n' python3 python3-venv
    else
        printf '%s\n' python3.11 python3.11-venv
    fi
}

missing_packages() {
    local names installed name
    mapfile -t names < <(sed -nE 's/\|.*//p' <<<"$packages")
    installed=" $(dpkg-query -W -f='${Package}=${db:Status-Status} ' "${names[@]}" 2>/dev/null || true)"
    for name in "${names[@]}"; do
        [[ $installed == *" $name=installed "* ]] || echo "$name"
    done
}

refresh_lists() {
    [ "$(id -u)" = 0 ] || return 0
    if [ -z "$(find /var/lib/apt/lists -name '*_Packages*' -mmin -$lists_good_for_minutes -print -quit 2>/dev/null)" ]; then
        say "refreshing apt's package lists"
        apt-get -qq update || say "some package lists could not be refreshed; going on with those there are"
    fi
}

install_packages() {
    local name
    for name in "$@"; do
        say "installing $name: $(sed -n "s/^$name|//p" <<<"$packages$python_reasons")"
    done
    DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0 \
        install --no-install-recommends "$@" >.cache/apt.log 2>&1 </dev/null ||
        { tail -n 5 .cache/apt.log >&2; give_up "apt could not install $*; its whole log is .cache/apt.log"; }
    # The tests start a target of their own. The package's would serve this machine's network.
    [[ " $* " != *" tgt "* ]] || systemctl disable --now tgt >/dev/null 2>&1 || true
}

# Names everything that the environment is made from; scripts in it hold the tree's path.
environment_key() {
    { "$1" --version; pwd; cat pyproject.toml; } | sha256sum | cut -d' ' -f1
}

make_environment() {
    local python=$1
    say "making .venv with $("$python" --version): the project and its development tools, by pip"
    .venv/bin/pip --version >/dev/null 2>&1 || "$python" -m venv --clear .venv
    .venv/bin/python -m pip install -q --disable-pip-version-check -e '.[dev]' ||
        give_up "pip could not install the project into .venv"
    environment_key "$python" >$stamp
}

everything_is_there() {
    [ ${#missing[@]} = 0 ] && [ -n "$python" ] && [ -e .cache/guest/.complete ] &&
        [ "$(cat $stamp 2>/dev/null)" = "$(environment_key "$python")" ]
}

command -v apt-get >/dev/null || give_up "this works on Debian and Ubuntu, which have apt-get; docs/hacking.md names what others need"
mapfile -t missing < <(missing_packages)
python=$(find_python) || python=
! everything_is_there || exit 0

mkdir -p .cache 2>/dev/null || true
[ -w .cache ] || give_up "$PWD is not yours to write to: run this as its owner, or as root"
exec 9>.cache/setup.lock
flock 9
if [ ${#missing[@]} != 0 ] || [ -z "$python" ]; then
    [ "$(id -u)" = 0 ] || give_up "installing ${missing[*]:-Python 3.11} needs root: run 'sudo make setup' once"
    refresh_lists
    [ -n "$python" ] || mapfile -t -O ${#missing[@]} missing < <(python_packages)
    install_packages "${missing[@]}"
    python=$(find_python) || give_up "apt has no Python of version 3.11 or later for this machine"
fi
if [ ! -e .cache/guest/.complete ]; then
    refresh_lists
    scripts/fetch-guest.sh
fi
[ "$(cat $stamp 2>/dev/null)" = "$(environment_key "$python")" ] || make_environment "$python"
