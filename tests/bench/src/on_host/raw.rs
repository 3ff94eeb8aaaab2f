//! The raw calls of a VMM without a library: a struct filled and an ioctl made for each mapping.

use std::error::Error;
use std::io;
use std::os::fd::AsRawFd;

use dmaspace::BackendKind;
use dmaspace_abi::iommufd::{self, IOAS_IOVA_RANGES, IOAS_MAP, IOAS_UNMAP, IoasIovaRanges, IoasMap, IoasUnmap};
use dmaspace_abi::vfio::{MAP_DMA, MAP_READ, MAP_WRITE, MapDma, UNMAP_DMA, UnmapDma};
use dmaspace_core::Access;
use dmaspace_core::door::Descriptor;

/// The ids among which the address space of a new iommufd is looked for.
const IDS: std::ops::RangeInclusive<u32> = 1..=63;

/// A container, or an address space of an iommufd.
#[derive(Debug)]
pub(crate) struct Raw {
    descriptor: Descriptor,
    ioas: Option<u32>,
}

impl Raw {
    /// The calls on a descriptor. A space of iommufd has one address space, which is found by asking.
    pub(crate) fn of(descriptor: Descriptor, backend: BackendKind) -> Result<Self, Box<dyn Error>> {
        let mut raw = Self { descriptor, ioas: None };
        if backend == BackendKind::Iommufd {
            let found = IDS.clone().find(|id| raw.is_address_space(*id));
            raw.ioas = Some(found.ok_or("the iommufd has no address space")?);
        }
        Ok(raw)
    }

    fn is_address_space(&self, id: u32) -> bool {
        let size = IoasIovaRanges::SIZE;
        let mut asked = IoasIovaRanges { size, ioas_id: id, ..IoasIovaRanges::default() };
        // With room for no range the kernel answers EMSGSIZE for an address space, and ENOENT for other ids.
        let answer = self.call(IOAS_IOVA_RANGES.number, &mut asked);
        answer.is_ok() || answer.is_err_and(|error| error.raw_os_error() == Some(libc::EMSGSIZE))
    }

    /// Maps memory of this process at a bus address.
    pub(crate) fn map(&self, iova: u64, address: u64, length: u64) -> io::Result<()> {
        match self.ioas {
            None => {
                let flags = MAP_READ | MAP_WRITE;
                let mut map = MapDma { argsz: MapDma::SIZE, flags, vaddr: address, iova, size: length };
                self.call(MAP_DMA.number, &mut map)
            }
            Some(ioas_id) => {
                let flags = iommufd::fixed_map_flags(Access::READ_WRITE);
                let size = IoasMap::SIZE;
                let mut map = IoasMap { size, flags, ioas_id, reserved: 0, user_va: address, length, iova };
                self.call(IOAS_MAP.number, &mut map)
            }
        }
    }

    /// Unmaps a range.
    pub(crate) fn unmap(&self, iova: u64, length: u64) -> io::Result<()> {
        match self.ioas {
            None => {
                let mut unmap = UnmapDma { argsz: UnmapDma::SIZE, flags: 0, iova, size: length };
                self.call(UNMAP_DMA.number, &mut unmap)
            }
            Some(ioas_id) => {
                let mut unmap = IoasUnmap { size: IoasUnmap::SIZE, ioas_id, iova, length };
                self.call(IOAS_UNMAP.number, &mut unmap)
            }
        }
    }

    #[expect(unsafe_code, reason = "UNSAFETY: the raw loop that the library is compared with")]
    fn call<T>(&self, number: u32, argument: &mut T) -> io::Result<()> {
        // SAFETY: the argument is the struct of that request. The memory it names lives as long as the bench, longer
        // than the mapping: each is unmapped before the bench ends.
        let answer = unsafe { libc::ioctl(self.descriptor.as_raw_fd(), number.into(), std::ptr::from_mut(argument)) };
        if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}
