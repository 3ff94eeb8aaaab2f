//! The four RTAS calls for dynamic DMA windows (DDW), by argument.
//!
//! A guest puts a buffer of big-endian 32-bit cells in its memory: the call's token, the numbers of arguments and of
//! results, the arguments, and room for the results, of which the first is a status. The rules are PAPR's, as its
//! public edition has them (LoPAR: sec_rtas_dma_window.xml); where it says nothing they are QEMU's
//! (hw/ppc/spapr_rtas_ddw.c). KVM answers no RTAS call.
//!
//! A call that is refused has changed nothing, and has written its status only.

mod buffer;
#[cfg(test)]
mod conformance;
pub(crate) mod pages;
#[cfg(test)]
mod tests;

use dmaspace_core::SystemAddress;
use dmaspace_listener::{Listener, Report};

use crate::bridge::{PciHostBridge, WindowError};
use crate::hypercalls::SystemMemory;
use crate::liobn::Liobn;
use buffer::Buffer;
pub use buffer::{BadBuffer, MOST_CELLS};

/// The token of H_RTAS, the hypercall by which firmware passes an RTAS call to the hypervisor. QEMU defined it (qemu:
/// include/hw/ppc/spapr.h, KVMPPC_H_RTAS).
pub const H_RTAS: u64 = 0xf000;

/// The tokens of the calls, as the guest's device tree lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tokens {
    /// ibm,query-pe-dma-window.
    pub query: u32,
    /// ibm,create-pe-dma-window.
    pub create: u32,
    /// ibm,remove-pe-dma-window.
    pub remove: u32,
    /// ibm,reset-pe-dma-window.
    pub reset: u32,
}

impl Default for Tokens {
    /// QEMU's tokens (qemu: include/hw/ppc/spapr.h, RTAS_IBM_QUERY_PE_DMA_WINDOW and those after it).
    fn default() -> Self {
        Self { query: 0x2026, create: 0x2027, remove: 0x2028, reset: 0x2029 }
    }
}

/// The status of a call, which is the first result in the guest's buffer.
///
/// PAPR has two more for these calls, busy and extended delay. They are not used: a window exists when its call
/// returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RtasStatus {
    /// The call succeeded.
    Success,
    /// A host failed.
    HardwareError,
    /// An argument is wrong.
    ParameterError,
}

impl RtasStatus {
    /// The number (LoPAR: sec_rtas_dma_window.xml, the argument call buffers).
    pub const fn get(self) -> i32 {
        match self {
            Self::Success => 0,
            Self::HardwareError => -1,
            Self::ParameterError => -3,
        }
    }
}

/// The reason to refuse a call.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RtasError {
    /// The call does not have these numbers of arguments and results.
    #[error("the call does not have {0} arguments and {1} results")]
    Counts(usize, usize),
    /// No bridge has the unit ID.
    #[error("there is no bridge with unit ID {0:#x}")]
    NoSuchBridge(u64),
    /// The window was not created, removed or reset.
    #[error(transparent)]
    Window(#[from] WindowError),
}

impl RtasError {
    /// The status for the guest.
    pub fn status(&self) -> RtasStatus {
        match self {
            Self::Window(WindowError::LiobnInUse(_) | WindowError::Commit(_) | WindowError::Table(_)) => {
                RtasStatus::HardwareError
            }
            Self::Counts(..) | Self::NoSuchBridge(_) | Self::Window(_) => RtasStatus::ParameterError,
        }
    }
}

/// The answer to an RTAS call.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum RtasAnswer {
    /// The token is that of a call other than the four. Nothing was done.
    Other(u32),
    /// Status and results are in the guest's buffer. The report of the changes on hosts, or the reason to refuse the
    /// call, is for the VMM's log. A query changes nothing.
    Called(Result<Report, RtasError>),
}

impl Tokens {
    /// Answers the call whose buffer is at `buffer` in the guest's memory. `bridges` are all bridges of the guest, each
    /// with its listener. A guest makes one RTAS call at a time. Hypercalls go on meanwhile; one that writes to a
    /// window waits while the call creates or removes it.
    ///
    /// # Errors
    /// [`BadBuffer`]: nothing was done, since there is no place for a status. The guest gets `H_Parameter` from H_RTAS.
    pub fn call(
        &self,
        bridges: &mut [(PciHostBridge, Listener)],
        memory: &dyn SystemMemory,
        buffer: SystemAddress,
    ) -> Result<RtasAnswer, BadBuffer> {
        let token = buffer::token(memory, buffer)?;
        let Some(call) = self.call_of(token) else { return Ok(RtasAnswer::Other(token)) };
        let buffer = Buffer::read(memory, buffer)?;
        match answer(call, bridges, &buffer.arguments, buffer.results) {
            Ok((results, report)) => {
                buffer.write(memory, RtasStatus::Success, &results)?;
                Ok(RtasAnswer::Called(Ok(report)))
            }
            Err(error) => {
                buffer.write(memory, error.status(), &[])?;
                Ok(RtasAnswer::Called(Err(error)))
            }
        }
    }

    fn call_of(&self, token: u32) -> Option<Call> {
        let calls = [
            (self.query, Call::Query),
            (self.create, Call::Create),
            (self.remove, Call::Remove),
            (self.reset, Call::Reset),
        ];
        calls.into_iter().find(|(known, _)| *known == token).map(|(_, call)| call)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Query,
    Create,
    Remove,
    Reset,
}

/// The results after the status, and the report of the changes.
fn answer(
    call: Call,
    bridges: &mut [(PciHostBridge, Listener)],
    arguments: &[u32],
    results: usize,
) -> Result<(Vec<u32>, Report), RtasError> {
    match (call, arguments, results) {
        // All devices below a bridge are one PE, as in QEMU: the configuration address, which names a device, makes no
        // difference.
        (Call::Query, [_, high, low], 5 | 6) => {
            let (bridge, listener) = bridge_of(bridges, *high, *low)?;
            Ok((query(bridge, listener, results), Report::default()))
        }
        (Call::Create, [_, high, low, page_shift, window_shift], 4) => {
            let (bridge, listener) = bridge_of(bridges, *high, *low)?;
            let (window, report) = bridge.create_window(listener, *page_shift, *window_shift)?;
            let [high, low] = halves(window.range.first().get());
            Ok((vec![window.liobn.get(), high, low], report))
        }
        (Call::Remove, [liobn], 1) => {
            let liobn = Liobn::new(*liobn);
            let (bridge, listener) = bridge_with(bridges, liobn)?;
            Ok((Vec::new(), bridge.remove_window(listener, liobn)?))
        }
        (Call::Reset, [_, high, low], 1) => {
            let (bridge, listener) = bridge_of(bridges, *high, *low)?;
            Ok((Vec::new(), bridge.reset(listener)?))
        }
        _ => Err(RtasError::Counts(arguments.len(), results)),
    }
}

fn query(bridge: &PciHostBridge, listener: &Listener, results: usize) -> Vec<u32> {
    const NO_MIGRATION: u32 = 0;
    let offer = bridge.offer(listener);
    let pages = offer.page_sizes.map_or(0, pages::bits_of);
    let [high, low] = halves(offer.most_entries);
    if results == 6 {
        return vec![offer.windows, high, low, pages, NO_MIGRATION];
    }
    // A number that does not fit one cell becomes the largest power of two that does.
    let entries = if high == 0 { low } else { 1 << 31 };
    vec![offer.windows, entries, pages, NO_MIGRATION]
}

fn bridge_of(
    bridges: &mut [(PciHostBridge, Listener)],
    high: u32,
    low: u32,
) -> Result<&mut (PciHostBridge, Listener), RtasError> {
    let unit = (u64::from(high) << 32) | u64::from(low);
    let found = bridges.iter_mut().find(|(bridge, _)| bridge.layout().unit == unit);
    found.ok_or(RtasError::NoSuchBridge(unit))
}

/// The bridge with the window `liobn`.
fn bridge_with(
    bridges: &mut [(PciHostBridge, Listener)],
    liobn: Liobn,
) -> Result<&mut (PciHostBridge, Listener), RtasError> {
    let found = bridges.iter_mut().find(|(bridge, _)| bridge.windows().iter().any(|window| window.liobn == liobn));
    Ok(found.ok_or(WindowError::NoSuchWindow(liobn))?)
}

/// A number in two cells, the higher one first.
pub(crate) fn halves(number: u64) -> [u32; 2] {
    // Both halves fit.
    #[allow(clippy::cast_possible_truncation)]
    [(number >> 32) as u32, number as u32]
}
