//! facade
pub mod choose;
mod commands;
pub mod device;
pub mod facts;
pub mod group;
pub mod kvm;
pub mod linux;
pub mod open;
pub mod pci;
#[cfg(test)]
mod recording;
pub mod registry;
#[cfg(feature = "soft")]
pub mod soft;
