#!/bin/sh
# In the host vtd: the kernel's selftests of VFIO, once on the kernel alone and once through the preloaded library.
# Prints `selftest WHERE VERDICT NAME` for each test that uses a type1 container.
. /vmm/lib.sh
echo 4 > /proc/sys/vm/nr_hugepages

# tests WHERE VARIABLE=VALUE…: runs all of them with these variables.
tests() {
    where=$1
    shift
    for program in vfio_dma_mapping_test vfio_dma_mapping_mmio_test; do
        env "$@" LD_LIBRARY_PATH=/selftests/lib:/vmm/lib "/selftests/$program" "${EMULATED_DEVICES%% *}" \
            > /tmp/log 2>&1 < /dev/null
        sed -n 's/^not ok [0-9]* \([^ ]*\).*/failed \1/p; s/^ok [0-9]* \([^ ]*\) *# SKIP.*/skipped \1/p
            s/^ok [0-9]* \([^ ]*\)$/passed \1/p' /tmp/log | grep '\.vfio_type1' | sed "s/^/selftest $where /"
        grep -q '^1\.\.' /tmp/log || { say "FAILED: $program, $where"; cat /tmp/log; }
    done
}

tests kernel
tests dmaspace LD_PRELOAD=/vmm/shim.so DMASPACE_SHIM_STATUS=/tmp/status
say "status of the last container:" $(cat /tmp/status)
# A library that could not be loaded would change no verdict.
[ "$(count maps)" -gt 0 ] || { say "FAILED: the library answered no call"; exit 1; }
