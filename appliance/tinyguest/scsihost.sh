#!/bin/busybox sh
# shellcheck shell=dash
# Process 1 of the tiny guest as a host with SCSI disks: a shared array of Linux LIO within the guest, seen through two
# host bus adapters (tcm_loop), each an initiator of its own. Then it runs a task from a disk.
#
# Disks: /dev/vda holds the task's root file system (ext4), which must have /etc/task; every other disk /dev/vd? is a LUN,
# numbered from 0, on both adapters. So there are two disks /dev/sd? for each LUN: two paths to it, or two hosts'.
#
# Words on the kernel command line (the kernel hands those it does not know to this process as its environment):
#   task=NAME                     /etc/task's argument
#
# Lines on the serial console, each at the start of a line:
#   SCSI-READY uptime=SECONDS kernel=RELEASE disks=N
#   (what the task says)
#   TASK-ENDED STATUS             its exit status; the guest powers off
#   FAILED WHAT                   something did not work; the guest powers off

export PATH=/bin:/sbin
LIO=/sys/kernel/config/target
DISK_TRIES=200

fail() {
    echo "FAILED $*"
    poweroff -f
}

# $1 = the disk's name (vdb)
make_backstore() {
    store=$LIO/core/iblock_0/$1
    mkdir -p "$store" || fail "making the backstore $1"
    echo "udev_path=/dev/$1" > "$store/control" || fail "the disk $1"
    echo "azekura-$1" > "$store/wwn/vpd_unit_serial" || fail "the serial number of $1"
    echo 1 > "$store/enable" || fail "enabling $1"
    echo 1 > "$store/attrib/emulate_tpu" || fail "UNMAP on $1"
}

# $1 = the adapter's number
make_adapter() {
    group=$LIO/loopback/naa.600140500000000$1/tpgt_1
    mkdir -p "$group" || fail "making the adapter $1"
    echo "naa.600140510000000$1" > "$group/nexus" || fail "the nexus of $1"
    number=0
    for disk in $disks; do
        mkdir -p "$group/lun/lun_$number"
        ln -s "$LIO/core/iblock_0/$disk" "$group/lun/lun_$number/$disk" || fail "attaching $disk"
        number=$((number + 1))
    done
}

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
echo 3 > /proc/sys/kernel/printk
while read -r module; do insmod "/modules/$module" || echo "FAILED insmod $module"; done < /modules/order
mount -t configfs configfs /sys/kernel/config || fail "mounting configfs"
mount -t ext4 /dev/vda /sysroot || fail "mounting the task's disk"
for folder in proc sys dev; do mount -o bind /$folder /sysroot/$folder || fail "mounting $folder"; done
mount -t tmpfs tmpfs /sysroot/run && mount -t tmpfs tmpfs /sysroot/tmp || fail "memory for /run and /tmp"

disks=$(cd /sys/block && echo vd[b-z])
[ "$disks" != "vd[b-z]" ] || fail "there is no disk to share"
for disk in $disks; do make_backstore "$disk"; done
make_adapter 1
make_adapter 2
wanted=$((2 * $(echo "$disks" | wc -w)))
tries=0
while [ "$(cd /sys/block && echo sd? | wc -w)" != $wanted ] || [ "$(cd /dev && echo sd? | wc -w)" != $wanted ]; do
    tries=$((tries + 1))
    [ $tries -lt $DISK_TRIES ] || fail "the disks do not appear"
    usleep 20000
done
read -r uptime rest < /proc/uptime
echo "SCSI-READY uptime=$uptime kernel=$(uname -r) disks=$wanted"
chroot /sysroot /bin/sh /etc/task "$task"
echo "TASK-ENDED $?"
poweroff -f
