//! The costs of a replay, in bytes.

use dmaspace::IovaRange;
use dmaspace::contract::{PciAddressSpace, WindowRequest};
use dmaspace::window::Window;
use serde::Serialize;

/// The costs of a replay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Bytes {
    /// Devices reach these at the end.
    pub(crate) mapped: u64,
    /// These were handed to calls that pin, each as often as it was.
    pub(crate) pinned: u64,
    /// The tables of the windows in force at the end take these.
    pub(crate) tables: u64,
    /// These were there before and after, and away in between.
    pub(crate) disturbed: u64,
}

impl Bytes {
    /// The bytes in force in a space at the end, and the bytes counted on the way.
    pub(crate) fn of(space: &dyn PciAddressSpace, pinned: u64, disturbed: u64) -> Self {
        let mapped = space.mappings(IovaRange::all()).iter().map(|mapping| mapping.memory.len().get()).sum();
        Self { mapped, pinned, tables: tables(space), disturbed }
    }
}

/// The tables of windows that are created: only they are charged.
fn tables(space: &dyn PciAddressSpace) -> u64 {
    let Some(control) = space.powers().window_control else { return 0 };
    space.windows().windows.iter().map(|window| control.table_bytes(request_of(window))).sum()
}

fn request_of(window: &Window) -> WindowRequest {
    WindowRequest::new(window.range, window.granule())
}
