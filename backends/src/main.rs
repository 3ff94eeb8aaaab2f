//! `dmaspace`: what becomes of a guest's memory map on a host, and why.

mod program;

use std::process::ExitCode;

fn main() -> ExitCode {
    program::run()
}
