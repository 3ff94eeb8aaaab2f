//! The work of the exports, in safe code.

use std::ffi::c_void;
use std::sync::{Arc, Mutex};

use dmaspace::contract::{MapRequest, Unit, WindowRequest};
use dmaspace::dirty::{Dirtied, DirtySink};
use dmaspace::door::{Errno, HandleKind, OwnedHandle};
use dmaspace::facts::SysfsDevice;
use dmaspace::pci::BadPciAddress;
use dmaspace::sync::past_poison;
use dmaspace::{
    BackendKind, Device, Domain, FrontEnd, HostMemory, Iova, IovaRange, OpenSpace, PciAddress, PciAddressSpace,
    SystemAddress, SystemRange, Update,
};

use crate::arguments::{CWindow, Piece, access, page, range};
use crate::failure::Failed;
use crate::handle::{Changes, DeviceHandle, DomainHandle, HostHandle, SpaceHandle, UpdateHandle};

/// The backend of this name.
pub(crate) fn backend(name: &str) -> Result<BackendKind, Failed> {
    let known = BackendKind::ALL.into_iter().find(|kind| kind.name() == name);
    known.ok_or_else(|| Failed::argument(format!("{name:?} is no backend")))
}

pub(crate) fn new_domain(host: &HostHandle, name: Option<&str>, front_end: u32) -> Result<DomainHandle, Failed> {
    let front = match front_end {
        0 => FrontEnd::default(),
        1 => FrontEnd::pc(),
        other => return Err(Failed::argument(format!("there is no front end {other}"))),
    };
    let domain = Domain::new(host.0.clone(), front);
    let domain = match name {
        Some(name) => domain.with_backend(backend(name)?),
        None => domain,
    };
    Ok(DomainHandle { domain, host: HostHandle(host.0.clone()), report: Mutex::default() })
}

fn pci_address(text: &str) -> Result<PciAddress, Failed> {
    text.parse().map_err(|error: BadPciAddress| Failed::argument(error.to_string()))
}

/// Adds the device at a PCI address. The facts of the host are read again: the device may be new.
pub(crate) fn add(domain: &DomainHandle, address: &str) -> Result<DeviceHandle, Failed> {
    let address = pci_address(address)?;
    domain.domain.set_facts(domain.host.facts_now()?);
    let added = domain.domain.add(address)?;
    domain.keep(added.report);
    Ok(DeviceHandle(added.device))
}

pub(crate) fn remove(domain: &DomainHandle, device: Device) -> Result<(), Failed> {
    domain.keep(domain.domain.remove(device)?);
    Ok(())
}

pub(crate) fn sync(domain: &DomainHandle) -> Result<(), Failed> {
    domain.keep(domain.domain.sync()?);
    Ok(())
}

pub(crate) fn change(update: &UpdateHandle, act: impl FnOnce(&mut Changes)) {
    let mut changes = past_poison(update.0.lock());
    act(&mut changes);
}

pub(crate) fn add_piece(update: &UpdateHandle, piece: Piece) {
    change(update, |changes| match piece {
        Piece::Section(section) => changes.added.push(section),
        Piece::Target(target) => changes.added_targets.push(target),
    });
}

/// The range of system addresses at `first`.
pub(crate) fn system_range(first: u64, len: u64) -> Result<SystemRange, Failed> {
    Ok(SystemRange::with_len(SystemAddress::new(first), len)?)
}

/// Commits the changes, and returns the number of pending sections.
pub(crate) fn commit(domain: &DomainHandle, changes: Changes) -> Result<u64, Failed> {
    let report = domain.domain.commit_with(|listener| {
        let mut update = Update::new();
        for range in &changes.removed {
            update = update.removing_range(listener, *range)?;
        }
        for range in &changes.removed_targets {
            for target in listener.targets().filter(|target| range.covers(target.range())) {
                update = update.removing_target(target.clone());
            }
        }
        let update = changes.added.into_iter().fold(update, Update::adding);
        Ok(changes.added_targets.into_iter().fold(update, Update::adding_target))
    })?;
    Ok(domain.keep(report))
}

/// The report of the last commit, a line for each section.
pub(crate) fn report(domain: &DomainHandle) -> String {
    let report = past_poison(domain.report.lock());
    let mut text = String::new();
    for verdict in &report.unserved {
        text += &format!("{verdict}\n");
    }
    for space in &report.spaces {
        for verdict in &space.sections {
            text += &format!("{}: {verdict}\n", space.backend);
        }
        for warning in &space.warnings {
            text += &format!("{}: warning: {warning}\n", space.backend);
        }
    }
    text
}

/// The space at place `n` of a domain.
fn space_of(domain: &DomainHandle, n: usize) -> Result<Arc<dyn PciAddressSpace>, Failed> {
    let space = domain.domain.spaces().into_iter().nth(n);
    space.ok_or_else(|| Failed::new(Errno::ENOENT, format!("the domain has no space {n}")))
}

pub(crate) fn windows_of_domain(domain: &DomainHandle, n: usize) -> Result<Vec<CWindow>, Failed> {
    Ok(windows(space_of(domain, n)?.as_ref()))
}

fn windows(space: &dyn PciAddressSpace) -> Vec<CWindow> {
    space.windows().windows.iter().map(CWindow::from).collect()
}

/// The address of this process and the access behind a bus address, in any of the spaces.
pub(crate) fn translate(domain: &DomainHandle, iova: u64) -> Result<(u64, u32), Failed> {
    let spaces = domain.domain.spaces();
    let found = spaces.iter().find_map(|space| space.translate(Iova::new(iova)));
    let (address, access) =
        found.ok_or_else(|| Failed::new(Errno::ENOENT, format!("nothing is mapped at {iova:#x}")))?;
    Ok((address.get(), access.bits().into()))
}

/// The translated window that includes `iova`.
fn window_at(domain: &DomainHandle, iova: u64) -> Result<dmaspace::TranslatedWindow, Failed> {
    let section = domain.domain.section_at(Iova::new(iova));
    let window = section.and_then(|section| domain.domain.translated(section.range().first()));
    window.ok_or_else(|| Failed::new(Errno::ENODEV, format!("no translated window is at {iova:#x}")))
}

pub(crate) fn put(domain: &DomainHandle, iova: u64, target: u64, len: u64, bits: u32) -> Result<(), Failed> {
    let (at, target) = (Iova::new(iova), SystemAddress::new(target));
    Ok(window_at(domain, iova)?.put_run(at, target, len, access(bits)?)?)
}

pub(crate) fn replace(domain: &DomainHandle, iova: u64, target: u64, len: u64, bits: u32) -> Result<(), Failed> {
    let (at, target) = (Iova::new(iova), SystemAddress::new(target));
    let _gap = window_at(domain, iova)?.replace(at, target, len, access(bits)?)?;
    Ok(())
}

pub(crate) fn clear(domain: &DomainHandle, iova: u64, len: u64) -> Result<u64, Failed> {
    Ok(window_at(domain, iova)?.clear(range(iova, len)?)?)
}

/// `void (*)(void *opaque, void *address, uint64_t len)`.
pub(crate) type Mark = extern "C" fn(*mut c_void, *mut c_void, u64);

/// A function of the caller that marks pages.
struct MarkedBy {
    mark: Mark,
    /// The address of the caller's data. The caller shares it between threads.
    opaque: usize,
}

impl DirtySink for MarkedBy {
    fn mark(&self, dirtied: Dirtied<'_>) {
        let address = usize::try_from(dirtied.address().get()).unwrap_or_default();
        let opaque = std::ptr::with_exposed_provenance_mut(self.opaque);
        (self.mark)(opaque, std::ptr::with_exposed_provenance_mut(address), dirtied.len);
    }
}

pub(crate) fn track_dirty(domain: &DomainHandle, mark: Option<Mark>, opaque: *mut c_void) -> Result<(), Failed> {
    let Some(mark) = mark else { return Err(Failed::argument("the function that marks pages is NULL")) };
    let sink = MarkedBy { mark, opaque: opaque.expose_provenance() };
    domain.domain.track_dirty(Arc::new(sink))?;
    Ok(())
}

pub(crate) fn may_discard(domain: &DomainHandle, memory: &HostMemory) -> Result<(), Failed> {
    domain.domain.may_discard(memory).map_err(|user| Failed::new(Errno::EBUSY, user.to_string()))
}

// --- Spaces without a listener ----------------------------------------------------------------------------------

pub(crate) fn open_space(host: &HostHandle, name: &str) -> Result<SpaceHandle, Failed> {
    let space = host.0.open_space(backend(name)?)?;
    Ok(SpaceHandle { space: space.into(), host: host.0.clone() })
}

/// The kind of the descriptor that `backend` opens.
pub(crate) fn kind_of(backend: BackendKind) -> HandleKind {
    match backend {
        BackendKind::Iommufd | BackendKind::Type1OnIommufd => HandleKind::Iommufd,
        _ => HandleKind::Container,
    }
}

pub(crate) fn space_of_handle(
    host: &HostHandle,
    kind: BackendKind,
    handle: OwnedHandle,
) -> Result<SpaceHandle, Failed> {
    let space = OpenSpace::of(kind, handle)?;
    Ok(SpaceHandle { space: space.into(), host: host.0.clone() })
}

/// Opens a device into a space: by its PCI address, or by its path in sysfs.
pub(crate) fn add_to_space(space: &SpaceHandle, name: &str) -> Result<DeviceHandle, Failed> {
    let facts = HostHandle(space.host.clone()).facts_now()?;
    let host = space.host.clone().with_facts(facts);
    let mut open = past_poison(space.space.lock());
    let device = if name.starts_with('/') {
        let device = SysfsDevice::read(name.as_ref()).map_err(dmaspace::OpenError::from)?;
        open.add_at(&host, &device)?
    } else {
        open.add(&host, pci_address(name)?)?
    };
    Ok(DeviceHandle(device))
}

pub(crate) fn add_opened_to_space(
    space: &SpaceHandle,
    device: OwnedHandle,
    name: &str,
) -> Result<DeviceHandle, Failed> {
    Ok(DeviceHandle(past_poison(space.space.lock()).add_device(device, name)?))
}

pub(crate) fn remove_from_space(space: &SpaceHandle, device: Device) -> Result<(), Failed> {
    past_poison(space.space.lock()).remove(device)?;
    Ok(())
}

/// The contract of a space. No lock is held during its calls.
fn contract(space: &SpaceHandle) -> Arc<dyn PciAddressSpace> {
    past_poison(space.space.lock()).space().clone()
}

pub(crate) fn windows_of_space(space: &SpaceHandle) -> Vec<CWindow> {
    windows(contract(space).as_ref())
}

pub(crate) fn map(space: &SpaceHandle, iova: u64, memory: &HostMemory, bits: u32, unit: u64) -> Result<(), Failed> {
    let unit = if unit == 0 { Unit::Whole } else { Unit::Pages(page(unit)?) };
    let request = MapRequest::new(Iova::new(iova), memory, access(bits)?).with_unit(unit);
    Ok(contract(space).map(request)?)
}

pub(crate) fn unmap(space: &SpaceHandle, range: IovaRange) -> Result<u64, Failed> {
    Ok(contract(space).unmap(range)?)
}

fn lacks(power: &str) -> Failed {
    Failed::new(Errno::EOPNOTSUPP, format!("the backend of the space has no {power}"))
}

pub(crate) fn register(space: &SpaceHandle, memory: &HostMemory) -> Result<(), Failed> {
    let space = contract(space);
    let registration = space.powers().registration.ok_or_else(|| lacks("registration of memory"))?;
    Ok(registration.register(memory)?)
}

pub(crate) fn unregister(space: &SpaceHandle, memory: &HostMemory) -> Result<(), Failed> {
    let space = contract(space);
    let registration = space.powers().registration.ok_or_else(|| lacks("registration of memory"))?;
    Ok(registration.unregister(memory)?)
}

pub(crate) fn create_window(space: &SpaceHandle, range: IovaRange, bytes: u64) -> Result<CWindow, Failed> {
    let space = contract(space);
    let control = space.powers().window_control.ok_or_else(|| lacks("windows that can be created"))?;
    Ok((&control.create_window(WindowRequest::new(range, page(bytes)?))?).into())
}

pub(crate) fn remove_window(space: &SpaceHandle, first: u64) -> Result<(), Failed> {
    let space = contract(space);
    let control = space.powers().window_control.ok_or_else(|| lacks("windows that can be created"))?;
    let windows = space.windows().windows;
    let Some(window) = windows.iter().find(|window| window.range.first() == Iova::new(first)) else {
        return Err(Failed::new(Errno::ENOENT, format!("no window begins at {first:#x}")));
    };
    let gone = control.remove_window(window.range)?;
    drop(gone);
    Ok(())
}
