//! The device's own log of the pages it wrote.
//!
//! Some devices log their writes themselves, above all virtual functions of network cards. Their log does not need an
//! IOMMU that logs, and lasts from [`Device::start_logging`] to [`Device::stop_logging`].

use std::mem::offset_of;

use dmaspace_abi::device::{
    DEVICE_FEATURE, FEATURE_GET, FEATURE_LOGGING_REPORT, FEATURE_LOGGING_START, FEATURE_LOGGING_STOP, FEATURE_SET,
    FeatureHead, FeatureLoggingReport, FeatureLoggingStart, LoggingRange,
};
use dmaspace_core::door::{Attached, Attachment, Command, Errno, Failure, Kernel};
use dmaspace_core::{IovaRange, PageSize};
use zerocopy::IntoBytes;

use crate::device::migration::feature;
use crate::device::{Action, Device, DeviceError};

impl Device {
    /// Begins to log the pages of `ranges` that the device writes. `page` is the wanted granularity; the result is the
    /// device's, which may be coarser or finer (linux: drivers/vfio/vfio_main.c,
    /// vfio_ioctl_device_feature_logging_start).
    ///
    /// # Errors
    /// The kernel's answer: `ENOTTY` for a device that does not log, `EINVAL` for no range, for ranges that overlap or
    /// are no whole pages, `E2BIG` for more ranges than the device can log, `EOVERFLOW` for a range that ends at
    /// 2^64-1; a granularity that is no page size.
    pub fn start_logging(&self, page: PageSize, ranges: &[IovaRange]) -> Result<PageSize, DeviceError> {
        self.try_to_start(page, ranges).map_err(|failure| self.error(Action::Logging, failure))
    }

    fn try_to_start(&self, page: PageSize, ranges: &[IovaRange]) -> Result<PageSize, Failure> {
        let mut list = Vec::with_capacity(ranges.len());
        for range in ranges {
            list.push(LoggingRange { iova: range.first().get(), length: length(*range)? });
        }
        let head = feature(FeatureLoggingStart::SIZE, FEATURE_SET | FEATURE_LOGGING_START);
        let num_ranges = u32::try_from(list.len()).map_err(|_| refused(Errno::E2BIG))?;
        let mut start = FeatureLoggingStart { head, page_size: page.bytes(), num_ranges, reserved: 0, ranges: 0 };
        let field = offset_of!(FeatureLoggingStart, ranges);
        let mut attached = [Attachment { offset: field, what: Attached::Buffer(list.as_mut_bytes()) }];
        let command = Command::with_bytes(DEVICE_FEATURE, start.as_mut_bytes()).attaching(&mut attached);
        self.door.call(self.handle, command)?;
        let granted = PageSize::from_bytes(start.page_size);
        granted.ok_or(Failure::malformed(DEVICE_FEATURE.name, "its granularity is no page size"))
    }

    /// Ends the log.
    ///
    /// # Errors
    /// The kernel's answer: `ENOTTY` for a device that does not log.
    pub fn stop_logging(&self) -> Result<(), DeviceError> {
        let mut head = feature(FeatureHead::SIZE, FEATURE_SET | FEATURE_LOGGING_STOP);
        let stopped = self.door.call(self.handle, Command::with_bytes(DEVICE_FEATURE, head.as_mut_bytes()));
        stopped.map_err(|failure| self.error(Action::Logging, failure))
    }

    /// Reads and clears the log of `range`: bit n of the result, counted from the lowest bit of its first word, stands
    /// for the n-th `page` of the range. A device whose granularity is coarser sets all bits of a page of its own
    /// (linux: drivers/vfio/vfio_main.c, vfio_ioctl_device_feature_logging_report; drivers/iommu/iommufd/iova_bitmap.c,
    /// iova_bitmap_set).
    ///
    /// # Errors
    /// The kernel's answer: `ENOTTY` for a device that does not log, `EINVAL` for a page below 4 KiB or without a log,
    /// `EOVERFLOW` for a range that ends at 2^64-1.
    pub fn written_pages(&self, range: IovaRange, page: PageSize) -> Result<Vec<u64>, DeviceError> {
        self.try_to_report(range, page).map_err(|failure| self.error(Action::Logging, failure))
    }

    fn try_to_report(&self, range: IovaRange, page: PageSize) -> Result<Vec<u64>, Failure> {
        let length = length(range)?;
        let words = usize::try_from(length.div_ceil(page.bytes()).div_ceil(u64::BITS.into()));
        let words = words.map_err(|_| refused(Errno::EOVERFLOW))?;
        let mut log = Log::new(words, self.door.host_page()).ok_or(refused(Errno::ENOMEM))?;
        let head = feature(FeatureLoggingReport::SIZE, FEATURE_GET | FEATURE_LOGGING_REPORT);
        let iova = range.first().get();
        let mut report = FeatureLoggingReport { head, iova, length, page_size: page.bytes(), bitmap: 0 };
        let field = offset_of!(FeatureLoggingReport, bitmap);
        let mut attached = [Attachment { offset: field, what: Attached::Buffer(log.pages()) }];
        let command = Command::with_bytes(DEVICE_FEATURE, report.as_mut_bytes()).attaching(&mut attached);
        self.door.call(self.handle, command)?;
        Ok(log.into_words(words))
    }
}

/// A bitmap that begins and ends with a page of the host: the kernel may set bits behind the last one, as far as that
/// page reaches (linux: drivers/iommu/iommufd/iova_bitmap.c, iova_bitmap_set).
struct Log {
    words: Vec<u64>,
    first: usize,
    end: usize,
}

impl Log {
    /// A bitmap of so many words, all zero.
    fn new(words: usize, host_page: PageSize) -> Option<Self> {
        let page = usize::try_from(host_page.bytes()).ok()? / size_of::<u64>();
        let whole = words.checked_next_multiple_of(page)?;
        let mut memory = Vec::new();
        memory.try_reserve_exact(whole.checked_add(page)?).ok()?;
        memory.resize(whole + page, 0);
        let first = memory.as_ptr().align_offset(page * size_of::<u64>());
        debug_assert!(first <= page, "a page of the host begins within {page} words");
        Some(Self { words: memory, first, end: first.checked_add(whole)? })
    }

    /// The whole pages.
    fn pages(&mut self) -> &mut [u8] {
        self.words.get_mut(self.first..self.end).unwrap_or_default().as_mut_bytes()
    }

    fn into_words(mut self, words: usize) -> Vec<u64> {
        self.words.drain(..self.first.min(self.words.len()));
        self.words.truncate(words);
        self.words
    }
}

/// The length of a range. The kernel takes none that ends at 2^64-1.
fn length(range: IovaRange) -> Result<u64, Failure> {
    match (range.len(), range.end()) {
        (Some(len), Some(_)) => Ok(len.get()),
        _ => Err(refused(Errno::EOVERFLOW)),
    }
}

fn refused(errno: Errno) -> Failure {
    Failure::from_errno(DEVICE_FEATURE.name, errno)
}
