//! The registers of the processor when the kernel starts (linux: Documentation/arch/x86/boot.rst, 64-bit boot
//! protocol): long mode, the first GiB mapped to itself, and the address of the parameters in RSI.

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_fpu, kvm_regs, kvm_segment};
use kvm_ioctls::{Kvm, VcpuFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::Result;
use crate::layout::{DESCRIPTORS, PAGE_TABLES, ZERO_PAGE};

/// Descriptors: two empty ones, code and data. The protocol demands their places, `__BOOT_CS` and `__BOOT_DS`.
const SEGMENTS: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;

const CR0_PROTECTION: u64 = 1;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LONG_MODE: u64 = (1 << 8) | (1 << 10);

/// CPUID: this is a virtual machine, whose kernel asks KVM for the frequency of its clock.
const HYPERVISOR: u32 = 1 << 31;
/// CPUID: the local APIC, which KVM emulates, has a timer that needs no calibration.
const DEADLINE_TIMER: u32 = 1 << 24;

/// An entry of a page table: present and writable.
const PRESENT: u64 = 0b11;
/// An entry of a page table: a page of 2 MiB.
const LARGE: u64 = 1 << 7;

/// Prepares the processor to start the kernel at `entry`.
pub(crate) fn prepare(kvm: &Kvm, vcpu: &VcpuFd, memory: &GuestMemoryMmap, entry: u64) -> Result<()> {
    let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    for leaf in cpuid.as_mut_slice() {
        // KVM answers with the number of the host's processor. The guest's only processor is number 0.
        match leaf.function {
            1 => {
                leaf.ebx &= 0x00ff_ffff;
                leaf.ecx |= HYPERVISOR | DEADLINE_TIMER;
            }
            0xb | 0x1f => leaf.edx = 0,
            _ => {}
        }
    }
    vcpu.set_cpuid2(&cpuid)?;

    write_tables(memory)?;
    let mut special = vcpu.get_sregs()?;
    special.cs = segment(CODE, 11, true);
    for data in [&mut special.ds, &mut special.es, &mut special.fs, &mut special.gs, &mut special.ss] {
        *data = segment(DATA, 3, false);
    }
    special.gdt.base = DESCRIPTORS;
    special.gdt.limit = u16::try_from(size_of_val(&SEGMENTS))? - 1;
    special.cr0 = CR0_PROTECTION | CR0_PAGING;
    special.cr3 = PAGE_TABLES;
    special.cr4 = CR4_PAE;
    special.efer = EFER_LONG_MODE;
    vcpu.set_sregs(&special)?;
    vcpu.set_regs(&kvm_regs { rip: entry, rsi: ZERO_PAGE, rflags: 2, ..Default::default() })?;
    vcpu.set_fpu(&kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() })?;
    Ok(())
}

/// A flat segment, as the descriptor table has it.
fn segment(selector: u16, type_: u8, is_code: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: u8::from(!is_code),
        s: 1,
        l: u8::from(is_code),
        g: 1,
        ..Default::default()
    }
}

/// Writes the descriptors, and page tables that map the first GiB to itself.
fn write_tables(memory: &GuestMemoryMmap) -> Result<()> {
    for (place, segment) in (DESCRIPTORS..).step_by(8).zip(SEGMENTS) {
        memory.write_obj(segment, GuestAddress(place))?;
    }
    memory.write_obj((PAGE_TABLES + 0x1000) | PRESENT, GuestAddress(PAGE_TABLES))?;
    memory.write_obj((PAGE_TABLES + 0x2000) | PRESENT, GuestAddress(PAGE_TABLES + 0x1000))?;
    for page in 0..512 {
        memory.write_obj((page << 21) | PRESENT | LARGE, GuestAddress(PAGE_TABLES + 0x2000 + page * 8))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_tables_map_each_address_of_the_first_gib_to_itself() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10_0000)]).expect("memory");
        write_tables(&memory).expect("written");
        let entry = |table: u64, index: u64| -> u64 {
            memory.read_obj(GuestAddress((table & !0xfff) + index * 8)).expect("inside")
        };
        for address in [0, HIGH, 0x3fff_ffff] {
            let middle = entry(entry(PAGE_TABLES, address >> 39), address >> 30);
            let page = entry(middle, address >> 21);
            assert_eq!(page, (address & !0x1f_ffff) | PRESENT | LARGE);
        }
    }

    /// An address in the middle.
    const HIGH: u64 = 0x1234_5678;
}
