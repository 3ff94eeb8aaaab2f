#!/bin/busybox sh
# Process 1 of an emulated host: prepares the host, runs /run, reports its exit status and the kernel's log.
# src/console.rs reads the marks, each of which starts with 0x1e and ends with its line.

/bin/busybox --install -s /bin
export PATH=/bin HOME=/ TERM=dumb

mark() { printf '\036%s\n' "$*"; }
fail() { mark "failed $*"; poweroff -f; }
taint() { cat /proc/sys/kernel/tainted; }

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
mkdir -p /dev/shm /dev/hugepages
mount -t tmpfs tmpfs /dev/shm
mount -t hugetlbfs hugetlbfs /dev/hugepages 2>/dev/null # a powernv with the radix MMU has no huge pages
ulimit -c 0

. /settings # sets MODULES, SKIP_DEVICE_RESET, EMULATED_HOST

for module in $MODULES; do
    insmod "/modules/$module.ko" || fail "insmod $module"
done

# Binds every edu device (1234:11e8) to vfio-pci.
EMULATED_DEVICES=
for device in /sys/bus/pci/devices/*; do
    [ "$(cat "$device/vendor" "$device/device" | tr '\n' ' ')" = '0x1234 0x11e8 ' ] || continue
    address=${device##*/}
    echo vfio-pci > "$device/driver_override"
    echo "$address" > /sys/bus/pci/drivers_probe
    [ -e "/sys/bus/pci/drivers/vfio-pci/$address" ] || fail "vfio-pci does not bind $address"
    [ -z "$SKIP_DEVICE_RESET" ] || echo > "$device/reset_method"
    EMULATED_DEVICES="${EMULATED_DEVICES:+$EMULATED_DEVICES }$address"
done
export EMULATED_HOST EMULATED_DEVICES

tainted_before=$(taint)
dmesg -c > /dev/null
mark run
/run < /dev/null
mark "exit $? $tainted_before $(taint)"
dmesg
mark end
poweroff -f
