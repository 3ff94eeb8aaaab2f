#!/bin/sh
# In the host vtd: alioth with a guest and an edu device, on type1, with dmaspace in place of its own VFIO containers.
. /vmm/lib.sh
memory=192 # MiB
failed=0
device=${EMULATED_DEVICES%% *}
group=$(readlink "/sys/bus/pci/devices/$device/iommu_group")

# guest VARIABLE=VALUE…: starts alioth with these variables. Its process is $vmm, its guest's console /tmp/guest.log.
# Its standard input must be a terminal.
guest() {
    : > /tmp/guest.log
    env "$@" LD_LIBRARY_PATH=/alioth/lib /alioth/alioth boot --kernel /guest/image --initramfs /guest/initrd \
        --cmdline "console=ttyS0 nokaslr mitigations=off no_timer_check tsc=reliable lpj=4000000 \
cryptomgr.notests loglevel=4 panic=-1" --memory size=${memory}M,backend=memfd \
        --vfio-group "path=/dev/vfio/${group##*/},devices=id_devices" --object "id_devices,$device" \
        < /dev/ttyS0 > /tmp/guest.log 2>&1 &
    vmm=$!
    watch /tmp/guest.log $vmm
}

say "alioth, edu: the guest's data, and the locked memory"
guest || failed=1
[ "$(verdict /tmp/guest.log)" = EQUAL ] || { say "FAILED: the guest says DATA $(verdict /tmp/guest.log)"; failed=1; }
say "VmLck $(locked $vmm), RAM $((memory << 20))"
[ "$(locked $vmm)" = $((memory << 20)) ] || { say "FAILED: VmLck is not the guest's RAM"; failed=1; }
end $vmm

say "alioth, edu, control: the guest's RAM is not mapped"
guest DMASPACE_SWALLOW=1 || failed=1
[ "$(verdict /tmp/guest.log)" = DIFFER ] || { say "FAILED: the control says DATA $(verdict /tmp/guest.log)"; failed=1; }
end $vmm
exit $failed
