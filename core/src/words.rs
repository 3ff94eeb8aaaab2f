//! The words of the contract: addresses, pages, host memory, access, windows, reserved ranges, locked memory.

pub mod access;
pub mod address;
pub(crate) mod ones;
pub mod page;

pub mod memory;

pub mod window;

pub mod reserved;

pub mod locked;

#[cfg(feature = "serde")]
pub mod json;
