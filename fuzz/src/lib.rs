//! Fuzzing of everything that the program `dmaspace` reads.
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
