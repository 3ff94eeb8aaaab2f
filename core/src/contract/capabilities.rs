//! The properties of a host that a plan depends on.

use crate::words::memory::HostMemory;
use crate::words::page::PageSize;

/// The properties of a host that a plan depends on. They do not change while a space exists, but for
/// [`Capabilities::maps_files`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// The form in which the kernel keeps mappings.
    pub keeps: MappingModel,
    /// `true` if another device's mmapped BAR can be mapped by its address.
    pub maps_device_memory: bool,
    /// `true` if memory with a known file ([`HostMemory::file`]) is mapped by the file, as far as is known: a kernel
    /// that turns out not to support it gets addresses from then on. A BAR that its device exported can be mapped so.
    pub maps_files: bool,
    /// `true` if memory that this process may only read can be mapped for reading: sPAPR always pins for writing.
    pub maps_host_read_only: bool,
    /// The page size of the host's memory.
    pub host_page: PageSize,
    /// The support for handing live mappings over to another process.
    pub hands_over: LiveUpdateSupport,
}

impl Capabilities {
    /// A host that maps memory for reading that this process may only read, and has no other optional property.
    pub const fn new(keeps: MappingModel, host_page: PageSize) -> Self {
        Self {
            keeps,
            maps_device_memory: false,
            maps_files: false,
            maps_host_read_only: true,
            host_page,
            hands_over: LiveUpdateSupport::Never("the backend moves no addresses"),
        }
    }

    /// Returns `true` if `memory` can be mapped, as far as it is another device's.
    pub fn reaches(&self, memory: &HostMemory) -> bool {
        !memory.is_device_memory() || self.maps_device_memory || (self.maps_files && memory.file().is_some())
    }
}

/// The form in which a kernel keeps the result of a map call.
///
/// Exhaustive: a plan and the index of a space handle each form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MappingModel {
    /// The mapping as a whole: only whole mappings can be unmapped, and a map over a live one is refused (type1,
    /// iommufd).
    Mappings,
    /// One table entry a page: any page can be unmapped, and a map over a live entry replaces it (sPAPR).
    PageEntries,
}

/// The support for handing live mappings over to another process, as far as a backend knows without a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LiveUpdateSupport {
    /// Where the kernel and the devices support it;
    /// [`LiveUpdate::hand_over`](crate::contract::live_update::LiveUpdate::hand_over) asks them.
    WhereTheKernelCan,
    /// Never: the reason, and the remedy.
    Never(&'static str),
}
