#!/bin/busybox sh
# Process 1 of a guest with an edu device. It waits after its verdict, so that the host can look at the VMM.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
echo "guest: Linux $(uname -r), $(grep MemTotal /proc/meminfo)"
/edu
sleep 600
poweroff -f
