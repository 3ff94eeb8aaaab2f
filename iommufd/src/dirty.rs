//! The writes of devices: logged in page tables, read as bitmaps.
//!
//! Three properties of the kernel's answers are documented nowhere, and each loses dirty pages:
//! - The kernel reports nothing behind the first gap between mappings, and succeeds (linux:
//!   drivers/iommu/iommufd/io_pagetable.c, iommu_read_and_clear_dirty drops the error). So no query crosses a gap.
//! - A query that begins or ends inside a large page of the IOMMU clears the page's only bit, and reports the part
//!   behind the query's beginning (linux: drivers/iommu/intel/iommu.c, intel_iommu_read_and_clear_dirty; AMD's is
//!   alike). The report may reach beyond the range, and beyond the bitmap (linux: drivers/iommu/iommufd/iova_bitmap.c,
//!   iova_bitmap_set). A large page never reaches beyond its mapping, so each query covers whole mappings.
//! - A page table that is not logging reports everything as clean (intel_iommu_read_and_clear_dirty again). So it is
//!   not queried.
//!
//! Bits are lost, too, where the kernel cannot access the bitmap's memory: it must be resident, which memory that was
//! just cleared is.

use std::mem::offset_of;

use dmaspace_abi::iommufd::{self, HwptGetDirtyBitmap, HwptSetDirtyTracking};
use dmaspace_core::backend::{DirtyCalls, DirtyReach};
use dmaspace_core::door::{Attached, Attachment, Command, Errno, Failure};
use dmaspace_core::{IovaRange, PageSize};
use zerocopy::IntoBytes;

use crate::Ioas;
use crate::page_table::PageTable;

/// The longest bitmap, that of 8 TiB in pages of 4 KiB. The kernel itself has no limit.
const LONGEST_BITMAP: usize = 1 << 28;

/// An answer without a call.
const fn refusal(errno: Errno) -> Failure {
    Failure::from_errno(iommufd::HWPT_GET_DIRTY_BITMAP.name, errno)
}

impl DirtyCalls for Ioas {
    /// The host's page, while there is a device and the IOMMUs of all devices log. The IOMMU's own page is never larger
    /// (linux: drivers/iommu/iommufd/io_pagetable.c, iopt_table_add_domain); where it is smaller the kernel combines
    /// its bits.
    fn page(&self) -> Option<PageSize> {
        self.tables.read().logs_all().then(|| self.door().host_page())
    }

    fn start(&self) -> Result<(), Failure> {
        let mut state = self.tables.write();
        for (n, table) in state.tables.iter().enumerate() {
            if let Err(failure) = table.set_logging(true) {
                // The page table that failed may log all the same.
                for begun in state.tables.iter().take(n + 1) {
                    let _ = begun.set_logging(false);
                }
                return Err(failure);
            }
        }
        state.logging = true;
        Ok(())
    }

    /// Stops all page tables, whatever the answer of one. Later page tables do not log.
    fn stop(&self) -> Result<(), Failure> {
        let mut state = self.tables.write();
        state.logging = false;
        let stopped = state.tables.iter().map(|table| table.set_logging(false));
        stopped.fold(Ok(()), Result::and)
    }

    fn reach(&self) -> DirtyReach {
        DirtyReach::of_whole_mappings(LONGEST_BITMAP)
    }

    /// Makes one call per page table, since a device writes through one of them. The range must be one whole mapping,
    /// or several without a gap.
    ///
    /// # Errors
    /// The kernel's failure; `EINVAL` if logging is off or the bitmap has no room, with a host page to spare;
    /// `EOPNOTSUPP` if a device is attached whose IOMMU cannot log. A part of the log may be lost then, and another
    /// part be in the bitmap.
    fn fetch(&self, range: IovaRange, bitmap: &mut [u64]) -> Result<(), Failure> {
        let state = self.tables.read();
        let page = self.door().host_page();
        let length = range.len().ok_or(refusal(Errno::EOVERFLOW))?.get();
        // The kernel may set bits up to the end of the host page in which the bitmap ends.
        let words = (bitmap.len() as u64).saturating_sub(page.bytes() / u64::from(u64::BITS / 8));
        let room = words.saturating_mul(u64::from(u64::BITS));
        if !state.logging || length.div_ceil(page.bytes()) > room {
            return Err(refusal(Errno::EINVAL));
        }
        if !state.logs_all() {
            return Err(refusal(Errno::EOPNOTSUPP));
        }
        state.tables.iter().try_for_each(|table| table.add_written(range.first().get(), length, page, bitmap))
    }
}

impl PageTable {
    /// Starts logging with an empty log, or stops it.
    pub(crate) fn set_logging(&self, on: bool) -> Result<(), Failure> {
        let mut set = HwptSetDirtyTracking {
            size: HwptSetDirtyTracking::SIZE,
            flags: if on { iommufd::DIRTY_TRACKING_ENABLE } else { 0 },
            hwpt_id: self.object.id().get(),
            reserved: 0,
        };
        let command = Command::with_bytes(iommufd::HWPT_SET_DIRTY_TRACKING, set.as_mut_bytes());
        self.object.iommufd().call(command)
    }

    /// Adds the log to the bitmap, and clears the log.
    fn add_written(&self, iova: u64, length: u64, page: PageSize, bitmap: &mut [u64]) -> Result<(), Failure> {
        let mut get = HwptGetDirtyBitmap {
            size: HwptGetDirtyBitmap::SIZE,
            hwpt_id: self.object.id().get(),
            iova,
            length,
            page_size: page.bytes(),
            ..HwptGetDirtyBitmap::default()
        };
        let words = Attached::Buffer(bitmap.as_mut_bytes());
        let mut data = [Attachment { offset: offset_of!(HwptGetDirtyBitmap, data), what: words }];
        let command = Command::with_bytes(iommufd::HWPT_GET_DIRTY_BITMAP, get.as_mut_bytes());
        self.object.iommufd().call(command.attaching(&mut data))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dmaspace_core::retry::Undone;
    use dmaspace_core::{Backend, Iova};
    use zerocopy::FromBytes;

    use super::*;
    use crate::Cdev;
    use crate::fixture::names::{GET, SET};
    use crate::fixture::point;
    use crate::fixture::{done, ioas, logs, ninth, tenth};
    use dmaspace_soft::{Reply, ScriptedDoor};

    /// An address space with a device on page table 9 and one on page table 10.
    fn logging(script: &[Reply]) -> (Arc<ScriptedDoor>, Ioas, [Cdev; 2]) {
        let mut answers: Vec<Reply> = vec![done, logs, ninth, done];
        answers.extend([done, logs, (|_| Err(Errno::EINVAL)) as Reply, done, tenth, done]);
        answers.extend(script);
        let (door, ioas) = ioas(&answers);
        let devices = [2, 3].map(|id| Cdev::new(crate::fixture::device(&door, id), format!("0000:00:{id:02x}.0")));
        for device in &devices {
            ioas.attach(device, point(&ioas)).expect("attached");
        }
        door.take();
        (door, ioas, devices)
    }

    fn range(first: u64, len: u64) -> IovaRange {
        IovaRange::with_len(Iova::new(first), len).expect("a range of the test")
    }

    /// A bitmap of this many words, and a host page to spare.
    fn bitmap(words: usize) -> Vec<u64> {
        vec![0; words + 8192]
    }

    /// The flags and page tables of the calls that start and stop logging.
    fn sets(door: &ScriptedDoor) -> Vec<(u32, u32)> {
        let sets = door.take().into_iter().map(|call| {
            let set = HwptSetDirtyTracking::read_from_bytes(&call.bytes).expect("the struct");
            (set.flags, set.hwpt_id)
        });
        sets.collect()
    }

    fn errno(result: Result<(), Failure>) -> Option<Errno> {
        result.expect_err("refused").errno()
    }

    #[test]
    fn start_and_stop_reach_every_page_table() {
        let (door, ioas, _devices) = logging(&[]);
        ioas.start().expect("begun");
        assert_eq!(sets(&door), [(1, 9), (1, 10)]);
        ioas.stop().expect("ended");
        assert_eq!(sets(&door), [(0, 9), (0, 10)]);
    }

    #[test]
    fn logging_is_stopped_everywhere_after_one_page_table_fails_to_start() {
        let (door, ioas, _devices) = logging(&[done, |_| Err(Errno::EIO)]);
        assert_eq!(errno(ioas.start()), Some(Errno::EIO));
        assert_eq!(sets(&door), [(1, 9), (1, 10), (0, 9), (0, 10)]);
        assert_eq!(errno(ioas.fetch(range(0, 0x1_0000), &mut bitmap(1))), Some(Errno::EINVAL));
        assert_eq!(door.names(), [""; 0]);
    }

    #[test]
    fn every_page_table_is_stopped_although_one_fails() {
        let (door, ioas, _devices) = logging(&[done, done, |_| Err(Errno::EIO)]);
        ioas.start().expect("begun");
        assert_eq!(errno(ioas.stop()), Some(Errno::EIO));
        assert_eq!(door.names(), [SET; 4]);
    }

    #[test]
    fn fetch_asks_every_page_table_with_a_zero_address_field() {
        let (door, ioas, _devices) = logging(&[]);
        ioas.start().expect("begun");
        door.take();
        ioas.fetch(range(0x20_0000, 0x3_0000), &mut bitmap(1)).expect("fetched");
        let calls = door.take();
        for (call, hwpt_id) in calls.iter().zip([9, 10]) {
            let get = HwptGetDirtyBitmap {
                size: 48,
                hwpt_id,
                iova: 0x20_0000,
                length: 0x3_0000,
                page_size: 0x1_0000,
                ..HwptGetDirtyBitmap::default()
            };
            assert_eq!((call.bytes.as_slice(), call.attached.as_slice()), (get.as_bytes(), &[40][..]));
        }
        assert_eq!(calls.len(), 2);
    }

    #[test]
    fn fetch_fails_if_one_page_table_fails() {
        let (door, ioas, _devices) = logging(&[done, done, done, |_| Err(Errno::ENOMEM)]);
        ioas.start().expect("begun");
        assert_eq!(errno(ioas.fetch(range(0, 0x1_0000), &mut bitmap(1))), Some(Errno::ENOMEM));
        assert_eq!(door.names(), [SET, SET, GET, GET]);
    }

    #[test]
    fn a_bitmap_without_room_is_refused_without_a_call() {
        let (door, ioas, _devices) = logging(&[]);
        ioas.start().expect("begun");
        door.take();
        assert_eq!(errno(ioas.fetch(range(0, 65 << 16), &mut bitmap(1))), Some(Errno::EINVAL));
        assert_eq!(errno(ioas.fetch(range(0, (64 << 16) + 1), &mut bitmap(1))), Some(Errno::EINVAL));
        assert_eq!(errno(ioas.fetch(IovaRange::all(), &mut bitmap(1))), Some(Errno::EOVERFLOW));
        assert_eq!(door.names(), [""; 0]);
        ioas.fetch(range(0, 64 << 16), &mut bitmap(1)).expect("it fits");
        ioas.fetch(range(0xffff_ffff_ffff_0000, 0x1_0000), &mut bitmap(1)).expect("the last page of all");
    }

    #[test]
    fn fetch_is_refused_without_logging_and_without_a_page_table() {
        let (door, ioas, devices) = logging(&[]);
        assert_eq!(errno(ioas.fetch(range(0, 0x1_0000), &mut bitmap(1))), Some(Errno::EINVAL));
        ioas.start().expect("begun");
        for device in &devices {
            assert_eq!(ioas.detach(device, point(&ioas)), Ok(Undone::Done(())));
        }
        assert_eq!(errno(ioas.fetch(range(0, 0x1_0000), &mut bitmap(1))), Some(Errno::EOPNOTSUPP));
        assert!(!door.names().contains(&GET));
    }
}
