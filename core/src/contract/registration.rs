//! Registering memory before it is mapped: preregistration.

use crate::door::registrations::ProcessRegistrations;
use crate::error::Error;
use crate::words::memory::HostMemory;

/// Registering memory, which sPAPR v2 requires before a map.
pub trait MemoryRegistration: Send + Sync {
    /// Registers `memory`: pins and charges all of it.
    ///
    /// # Errors
    /// Before the kernel is asked: [`Kind::Unbacked`](crate::error::Kind::Unbacked),
    /// [`Kind::DeviceMemory`](crate::error::Kind::DeviceMemory),
    /// [`Kind::HostReadOnly`](crate::error::Kind::HostReadOnly), [`Kind::Misaligned`](crate::error::Kind::Misaligned)
    /// to the host's page, [`Kind::AlreadyRegistered`](crate::error::Kind::AlreadyRegistered) by this space in whole or
    /// in part, or by another space of the process as part of another registration ([`MemoryRegistration::runs`]). Then
    /// [`Kind::PinLimit`](crate::error::Kind::PinLimit), [`Kind::BadAddress`](crate::error::Kind::BadAddress).
    fn register(&self, memory: &HostMemory) -> Result<(), Error>;

    /// Unregisters exactly one registration.
    ///
    /// # Errors
    /// [`Kind::InUse`](crate::error::Kind::InUse) when a live mapping depends on it: the kernel would report success
    /// and leak the pins (linux: drivers/vfio/vfio_iommu_spapr_tce.c, tce_iommu_unregister_pages).
    /// [`Kind::NotRegistered`](crate::error::Kind::NotRegistered) when it is not exactly one registration.
    fn unregister(&self, memory: &HostMemory) -> Result<(), Error>;

    /// The registrations of this space, ascending by host address.
    fn registered(&self) -> Vec<HostMemory>;

    /// The registrations of the process, made through this space or through others. Memory that overlaps one of them
    /// can be registered only by registering exactly the same memory, which pins and charges nothing more. `None` on
    /// hosts without such a list.
    fn runs(&self) -> Option<&ProcessRegistrations>;
}
