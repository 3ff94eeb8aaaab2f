//! The powers that some hosts have and others lack.

use crate::contract::dirty::DirtyTracking;
use crate::contract::eeh::Eeh;
use crate::contract::kernel_tables::KernelTables;
use crate::contract::live_update::LiveUpdate;
use crate::contract::{MemoryRegistration, PinSharing, WindowControl};

/// The powers of a space beyond mapping. `None` for a power that its host lacks.
///
/// A new power is one field here, one field of [`Calls`](crate::backend::Calls), and its implementation for
/// [`Space`](crate::Space).
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Powers<'a> {
    /// Creating and removing windows: sPAPR v2.
    pub window_control: Option<&'a dyn WindowControl>,
    /// Registering memory before it is mapped: sPAPR v2.
    pub registration: Option<&'a dyn MemoryRegistration>,
    /// Handing windows to the kernel, which then writes their entries: sPAPR v2.
    pub kernel_tables: Option<&'a dyn KernelTables>,
    /// Recovering a device that its host has isolated after an error: sPAPR, where [`Eeh::is_available`] says so.
    pub eeh: Option<&'a dyn Eeh>,
    /// Sharing pins with other spaces: spaces of one iommufd that were opened for it.
    pub pin_sharing: Option<&'a dyn PinSharing>,
    /// The number of mappings that the kernel still accepts: type1.
    pub mapping_budget: Option<&'a dyn MappingBudget>,
    /// Tracking which memory devices write. Every host has it; some report everything that devices may write.
    pub dirty_tracking: &'a dyn DirtyTracking,
    /// Handing mappings over to another process. Hosts that cannot do it refuse and say why
    /// ([`Capabilities::hands_over`](crate::contract::Capabilities::hands_over)).
    pub live_update: &'a dyn LiveUpdate,
}

impl Powers<'_> {
    /// The number of mappings that the kernel still accepts. Asks the kernel. `None` where it does not count them.
    pub fn mappings_left(&self) -> Option<u64> {
        self.mapping_budget?.mappings_left()
    }
}

/// The number of mappings that a kernel accepts.
pub trait MappingBudget: Send + Sync {
    /// The number of mappings that the kernel still accepts (type1: `dma_avail`). Asks the kernel each time. `None`
    /// when it does not answer.
    fn mappings_left(&self) -> Option<u64>;
}
