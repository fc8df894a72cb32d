#!/bin/busybox sh
# shellcheck shell=dash
# Process 1 of the tiny guest.
#
# Words on the kernel command line (the kernel hands those it does not know to this process as its environment):
#   records=/dev/vda    mount the ext4 there (made first if the disk is blank) and append numbered records to
#                       /records, with an fsync each, until the power button is pressed
#   payload=MIB         with records=: on a new file system first write MIB MiB of random bytes and their SHA-256
#   verify=/dev/vda     mount it, check payload and records, report, and power off; never makes a file system
#
# Lines on the serial console, each at the start of a line:
#   GUEST-READY uptime=SECONDS kernel=RELEASE
#   DISKSIZE BYTES                        the disk's size at boot and whenever it changes
#   FORMATTED / PAYLOAD BYTES             a new ext4 was made; the random bytes are on disk
#   RECORD N                              record N is in the file and its fsync has returned
#   VERIFIED records=N damaged=D payload=ok|bad|none
#   FAILED WHAT                           something did not work; the guest powers off
#   POWEROFF                              file systems are unmounted; the machine goes off next
#
# A record is the line `record %08d`. Damage is a line that is not the record of its line number.

export PATH=/bin:/sbin
MOUNTPOINT=/mnt
RECORDS=$MOUNTPOINT/records
PAYLOAD=$MOUNTPOINT/payload

power_off() {
    umount $MOUNTPOINT 2>/dev/null
    sync
    echo POWEROFF
    poweroff -f
}

fail() {
    echo "FAILED $*"
    power_off
}

# $1 = the disk. Prints its size when it is not the one printed last.
report_size() {
    read -r sectors < "/sys/block/${1#/dev/}/size"
    [ "$sectors" = "$reported" ] || { echo "DISKSIZE $((sectors * 512))"; reported=$sectors; }
}

# $1 = the disk. The magic 0xEF53 of ext4's superblock, little-endian, lies at byte 1024 + 56.
has_ext4() {
    [ "$(od -An -tx1 -j1080 -N2 "$1" | tr -d ' ')" = 53ef ]
}

make_file_system() {
    # Small and eager: what a lazy mkfs leaves for later would be written in the middle of a backup.
    mkfs.ext4 -q -F -m 0 -N 1024 -J size=4 -E lazy_itable_init=0,lazy_journal_init=0,nodiscard "$1" >/dev/null ||
        fail "mkfs.ext4 $1"
    echo FORMATTED
}

write_payload() {
    {
        head -c "$(($1 * 1048576))" /dev/urandom > $PAYLOAD &&
            (cd $MOUNTPOINT && sha256sum payload > payload.sum) && sync
    } || fail "writing the payload"
    echo "PAYLOAD $(($1 * 1048576))"
}

write_records() {
    blank=no
    has_ext4 "$1" || { blank=yes; make_file_system "$1"; }
    mount -t ext4 "$1" $MOUNTPOINT || fail "mounting $1"
    [ $blank = no ] || [ -z "$payload" ] || write_payload "$payload"
    touch $RECORDS
    n=$(wc -l < $RECORDS)
    while [ ! -e /run/power-button ]; do
        n=$((n + 1))
        { printf 'record %08d\n' $n >> $RECORDS && sync $RECORDS; } || fail "record $n"
        echo "RECORD $n"
        report_size "$1"
        usleep 20000 # some thirty records a second tell as much as the disk's whole speed would
    done
}

verify_records() {
    mount -t ext4 "$1" $MOUNTPOINT || fail "mounting $1"
    state=none
    if [ -e $PAYLOAD.sum ]; then
        state=bad
        (cd $MOUNTPOINT && sha256sum -s -c payload.sum) && state=ok
    fi
    awk -v payload=$state '$0 != sprintf("record %08d", NR) { damaged++ }
        END { printf "VERIFIED records=%d damaged=%d payload=%s\n", NR, damaged, payload }' $RECORDS ||
        fail "reading the records"
}

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
echo 3 > /proc/sys/kernel/printk
while read -r module; do insmod "/modules/$module" || echo "FAILED insmod $module"; done < /modules/order
acpid -f -c /etc/acpi -l /dev/null >/dev/null 2>&1 &
read -r uptime rest < /proc/uptime
echo "GUEST-READY uptime=$uptime kernel=$(uname -r)"

disk=${records:-${verify:-/dev/vda}}
[ -b "$disk" ] || [ -z "$records$verify" ] || fail "no disk $disk"
[ ! -b "$disk" ] || report_size "$disk"
if [ -n "$verify" ]; then
    verify_records "$verify"
elif [ -n "$records" ]; then
    write_records "$records"
else
    while [ ! -e /run/power-button ]; do
        [ ! -b "$disk" ] || report_size "$disk"
        usleep 100000
    done
fi
power_off
