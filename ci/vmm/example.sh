#!/bin/sh
# In the host vtd: the example VMM of examples/vmm-x86_64 with a guest and an edu device.
. /vmm/lib.sh
memory=192 # MiB
module=128 # MiB
failed=0
mkfifo /tmp/commands

# guest OPTION…: starts the VMM with these options. Its process is $vmm, its guest's console /tmp/guest.log.
guest() {
    : > /tmp/guest.log
    LD_LIBRARY_PATH=/example/lib /example/vmm --kernel /guest/image --initrd /guest/initrd --memory $memory \
        --module $module --device "${EMULATED_DEVICES%% *}" --append "console=ttyS0 nokaslr mitigations=off \
no_timer_check tsc=reliable lpj=4000000 cryptomgr.notests loglevel=4 panic=-1 memhp_default_state=online_movable \
awaits-memory" "$@" < /tmp/commands > /tmp/guest.log 2>&1 &
    vmm=$!
    exec 3> /tmp/commands
    watch /tmp/guest.log $vmm
}

# check_locked MIB: compares the locked memory with the guest's RAM.
check_locked() {
    say "VmLck $(locked $vmm), RAM $(($1 << 20))"
    [ "$(locked $vmm)" = $(($1 << 20)) ] || { say "FAILED: VmLck is not the guest's RAM"; failed=1; }
}

say "example, edu: the guest's data, and the locked memory"
guest || failed=1
[ "$(verdict /tmp/guest.log)" = EQUAL ] || { say "FAILED: the guest says DATA $(verdict /tmp/guest.log)"; failed=1; }
check_locked $memory

say "example, edu: memory is plugged while the device works"
sleep 3 # a few transfers
echo plug >&3
for second in $(seq 120); do
    grep -q '^PLUGGED' /tmp/guest.log && break
    sleep 1
done
grep -a -e plugged -e PLUGGED -e meanwhile /tmp/guest.log | tr -d '\r'
tr -d '\r' < /tmp/guest.log | grep -q -x 'PLUGGED EQUAL' || { say "FAILED: the plugged memory"; failed=1; }
tr -d '\r' < /tmp/guest.log | grep -q -x 'guest: .*EQUAL in \([1-9][0-9]*\) of \1' ||
    { say "FAILED: the transfers while the memory was plugged"; failed=1; }
check_locked $((memory + module))
end $vmm

say "example, edu, control: the guest's RAM is not mapped"
guest --unmapped || failed=1
[ "$(verdict /tmp/guest.log)" = DIFFER ] || { say "FAILED: the control says DATA $(verdict /tmp/guest.log)"; failed=1; }
end $vmm
exit $failed
