//! Memory that knows its file, on soft hosts whose kernel maps by file or does not.

use dmaspace_core::contract::MapRequest;
use std::fs::File;
use std::num::NonZeroU64;
use std::sync::Arc;

use dmaspace::choose::{BackendKind, OpenRequest};
use dmaspace::facts::Facts;
use dmaspace::open::Host;
use dmaspace::options::OpenOptions;
use dmaspace_core::door::{Door, Errno};
use dmaspace_core::error::Kind;
use dmaspace_core::words::locked::AccountingMode;
use dmaspace_core::{Access, HostAddress, HostMemory, Iova, MemoryFile};
use dmaspace_iommufd::Iommufd;
use dmaspace_listener::Fate;
use dmaspace_listener::{FrontEnd, Listener, Section};
use dmaspace_soft::SoftHost;
use dmaspace_tests::owned::simulated;
use dmaspace_tests::soft::{host, memory, open, range};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap};

const MIB: u64 = 1 << 20;
const RW: Access = Access::READ_WRITE;

const MAP: &str = "IOMMU_IOAS_MAP";
const MAP_FILE: &str = "IOMMU_IOAS_MAP_FILE";

fn memfd(len: u64) -> Arc<File> {
    let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).expect("a file for memory"));
    ftruncate(&file, len).expect("the file grows");
    Arc::new(file)
}

/// A MiB of a memfd, from its second on, mapped like that.
fn region(flags: i32) -> HostMemory {
    let mapping = MmapRegionBuilder::<()>::new(1 << 20)
        .with_file_offset(FileOffset::from_arc(memfd(2 * MIB), MIB))
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(flags)
        .build()
        .expect("the file can be mapped");
    let region = GuestRegionMmap::new(mapping, GuestAddress(0)).expect("a proper range");
    HostMemory::of_region(&region).expect("not empty")
}

/// The number of maps by address, and by file, on a soft host of that preset.
fn calls_for(preset: &str, mapped: &[HostMemory]) -> [u64; 2] {
    let soft = host(preset);
    let opened = open(&soft, BackendKind::Iommufd);
    for (n, memory) in (1..).zip(mapped) {
        opened.space.space().map(MapRequest::new(Iova::new(n * MIB), memory, RW)).expect("mapped");
    }
    assert_eq!(soft.ledger().mappings, mapped.len() as u64);
    let calls = soft.calls();
    [calls.of(MAP), calls.of(MAP_FILE)]
}

#[test]
fn a_region_that_shares_a_memfd_knows_its_place_there() {
    let shared = region(libc::MAP_SHARED);
    assert_eq!(shared.file().map(|(_, offset)| offset), Some(MIB));
    assert_eq!(shared.slice(0x1000, 0x1000).and_then(|slice| slice.file().map(|(_, at)| at)), Some(MIB + 0x1000));
    assert_eq!(region(libc::MAP_PRIVATE).file(), None, "its pages are its own once they are written");
}

#[test]
fn a_file_on_a_disk_is_no_memory() {
    let on_disk = File::open("/proc/self/exe").expect("this program");
    assert!(MemoryFile::new(Arc::new(on_disk)).is_none());
    assert!(MemoryFile::new(memfd(MIB)).is_some());
}

#[test]
fn memory_is_mapped_by_its_file_where_the_kernel_can_and_where_not_that_is_asked_once() {
    let regions = [region(libc::MAP_SHARED), region(libc::MAP_PRIVATE), region(libc::MAP_SHARED)];
    assert_eq!(calls_for("vtd@7.2", &regions), [1, 2]);
    assert_eq!(calls_for("vtd@6.12", &regions), [3, 1]);
}

#[test]
fn devices_reach_the_bytes_of_the_file() {
    let soft = host("vtd@7.2");
    let opened = open(&soft, BackendKind::Iommufd);
    let memory = region(libc::MAP_SHARED);
    opened.space.space().map(MapRequest::new(Iova::new(0), &memory, RW)).expect("mapped");
    soft.device(opened.devices[0].name())
        .expect("it is there")
        .dma_write(Iova::new(0x1234), b"by file")
        .expect("mapped");
    let mut found = [0; 7];
    memory.read(0x1234, &mut found).expect("inside");
    assert_eq!(&found, b"by file");
}

#[test]
fn a_bar_that_its_device_exported_is_mapped_and_any_other_is_skipped_with_the_reason() {
    let soft = host("vtd@7.2");
    let opened = open(&soft, BackendKind::Iommufd);
    let mut listener = Listener::new(FrontEnd::pc());
    listener.attach(opened.space.space().clone()).expect("an empty view fits");
    let bar = |name: &str, at, host| {
        let memory = memory(host, MIB).device_memory();
        let memory = if name == "exported" { memory.in_file(MemoryFile::unbacked(1), 0) } else { memory };
        Section::device_memory(name, Iova::new(at), memory, RW).expect("a proper range")
    };
    let sections = [bar("exported", 0xe000_0000, 1 << 45), bar("mmapped", 0xe100_0000, 1 << 46)];
    let report = listener.commit(listener.update_to(&sections, &[])).expect("best effort");
    let fates: Vec<_> = report.spaces[0].sections.iter().map(|verdict| (verdict.piece.name(), verdict.fate)).collect();
    assert_eq!(fates, [("exported", Fate::Mapped), ("mmapped", Fate::Skipped)]);
    let reason = report.spaces[0].sections[1].reason.to_string();
    assert!(reason.contains("export"), "{reason}");

    let alone = memory(1 << 46, MIB).device_memory();
    let error = opened.space.space().map(MapRequest::new(Iova::new(0), &alone, RW)).expect_err("no file");
    assert_eq!(error.kind(), Kind::DeviceMemory);
}

#[test]
fn sections_join_only_where_their_file_goes_on() {
    let soft = host("vtd@7.2");
    let opened = open(&soft, BackendKind::Iommufd);
    let mut listener = Listener::new(FrontEnd::default());
    listener.attach(opened.space.space().clone()).expect("an empty view fits");
    let file = MemoryFile::unbacked(1);
    let piece = |n: u64, offset: u64| {
        let span = HostMemory::unbacked(HostAddress::new((1 << 45) + n * MIB), NonZeroU64::new(MIB).expect("not zero"))
            .expect("no wrap");
        let memory = span.in_file(file.clone(), offset);
        Section::ram("ram", Iova::new(n * MIB), memory, RW).expect("a proper range")
    };
    let sections = [piece(0, 0), piece(1, MIB), piece(2, 8 * MIB)];
    listener.commit(listener.update_to(&sections, &[])).expect("all of it fits");
    assert_eq!((soft.ledger().mappings, soft.calls().of(MAP_FILE)), (2, 2));
}

#[test]
fn mappings_of_files_are_charged_to_the_process_that_makes_them() {
    // A user is charged twice in between, a process is another.
    for (payer, room) in [(AccountingMode::User, 2 * MIB), (AccountingMode::Process, MIB)] {
        let soft = host("vtd@7.2");
        let device = soft.profile().groups[0].devices[0].address.parse().expect("a PCI address");
        let host = Host::new(soft.clone(), Facts::of_soft(soft.profile()));
        let host = host.with_options(OpenOptions::new().with_accounting(payer));
        let opened = host.open(&OpenRequest::device(device).with_backend(BackendKind::Iommufd)).expect("it opens");
        let space = opened.space.space();
        let charged = |soft: &SoftHost| soft.locked_memory().map(|memory| (memory.locked, memory.pinned));
        let mib = Some((if payer == AccountingMode::Process { MIB } else { 0 }, MIB));
        space.map(MapRequest::new(Iova::new(0), &region(libc::MAP_SHARED), RW)).expect("mapped");

        let new = soft.fork();
        let iommufd = Iommufd::new(simulated(&new, opened.space.handle().expect("an iommufd")));
        assert_eq!((charged(&soft), charged(&new)), (mib, Some((0, 0))));
        new.set_memlock(Some(room - 1));
        let refused = iommufd.change_process().expect_err("too much for that process");
        assert_eq!((refused.errno(), charged(&soft), charged(&new)), (Some(Errno::ENOMEM), mib, Some((0, 0))));

        new.set_memlock(None);
        space.map(MapRequest::new(Iova::new(2 * MIB), &region(libc::MAP_PRIVATE), RW)).expect("mapped");
        let refused = iommufd.change_process().expect_err("one has an address");
        assert_eq!((refused.errno(), charged(&new)), (Some(Errno::EINVAL), Some((0, 0))));
        space.unmap(range(2 * MIB, MIB)).expect("it is mapped");

        new.set_memlock(Some(room));
        assert_eq!((iommufd.can_change_process(), charged(&new)), (Ok(true), Some((0, 0))));
        for _ in 0..2 {
            iommufd.change_process().expect("there is room");
            assert_eq!((charged(&soft), charged(&new)), (Some((0, 0)), mib), "{payer:?}");
        }
        space.unmap(range(0, MIB)).expect("it is mapped");
        assert_eq!((charged(&soft), charged(&new)), (Some((0, 0)), Some((0, 0))));
    }
}

#[test]
fn an_older_kernel_says_that_it_moves_nothing_to_another_process() {
    let soft = host("vtd@6.12");
    let opened = open(&soft, BackendKind::Iommufd);
    let iommufd = Iommufd::new(simulated(&soft.fork(), opened.space.handle().expect("an iommufd")));
    assert_eq!(iommufd.can_change_process(), Ok(false));
    assert_eq!(iommufd.change_process().map_err(|failure| failure.errno()), Err(Some(Errno::ENOTTY)));
}
