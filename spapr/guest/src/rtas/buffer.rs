//! The buffer of an RTAS call: token, number of arguments, number of results, then both, in big-endian cells (LoPAR: ch_rtas.xml, "RTAS
//! Argument Call Buffer"; linux: arch/powerpc/include/asm/rtas-types.h, rtas_args).

use dmaspace_core::SystemAddress;

use super::Status;
use crate::hypercalls::SystemMemory;

/// The bytes of a cell.
const CELL: usize = size_of::<u32>();

/// Token and the two counts.
const HEAD: usize = 3;

/// The most arguments and results together: a Linux guest's buffer has room for so many (linux:
/// arch/powerpc/include/asm/rtas-types.h, rtas_args). QEMU believes any number.
pub const MOST_CELLS: usize = 16;

/// Why a buffer is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadBuffer {
    /// Not all of it is in the guest's memory, or can be written.
    #[error("there is no memory for an RTAS call's buffer at {0}")]
    NoMemory(SystemAddress),
    /// More arguments and results than [`MOST_CELLS`].
    #[error("an RTAS call with {0} arguments and {1} results")]
    TooLong(u32, u32),
    /// There is no room for a status.
    #[error("an RTAS call without a result")]
    NoStatus,
}

/// A buffer that was read, whose results can be written.
#[derive(Debug)]
pub(super) struct Buffer {
    at: SystemAddress,
    pub(super) arguments: Vec<u32>,
    /// How many there are.
    pub(super) results: usize,
}

/// The token of the call whose buffer is at `at`.
pub(super) fn token(memory: &dyn SystemMemory, at: SystemAddress) -> Result<u32, BadBuffer> {
    read_cells(memory, at, 0, 1)?.first().copied().ok_or(BadBuffer::NoMemory(at))
}

impl Buffer {
    /// Reads it once, and makes sure that its results can be written: a call that was answered must not fail for the want of a place.
    pub(super) fn read(memory: &dyn SystemMemory, at: SystemAddress) -> Result<Self, BadBuffer> {
        let head = read_cells(memory, at, 0, HEAD)?;
        let [_, arguments, results] = head[..] else { return Err(BadBuffer::NoMemory(at)) };
        let too_long = BadBuffer::TooLong(arguments, results);
        let counts = [arguments, results].map(|count| usize::try_from(count).unwrap_or(usize::MAX));
        if counts.iter().any(|count| *count > MOST_CELLS) || counts.iter().sum::<usize>() > MOST_CELLS {
            return Err(too_long);
        }
        let [arguments, results] = counts;
        if results == 0 {
            return Err(BadBuffer::NoStatus);
        }
        let buffer = Self { at, arguments: read_cells(memory, at, HEAD, arguments)?, results };
        let there = read_cells(memory, at, buffer.first_result(), results)?;
        buffer.write_results(memory, &there)?;
        Ok(buffer)
    }

    /// Writes the status, and `results` behind it.
    pub(super) fn write(&self, memory: &dyn SystemMemory, status: Status, results: &[u32]) -> Result<(), BadBuffer> {
        let cells: Vec<u32> = [status.get() as u32].into_iter().chain(results.iter().copied()).collect();
        self.write_results(memory, &cells)
    }

    fn write_results(&self, memory: &dyn SystemMemory, cells: &[u32]) -> Result<(), BadBuffer> {
        let bytes: Vec<u8> = cells.iter().flat_map(|cell| cell.to_be_bytes()).collect();
        let place = cell_at(self.at, self.first_result()).filter(|place| memory.write(*place, &bytes));
        place.map(drop).ok_or(BadBuffer::NoMemory(self.at))
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
    let place = cell_at(at, skip).filter(|place| memory.read(*place, &mut bytes));
    place.ok_or(BadBuffer::NoMemory(at))?;
    let cells = bytes.chunks_exact(CELL).filter_map(|cell| cell.try_into().ok());
    Ok(cells.map(u32::from_be_bytes).collect())
}

fn cell_at(at: SystemAddress, number: usize) -> Option<SystemAddress> {
    at.get().checked_add((number * CELL) as u64).map(SystemAddress::new)
}
