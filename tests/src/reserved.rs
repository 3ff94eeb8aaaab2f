//! A device whose reserved region collides with a live mapping: it is refused, and nothing has changed.

use dmaspace::choose::BackendKind;
use dmaspace::open::{Host, OpenError};
use dmaspace::pci::PciAddress;
use dmaspace_core::contract::MapRequest;
use dmaspace_core::door::Errno;
use dmaspace_core::error::Kind;
use dmaspace_core::{Access, Iova, IovaRange};

use crate::ram::Ram;

const MIB: u64 = 1 << 20;

/// The address at which a PC's devices interrupt.
const INTERRUPTS: u64 = 0xfee0_0000;

/// An address space of an iommufd without devices takes memory anywhere, also where the device's writes are interrupts.
/// With that memory there the device cannot come; without it, it can.
pub fn device_refused_while_memory_lies_over_its_interrupts(host: &Host, address: PciAddress) {
    let mut opened = host.open_space(BackendKind::Iommufd).expect("the host has an iommufd");
    let space = opened.space().clone();
    let ram = Ram::new(4 << 20);
    let memory = ram.slice(0, 2 * MIB);
    for at in [INTERRUPTS - MIB, 0] {
        space.map(MapRequest::new(Iova::new(at), &memory, Access::READ_WRITE)).expect("nothing is reserved so far");
    }
    let held =
        || (space.mappings(IovaRange::all()), space.windows(), space.describe().devices, space.describe().reserved);

    let before = held();
    let OpenError::Attach { error } = opened.add(host, address).expect_err("memory is in its way") else {
        panic!("the attach was to fail")
    };
    assert_eq!(error.errno(), Some(Errno::EADDRINUSE), "{error}");
    let text = format!(
        "attach {address}: the live mapping 0xfed00000..=0xfeefffff would lie over 0xfee00000..=0xfeefffff, \
         where a write is an interrupt ({address}); nothing changed (VFIO_DEVICE_ATTACH_IOMMUFD_PT: EADDRINUSE); unmap \
         it first"
    );
    assert_eq!(error.to_string(), text);
    let live = IovaRange::with_len(Iova::new(INTERRUPTS - MIB), 2 * MIB).expect("a proper range");
    assert!(matches!(error.kind(), Kind::WouldStrand(range, Some(_)) if *range == live), "{error:?}");
    assert_eq!((held(), error.fenced().to_vec()), (before, Vec::new()));

    space.unmap(live).expect("no unit is cut");
    opened.add(host, address).expect("nothing is in its way");
    assert_eq!(space.mappings(IovaRange::all()).len(), 1, "a mapping outside the reserved range stays");
    let windows = space.windows().windows;
    assert!(windows.iter().all(|window| !window.range.contains(Iova::new(INTERRUPTS))), "{windows:?}");
}
