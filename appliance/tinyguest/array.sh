#!/bin/busybox sh
# shellcheck shell=dash
# Process 1 of the tiny guest as a storage array: Linux LIO, which serves the guest's disks over iSCSI on port 3260 of
# 10.0.2.15 (QEMU's user network). Every disk /dev/vd? is a LUN of each target, numbered from 0.
#
# Words on the kernel command line (the kernel hands those it does not know to this process as its environment):
#   target=IQN                    a target that asks for no credentials
#   chap=IQN                      a target that asks for CHAP, and proves itself when asked to
#   user= password=               what initiators prove themselves by to `chap`
#   target_user= target_password= what `chap` proves itself by
#
# Lines on the serial console, each at the start of a line:
#   ARRAY-READY uptime=SECONDS kernel=RELEASE luns=N
#   FAILED WHAT                   something did not work; the guest powers off
#
# Targets have COMPARE AND WRITE, persistent reservations (kept in memory: a reboot forgets them), UNMAP.

export PATH=/bin:/sbin
LIO=/sys/kernel/config/target

fail() {
    echo "FAILED $*"
    poweroff -f
}

# $1 = file, $2 = value. Without a newline, which would be part of a password.
set_to() {
    printf '%s' "$2" > "$1" || fail "writing $2 to $1"
}

# $1 = the disk's name (vda)
make_backstore() {
    store=$LIO/core/iblock_0/$1
    mkdir -p "$store" || fail "making the backstore $1"
    set_to "$store/control" "udev_path=/dev/$1"
    set_to "$store/wwn/vpd_unit_serial" "azekura-$1"
    set_to "$store/enable" 1
    set_to "$store/attrib/emulate_tpu" 1
}

# $1 = IQN, $2 = 1 when it asks for CHAP
make_target() {
    group=$LIO/iscsi/$1/tpgt_1
    mkdir -p "$group" || fail "making the target $1"
    number=0
    for disk in $disks; do
        mkdir -p "$group/lun/lun_$number"
        ln -s "$LIO/core/iblock_0/$disk" "$group/lun/lun_$number/$disk" || fail "exporting $disk"
        number=$((number + 1))
    done
    set_to "$group/attrib/authentication" "$2"
    set_to "$group/attrib/demo_mode_write_protect" 0
    set_to "$group/attrib/generate_node_acls" 1
    set_to "$group/attrib/cache_dynamic_acls" 1
    if [ "$2" = 1 ]; then
        set_to "$group/param/AuthMethod" CHAP
        set_to "$group/auth/userid" "$user"
        set_to "$group/auth/password" "$password"
        set_to "$group/auth/userid_mutual" "$target_user"
        set_to "$group/auth/password_mutual" "$target_password"
    fi
    mkdir -p "$group/np/0.0.0.0:3260" || fail "listening"
    set_to "$group/enable" 1
}

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
echo 3 > /proc/sys/kernel/printk
while read -r module; do insmod "/modules/$module" || echo "FAILED insmod $module"; done < /modules/order
mount -t configfs configfs /sys/kernel/config || fail "mounting configfs"
ip link set lo up
ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0 && ip route add default via 10.0.2.2 || fail "the network"

disks=$(cd /sys/block && echo vd?)
[ "$disks" != "vd?" ] || fail "there is no disk"
for disk in $disks; do make_backstore "$disk"; done
mkdir -p $LIO/iscsi || fail "the iSCSI target"
[ -z "$target" ] || make_target "$target" 0
[ -z "$chap" ] || make_target "$chap" 1
read -r uptime rest < /proc/uptime
echo "ARRAY-READY uptime=$uptime kernel=$(uname -r) luns=$(echo "$disks" | wc -w)"
while :; do sleep 3600; done
