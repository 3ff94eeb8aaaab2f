//! Reserved ranges: a refusal because of one names the range, its device, and the room beside it.

use dmaspace_core::contract::MapRequest;
use std::sync::Arc;

use dmaspace::choose::{BackendKind, OpenRequest};
use dmaspace::facts::Facts;
use dmaspace::open::{Host, OpenError, Opened};
use dmaspace_core::error::Kind;
use dmaspace_core::{Access, HostMemory, Iova, PciAddressSpace};
use dmaspace_listener::{Fate, Update};
use dmaspace_listener::{FrontEnd, Listener, Section};
use dmaspace_soft::profile::{KernelVersion, Reason, ReservedProfile};
use dmaspace_soft::{Profile, SoftHost};
use dmaspace_tests::reserved::device_refused_while_memory_lies_over_its_interrupts;
use dmaspace_tests::soft;

const MIB: u64 = 1 << 20;
const ON_A_PC: [BackendKind; 3] = [BackendKind::Type1, BackendKind::Iommufd, BackendKind::Type1OnIommufd];

/// A PC whose IOMMU is AMD's, and whose second device has a region of its own.
fn profile() -> Profile {
    let mut profile = Profile::vtd();
    let hypertransport = ReservedProfile { first: 0xfd_0000_0000, last: 0xff_ffff_ffff, reason: Reason::Reserved };
    profile.fixed.as_mut().expect("a PC").reserved.push(hypertransport);
    profile.groups[1].reserved.push(ReservedProfile {
        first: 0x8000_0000,
        last: 0x800f_ffff,
        reason: Reason::Reserved,
    });
    profile.groups[1].reserved.push(ReservedProfile {
        first: 0x9000_0000,
        last: 0x900f_ffff,
        reason: Reason::DirectRelaxable,
    });
    profile
}

struct ReservedFixture {
    soft: Arc<SoftHost>,
    host: Host,
    opened: Opened,
    backend: BackendKind,
}

impl ReservedFixture {
    /// With the first device.
    fn new(backend: BackendKind) -> Self {
        let soft = SoftHost::new(profile()).expect("it makes sense");
        let host = Host::new(soft.clone(), Facts::of_soft(soft.profile()));
        let address = soft.profile().groups[0].devices[0].address.parse().expect("a PCI address");
        let opened =
            host.open(&OpenRequest::device(address).with_backend(backend)).expect("the soft host opens its device");
        Self { soft, host, opened, backend }
    }

    fn space(&self) -> &Arc<dyn PciAddressSpace> {
        self.opened.space.space()
    }

    /// The name of a group's device in errors.
    fn name(&self, group: usize) -> String {
        let group = &self.soft.profile().groups[group];
        match self.backend {
            BackendKind::Iommufd => group.devices[0].address.clone(),
            _ => format!("group {}", group.number),
        }
    }

    fn attach_second(&mut self) -> Result<(), OpenError> {
        let address = self.soft.profile().groups[1].devices[0].address.parse().expect("a PCI address");
        self.opened.space.add(&self.host, address).map(|device| self.opened.devices.push(device))
    }

    /// Why the RAM is refused.
    fn refusal(&self, at: u64, len: u64) -> String {
        let mut listener = Listener::new(FrontEnd::default());
        listener.attach(self.space().clone()).expect("an empty view fits");
        let ram = Section::ram("ram", Iova::new(at), memory(len), Access::READ_WRITE).expect("a proper range");
        let report = listener.explain(&Update::new().adding(ram)).expect("a proper update");
        let verdict = &report.spaces[0].sections[0];
        assert_eq!(verdict.fate, Fate::Refused, "{verdict}");
        verdict.reason.to_string()
    }
}

fn memory(len: u64) -> HostMemory {
    soft::memory(1 << 45, len)
}

#[test]
fn ram_over_the_interrupts_is_told_whose_they_are_and_where_there_is_room() {
    for backend in ON_A_PC {
        let fixture = ReservedFixture::new(backend);
        let whose = fixture.name(0);
        let text = format!(
            "it would lie over 0xfee00000..=0xfeefffff, where a write is an interrupt ({whose}); \
             0x100000000..=0x1007fffff would do"
        );
        assert_eq!(fixture.refusal(0xfe80_0000, 8 * MIB), text);
    }
}

#[test]
fn ram_over_hypertransport_is_told_so() {
    for backend in ON_A_PC {
        let fixture = ReservedFixture::new(backend);
        let whose = fixture.name(0);
        let text = format!(
            "it would lie over 0xfd00000000..=0xffffffffff, AMD's HyperTransport hole ({whose}); \
             0x100000000..=0x1000fffff would do"
        );
        assert_eq!(fixture.refusal(0xfd_0000_0000, MIB), text);
    }
}

#[test]
fn ram_that_ends_above_the_top_is_told_the_top() {
    for backend in ON_A_PC {
        let fixture = ReservedFixture::new(backend);
        let top = fixture.space().windows().windows.top().expect("there are windows");
        let reason = fixture.refusal(top.get() + 1 - MIB, 2 * MIB);
        let text = format!(
            "it would lie over the addresses above the host's top address {top}; 0x100000000..=0x1001fffff would do"
        );
        assert_eq!(reason, text);
    }
}

#[test]
fn room_is_looked_for_behind_the_hole() {
    let fixture = ReservedFixture::new(BackendKind::Type1);
    let reason = fixture.refusal(0, 1 << 39);
    assert!(reason.ends_with("; 0x10000000000..=0x17fffffffff would do"), "{reason}");
}

#[test]
fn all_that_is_in_the_way_is_named() {
    let fixture = ReservedFixture::new(BackendKind::Type1);
    let reason = fixture.refusal(0, 1 << 40);
    assert!(reason.starts_with("it would lie over 0xfee00000..=0xfeefffff, "), "{reason}");
    assert!(reason.contains(", and over 0xfd00000000..=0xffffffffff, "), "{reason}");
}

#[test]
fn a_device_over_whose_region_memory_is_mapped_is_refused_with_both_named() {
    for backend in ON_A_PC {
        let mut fixture = ReservedFixture::new(backend);
        let at = Iova::new(0x8000_0000);
        fixture.space().map(MapRequest::new(at, &memory(2 * MIB), Access::READ_WRITE)).expect("it is free so far");
        let OpenError::Attach { error } = fixture.attach_second().expect_err("it is in the way") else { panic!() };
        let (whose, failure) = (fixture.name(1), error.failure().expect("the kernel refused"));
        let text = format!(
            "attach {whose}: the live mapping 0x80000000..=0x801fffff would lie over 0x80000000..=0x800fffff, \
             which the hardware keeps to itself ({whose}); nothing changed ({failure}); unmap it first"
        );
        assert_eq!(error.to_string(), text);
        assert!(matches!(error.kind(), Kind::WouldStrand(..)));

        fixture.space().unmap(dmaspace_core::IovaRange::all()).expect("no unit is cut");
        fixture.attach_second().expect("nothing is in the way");
        let reason = fixture.refusal(0x8000_0000, MIB);
        assert!(reason.contains(&format!("keeps to itself ({whose})")), "{reason}");
    }
}

/// A PC of that kernel, of whose second device the firmware wants memory mapped one to one.
fn kept_by_firmware(kernel: KernelVersion) -> Arc<SoftHost> {
    let mut profile = Profile::vtd().with_kernel(kernel);
    profile.groups[1].reserved.push(ReservedProfile { first: 0x8000_0000, last: 0x800f_ffff, reason: Reason::Direct });
    SoftHost::new(profile).expect("it makes sense")
}

#[test]
fn a_device_that_the_firmware_keeps_is_refused_by_every_backend_with_the_range() {
    for backend in ON_A_PC {
        let soft = kept_by_firmware(KernelVersion::V6_12);
        let host = Host::new(soft.clone(), Facts::of_soft(soft.profile()));
        let address = soft.profile().groups[1].devices[0].address.parse().expect("a PCI address");
        let request = OpenRequest::device(address).with_backend(backend);
        let refused = host.open(&request).expect_err("the firmware keeps it").to_string();
        let group = soft.profile().groups[1].number;
        let text = format!(
            "not {backend}: the firmware needs 0x80000000..=0x800fffff mapped one to one for the devices of group \
             {group}; fix: update the firmware,"
        );
        assert!(refused.contains(&text), "{refused}");
        assert!(soft.ledger().is_clear());
    }
}

#[test]
fn a_kernel_says_at_which_call_the_firmware_keeps_a_device() {
    let (old, new) = (KernelVersion { major: 6, minor: 5 }, KernelVersion { major: 6, minor: 6 });
    for (kernel, backend, call) in [
        (old, BackendKind::Type1, "VFIO_SET_IOMMU: EPERM"),
        (new, BackendKind::Type1, "VFIO_GROUP_SET_CONTAINER: EINVAL"),
        (new, BackendKind::Iommufd, "VFIO_DEVICE_BIND_IOMMUFD: EINVAL"),
        (old, BackendKind::Type1OnIommufd, "VFIO_GROUP_GET_DEVICE_FD: EPERM"),
        (new, BackendKind::Type1OnIommufd, "VFIO_GROUP_GET_DEVICE_FD: EINVAL"),
    ] {
        let soft = kept_by_firmware(kernel);
        let mut facts = Facts::of_soft(soft.profile());
        // As where /sys does not tell.
        facts.groups.values_mut().for_each(|group| group.reserved.clear());
        let address = soft.profile().groups[1].devices[0].address.parse().expect("a PCI address");
        let request = OpenRequest::device(address).with_backend(backend);
        let refused = Host::new(soft.clone(), facts).open(&request).expect_err("the firmware keeps it").to_string();
        assert!(refused.contains(call), "{kernel}, {backend}: {refused}");
        assert!(soft.ledger().is_clear(), "{kernel}, {backend}");
    }
}

#[test]
fn relaxable_direct_ranges_do_not_block_mappings() {
    for backend in ON_A_PC {
        let mut fixture = ReservedFixture::new(backend);
        let at = Iova::new(0x9000_0000);
        fixture.space().map(MapRequest::new(at, &memory(MIB), Access::READ_WRITE)).expect("it is free");
        fixture.attach_second().expect("it overlaps no mapping");
        assert!(fixture.space().describe().reserved.iter().all(|reserved| reserved.range.first() != at));
    }
}

#[test]
fn a_device_over_whose_interrupts_memory_is_mapped_is_refused_until_it_is_unmapped() {
    let soft = soft::host("vtd");
    let host = Host::new(soft.clone(), Facts::of_soft(soft.profile()));
    let address = soft.profile().groups[0].devices[0].address.parse().expect("a PCI address");
    device_refused_while_memory_lies_over_its_interrupts(&host, address);
    assert!(soft.ledger().is_clear());
}
