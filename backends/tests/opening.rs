//! Opening on the real kernel of an emulated host, through the Linux door: nodes, handed-in descriptors, BARs, and the
//! ways in which a kernel says no. Outside an emulated host there is nothing to run; inside one nothing is skipped.
//!
//! ```text
//! EMULATED_HOST=vtd-iommufd cargo test -p dmaspace --test opening --target x86_64-unknown-linux-gnu
//! ```

use dmaspace::contract::MapRequest;
use std::fs::{self, File, OpenOptions};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use dmaspace::device::Region;
use dmaspace::door::{Errno, HandleKind, OwnedHandle};
use dmaspace::error::Kind;
use dmaspace::{
    Access, BackendKind, Choice, Device, Host, HostMemory, Iova, IovaRange, LinuxDoor, OpenError, OpenRequest,
    OpenSpace, Opened, PciAddress,
};
use libtest_mimic::{Arguments, Failed, Trial};

type Result<T = ()> = std::result::Result<T, Failed>;

fn main() -> ExitCode {
    // One at a time: a group can be opened once.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    let trials = match std::env::var("EMULATED_HOST") {
        Ok(host) => trials_on(&host),
        Err(_) => Vec::new(),
    };
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn trials_on(host: &str) -> Vec<Trial> {
    let (best, others): (_, &[_]) = match host {
        "vtd" => (BackendKind::Type1, &[]),
        "vtd-iommufd" | "vtd-iommufd-newest" => (BackendKind::Iommufd, &[BackendKind::Type1]),
        _ => (BackendKind::Spapr, &[BackendKind::SpaprV1]),
    };
    let mut trials = vec![
        trial("the_best_backend_is_chosen", best, the_best_backend_is_chosen),
        trial("the_facts_make_sense", best, the_facts_make_sense),
    ];
    for backend in others.iter().chain([&best]) {
        let each: [(&str, Run); 5] = [
            ("a_bar_is_read_and_mapped", a_bar_is_read_and_mapped),
            ("a_mapped_bar_is_another_devices_memory", a_mapped_bar_is_another_devices_memory),
            ("descriptors_can_be_handed_in", descriptors_can_be_handed_in),
            ("a_device_leaves_and_comes_back", a_device_leaves_and_comes_back),
            ("a_node_in_use_says_so", a_node_in_use_says_so),
        ];
        trials.extend(each.map(|(name, run)| trial(&format!("{backend}::{name}"), *backend, run)));
    }
    trials
}

/// The body of a trial, for its backend.
type Run = fn(BackendKind) -> Result;

/// A trial after which as many descriptors are open as before.
fn trial(name: &str, backend: BackendKind, run: Run) -> Trial {
    Trial::test(name, move || {
        let before = open_descriptors()?;
        run(backend)?;
        let after = open_descriptors()?;
        if before == after { Ok(()) } else { Err(format!("{before} descriptors became {after}").into()) }
    })
}

fn open_descriptors() -> Result<usize> {
    Ok(fs::read_dir("/proc/self/fd")?.count())
}

fn address() -> Result<PciAddress> {
    let devices = std::env::var("EMULATED_DEVICES")?;
    Ok(devices.split_whitespace().next().ok_or("EMULATED_DEVICES is empty")?.parse()?)
}

fn open(backend: BackendKind) -> Result<(Device, OpenSpace)> {
    let Opened { mut devices, space, .. } =
        Host::this()?.open(&OpenRequest::device(address()?).with_backend(backend))?;
    Ok((devices.remove(0), space))
}

fn ensure(condition: bool, otherwise: &str) -> Result {
    if condition { Ok(()) } else { Err(otherwise.into()) }
}

fn the_best_backend_is_chosen(best: BackendKind) -> Result {
    let host = Host::this()?;
    let request = OpenRequest::device(address()?);
    let choice = host.choose(&request);
    ensure(choice.chosen == Some(best), &format!("{choice}"))?;
    let wrong = if best == BackendKind::Spapr { BackendKind::Type1 } else { BackendKind::Spapr };
    let refused = Choice::of(host.facts(), &request.with_backend(wrong));
    ensure(refused.chosen.is_none(), "a backend of another platform was chosen")
}

fn the_facts_make_sense(backend: BackendKind) -> Result {
    let host = Host::this()?;
    let facts = host.facts();
    ensure(!facts.kernel.is_empty(), "the kernel has no name")?;
    ensure(facts.iommu_types.is_some(), "no container could be asked")?;
    ensure(facts.platform.is_power() == (backend == BackendKind::Spapr), "another platform")?;
    let mappings = if backend == BackendKind::Spapr { None } else { Some(65535) };
    ensure(facts.limits.type1_mappings == mappings, "another limit on mappings")?;
    let name = address()?.to_string();
    let group = facts.groups.values().find(|group| group.members.contains(&name)).ok_or("the device is in no group")?;
    ensure(group.node && !group.noiommu, "the group cannot be used")?;
    ensure(
        facts.platform.is_power() || group.reserved.iter().any(|region| region.kind == "msi"),
        "no MSI range is reserved",
    )
}

/// The values of edu's first register. QEMU gives it big-endian registers on POWER.
const IDENTITIES: [u32; 2] = [0x0100_00ed, 0xed00_0001];

fn a_bar_is_read_and_mapped(backend: BackendKind) -> Result {
    let (device, space) = open(backend)?;
    device.enable()?;
    let bar = device.region(0)?;
    let mut identity = [0; 4];
    device.read(&bar, 0, &mut identity)?;
    ensure(IDENTITIES.contains(&u32::from_le_bytes(identity)), &format!("{identity:x?} is no edu"))?;

    let memory = map_whole(&device, &bar)?;
    ensure(memory.len().get() == 1 << 20, "edu's BAR has 1 MiB")?;
    ensure(
        memory.is_device_memory() && !memory.is_host_read_only() && !memory.is_unbacked(),
        "it was described wrongly",
    )?;
    // Nothing is read through the mapping: a HostMemory copies bytes, and edu does not know accesses of one. A PC reads
    // nonsense then, POWER gets a machine check.
    drop((device, space, memory));
    Ok(())
}

fn map_whole(device: &Device, bar: &Region) -> Result<HostMemory> {
    Ok(device.map(bar, *bar.mappable.first().ok_or("the BAR cannot be mapped")?)?)
}

/// A BAR becomes a target of DMA on a host that can map it. Otherwise it is refused before the kernel is asked. A
/// mapped BAR keeps its group from leaving.
fn a_mapped_bar_is_another_devices_memory(backend: BackendKind) -> Result {
    let (device, mut space) = open(backend)?;
    device.enable()?;
    let memory = map_whole(&device, &device.region(0)?)?;
    let at = Iova::new(0x10_0000);
    let mapped = space.space().map(MapRequest::new(at, &memory, Access::READ_WRITE));
    if space.space().describe().capabilities.maps_device_memory {
        mapped?;
        let range = IovaRange::with_len(at, memory.len().get())?;
        ensure(space.space().unmap(range)? == memory.len().get(), "the whole BAR was mapped")?;
    } else {
        ensure(mapped.is_err_and(|error| error.kind() == Kind::DeviceMemory), "it should have been refused")?;
    }
    if backend != BackendKind::Iommufd {
        ensure(space.remove(device)?.is_none(), "the group left under a mapped BAR")?;
    }
    Ok(())
}

/// A VMM in a jail opens nothing.
fn descriptors_can_be_handed_in(backend: BackendKind) -> Result {
    let host = Host::this()?;
    let facts = host.facts();
    let address = address()?;
    let device = facts.devices.get(&address).ok_or("there is no such device")?;
    let door = Arc::new(LinuxDoor::new());
    let adopt = |path: &Path, kind| adopted(&door, opened_elsewhere(path)?, kind);

    let opened = if backend == BackendKind::Iommufd {
        let iommufd = adopt(Path::new("/dev/iommu"), HandleKind::Iommufd)?;
        let node = adopt(&device.vfio.as_ref().ok_or("VFIO does not know it")?.path(), HandleKind::Device)?;
        let mut space = OpenSpace::of(backend, iommufd)?;
        (space.add_device(node, &address.to_string())?, space)
    } else {
        let number = device.group.ok_or("it has no group")?;
        let container = adopt(Path::new("/dev/vfio/vfio"), HandleKind::Container)?;
        let group = adopt(Path::new(&format!("/dev/vfio/{number}")), HandleKind::Group)?;
        let mut space = OpenSpace::of(backend, container)?;
        let group = space.add_group(group, &format!("group {number}"))?;
        (space.open_device(&group, &address.to_string())?, space)
    };
    opened.0.enable()?;
    drop(opened);
    ensure(format!("{door:?}") == "LinuxDoor(0 open)", &format!("{door:?}"))
}

#[expect(unsafe_code, reason = "UNSAFETY: descriptors from elsewhere")]
fn adopted(door: &Arc<LinuxDoor>, descriptor: OwnedFd, kind: HandleKind) -> Result<OwnedHandle> {
    // SAFETY: it was opened for this alone, and has no duplicate.
    Ok(unsafe { OwnedHandle::adopt(door.clone(), descriptor, kind) }?)
}

fn opened_elsewhere(path: &Path) -> Result<OwnedFd> {
    let file: File = OpenOptions::new().read(true).write(true).open(path)?;
    Ok(file.into())
}

/// With the last device of a container its driver goes, and the next first device has to bring it back.
fn a_device_leaves_and_comes_back(backend: BackendKind) -> Result {
    let host = Host::this()?;
    let Opened { mut devices, mut space, .. } = host.open(&OpenRequest::device(address()?).with_backend(backend))?;
    let before = space.space().windows().windows;
    let change = space.remove(devices.remove(0))?.ok_or("the group did not leave")?;
    ensure(
        backend == BackendKind::Iommufd || change.after.windows.is_empty(),
        "a container without a device has windows",
    )?;
    let device = space.add(&host, address()?)?;
    ensure(space.space().windows().windows == before, "other windows than before")?;
    // The device keeps its space, whatever is dropped first.
    drop(space);
    device.enable()?;
    Ok(())
}

/// A group is opened once. A device with a node of its own is opened as often as one likes, and bound once.
fn a_node_in_use_says_so(backend: BackendKind) -> Result {
    let host = Host::this()?;
    let request = OpenRequest::device(address()?).with_backend(backend);
    let first = host.open(&request)?;
    let error = host.open(&request).err().ok_or("it was opened twice")?;
    let expected = match &error {
        OpenError::Node { errno, .. } => *errno == Errno::EBUSY && error.to_string().contains("has it open"),
        OpenError::Attach { error: attach } => {
            attach.errno() == Some(Errno::EINVAL) && error.to_string().contains("has the device open")
        }
        _ => false,
    };
    drop(first);
    ensure(expected, &error.to_string())
}
