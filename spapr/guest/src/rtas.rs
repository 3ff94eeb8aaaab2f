//! The four RTAS calls for dynamic DMA windows (DDW), by argument.
//!
//! A guest puts a buffer of big-endian 32-bit cells in its memory: the call's token, how many arguments and results there are, the
//! arguments, and room for the results, of which the first is a status. The rules are PAPR's, as its public edition has them (LoPAR:
//! sec_rtas_dma_window.xml); where it is silent they are QEMU's (hw/ppc/spapr_rtas_ddw.c). KVM never answers an RTAS call.
//!
//! A call that is refused has changed nothing, and has written its status only.

mod buffer;
#[cfg(test)]
mod conformance;
pub(super) mod pages;
#[cfg(test)]
mod tests;

use dmaspace_core::SystemAddress;
use dmaspace_listener::Listener;
use dmaspace_listener::Report;

use super::bridge::{PciHostBridge, WindowError};
use super::hypercalls::SystemMemory;
use super::tables::Liobn;
use buffer::Buffer;
pub use buffer::{BadBuffer, MOST_CELLS};

/// The token of H_RTAS, by which firmware hands a call to the hypervisor. It is QEMU's own (qemu: include/hw/ppc/spapr.h,
/// KVMPPC_H_RTAS).
pub const H_RTAS: u64 = 0xf000;

/// The numbers that a guest calls the calls by, as its device tree says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// QEMU's (qemu: include/hw/ppc/spapr.h, RTAS_IBM_QUERY_PE_DMA_WINDOW and those after it).
    fn default() -> Self {
        Self { query: 0x2026, create: 0x2027, remove: 0x2028, reset: 0x2029 }
    }
}

/// What a guest finds in the first result.
///
/// PAPR has two more for these calls, busy and extended delay: windows are there when a call returns, so they are not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// It is done.
    Success,
    /// A host failed.
    HardwareError,
    /// An argument is wrong.
    ParameterError,
}

impl Status {
    /// The number (LoPAR: sec_rtas_dma_window.xml, the argument call buffers).
    pub const fn get(self) -> i32 {
        match self {
            Self::Success => 0,
            Self::HardwareError => -1,
            Self::ParameterError => -3,
        }
    }
}

/// Why a call was refused.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RtasError {
    /// So many arguments and results.
    #[error("{0} arguments and {1} results")]
    Counts(usize, usize),
    /// No bridge has this unit ID.
    #[error("there is no bridge with unit ID {0:#x}")]
    NoSuchBridge(u64),
    /// The window was not created, removed or reset.
    #[error(transparent)]
    Window(#[from] WindowError),
}

impl RtasError {
    /// The status for the guest.
    pub fn status(&self) -> Status {
        match self {
            Self::Window(WindowError::LiobnInUse(_) | WindowError::Commit(_) | WindowError::Table(_)) => {
                Status::HardwareError
            }
            Self::Counts(..) | Self::NoSuchBridge(_) | Self::Window(_) => Status::ParameterError,
        }
    }
}

/// What became of a buffer.
#[derive(Clone, Debug)]
pub enum Answer {
    /// The call is not one of these four, but has this token. Nothing was done.
    Other(u32),
    /// The guest finds status and results in its buffer. What that did to hosts, or why it was refused, is for the VMM's log; a query
    /// does nothing.
    Called(Result<Report, RtasError>),
}

impl Tokens {
    /// Answers the call whose buffer is at `buffer` in the guest's memory. `bridges` are all bridges of the guest, each with its listener.
    /// A guest makes one RTAS call at a time; hypercalls go on meanwhile, and wait where a window they write to comes or goes.
    ///
    /// # Errors
    /// [`BadBuffer`]: nothing was done, for there is no place to say how it went. The guest gets `H_Parameter` from H_RTAS.
    pub fn call(
        &self,
        bridges: &mut [(PciHostBridge, Listener)],
        memory: &dyn SystemMemory,
        buffer: SystemAddress,
    ) -> Result<Answer, BadBuffer> {
        let token = buffer::token(memory, buffer)?;
        let Some(call) = self.meaning(token) else { return Ok(Answer::Other(token)) };
        let buffer = Buffer::read(memory, buffer)?;
        let result = answer(call, bridges, &buffer.arguments, buffer.results);
        let status = result.as_ref().map_or_else(RtasError::status, |_| Status::Success);
        let results = result.as_ref().map_or(&[][..], |(results, _)| results);
        buffer.write(memory, status, results)?;
        Ok(Answer::Called(result.map(|(_, report)| report)))
    }

    fn meaning(&self, token: u32) -> Option<Call> {
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

/// The results after the status, and what was done.
fn answer(
    call: Call,
    bridges: &mut [(PciHostBridge, Listener)],
    arguments: &[u32],
    results: usize,
) -> Result<(Vec<u32>, Report), RtasError> {
    match (call, arguments, results) {
        // All devices below a bridge are one PE here, as they are QEMU's: whichever the configuration address means will do.
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
            let has_it = |(bridge, _): &&mut (PciHostBridge, Listener)| {
                bridge.windows().iter().any(|window| window.liobn == liobn)
            };
            let found = bridges.iter_mut().find(has_it);
            let (bridge, listener) = found.ok_or(WindowError::NoSuchWindow(liobn))?;
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
    let end = [pages, NO_MIGRATION];
    if results == 6 {
        return [&[offer.windows, high, low], &end[..]].concat();
    }
    // Both numbers of entries are powers of two, and one fits.
    let low = if high == 0 { low } else { 1 << 31 };
    [&[offer.windows, low], &end[..]].concat()
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

/// A number in two cells, the higher one first.
pub(super) fn halves(number: u64) -> [u32; 2] {
    // Both halves fit.
    #[allow(clippy::cast_possible_truncation)]
    [(number >> 32) as u32, number as u32]
}
