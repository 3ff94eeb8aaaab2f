//! Attacks: any input at all, from a kernel, a guest or a file, and the promises that hold all the same.
//!
//! Each attack is a function of bytes. `tests/attack.rs` runs it on a few thousand generated inputs and on inputs that
//! once failed, in each `cargo test`; the fuzz targets in `fuzz/targets` run it on the inputs that a fuzzer finds. An
//! attack panics if a promise does not hold.

pub mod chains;
pub mod guest_calls;
pub mod handovers;
mod hostile_door;
mod input;
pub mod kernel_replies;
mod oracle;

pub use input::generated;
