//! The file behind some memory, for kernels that map by file.
//!
//! Memory that is mapped by file needs no address: it stays where it is when the process that mapped it is replaced by
//! another, and another device's BAR, which has no pages that an address could lead to, can be mapped at all.

use std::any::Any;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::{is_dma_buf, is_of_memory};

/// A file whose bytes are memory: a memfd, a file of tmpfs or hugetlbfs, a BAR that its device exported.
///
/// Cheap to clone. It is open as long as a clone is there: memory that is mapped holds one. Two are equal when they are
/// clones of one another.
#[derive(Clone)]
pub struct MemoryFile(Source);

#[derive(Clone)]
enum Source {
    Descriptor(Arc<dyn AsFd + Send + Sync>),
    Opened(Arc<dyn OpenedFile>),
    Unbacked(u64),
}

/// A file that is open at a door. The words of memory know no door: [`crate::door`] recognizes its own.
pub(crate) trait OpenedFile: fmt::Debug + Send + Sync {
    fn as_any(&self) -> &dyn Any;
}

impl MemoryFile {
    /// A file of memory, known by its descriptor: an `Arc<File>` or `Arc<OwnedFd>`.
    ///
    /// `None` for any other file. Kernels accept only files of tmpfs, which memfds are, and of hugetlbfs (linux:
    /// mm/gup.c, memfd_pin_folios), and would refuse it when a device is attached, not when it is mapped.
    pub fn new(descriptor: Arc<dyn AsFd + Send + Sync>) -> Option<Self> {
        is_of_memory(descriptor.as_fd()).then_some(Self(Source::Descriptor(descriptor)))
    }

    /// A dma-buf that another driver or process exported, known by its descriptor.
    ///
    /// `None` for any other file. A kernel decides when the memory is mapped: Linux accepts a part of a BAR that
    /// vfio-pci exported, since 6.19 (linux: drivers/iommu/iommufd/pages.c, iopt_alloc_dmabuf_pages). Memory of a BAR
    /// is [`HostMemory::device_memory`](super::HostMemory::device_memory) too, in the file or not.
    pub fn dma_buf(descriptor: Arc<dyn AsFd + Send + Sync>) -> Option<Self> {
        is_dma_buf(descriptor.as_fd()).then_some(Self(Source::Descriptor(descriptor)))
    }

    /// A file that a door opened, closed with the last clone.
    pub(crate) fn opened(file: Arc<dyn OpenedFile>) -> Self {
        Self(Source::Opened(file))
    }

    /// A number without a file, for hosts in software. Real doors refuse it.
    pub fn unbacked(number: u64) -> Self {
        Self(Source::Unbacked(number))
    }

    /// Its descriptor, unless a door has it.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match &self.0 {
            Source::Descriptor(descriptor) => Some(descriptor.as_fd()),
            Source::Opened(_) | Source::Unbacked(_) => None,
        }
    }

    /// The file, if a door opened it.
    pub(crate) fn as_opened(&self) -> Option<&dyn OpenedFile> {
        match &self.0 {
            Source::Opened(file) => Some(&**file),
            Source::Descriptor(_) | Source::Unbacked(_) => None,
        }
    }

    /// Returns `true` for a number without a file.
    pub(crate) fn is_unbacked(&self) -> bool {
        matches!(self.0, Source::Unbacked(_))
    }
}

impl PartialEq for MemoryFile {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Source::Descriptor(one), Source::Descriptor(other)) => {
                Arc::as_ptr(one).addr() == Arc::as_ptr(other).addr()
            }
            (Source::Opened(one), Source::Opened(other)) => Arc::ptr_eq(one, other),
            (Source::Unbacked(one), Source::Unbacked(other)) => one == other,
            _ => false,
        }
    }
}

impl Eq for MemoryFile {}

impl fmt::Debug for MemoryFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Descriptor(descriptor) => write!(f, "file {:?}", descriptor.as_fd()),
            Source::Opened(file) => write!(f, "file {file:?}"),
            Source::Unbacked(number) => write!(f, "file {number} (unbacked)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::address::HostAddress;
    use crate::words::memory::HostMemory;
    use std::fs::File;
    use std::num::NonZeroU64;

    fn unbacked(address: u64, len: u64) -> HostMemory {
        HostMemory::unbacked(HostAddress::new(address), NonZeroU64::new(len).expect("not empty")).expect("no wrap")
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes a system call: fstatfs")]
    fn a_file_that_is_not_made_of_memory_is_refused() {
        let null = File::open("/dev/null").expect("every user may open it");
        let null = Arc::new(null);
        assert!(MemoryFile::new(null.clone()).is_none());
        assert!(MemoryFile::dma_buf(null).is_none());
    }

    #[test]
    fn a_slice_knows_its_place_in_the_file() {
        let file = MemoryFile::unbacked(1);
        let memory = unbacked(0x7000_0000, 0x4000).in_file(file.clone(), 0x10_0000);
        let place = memory.slice(0x1000, 0x1000).expect("inside").file().map(|(file, offset)| (file.clone(), offset));
        assert_eq!(place, Some((file, 0x10_1000)));
        assert_eq!(unbacked(0x7000_0000, 0x4000).file(), None);
    }

    #[test]
    fn neighbours_join_where_the_file_goes_on_as_the_addresses_do() {
        let (file, other) = (MemoryFile::unbacked(1), MemoryFile::unbacked(2));
        let low = unbacked(0x1000, 0x1000).in_file(file.clone(), 0x8000);
        let high = unbacked(0x2000, 0x1000);
        let joined = low.joined_with(&high.clone().in_file(file.clone(), 0x9000)).expect("one run of the file");
        assert_eq!((joined.len().get(), joined.file().map(|(_, offset)| offset)), (0x2000, Some(0x8000)));
        assert_eq!(low.joined_with(&high.clone().in_file(file, 0xa000)), None);
        assert_eq!(low.joined_with(&high.clone().in_file(other, 0x9000)), None);
        assert_eq!(low.joined_with(&high), None);
    }

    #[test]
    fn memory_of_another_file_is_other_memory() {
        let memory = unbacked(0x1000, 0x1000);
        let of = |number, offset| memory.clone().in_file(MemoryFile::unbacked(number), offset);
        assert_eq!(of(1, 0), of(1, 0));
        assert_ne!(of(1, 0), of(1, 0x1000));
        assert_ne!(of(1, 0), of(2, 0));
        assert_ne!(of(1, 0), memory);
    }

    #[test]
    fn the_last_page_of_the_address_space_may_be_the_first_of_a_file() {
        let top = unbacked(u64::MAX - 0xfff, 0x1000).in_file(MemoryFile::unbacked(1), 0);
        assert_eq!(top.slice(0x800, 0x800).expect("inside").file().map(|(_, offset)| offset), Some(0x800));
    }

    #[test]
    fn a_descriptor_is_open_as_long_as_memory_holds_it() {
        let descriptor: Arc<File> = Arc::new(File::open("/dev/null").expect("every user may open it"));
        let file = MemoryFile(Source::Descriptor(descriptor.clone()));
        let memory = unbacked(0x1000, 0x1000).in_file(file, 0);
        assert_eq!(Arc::strong_count(&descriptor), 2);
        drop(memory);
        assert_eq!(Arc::strong_count(&descriptor), 1);
    }
}
