//! The table of what kernels answer, on a real one: the rows that the soft host is held to, through the Linux door. A
//! difference is a mistake in the table, and then in the soft host.

use std::num::NonZeroU64;
use std::sync::Arc;

use dmaspace::facts::Facts;
use dmaspace::linux::LinuxDoor;
use dmaspace::pci::PciAddress;
use dmaspace_abi::vfio::IommuType;
use dmaspace_core::HostMemory;
use dmaspace_core::door::{Door, Errno, Handle, HandleKind};
use dmaspace_soft::conformance::raw::{self, Context};
use dmaspace_soft::conformance::{Dialect, Flawed, Leaves, Only, ROWS, Row, Site};
use dmaspace_soft::profile::{KernelVersion, TceManager};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap};

/// The rows of `dialect` that can be played on a real kernel without harm: what leaks, or makes every kernel warn,
/// stays on the soft host, and what only a device shows is shown by the scenarios.
pub fn rows(dialect: Dialect, platform: Option<TceManager>) -> impl Iterator<Item = &'static Row> {
    let harmless = move |row: &&Row| {
        let here = match row.only {
            Only::Anywhere => true,
            Only::On(other) => platform == Some(other),
            Only::WithDevice => false,
        };
        let clean = matches!(row.leaves, Leaves::Nothing | Leaves::WarningSince72);
        row.dialect == dialect && clean && here
    };
    ROWS.iter().filter(harmless)
}

/// Plays `row` on a fresh context of the device at `address`.
///
/// # Errors
/// The difference in the kernel's answers, in words.
#[expect(unsafe_code, reason = "UNSAFETY: requests as they are, without a space")]
pub fn play(row: &Row, address: PciAddress, platform: Option<TceManager>) -> Result<(), String> {
    let door = Arc::new(LinuxDoor::new());
    let facts = Facts::of_this_host(&*door).map_err(|error| error.to_string())?;
    let (context, handles) = open(&*door, &facts, address, row.dialect).map_err(|errno| format!("opening: {errno}"))?;
    let page = door.host_page().bytes();
    let site = Site {
        door: &*door,
        context,
        kernel: version(&facts.kernel),
        platform,
        // The address at which writes of x86 devices are interrupts.
        reserved: 0xfee0_0000,
        unreached: page.wrapping_neg(),
        memory: memory(2 * page, 2 * page, libc::PROT_READ | libc::PROT_WRITE),
        flawed: Flawed {
            absent: Some(memory(page, 0, libc::PROT_READ | libc::PROT_WRITE)),
            holed: memory(2 * page, page, libc::PROT_READ | libc::PROT_WRITE),
            read_only: memory(page, page, libc::PROT_READ),
        },
        store: None,
    };
    // SAFETY: the context was opened above, and no space uses it.
    let result = unsafe { row.check(&site) }.map_err(|mismatch| mismatch.to_string());
    // Last come, first gone.
    for handle in handles.into_iter().rev() {
        door.close(handle).map_err(|errno| format!("closing {handle:?}: {errno}"))?;
    }
    result
}

/// The kernel's release begins with its version: 6.12.95-….
fn version(release: &str) -> KernelVersion {
    let end = release.match_indices('.').nth(1).map_or(release.len(), |(at, _)| at);
    release[..end].parse().expect("a release begins with a version")
}

/// `len` bytes of which a file holds the first `there`: the rest can be mapped, but no page comes when it is touched.
fn memory(len: u64, there: u64, protection: i32) -> HostMemory {
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).expect("a file for memory");
    ftruncate(&file, len).expect("the file grows");
    let file = std::fs::File::from(file);
    let size = usize::try_from(len).expect("a few pages");
    let mapping = MmapRegionBuilder::<()>::new(size)
        .with_file_offset(FileOffset::new(file.try_clone().expect("one more descriptor"), 0))
        .with_mmap_prot(protection)
        .with_mmap_flags(libc::MAP_SHARED)
        .build()
        .expect("the file can be mapped");
    ftruncate(&file, there).expect("the file shrinks");
    let region = GuestRegionMmap::new(mapping, GuestAddress(0)).expect("a proper range");
    let memory = HostMemory::of_region(&region).expect("not empty");
    assert_eq!(NonZeroU64::new(len), Some(memory.len()));
    memory
}

/// Puts a group into a container that no space is made of.
#[expect(unsafe_code, reason = "UNSAFETY: requests as they are, without a space")]
fn join(door: &dyn Door, member: Handle, container: Handle) -> Result<i32, Errno> {
    // SAFETY: the container was just opened, and only rows use it.
    unsafe { raw::set_real_container(door, member, container) }
}

/// A fresh context, and its open descriptors in the order in which they were opened.
fn open(
    door: &dyn Door,
    facts: &Facts,
    address: PciAddress,
    dialect: Dialect,
) -> Result<(Context, Vec<Handle>), Errno> {
    let device = facts.devices.get(&address).ok_or(Errno::ENODEV)?;
    let group = device.group.and_then(|number| facts.groups.get(&number)).ok_or(Errno::ENODEV)?;
    let container = |version: IommuType| {
        let container = door.open("/dev/vfio/vfio".as_ref(), HandleKind::Container)?;
        let member = door.open(&group.path(), HandleKind::Group)?;
        join(door, member, container)?;
        raw::set_iommu(door, container, version)?;
        Ok((container, vec![container, member]))
    };
    let compat = |version: IommuType| {
        let iommufd = door.open("/dev/iommu".as_ref(), HandleKind::Iommufd)?;
        let member = door.open(&group.path(), HandleKind::Group)?;
        join(door, member, iommufd)?;
        raw::set_iommu(door, iommufd, version)?;
        let opened = raw::open_device(door, member, &address.to_string())?;
        Ok((Context::Compat(iommufd), vec![iommufd, member, opened]))
    };
    match dialect {
        Dialect::Compat => compat(IommuType::TYPE1_V2),
        Dialect::CompatV1 => compat(IommuType::TYPE1),
        Dialect::Type1 => container(IommuType::TYPE1_V2).map(|(at, handles)| (Context::Type1(at), handles)),
        Dialect::Type1V1 => container(IommuType::TYPE1).map(|(at, handles)| (Context::Type1(at), handles)),
        Dialect::Spapr => container(IommuType::SPAPR_TCE_V2).map(|(at, handles)| (Context::Spapr(at), handles)),
        Dialect::SpaprV1 => container(IommuType::SPAPR_TCE).map(|(at, handles)| (Context::Spapr(at), handles)),
        Dialect::Ioas => {
            let iommufd = door.open("/dev/iommu".as_ref(), HandleKind::Iommufd)?;
            let id = raw::alloc_ioas(door, iommufd)?;
            let node = device.vfio.as_ref().ok_or(Errno::ENODEV)?;
            let member = door.open(&node.path(), HandleKind::Device)?;
            raw::bind(door, member, iommufd)?;
            raw::attach(door, member, id)?;
            Ok((Context::Ioas { iommufd, id }, vec![iommufd, member]))
        }
    }
}
