//! The options of an iommufd, and the kernel's answers to them, on the soft host and on real hosts.

use dmaspace_core::contract::MapRequest;
use std::sync::Arc;

use dmaspace::choose::{BackendKind, OpenRequest};
use dmaspace::open::{Host, OpenError};
use dmaspace::options::OpenOptions;
use dmaspace::pci::PciAddress;
use dmaspace_core::contract::Attachable;
use dmaspace_core::door::{Errno, Failure, HandleKind};
use dmaspace_core::words::locked::AccountingMode;
use dmaspace_core::{Access, Iova, IovaRange, PciAddressSpace, Space};
use dmaspace_iommufd::{Cdev, Ioas, Iommufd};

use crate::ram::Ram;
use crate::soft::range;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// `VmLck` and `VmPin`.
fn locked(host: &Host) -> (u64, u64) {
    let locked = host.door().locked_memory().expect("the door can tell");
    (locked.locked, locked.pinned)
}

fn errno(result: Result<(), Failure>) -> Option<Errno> {
    result.expect_err("it cannot be").errno()
}

/// The accounting mode, the use of huge pages, and the allowed IOVAs.
///
/// # Errors
/// What opening says.
pub fn options_are_kept(host: &Host, device: PciAddress) -> Result<(), OpenError> {
    let wish = OpenRequest::device(device).with_backend(BackendKind::Iommufd);
    let ram = Ram::new(1 << 21);
    let none = locked(host);
    for (payer, locks) in [(AccountingMode::User, 0), (AccountingMode::Process, MIB)] {
        let opened = host.clone().with_options(OpenOptions::new().with_accounting(payer)).open(&wish)?;
        let space = opened.space.space();
        space.map(MapRequest::new(Iova::new(0), &ram.slice(0, MIB), Access::READ_WRITE)).expect("it fits");
        assert_eq!(locked(host), (none.0 + locks, none.1 + MIB), "{payer:?} is charged");
        drop(opened);
        assert_eq!(locked(host), none);
    }

    // A device that does not reach an allowed IOVA is refused, another is attached.
    let host =
        host.clone().with_options(OpenOptions::new().with_huge_pages(false).with_required_iovas(range(0, 4 * GIB)));
    let refused = host.open(&wish).expect_err("writes to 0xfee00000 are interrupts").to_string();
    assert!(refused.contains("EADDRINUSE") && refused.contains("require none of these regions"), "{refused}");
    let host = host.with_options(OpenOptions::new().with_huge_pages(false).with_required_iovas(range(0, GIB)));
    let opened = host.open(&wish)?;
    let windows = opened.space.space().windows().windows;
    assert!(windows.covering(range(0, GIB)).is_some(), "{windows:?}");
    Ok(())
}

/// The kernel's answers, call by call.
///
/// # Errors
/// What opening says.
pub fn options_that_the_kernel_accepts_and_refuses(host: &Host, device: PciAddress) -> Result<(), OpenError> {
    let open = |path: &std::path::Path, kind| crate::owned::opened(host.door(), path, kind);
    let iommufd = Iommufd::new(open("/dev/iommu".as_ref(), HandleKind::Iommufd));
    assert_eq!(iommufd.payer(), Ok(AccountingMode::User));
    iommufd.charge(AccountingMode::Process).expect("nothing is there yet");
    assert_eq!(iommufd.payer(), Ok(AccountingMode::Process));
    let space = Ioas::within(iommufd.clone()).map(Space::new).expect("made").expect("it has windows");
    let ioas = space.backend_ref();
    assert_eq!(errno(iommufd.charge(AccountingMode::User)), Some(Errno::EBUSY));

    assert_eq!(ioas.allows_huge_pages(), Ok(true));
    ioas.allow_huge_pages(false).expect("nothing is mapped");
    assert_eq!(ioas.allows_huge_pages(), Ok(false));
    ioas.allow_huge_pages(true).expect("always possible");

    let byte = range(0, 1);
    assert_eq!(errno(ioas.promise(&[byte])), Some(Errno::EINVAL));
    assert_eq!(errno(ioas.promise(&[range(0, 2 * MIB), range(MIB, 2 * MIB)])), Some(Errno::EINVAL));
    ioas.promise(&[IovaRange::all()]).expect("a fresh address space is everything");
    let vfio = host.facts().devices[&device].vfio.clone().expect("bound to vfio-pci");
    let node = Cdev::new(open(&vfio.path(), HandleKind::Device), device.to_string());
    let node: Arc<dyn Attachable> = Arc::new(node);
    let refused = space.attach(node.clone()).expect_err("no device reaches all of it");
    assert_eq!(refused.errno(), Some(Errno::EADDRINUSE));
    ioas.promise(&[range(0, GIB), range(2 * GIB, GIB)]).expect("this takes the place of that");
    space.attach(node).expect("it reaches that");
    assert_eq!(errno(ioas.promise(&[range(0, 4 * GIB)])), Some(Errno::EADDRINUSE));
    ioas.promise(&[]).expect("nothing need be promised");

    let ram = Ram::new(1 << 21);
    let map = |at: u64| {
        let memory = ram.slice(0, MIB);
        space.map(MapRequest::new(Iova::new(at), &memory, Access::READ_WRITE))
    };
    ioas.allow_huge_pages(false).expect("nothing is mapped");
    map(0).expect("it fits");
    ioas.allow_huge_pages(true).expect("always possible");
    assert_eq!(errno(ioas.allow_huge_pages(false)), Some(Errno::EINVAL));
    Ok(())
}
