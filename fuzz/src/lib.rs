//! Fuzzing of everything that the program `dmaspace` reads, and of everything that a kernel or a guest may say to the
//! library.
//!
//! A binary exports nothing, so the program's own source files are compiled into this crate, with
//! `program/trials.rs`, which is left out otherwise. Run `fuzz/run` for an hour of each target.
#![allow(dead_code, unused_imports, reason = "the targets call the program's trials, and not its commands")]

#[path = "../../backends/src"]
mod source {
    pub(crate) mod program;
}

pub(crate) use source::program;

/// Any file that `dmaspace replay` may be given.
pub fn whole_input(bytes: &[u8]) {
    program::trials::whole_input(bytes);
}

/// Error lines of QEMU and of the kernel.
pub fn error_lines(bytes: &[u8]) {
    program::trials::error_lines(bytes);
}

/// A file that describes a host.
pub fn host_file(bytes: &[u8]) {
    program::trials::host_file(bytes);
}

/// An archive of a machine's /sys and /proc.
pub fn sys_tar(bytes: &[u8]) {
    program::trials::sys_tar(bytes);
}

/// Runs an attack on the library, whose memory is bounded.
pub fn attack(attack: fn(&[u8]), bytes: &[u8]) {
    const MOST_BYTES: u64 = 64 << 20;
    let info = allocation_counter::measure(|| attack(bytes));
    assert!(info.bytes_max <= MOST_BYTES, "{} bytes at once", info.bytes_max);
}
