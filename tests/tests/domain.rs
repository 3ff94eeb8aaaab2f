//! Domains on the soft host: devices that are added and removed on every backend, and every call that can fail.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::thread;

use dmaspace::choose::BackendKind;
use dmaspace::device::Device;
use dmaspace::domain::{Domain, DomainError};
use dmaspace::facts::Facts;
use dmaspace::open::Host;
use dmaspace::pci::PciAddress;
use dmaspace_core::contract::Mapping;
use dmaspace_core::contract::dirty::{Dirtied, DirtySink};
use dmaspace_core::door::Errno;
use dmaspace_core::{Access, Iova, IovaRange, PageSize, SystemAddress};
use dmaspace_listener::section::TargetMemory;
use dmaspace_listener::{BadUpdate, CommitError, EntryRun, Fate, FrontEnd, Section, Update};
use dmaspace_soft::profile::{Reason, ReservedProfile};
use dmaspace_soft::{FaultMode, FaultPlan, Profile, SoftHost};
use dmaspace_tests::domain::{Stage, from_the_first_device_to_the_last};
use dmaspace_tests::soft::{backends_of, buffered, host, lock_limit, memory, ram, range};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The hosts and their backends.
fn everywhere() -> impl Iterator<Item = (&'static str, BackendKind)> {
    let presets = ["vtd", "vtd-ssads", "powernv9", "pseries"];
    presets.into_iter().flat_map(|preset| backends_of(preset).iter().map(move |backend| (preset, *backend)))
}

fn host_of(soft: &Arc<SoftHost>) -> Host {
    Host::new(soft.clone(), Facts::of_soft(soft.profile()))
}

fn domain_on(soft: &Arc<SoftHost>, backend: BackendKind) -> Domain {
    Domain::new(host_of(soft), FrontEnd::default()).with_backend(backend)
}

fn devices(soft: &SoftHost) -> [PciAddress; 2] {
    let address = |group: usize| soft.profile().groups[group].devices[0].address.parse().expect("a PCI address");
    [address(0), address(1)]
}

fn two_sections() -> [Section; 2] {
    [ram(0, 1 << 45, MIB), ram(16 * MIB, 1 << 46, 2 * MIB)]
}

/// The mappings of each space.
fn live(domain: &Domain) -> Vec<Vec<Mapping>> {
    domain.spaces().iter().map(|space| space.mappings(IovaRange::all())).collect()
}

#[test]
fn a_domain_serves_its_devices_from_the_first_to_the_last() {
    for (preset, backend) in everywhere() {
        let soft = host(preset);
        soft.deny_huge_pages();
        let driven = soft.clone();
        let drive = Box::new(move |device| buffered(&driven, device));
        let (host, devices, lock_limit) = (host_of(&soft), devices(&soft), lock_limit(&soft));
        let played = from_the_first_device_to_the_last(Stage { host, backend, devices, drive, lock_limit });
        assert!(played.is_ok(), "{preset}, {backend}: {played:?}");
        assert!(soft.ledger().is_clear(), "{preset}, {backend}: {:?}", soft.ledger());
    }
}

#[test]
fn memory_that_a_host_cannot_map_refuses_the_device_and_changes_nothing() {
    for (preset, backend) in everywhere() {
        let soft = host(preset);
        let domain = domain_on(&soft, backend);
        // Memory without access is refused by every host.
        let useless = Section::ram("ram", Iova::new(GIB), memory(1 << 45, MIB), Access::empty());
        let report = domain.commit(Update::new().adding(useless.expect("a proper section"))).expect("no host is asked");
        assert_eq!(report.pending().count(), 1);
        let error = domain.add(devices(&soft)[0]).expect_err("no host maps it");
        assert!(matches!(error, DomainError::Memory(CommitError::Refused(_))), "{error}");
        assert_eq!(error.as_errno(), Errno::EINVAL);
        assert!(soft.ledger().is_clear(), "{preset}, {backend}: {:?}", soft.ledger());
        domain.remove_range(range(GIB, MIB)).expect("the view keeps it, so it can go");
        domain.add(devices(&soft)[0]).expect("nothing is in the way");
    }
}

#[test]
fn a_second_device_that_does_not_reach_the_memory_is_refused_and_the_first_keeps_all() {
    let mut profile = Profile::vtd();
    profile.groups[1].reserved.push(ReservedProfile { first: 16 * MIB, last: 17 * MIB - 1, reason: Reason::Reserved });
    for backend in [BackendKind::Type1, BackendKind::Iommufd] {
        let soft = SoftHost::new(profile.clone()).expect("a good profile");
        let domain = domain_on(&soft, backend);
        domain.update_to(&two_sections(), &[]).expect("no host is asked");
        let [first, second] = devices(&soft);
        let _first = domain.add(first).expect("it reaches all");
        let before = (live(&domain), soft.ledger());
        let error = domain.add(second).expect_err("its reserved range is in the way");
        assert!(matches!(error, DomainError::Memory(CommitError::Refused(_))), "{backend}: {error}");
        let after = soft.ledger();
        assert_eq!((live(&domain), after.mapped, after.devices), (before.0, before.1.mapped, before.1.devices));
        assert_eq!(domain.audit(), []);
    }
}

#[test]
fn devices_of_one_group_share_a_space_and_the_last_one_closes_it() {
    let mut profile = Profile::vtd();
    let mut twin = profile.groups[0].devices[0].clone();
    twin.address = "0000:00:03.1".to_owned();
    twin.node = Some(9);
    profile.groups[0].devices.push(twin);
    for backend in [BackendKind::Type1, BackendKind::Iommufd] {
        let soft = SoftHost::new(profile.clone()).expect("a good profile");
        let domain = domain_on(&soft, backend);
        domain.update_to(&two_sections(), &[]).expect("no host is asked");
        let first = domain.add(devices(&soft)[0]).expect("it fits").device;
        let second = domain.add("0000:00:03.1".parse().expect("an address")).expect("it fits").device;
        assert_eq!(domain.spaces().len(), 1);
        domain.remove(first).expect("it can go");
        assert_eq!(soft.ledger().mapped, 3 * MIB, "{backend}: its twin is at work");
        domain.remove(second).expect("it can go");
        assert!(soft.ledger().is_clear(), "{backend}: {:?}", soft.ledger());
    }
}

#[test]
fn a_container_that_takes_no_second_group_leads_to_a_second_space() {
    let soft = host("powernv9");
    let domain = domain_on(&soft, BackendKind::SpaprV1);
    domain.update_to(&two_sections(), &[]).expect("no host is asked");
    let added = devices(&soft).map(|device| domain.add(device).expect("it fits").device);
    assert_eq!(domain.spaces().len(), 2);
    assert!(live(&domain).iter().all(|live| !live.is_empty()));
    for device in added {
        domain.remove(device).expect("it can go");
    }
    assert!(soft.ledger().is_clear(), "{:?}", soft.ledger());
}

#[test]
fn a_device_of_another_domain_is_returned() {
    let soft = host("vtd");
    let (ours, theirs) = (domain_on(&soft, BackendKind::Type1), domain_on(&soft, BackendKind::Type1));
    let device = theirs.add(devices(&soft)[0]).expect("it fits").device;
    let Err(DomainError::NotInDomain(device)) = ours.remove(device) else { panic!("it is not ours") };
    theirs.remove(*device).expect("it can go");
    assert!(soft.ledger().is_clear());
}

#[test]
fn a_space_that_was_opened_elsewhere_is_served_and_closed() {
    let soft = host("vtd");
    let domain = domain_on(&soft, BackendKind::Type1);
    domain.update_to(&two_sections(), &[]).expect("no host is asked");
    let empty = host_of(&soft).open_space(BackendKind::Type1).expect("it opens");
    assert!(matches!(domain.add_space(empty), Err(DomainError::NoDevice)));
    let mut opened = dmaspace_tests::soft::open_in_a_pool(&soft);
    let device = opened.devices.remove(0);
    let report = domain.add_space(opened.space).expect("it fits");
    assert_eq!(report.spaces[0].pinned, 3 * MIB);
    let space = domain.spaces().remove(0);
    let host = host_of(&soft);
    let second = domain.add_opened(&space, |space| space.add(&host, devices(&soft)[1])).expect("it fits").device;
    drop(space);
    for device in [device, second] {
        domain.remove(device).expect("it can go");
    }
    assert!(soft.ledger().is_clear(), "{:?}", soft.ledger());
}

#[test]
fn entries_that_the_guest_has_come_with_the_first_device() {
    for (preset, backend) in everywhere().filter(|(_, backend)| *backend != BackendKind::SpaprV1) {
        let soft = host(preset);
        soft.deny_huge_pages();
        let domain = domain_on(&soft, backend);
        let target = TargetMemory::new("ram", SystemAddress::new(0), memory(1 << 45, GIB)).expect("a proper range");
        let window = Section::translated("window", range(0, GIB), PageSize::K4);
        let report = domain.update_to(&[window], &[target]).expect("no host is asked");
        assert_eq!(report.pending().count(), 1);
        let entry =
            EntryRun { range: range(0x4000, 0x2000), target: SystemAddress::new(0x8000), access: Access::READ_WRITE };
        let added = domain.add_with_entries(devices(&soft)[0], &[entry]).expect("it fits");
        let window = domain.translated(Iova::new(0)).expect("it is in force");
        assert!(window.lookup(Iova::new(0x5000)).expect("the window is there").is_some(), "{preset}, {backend}");
        domain.remove(added.device).expect("it can go");
        assert!(soft.ledger().is_clear(), "{preset}, {backend}: {:?}", soft.ledger());
    }
}

#[test]
fn blocks_that_were_populated_without_a_device_are_there_for_the_first() {
    for (preset, backend) in everywhere() {
        let soft = host(preset);
        soft.deny_huge_pages();
        let domain = domain_on(&soft, backend);
        let blocks =
            Section::discardable("mem", Iova::new(0), memory(1 << 45, 4 * MIB), Access::READ_WRITE, PageSize::K64);
        domain.commit(Update::new().adding(blocks.expect("a proper section"))).expect("no host is asked");
        domain.populate(range(0, MIB)).expect("knowledge needs no device");
        let device = domain.add(devices(&soft)[0]).expect("it fits").device;
        let reached = |at: u64| domain.spaces()[0].lookup(Iova::new(at)).is_some();
        assert!(reached(0) && !reached(MIB), "{preset}, {backend}");
        domain.discard(range(0, MIB)).expect("it can go");
        assert!(!reached(0));
        assert!(domain.populate(range(64 * MIB, MIB)).is_err(), "no section is there");
        domain.remove(device).expect("it can go");
        assert!(soft.ledger().is_clear());
    }
}

#[test]
fn ranges_are_removed_with_the_sections_inside_and_cut_none() {
    let soft = host("vtd");
    let domain = domain_on(&soft, BackendKind::Type1);
    let _device = domain.add(devices(&soft)[0]).expect("it fits");
    domain.update_to(&two_sections(), &[]).expect("it fits");
    assert_eq!(domain.section_at(Iova::new(17 * MIB)).as_ref(), Some(&two_sections()[1]));
    assert_eq!(domain.section_at(Iova::new(8 * MIB)), None);
    let cut = domain.remove_range(range(0, 17 * MIB)).expect_err("half a section");
    assert!(matches!(cut, CommitError::Update(BadUpdate::Cut(..))), "{cut}");
    assert_eq!(cut.as_errno(), Errno::EINVAL);
    assert_eq!(domain.sections().len(), 2);
    let moved = ram(MIB, 1 << 45, MIB);
    let report = domain.commit_with(|listener| {
        let update = Update::new().removing(two_sections()[0].clone());
        Ok(update.removing_range(listener, range(0, 32 * MIB))?.adding(moved.clone()))
    });
    report.expect("each section is removed once");
    assert_eq!(domain.sections(), [moved]);
    domain.remove_range(range(8 * MIB, MIB)).expect("a range without sections is skipped");
}

/// A sink that counts bytes.
#[derive(Default)]
struct Count(std::sync::atomic::AtomicU64);

impl DirtySink for Count {
    fn mark(&self, dirtied: Dirtied<'_>) {
        self.0.fetch_add(dirtied.len, std::sync::atomic::Ordering::Relaxed);
    }
}

#[test]
fn a_device_that_is_added_while_pages_are_tracked_is_tracked() {
    for (preset, backend) in everywhere() {
        let soft = host(preset);
        let domain = domain_on(&soft, backend);
        domain.update_to(&two_sections(), &[]).expect("no host is asked");
        let written = Arc::new(Count::default());
        assert_eq!(domain.track_dirty(written.clone()).expect("there is no space"), []);
        let _device = domain.add(devices(&soft)[0]).expect("it fits");
        domain.sync_dirty().expect("it is tracked");
        domain.stop_tracking();
        assert!(domain.sync_dirty().is_err(), "{preset}, {backend}");
    }
}

#[test]
fn threads_share_a_domain() {
    fn is_shared<T: Send + Sync>(_: &T) {}
    let soft = host("vtd");
    let domain = domain_on(&soft, BackendKind::Iommufd);
    is_shared(&domain);
    let [first, second] = devices(&soft);
    thread::scope(|scope| {
        for n in 1..4_u64 {
            let domain = &domain;
            scope.spawn(move || {
                for _ in 0..20 {
                    let section = ram(n * GIB, n << 45, MIB);
                    domain.commit(Update::new().adding(section)).expect("no one else is there");
                    assert!(domain.audit().is_empty());
                    domain.remove_range(range(n * GIB, MIB)).expect("it is there");
                }
            });
        }
        for address in [first, second] {
            let domain = &domain;
            scope.spawn(move || {
                for _ in 0..20 {
                    let device = domain.add(address).expect("it fits").device;
                    domain.remove(device).expect("it can go");
                }
            });
        }
    });
    assert!(soft.ledger().is_clear(), "{:?}", soft.ledger());
}

/// The parts of a domain that a failure must leave as they are.
fn observed(domain: &Domain, soft: &SoftHost) -> (Vec<Vec<Mapping>>, Vec<Vec<String>>, [u64; 4]) {
    let ledger = soft.ledger();
    let names = domain.spaces().iter().map(|space| space.describe().devices).collect();
    let open = [ledger.containers, ledger.groups, ledger.devices, ledger.iommufds].map(|count| count as u64);
    (live(domain), names, open)
}

/// Runs `operate` after `arrange`, once for every call that can fail, and checks that a failure left everything as it
/// was or says that a device is left attached or a range fenced.
fn sweep(
    arrange: impl Fn(&Domain, &SoftHost) -> Vec<Device>,
    operate: impl Fn(&Domain, &SoftHost, &mut Vec<Device>) -> Result<(), DomainError>,
) {
    for (preset, backend) in everywhere() {
        for mode in [FaultMode::FailBefore, FaultMode::FailAfter] {
            for at in 1.. {
                let soft = host(preset);
                let domain = domain_on(&soft, backend);
                let mut devices = arrange(&domain, &soft);
                let before = observed(&domain, &soft);
                soft.plan_faults(&[FaultPlan::nth(at, mode)]);
                let result = operate(&domain, &soft, &mut devices);
                let fired = soft.faults_fired();
                soft.plan_faults(&[]);
                let context = format!("{preset}, {backend}, call {at} {mode:?}: {:?}", result.as_ref().err());
                check_after(&domain, &soft, &before, result, &context);
                drop(devices);
                drop(domain);
                assert!(soft.ledger().is_clear(), "{context}: {:?}", soft.ledger());
                if fired == 0 {
                    break;
                }
            }
        }
    }
}

fn check_after(
    domain: &Domain,
    soft: &SoftHost,
    before: &(Vec<Vec<Mapping>>, Vec<Vec<String>>, [u64; 4]),
    result: Result<(), DomainError>,
    context: &str,
) {
    let is_fenced = domain.spaces().iter().any(|space| !space.describe().fences.is_empty());
    match result {
        Ok(()) => {}
        Err(DomainError::Open(_) | DomainError::Memory(_)) if domain.left_attached().is_empty() && !is_fenced => {
            assert_eq!(&observed(domain, soft), before, "{context}");
            assert_eq!(domain.audit(), [], "{context}");
        }
        Err(_) => {
            domain.sync().unwrap_or_else(|error| panic!("{context}: {error}"));
            assert_eq!(domain.left_attached().len(), 0, "{context}");
        }
    }
    if !is_fenced {
        assert_eq!(domain.audit(), [], "{context}");
    }
}

#[test]
fn a_first_device_is_added_wholly_or_not_at_all_whichever_call_fails() {
    sweep(
        |domain, _| {
            domain.update_to(&two_sections(), &[]).expect("no host is asked");
            Vec::new()
        },
        |domain, soft, added| add_and_check(domain, devices(soft)[0], added),
    );
}

#[test]
fn a_second_device_is_added_wholly_or_not_at_all_whichever_call_fails() {
    sweep(
        |domain, soft| {
            domain.update_to(&two_sections(), &[]).expect("no host is asked");
            vec![domain.add(devices(soft)[0]).expect("undisturbed").device]
        },
        |domain, soft, added| add_and_check(domain, devices(soft)[1], added),
    );
}

/// Adds a device: required RAM is in force in each space then, or it is an error.
fn add_and_check(domain: &Domain, address: PciAddress, added: &mut Vec<Device>) -> Result<(), DomainError> {
    added.push(domain.add(address)?.device);
    assert!(live(domain).iter().all(|live| live.len() == 2));
    Ok(())
}

#[test]
fn a_device_is_removed_or_said_to_be_there_whichever_call_fails() {
    sweep(
        |domain, soft| {
            domain.update_to(&two_sections(), &[]).expect("no host is asked");
            devices(soft).map(|address| domain.add(address).expect("undisturbed").device).into()
        },
        |domain, _, added| {
            while let Some(device) = added.pop() {
                domain.remove(device)?;
            }
            Ok(())
        },
    );
}

#[test]
fn a_domain_that_could_not_detach_a_device_detaches_it_later() {
    for (backend, call) in
        [(BackendKind::Type1, "VFIO_GROUP_UNSET_CONTAINER"), (BackendKind::Iommufd, "VFIO_DEVICE_DETACH_IOMMUFD_PT")]
    {
        let soft = host("vtd");
        let domain = domain_on(&soft, backend);
        domain.update_to(&two_sections(), &[]).expect("no host is asked");
        let device = domain.add(devices(&soft)[0]).expect("it fits").device;
        let plans: Vec<_> = (1..20).map(|n| FaultPlan::nth(n, FaultMode::FailBefore).of(call)).collect();
        soft.plan_faults(&plans);
        domain.remove(device).expect_err("the kernel refuses");
        assert_eq!(domain.left_attached().len(), 1, "{backend}");
        assert_eq!(soft.ledger().mapped, 3 * MIB, "it still reaches all");
        soft.plan_faults(&[]);
        domain.sync().expect("it can go now");
        assert!(domain.left_attached().is_empty() && soft.ledger().is_clear(), "{backend}: {:?}", soft.ledger());
        domain.add(devices(&soft)[0]).expect("and come back");
    }
}

#[test]
fn a_host_without_a_backend_says_why() {
    let soft = host("vtd");
    let domain = domain_on(&soft, BackendKind::Spapr);
    let error = domain.add(devices(&soft)[0]).expect_err("it is no POWER host");
    assert!(error.to_string().contains("not spapr"), "{error}");
    assert_eq!(std::io::Error::from(error).kind(), std::io::Error::from_raw_os_error(19).kind());
    assert!(NonZeroU64::new(soft.ledger().mapped).is_none() && soft.ledger().is_clear());
    assert_eq!(
        domain.explain(&Update::new().adding(ram(0, 1 << 45, MIB))).expect("proper").unserved[0].fate,
        Fate::Pending
    );
}
