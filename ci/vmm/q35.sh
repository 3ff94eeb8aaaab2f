#!/bin/sh
# In the host vtd: Debian's QEMU with a q35 guest and an edu device, through the preloaded library.
. /vmm/lib.sh
memory=192 # MiB
failed=0

# guest VARIABLE=VALUE…: starts QEMU with these variables. Its process is $qemu, its guest's console /tmp/guest.log.
guest() {
    : > /tmp/guest.log
    env "$@" DMASPACE_SHIM_STATUS=/tmp/status LD_LIBRARY_PATH=/qemu/lib:/vmm/lib LD_PRELOAD=/vmm/shim.so \
        /qemu/qemu-system-x86_64 -L /qemu/share -nodefaults -no-user-config -display none -no-reboot \
        -machine q35,accel=kvm -cpu host -m $memory -smp 1 -serial file:/tmp/guest.log \
        -kernel /guest/image -initrd /guest/initrd -append "console=ttyS0 nokaslr mitigations=off no_timer_check \
            tsc=reliable lpj=4000000 cryptomgr.notests loglevel=4 panic=-1" \
        -device vfio-pci,host="${EMULATED_DEVICES%% *}",x-no-mmap=on < /dev/null &
    qemu=$!
    watch /tmp/guest.log $qemu
}

say "q35, edu: the guest's data, and the locked memory"
guest || failed=1
[ "$(verdict /tmp/guest.log)" = EQUAL ] || { say "FAILED: the guest says DATA $(verdict /tmp/guest.log)"; failed=1; }
locked=$(locked $qemu) mapped=$(count mapped)
say "status:" $(cat /tmp/status)
say "VmLck $locked, mapped by the library $mapped, RAM $((memory << 20))"
[ "$locked" = "$mapped" ] || { say "FAILED: VmLck is not the mapped memory"; failed=1; }
[ "$mapped" -ge $((memory << 20)) ] || { say "FAILED: not all RAM is mapped"; failed=1; }
end $qemu

say "q35, edu, control: the guest's RAM is not mapped"
guest DMASPACE_SHIM_SWALLOW=$((64 << 20)) || failed=1
say "status:" $(cat /tmp/status)
[ "$(verdict /tmp/guest.log)" = DIFFER ] || { say "FAILED: the control says DATA $(verdict /tmp/guest.log)"; failed=1; }
end $qemu
dmesg | grep -m 3 DMAR
exit $failed
