//! Page tables that are allocated by request, and their logs: the kernel's answers, right and wrong.

use std::sync::Arc;

use crate::setting::{MIB, PAGE, device, memory, open, open_node};
use dmaspace_abi::iommufd;
use dmaspace_core::door::{Errno, Handle, HandleKind};
use dmaspace_core::{Access, HostMemory, Iova};
use dmaspace_soft::conformance::raw::{self, Context};
use dmaspace_soft::profile::KernelVersion;
use dmaspace_soft::{Profile, SoftHost};

const LOGS: u32 = iommufd::HWPT_ALLOC_DIRTY_TRACKING;
const ON: u32 = iommufd::DIRTY_TRACKING_ENABLE;
const NO_CLEAR: u32 = iommufd::GET_DIRTY_BITMAP_NO_CLEAR;

/// An iommufd with an address space, and all devices of the host bound to it.
struct LoggingFixture {
    host: Arc<SoftHost>,
    iommufd: Handle,
    ioas: u32,
    /// Handles and ids.
    devices: [(Handle, u32); 3],
}

impl LoggingFixture {
    fn new(profile: Profile) -> Self {
        let host = SoftHost::new(profile).expect("sound");
        let iommufd = open(&host, "/dev/iommu", HandleKind::Iommufd);
        let ioas = raw::alloc_ioas(&*host, iommufd).expect("an address space");
        let nodes = [0, 1, 2].map(|node| open_node(&host, node));
        let devices = nodes.map(|device| (device, raw::bind(&*host, device, iommufd).expect("bound")));
        Self { host, iommufd, ioas, devices }
    }

    /// The fixture with the first device on a page table that is logging.
    fn logging(profile: Profile) -> (Self, u32) {
        let fixture = Self::new(profile);
        let table = fixture.allocate(0, LOGS).expect("made");
        fixture.attach(0, table).expect("attached");
        fixture.set_logging(table, ON).expect("begun");
        (fixture, table)
    }

    fn allocate(&self, device: usize, flags: u32) -> Result<u32, Errno> {
        raw::alloc_page_table(&*self.host, self.iommufd, self.devices[device].1, self.ioas, flags)
    }

    fn attach(&self, device: usize, to: u32) -> Result<u32, Errno> {
        raw::attach(&*self.host, self.devices[device].0, to)
    }

    fn detach(&self, device: usize) {
        raw::detach(&*self.host, self.devices[device].0).expect("it always can");
    }

    fn destroy(&self, id: u32) -> Result<i32, Errno> {
        raw::destroy(&*self.host, self.iommufd, id)
    }

    fn set_logging(&self, table: u32, flags: u32) -> Result<i32, Errno> {
        raw::set_dirty_tracking(&*self.host, self.iommufd, table, flags)
    }

    fn map(&self, at: u64, memory: &HostMemory) {
        let context = Context::Ioas { iommufd: self.iommufd, id: self.ioas };
        raw::map(&*self.host, context, at, memory.len().get(), Some(memory), Access::READ_WRITE).expect("mapped");
    }

    fn unmap(&self, at: u64, size: u64) {
        let context = Context::Ioas { iommufd: self.iommufd, id: self.ioas };
        raw::unmap(&*self.host, context, at, size).expect("unmapped");
    }

    fn write(&self, n: usize, at: u64) {
        device(&self.host, n).dma_write(Iova::new(at), &[1; 8]).expect("it is mapped");
    }

    fn get_dirty(&self, table: u32, flags: u32, range: (u64, u64), page: u64) -> Result<Vec<u64>, Errno> {
        let mut bitmap = vec![0; 256];
        raw::get_dirty_bitmap(&*self.host, self.iommufd, table, flags, range, page, &mut bitmap)?;
        Ok((0..2048).filter(|bit| bitmap[(bit / 8) as usize] & (1 << (bit % 8)) != 0).collect())
    }

    /// The pages that were written in `range`, counted from its beginning.
    fn written(&self, table: u32, range: (u64, u64)) -> Vec<u64> {
        self.get_dirty(table, 0, range, PAGE).expect("answered")
    }
}

#[test]
fn written_pages_are_reported_once() {
    let (fixture, table) = LoggingFixture::logging(Profile::vtd_ssads());
    fixture.map(MIB, &memory(16 * PAGE));
    fixture.write(0, MIB + 3 * PAGE + 8);
    fixture.write(0, MIB + 5 * PAGE - 4);
    assert_eq!(fixture.get_dirty(table, NO_CLEAR, (MIB, 16 * PAGE), PAGE), Ok(vec![3, 4, 5]));
    assert_eq!(fixture.written(table, (MIB + 4 * PAGE, 12 * PAGE)), [0, 1]);
    assert_eq!(fixture.written(table, (MIB, 16 * PAGE)), [3]);
    assert_eq!(fixture.written(table, (MIB, 16 * PAGE)), [0; 0]);
}

#[test]
fn a_bit_stands_for_the_requested_page_size() {
    let (fixture, table) = LoggingFixture::logging(Profile::vtd_ssads());
    fixture.map(MIB, &memory(16 * PAGE));
    fixture.write(0, MIB + 7 * PAGE);
    assert_eq!(fixture.get_dirty(table, 0, (MIB, 16 * PAGE), 4 * PAGE), Ok(vec![1]));
}

#[test]
fn k1_nothing_is_told_behind_a_gap_and_that_is_called_success() {
    let (fixture, table) = LoggingFixture::logging(Profile::vtd_ssads());
    fixture.map(MIB, &memory(2 * PAGE));
    fixture.map(MIB + 3 * PAGE, &memory(2 * PAGE));
    for page in [0, 1, 3, 4] {
        fixture.write(0, MIB + page * PAGE);
    }
    assert_eq!(fixture.written(table, (MIB + 2 * PAGE, 3 * PAGE)), [0; 0], "it begins in the gap");
    assert_eq!(fixture.written(table, (MIB, 5 * PAGE)), [0, 1]);
    assert_eq!(fixture.written(table, (MIB + 3 * PAGE, 2 * PAGE)), [0, 1], "they are still there");
}

#[test]
fn reading_the_log_of_part_of_a_large_page_clears_all_of_it() {
    let large = Profile::vtd_ssads().with_fixed_iommu(Profile::vtd().fixed);
    let (fixture, table) = LoggingFixture::logging(large);
    // Host and bus address agree to 2 MiB.
    let block = memory(6 * MIB);
    let offset = block.address().get().next_multiple_of(2 * MIB) - block.address().get();
    fixture.map(64 * MIB, &block.slice(offset, 2 * MIB).expect("inside"));
    fixture.write(0, 64 * MIB + MIB + PAGE);
    let whole = (64 * MIB, 2 * MIB);
    assert_eq!(fixture.get_dirty(table, NO_CLEAR, whole, PAGE), Ok((0..512).collect()), "a large page has one bit");
    let told = fixture.written(table, (64 * MIB + MIB, MIB));
    assert_eq!(told, (0..512).collect::<Vec<_>>(), "as many as the large page has, half of them behind the range");
    assert_eq!(fixture.written(table, whole), [0; 0], "and the first half is lost");
}

#[test]
fn writes_while_logging_is_off_read_clean() {
    let (fixture, table) = LoggingFixture::logging(Profile::vtd_ssads());
    fixture.map(MIB, &memory(4 * PAGE));
    fixture.set_logging(table, 0).expect("ended");
    fixture.write(0, MIB);
    assert_eq!(fixture.written(table, (MIB, 4 * PAGE)), [0; 0]);
    fixture.set_logging(table, ON).expect("begun");
    assert_eq!(fixture.written(table, (MIB, 4 * PAGE)), [0; 0]);
    fixture.write(0, MIB);
    fixture.set_logging(table, ON).expect("begun again");
    assert_eq!(fixture.written(table, (MIB, 4 * PAGE)), [0; 0], "beginning clears");
}

#[test]
fn the_log_ends_with_the_mapping_and_with_the_page_table() {
    let (fixture, table) = LoggingFixture::logging(Profile::vtd_ssads());
    fixture.map(MIB, &memory(4 * PAGE));
    fixture.write(0, MIB);
    fixture.unmap(MIB, 4 * PAGE);
    fixture.map(MIB, &memory(4 * PAGE));
    assert_eq!(fixture.written(table, (MIB, 4 * PAGE)), [0; 0]);
    fixture.write(0, MIB);
    fixture.detach(0);
    assert_eq!(fixture.written(table, (MIB, 4 * PAGE)), [0], "a page table stays without devices");
    fixture.destroy(table).expect("it is unused");
    assert_eq!(fixture.get_dirty(table, 0, (MIB, 4 * PAGE), PAGE), Err(Errno::ENOENT));
}

#[test]
fn each_page_table_logs_its_own_devices() {
    let (fixture, first) = LoggingFixture::logging(Profile::vtd_ssads());
    assert_eq!(fixture.attach(1, first), Ok(first), "behind the same IOMMU");
    assert_eq!(fixture.attach(2, first), Err(Errno::EINVAL), "behind the other");
    let second = fixture.allocate(2, LOGS).expect("made");
    fixture.attach(2, second).expect("attached");
    fixture.set_logging(second, ON).expect("begun");
    fixture.map(MIB, &memory(4 * PAGE));
    for device in 0..3 {
        fixture.write(device, MIB + device as u64 * PAGE);
    }
    assert_eq!(fixture.written(first, (MIB, 4 * PAGE)), [0, 1]);
    assert_eq!(fixture.written(second, (MIB, 4 * PAGE)), [2]);
}

#[test]
fn ranges_and_pages_must_fit_the_address_space() {
    let (fixture, table) = LoggingFixture::logging(Profile::vtd_ssads());
    fixture.map(MIB, &memory(4 * PAGE));
    assert_eq!(fixture.get_dirty(table, 0, (MIB + 0x800, PAGE), PAGE), Err(Errno::EINVAL));
    assert_eq!(fixture.get_dirty(table, 0, (MIB, PAGE + 0x800), PAGE), Err(Errno::EINVAL));
    assert_eq!(fixture.get_dirty(table, 0, (MIB, PAGE), 0), Err(Errno::EINVAL));
    assert_eq!(fixture.get_dirty(table, 0, (MIB, PAGE), 2 * PAGE), Err(Errno::EINVAL));
    assert_eq!(fixture.get_dirty(table, 0, (0u64.wrapping_sub(PAGE), 2 * PAGE), PAGE), Err(Errno::EOVERFLOW));
    assert_eq!(fixture.get_dirty(table, 0, (0u64.wrapping_sub(PAGE), PAGE), PAGE), Ok(vec![]), "the last page of all");
    assert_eq!(fixture.get_dirty(table, 2, (MIB, PAGE), PAGE), Err(Errno::EOPNOTSUPP));
    assert_eq!(fixture.set_logging(table, 2), Err(Errno::EOPNOTSUPP));
}

#[test]
fn page_tables_without_the_logging_flag_do_not_log() {
    let fixture = LoggingFixture::new(Profile::vtd_ssads());
    let plain = fixture.allocate(0, 0).expect("made");
    let own = fixture.attach(0, fixture.ioas).expect("attached");
    assert_ne!(plain, own, "the kernel never takes one that was made by hand");
    for table in [plain, own] {
        assert_eq!(fixture.set_logging(table, ON), Err(Errno::EOPNOTSUPP));
        assert_eq!(fixture.get_dirty(table, 0, (0, PAGE), PAGE), Err(Errno::EOPNOTSUPP));
    }
    assert_eq!(fixture.destroy(own), Err(Errno::EBUSY));
    fixture.destroy(plain).expect("it is unused");
}

#[test]
fn an_iommu_without_logging_refuses_a_logging_page_table() {
    let fixture = LoggingFixture::new(Profile::vtd());
    let device = fixture.devices[0].1;
    assert_eq!(raw::hw_info(&*fixture.host, fixture.iommufd, device, 0), Ok(0));
    assert_eq!(fixture.allocate(0, LOGS), Err(Errno::EOPNOTSUPP));
    assert!(fixture.allocate(0, 0).is_ok());
    let logging = LoggingFixture::new(Profile::vtd_ssads());
    assert_eq!(raw::hw_info(&*logging.host, logging.iommufd, device, 0), Ok(iommufd::CAP_DIRTY_TRACKING));
}

#[test]
fn linux_6_6_has_no_logging_page_tables() {
    let old = KernelVersion { major: 6, minor: 6 };
    let fixture = LoggingFixture::new(Profile::vtd_ssads().with_kernel(old));
    assert_eq!(raw::hw_info(&*fixture.host, fixture.iommufd, fixture.devices[0].1, 0), Err(Errno::ENOTTY));
    assert_eq!(fixture.allocate(0, LOGS), Err(Errno::ENOTTY));
}

#[test]
fn page_tables_share_pins_and_keep_their_address_space() {
    let (fixture, table) = LoggingFixture::logging(Profile::vtd_ssads());
    fixture.map(MIB, &memory(4 * PAGE));
    assert_eq!(fixture.host.ledger().pinned, 4 * PAGE);
    let second = fixture.allocate(2, LOGS).expect("made");
    assert_eq!(fixture.host.ledger().pinned, 4 * PAGE);
    fixture.detach(0);
    fixture.destroy(table).expect("it is unused");
    assert_eq!(fixture.host.ledger().pinned, 4 * PAGE);
    assert_eq!(fixture.destroy(fixture.ioas), Err(Errno::EBUSY));
    fixture.destroy(second).expect("it is unused");
    assert_eq!(fixture.host.ledger().pinned, 0);
    fixture.destroy(fixture.ioas).expect("it is unused");
}
