#!/bin/busybox sh
# Process 1 of a guest with an edu device. It waits after its verdict, so that the host can look at the VMM.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
echo "guest: Linux $(uname -r), $(grep MemTotal /proc/meminfo)"
/edu
transfers=0 equal=0
if grep -q awaits-memory /proc/cmdline; then
    # The device works on until memory is plugged at 4 GiB, and then writes there.
    until grep -q online /sys/devices/system/memory/memory32/state; do
        transfers=$((transfers + 1))
        /edu | grep -q '^DATA EQUAL' && equal=$((equal + 1))
    done 2> /dev/null
    echo "guest: $(grep MemTotal /proc/meminfo), meanwhile EQUAL in $equal of $transfers"
    /edu 0x100000000 | sed 's/^DATA/PLUGGED/'
fi
sleep 600
poweroff -f
