//! A virtual machine of KVM's with one processor, whose program makes the hypercalls it is given, one after the other.
#![expect(unsafe_code, reason = "UNSAFETY: KVM's calls on POWER, of which no crate has a safe form")]

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use dmaspace_core::HostMemory;

const KVM: u32 = 0xae;

/// Hypervisor mode, where KVM answers hypercalls in the kernel (linux: arch/powerpc/include/uapi/asm/kvm.h,
/// KVM_VM_PPC_HV).
const HV: u64 = 1;
const CAP_PPC_PAPR: u32 = 68;
/// The exit for a hypercall that is to be answered by the VMM.
const EXIT_PAPR_HCALL: u32 = 19;

/// The addresses of the program in the guest's memory, and of the hypercalls it makes.
const PROGRAM: u64 = 0x20_0000;
const CALLS: u64 = 0x21_0000;
/// A hypercall: a token, four arguments, and room for the result.
const CALL: u64 = 48;
/// The hypercall that ends the program, which only the VMM answers (qemu: include/hw/ppc/spapr.h, KVMPPC_HCALL_BASE).
const END: u64 = 0xf000;

/// r30: how many calls; r31: the next one.
const CODE: [u32; 14] = [
    instruction(LD, 3, 31, 0),
    instruction(LD, 4, 31, 8),
    instruction(LD, 5, 31, 16),
    instruction(LD, 6, 31, 24),
    instruction(LD, 7, 31, 32),
    SC_1,
    instruction(STD, 3, 31, 40),
    instruction(ADDI, 31, 31, 48),
    instruction(ADDI, 30, 30, -1),
    instruction(CMPI, 1, 30, 0),
    // To the first one, unless r30 was zero.
    instruction(BC, 4, 2, -40),
    instruction(ADDIS, 3, 0, 0),
    instruction(ORI, 3, 3, END as i16),
    SC_1,
];
const CMPI: u32 = 11;
const ADDI: u32 = 14;
const ADDIS: u32 = 15;
const BC: u32 = 16;
const ORI: u32 = 24;
const LD: u32 = 58;
const STD: u32 = 62;
const SC_1: u32 = 0x4400_0022;

/// Operation, two registers (or the fields in their place), and 16 bits.
const fn instruction(operation: u32, one: u32, other: u32, immediate: i16) -> u32 {
    (operation << 26) | (one << 21) | (other << 16) | (immediate as u16 as u32)
}

#[repr(C)]
struct MemoryRegion {
    slot: u32,
    flags: u32,
    guest: u64,
    len: u64,
    user: u64,
}

#[repr(C)]
struct EnableCap {
    capability: u32,
    flags: u32,
    arguments: [u64; 4],
    padding: [u8; 64],
}

#[repr(C)]
struct Registers {
    pc: u64,
    cr: u64,
    ctr: u64,
    lr: u64,
    xer: u64,
    msr: u64,
    others: [u64; 11],
    gpr: [u64; 32],
}

/// 64-bit, machine checks, little endian.
const MSR: u64 = (1 << 63) | (1 << 12) | 1;

/// The head of `struct kvm_run` (linux: include/uapi/linux/kvm.h).
#[repr(C)]
#[derive(Clone, Copy)]
struct Run {
    _before: [u32; 2],
    exit_reason: u32,
    _after: [u32; 5],
    hypercall: u64,
    returns: u64,
    arguments: [u64; 9],
}

/// The virtual machine.
pub(super) struct Vm {
    machine: OwnedFd,
    processor: OwnedFd,
    run: *mut Run,
    run_len: usize,
    ram: HostMemory,
    /// The number of hypercalls that left the guest, without the one that ends a program.
    pub(super) exits: usize,
}

impl Vm {
    /// A machine with this memory, at 0.
    pub(super) fn new(ram: HostMemory) -> Self {
        let kvm = OwnedFd::from(File::options().read(true).write(true).open("/dev/kvm").expect("the host has KVM"));
        let machine = opened(call(&kvm, libc::_IO(KVM, 0x01), HV));
        let region = MemoryRegion { slot: 0, flags: 0, guest: 0, len: ram.len().get(), user: ram.address().get() };
        give(&machine, libc::_IOW::<MemoryRegion>(KVM, 0x46), &region);
        let processor = opened(call(&machine, libc::_IO(KVM, 0x41), 0));
        let papr = EnableCap { capability: CAP_PPC_PAPR, flags: 0, arguments: [0; 4], padding: [0; 64] };
        give(&processor, libc::_IOW::<EnableCap>(KVM, 0xa3), &papr);
        let run_len = call(&kvm, libc::_IO(KVM, 0x04), 0) as usize;
        assert!(run_len >= size_of::<Run>());
        let (access, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: with a null hint and without MAP_FIXED the kernel picks addresses nothing else uses.
        let run = unsafe { libc::mmap(ptr::null_mut(), run_len, access, shared, processor.as_raw_fd(), 0) };
        assert_ne!(run, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Self { machine, processor, run: run.cast(), run_len, ram, exits: 0 }
    }

    /// The machine's descriptor, once more.
    pub(super) fn descriptor(&self) -> OwnedFd {
        self.machine.try_clone().expect("one more descriptor")
    }

    /// Has the guest make hypercalls, answers the ones that leave it, and returns the guest's result of each.
    pub(super) fn make(&mut self, calls: &[[u64; 5]], mut answer: impl FnMut(u64, [u64; 4]) -> i64) -> Vec<i64> {
        let code: Vec<u8> = CODE.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.ram.write(PROGRAM, &code).expect("inside the guest's memory");
        for (at, words) in (CALLS..).step_by(CALL as usize).zip(calls) {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            self.ram.write(at, &bytes).expect("inside the guest's memory");
        }
        let mut gpr = [0; 32];
        (gpr[30], gpr[31]) = (calls.len() as u64, CALLS);
        let registers = Registers { pc: PROGRAM, cr: 0, ctr: 0, lr: 0, xer: 0, msr: MSR, others: [0; 11], gpr };
        give(&self.processor, libc::_IOW::<Registers>(KVM, 0x82), &registers);
        loop {
            call(&self.processor, libc::_IO(KVM, 0x80), 0);
            // SAFETY: the mapping is as long, and KVM writes it during KVM_RUN only.
            let mut run = unsafe { self.run.read_volatile() };
            assert_eq!(run.exit_reason, EXIT_PAPR_HCALL, "the guest left for something else");
            if run.hypercall == END {
                break;
            }
            self.exits += 1;
            let [a, b, c, d, ..] = run.arguments;
            run.returns = answer(run.hypercall, [a, b, c, d]) as u64;
            // SAFETY: as above.
            unsafe { self.run.write_volatile(run) };
        }
        let returned = (CALLS + 40..).step_by(CALL as usize).take(calls.len());
        returned
            .map(|at| {
                let mut bytes = [0; 8];
                self.ram.read(at, &mut bytes).expect("inside the guest's memory");
                i64::from_le_bytes(bytes)
            })
            .collect()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, to which no reference exists.
        unsafe { libc::munmap(self.run.cast(), self.run_len) };
    }
}

/// A call that takes a number.
fn call(on: &OwnedFd, request: libc::Ioctl, argument: u64) -> i32 {
    // SAFETY: the callers' requests take a number, or nothing.
    let result = unsafe { libc::ioctl(on.as_raw_fd(), request, argument) };
    assert!(result >= 0, "{request:#x}: {}", std::io::Error::last_os_error());
    result
}

/// A call that reads a struct.
fn give<T>(on: &OwnedFd, request: libc::Ioctl, argument: &T) {
    // SAFETY: the callers' requests read a struct of this size; the address in one is memory that outlives the machine.
    let result = unsafe { libc::ioctl(on.as_raw_fd(), request, ptr::from_ref(argument)) };
    assert!(result >= 0, "{request:#x}: {}", std::io::Error::last_os_error());
}

fn opened(descriptor: i32) -> OwnedFd {
    // SAFETY: the call's result is a descriptor that the kernel just made for us.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}
