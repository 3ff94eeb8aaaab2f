//! The words and the contract of dmaspace. No kernel in here.
pub mod access;
pub mod address;
pub mod backend;
pub mod contract;
pub mod door;
pub mod error;
pub mod listener;
pub mod memory;
pub mod page;
pub mod section;
pub mod space;
#[cfg(feature = "vm-memory")]
pub mod vm_memory;
pub mod window;

pub use access::Access;
pub use address::{Iova, IovaRange, SystemAddress, SystemRange};
pub use backend::Backend;
pub use contract::PciAddressSpace;
pub use error::Error;
pub use listener::Listener;
pub use memory::HostMemory;
pub use page::{PageSize, PageSizes};
pub use space::Space;
pub use window::{Window, Windows};
