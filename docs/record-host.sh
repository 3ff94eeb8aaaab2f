#!/bin/sh
# record-host.sh > host.tar: everything that `dmaspace probe --root host.tar` and `dmaspace doctor BDF --root host.tar`
# read of a machine that does not have the program. As root it records a little more. It holds no serial numbers and no
# network addresses, but the name of the machine and the command line of its kernel.
set -u
out=$(mktemp -d) || exit
trap 'rm -rf "$out"' EXIT

# The files of sysfs and procfs have sizes that are not true, so they are read, not archived.
copy() {
    for file; do
        [ -f "$file" ] || continue
        mkdir -p "$out${file%/*}"
        cat "$file" > "$out$file" 2> /dev/null || rm -f "$out$file"
    done
}

link() {
    for file; do
        [ -L "$file" ] || continue
        mkdir -p "$out${file%/*}"
        ln -s "$(readlink "$file")" "$out$file"
    done
}

folder() {
    for name; do
        [ -d "$name" ] && mkdir -p "$out$name"
    done
}

copy /proc/cmdline /proc/cpuinfo /proc/interrupts /proc/meminfo /proc/self/cgroup /proc/self/limits /proc/self/status
copy /proc/sys/kernel/arch /proc/sys/kernel/hostname /proc/sys/kernel/osrelease
copy "/lib/modules/$(uname -r)/modules.dep" "/lib/modules/$(uname -r)/modules.builtin"
mkdir -p "$out/proc/self"
grep -m 1 KernelPageSize /proc/self/smaps > "$out/proc/self/smaps" 2> /dev/null
for folder in /sys/fs/cgroup/memory.max /sys/fs/cgroup/*/memory.max /sys/fs/cgroup/*/*/memory.max; do copy "$folder"; done
# The disks that hold file systems, and the cards through which default routes go, without the routers' addresses.
grep ' - [^ ]* /dev/' /proc/self/mountinfo > "$out/proc/self/mountinfo" 2> /dev/null
mkdir -p "$out/proc/net"
awk '$2 == "00000000" && $8 == "00000000" { $3 = "00000000"; print }' /proc/net/route > "$out/proc/net/route" 2> /dev/null
awk '$1 ~ /^0+$/ && $2 == "00" { $5 = $1; print }' /proc/net/ipv6_route > "$out/proc/net/ipv6_route" 2> /dev/null
link /sys/dev/block/* /sys/class/block/* /sys/class/net/*
folder /sys/block/*/slaves/* /sys/devices/virtual/net/*/lower_*
for node in /sys/class/misc/vfio /sys/class/misc/iommu /sys/class/misc/kvm /sys/class/vfio/* /sys/class/vfio-dev/*; do
    folder "$node"
done
for table in DMAR IVRS IORT; do
    [ -e "/sys/firmware/acpi/tables/$table" ] && mkdir -p "$out/sys/firmware/acpi/tables" &&
        : > "$out/sys/firmware/acpi/tables/$table"
done
for list in /proc/device-tree/*/ibm,supported-tce-sizes; do copy "$list"; done
for module in /sys/module/vfio* /sys/module/iommufd /sys/module/kvm*; do
    folder "$module"
    copy "$module"/parameters/*
done
folder /sys/bus/pci/drivers/vfio-pci
for unit in /sys/class/iommu/*; do
    folder "$unit" "$unit/devices" "$unit/amd-iommu" "$unit"/devices/*
    copy "$unit"/intel-iommu/cap "$unit"/intel-iommu/ecap
done
for group in /sys/kernel/iommu_groups/*; do
    folder "$group" "$group"/devices/*
    copy "$group"/name "$group"/type "$group"/reserved_regions
done
for device in /sys/bus/pci/devices/*; do
    folder "$device" "$device"/vfio-dev/*
    for file in vendor device class resource config power_state reset_method reset boot_vga; do copy "$device/$file"; done
    link "$device/driver" "$device/iommu_group" "$device/iommu"
done
(
    cd "$out" || exit
    # The nodes themselves, for their owners; a tar of a node opens nothing.
    nodes=$(find /dev/iommu /dev/kvm /dev/vfio 2> /dev/null)
    # shellcheck disable=SC2086
    tar -cf - ./* -C / ${nodes:+$(printf '%s\n' $nodes | sed 's,^/,,')}
)
