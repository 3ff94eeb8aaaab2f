//! The buffer of an RTAS call: token, number of arguments, number of results, arguments, results, in big-endian cells
//! (LoPAR: ch_rtas.xml, "RTAS Argument Call Buffer"; linux: arch/powerpc/include/asm/rtas-types.h, rtas_args).

use dmaspace_core::SystemAddress;

use super::RtasStatus;
use crate::hypercalls::SystemMemory;

/// The bytes of a cell.
const CELL: usize = size_of::<u32>();

/// The cells of the token and the two counts.
const HEAD: usize = 3;

/// The most arguments and results together: the room in a Linux guest's buffer (linux:
/// arch/powerpc/include/asm/rtas-types.h, rtas_args). QEMU accepts any number.
pub const MOST_CELLS: usize = 16;

/// The reason that a call has no buffer to answer in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadBuffer {
    /// Not all of the buffer is in the guest's memory, or can be written.
    #[error("there is no memory for an RTAS call's buffer at {0}")]
    NoMemory(SystemAddress),
    /// More arguments and results than [`MOST_CELLS`].
    #[error("an RTAS call with {0} arguments and {1} results, which are more than 16")]
    TooLong(u32, u32),
    /// The call has no result, so there is no room for a status.
    #[error("an RTAS call without a result")]
    NoStatus,
}

/// The buffer of a call, once it was read and its results proved writable.
#[derive(Debug)]
pub(super) struct Buffer {
    at: SystemAddress,
    pub(super) arguments: Vec<u32>,
    /// The number of results.
    pub(super) results: usize,
}

/// The token of the call whose buffer is at `at`.
pub(super) fn token(memory: &dyn SystemMemory, at: SystemAddress) -> Result<u32, BadBuffer> {
    read_cells(memory, at, 0, 1)?.first().copied().ok_or(BadBuffer::NoMemory(at))
}

impl Buffer {
    /// Reads the buffer once, and writes its results as they are: a call that has done its work must not fail for want
    /// of a place for its status.
    pub(super) fn read(memory: &dyn SystemMemory, at: SystemAddress) -> Result<Self, BadBuffer> {
        let head = read_cells(memory, at, 0, HEAD)?;
        let [_, arguments, results] = head[..] else { return Err(BadBuffer::NoMemory(at)) };
        let counts = [arguments, results].map(|count| usize::try_from(count).unwrap_or(usize::MAX));
        if counts[0].saturating_add(counts[1]) > MOST_CELLS {
            return Err(BadBuffer::TooLong(arguments, results));
        }
        let [arguments, results] = counts;
        if results == 0 {
            return Err(BadBuffer::NoStatus);
        }
        let buffer = Self { at, arguments: read_cells(memory, at, HEAD, arguments)?, results };
        let before = read_cells(memory, at, buffer.first_result(), results)?;
        buffer.write_results(memory, &before)?;
        Ok(buffer)
    }

    /// Writes the status and the results that follow it.
    pub(super) fn write(
        &self,
        memory: &dyn SystemMemory,
        status: RtasStatus,
        results: &[u32],
    ) -> Result<(), BadBuffer> {
        let mut cells = vec![status.get() as u32];
        cells.extend_from_slice(results);
        debug_assert!(cells.len() <= self.results, "{} results, with room for {}", cells.len(), self.results);
        self.write_results(memory, &cells)
    }

    fn write_results(&self, memory: &dyn SystemMemory, cells: &[u32]) -> Result<(), BadBuffer> {
        let bytes: Vec<u8> = cells.iter().flat_map(|cell| cell.to_be_bytes()).collect();
        match cell_at(self.at, self.first_result()) {
            Some(place) if memory.write(place, &bytes) => Ok(()),
            _ => Err(BadBuffer::NoMemory(self.at)),
        }
    }

    fn first_result(&self) -> usize {
        HEAD + self.arguments.len()
    }
}

fn read_cells(memory: &dyn SystemMemory, at: SystemAddress, skip: usize, count: usize) -> Result<Vec<u32>, BadBuffer> {
    if count == 0 {
        return Ok(Vec::new());
    }
    let mut bytes = vec![0; count * CELL];
    let first = cell_at(at, skip).ok_or(BadBuffer::NoMemory(at))?;
    if !memory.read(first, &mut bytes) {
        return Err(BadBuffer::NoMemory(at));
    }
    let cells = bytes.chunks_exact(CELL).filter_map(|cell| cell.try_into().ok());
    Ok(cells.map(u32::from_be_bytes).collect())
}

fn cell_at(at: SystemAddress, number: usize) -> Option<SystemAddress> {
    at.get().checked_add((number * CELL) as u64).map(SystemAddress::new)
}
