//! Benches of the conformance suite: the spaces of this project's backends, on soft and on real hosts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::owned::opened;
use dmaspace::choose::{BackendKind, OpenRequest};
use dmaspace::device::Device;
use dmaspace::facts::Facts;
use dmaspace::group::VfioGroup;
use dmaspace::open::{Host, OpenError, Opened};
use dmaspace::pci::PciAddress;
use dmaspace_conformance::{Bench, Call, Dma, Faults};
use dmaspace_core::Iova;
use dmaspace_core::contract::Attachable;
use dmaspace_core::door::HandleKind;
use dmaspace_iommufd::Cdev;
use dmaspace_soft::{FaultMode, FaultPlan, SoftHost};

use crate::device::TestDevice;
use crate::edu::Edu;
use crate::ledger::ProcessLedger;
use crate::ram::Ram;
use crate::soft;

/// The bytes a bench works with: 64 units of 64 KiB.
const MEMORY: usize = 4 << 20;

/// A bench on a fresh soft host of that preset.
pub fn on_soft(preset: &str, backend: BackendKind) -> Bench {
    let soft = fresh(preset);
    let bench =
        bench_of(&soft_host(&soft), backend, soft::open(&soft, backend), &addresses(&soft), &soft_device(&soft));
    let second = soft.clone();
    let bench = bench.with_second_space(move || {
        let opened = soft_host(&second).open(&OpenRequest::device(addresses(&second)[1]).with_backend(backend));
        opened.expect("the soft host opens a second device").space.space().clone()
    });
    soft_hooks(bench, soft, names_of(backend))
}

/// A bench in a pool on a fresh soft host: its mappings are copies.
pub fn in_a_soft_pool() -> Bench {
    let soft = fresh("vtd");
    let host = soft_host(&soft);
    let pool = host.open_pool().expect("the soft host has iommufd");
    let opened =
        host.open_in(&pool, &OpenRequest::device(addresses(&soft)[0])).expect("the soft host opens its device");
    let second = soft.clone();
    let devices = addresses(&soft);
    let bench =
        bench_of(&host, BackendKind::Iommufd, opened, &devices, &soft_device(&soft)).with_second_space(move || {
            let opened = soft_host(&second).open_in(&pool, &OpenRequest::device(addresses(&second)[1]));
            opened.expect("the soft host opens a second device").space.space().clone()
        });
    let names = Names { map: &["IOMMU_IOAS_COPY", "IOMMU_IOAS_MAP"], ..names_of(BackendKind::Iommufd) };
    soft_hooks(bench, soft, names)
}

/// A bench on the host this process runs on.
///
/// # Errors
/// When the host lacks a device, or does not open it.
pub fn on_this_host(backend: BackendKind, devices: &[PciAddress]) -> Result<Bench, OpenError> {
    let before = ProcessLedger::now();
    let host = Host::this()?;
    let opened = host.open(&OpenRequest::device(first(devices)).with_backend(backend))?;
    Ok(real_hooks(bench_of(&host, backend, opened, devices, &edu), before))
}

/// A bench in a pool on the host this process runs on.
///
/// # Errors
/// When the host lacks a device, or does not open it.
pub fn in_a_pool_of_this_host(devices: &[PciAddress]) -> Result<Bench, OpenError> {
    let before = ProcessLedger::now();
    let host = Host::this()?;
    let pool = host.open_pool()?;
    let opened = host.open_in(&pool, &OpenRequest::device(first(devices)))?;
    Ok(real_hooks(bench_of(&host, BackendKind::Iommufd, opened, devices, &edu), before))
}

fn first(devices: &[PciAddress]) -> PciAddress {
    *devices.first().expect("the host names its devices: EMULATED_DEVICES")
}

fn real_hooks(bench: Bench, before: ProcessLedger) -> Bench {
    bench.with_leftovers(move || {
        let after = ProcessLedger::now();
        (before != after).then(|| format!("{before:?} became {after:?}"))
    })
}

fn fresh(preset: &str) -> Arc<SoftHost> {
    let soft = soft::host(preset);
    // The memory is of this process, whose pages are small.
    soft.deny_huge_pages();
    soft
}

fn soft_host(soft: &Arc<SoftHost>) -> Host {
    Host::new(soft.clone(), Facts::of_soft(soft.profile()))
}

fn addresses(soft: &SoftHost) -> Vec<PciAddress> {
    let groups = soft.profile().groups.iter();
    groups.map(|group| group.devices[0].address.parse().expect("a PCI address")).collect()
}

/// Readies an open device.
type BringUp<'a> = &'a dyn Fn(Device) -> Box<dyn TestDevice>;

fn edu(device: Device) -> Box<dyn TestDevice> {
    Box::new(Edu::new(device))
}

fn soft_device(soft: &Arc<SoftHost>) -> impl Fn(Device) -> Box<dyn TestDevice> + use<> {
    let soft = soft.clone();
    move |device| soft::buffered(&soft, device)
}

/// A bench with the first device, opened, and with the second to be attached.
fn bench_of(
    host: &Host,
    backend: BackendKind,
    mut opened: Opened,
    devices: &[PciAddress],
    bring_up: BringUp<'_>,
) -> Bench {
    let device = opened.devices.remove(0);
    let bench = Bench::new(opened.space.space().clone(), attached(&opened, &device))
        .with_memory(Ram::new(MEMORY).all().clone())
        .with_dma(Box::new(Mover(bring_up(device))))
        .keeping(opened);
    match devices.get(1).and_then(|address| unattached(host, backend, *address)) {
        Some(spare) => bench.with_spare(spare),
        None => bench,
    }
}

/// The second device of a soft host, not attached. `None` where a device cannot be attached by itself.
pub fn spare_on_soft(soft: &Arc<SoftHost>, backend: BackendKind) -> Option<Arc<dyn Attachable>> {
    unattached(&soft_host(soft), backend, addresses(soft)[1]).map(|open| open())
}

/// A test device as the suite drives it.
struct Mover(Box<dyn TestDevice>);

impl Dma for Mover {
    fn load(&mut self, from: Iova, len: usize) {
        self.0.load(from, len);
    }

    fn store(&mut self, to: Iova, len: usize) {
        self.0.store(to, len);
    }
}

/// The group or device that was attached to the space when `device` was opened.
fn attached(opened: &Opened, device: &Device) -> Arc<dyn Attachable> {
    if let Some(cdev) = device.cdev() {
        return cdev.clone();
    }
    opened.space.groups()[0].clone()
}

/// Opens a group or device that can be attached and is not. `None` for an iommufd in a container's place: there a group
/// is attached with its open device.
fn unattached(
    host: &Host,
    backend: BackendKind,
    address: PciAddress,
) -> Option<Box<dyn FnOnce() -> Arc<dyn Attachable>>> {
    let (door, facts, name) = (host.door().clone(), host.facts(), address.to_string());
    let device = facts.devices.get(&address)?;
    match backend {
        BackendKind::Iommufd => {
            let path = device.vfio.as_ref()?.path();
            Some(Box::new(move || {
                let node = opened(&door, &path, HandleKind::Device);
                Arc::new(Cdev::new(node, name))
            }))
        }
        BackendKind::Type1 | BackendKind::Spapr | BackendKind::SpaprV1 => {
            let group = facts.groups.get(&device.group?)?;
            let (path, name) = (group.path(), format!("group {}", group.number));
            Some(Box::new(move || {
                let node = opened(&door, &path, HandleKind::Group);
                Arc::new(VfioGroup::new(node, name, backend))
            }))
        }
        _ => None,
    }
}

/// The calls of a backend, by the names that the soft host counts them under.
struct Names {
    map: &'static [&'static str],
    unmap: &'static str,
    attach: &'static str,
    detach: &'static str,
    start_dirty: &'static str,
    fetch_dirty: &'static str,
    invalidate: Option<&'static str>,
    /// Window creation and removal, registration and its end, where the backend has these calls.
    power: Option<[&'static str; 4]>,
}

fn names_of(backend: BackendKind) -> Names {
    let container = Names {
        map: &["VFIO_IOMMU_MAP_DMA"],
        unmap: "VFIO_IOMMU_UNMAP_DMA",
        attach: "VFIO_GROUP_SET_CONTAINER",
        detach: "VFIO_GROUP_UNSET_CONTAINER",
        start_dirty: "VFIO_IOMMU_DIRTY_PAGES",
        fetch_dirty: "VFIO_IOMMU_DIRTY_PAGES",
        invalidate: Some("VFIO_IOMMU_UNMAP_DMA"),
        power: None,
    };
    let power = [
        "VFIO_IOMMU_SPAPR_TCE_CREATE",
        "VFIO_IOMMU_SPAPR_TCE_REMOVE",
        "VFIO_IOMMU_SPAPR_REGISTER_MEMORY",
        "VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY",
    ];
    match backend {
        BackendKind::Spapr => Names { power: Some(power), ..container },
        BackendKind::Iommufd => Names {
            map: &["IOMMU_IOAS_MAP"],
            unmap: "IOMMU_IOAS_UNMAP",
            attach: "VFIO_DEVICE_ATTACH_IOMMUFD_PT",
            detach: "VFIO_DEVICE_DETACH_IOMMUFD_PT",
            start_dirty: "IOMMU_HWPT_SET_DIRTY_TRACKING",
            fetch_dirty: "IOMMU_HWPT_GET_DIRTY_BITMAP",
            invalidate: None,
            power: None,
        },
        _ => container,
    }
}

impl Names {
    fn of(&self, call: Call) -> Vec<&'static str> {
        let power = |n: usize| self.power.map(|names| names[n]);
        let name = match call {
            Call::Map => return self.map.to_vec(),
            Call::Unmap => Some(self.unmap),
            Call::Attach => Some(self.attach),
            Call::Detach => Some(self.detach),
            Call::StartDirty => Some(self.start_dirty),
            Call::FetchDirty => Some(self.fetch_dirty),
            Call::Invalidate => self.invalidate,
            Call::CreateWindow => power(0),
            Call::RemoveWindow => power(1),
            Call::Register => power(2),
            Call::Unregister => power(3),
            _ => None,
        };
        name.into_iter().collect()
    }
}

/// The fault plan of a soft host, as the suite asks for it.
struct SoftFaults {
    soft: Arc<SoftHost>,
    names: Names,
    /// By call: how many are skipped, and how many fail after that.
    asked: Mutex<BTreeMap<&'static str, (u32, u32)>>,
}

impl Faults for SoftFaults {
    fn can_fail(&self, call: Call) -> bool {
        !self.names.of(call).is_empty()
    }

    fn fail(&self, call: Call, skipped: u32, times: u32) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        for name in self.names.of(call) {
            asked.insert(name, (skipped, times));
        }
        let mut plans = Vec::new();
        for (name, (skipped, times)) in asked.iter() {
            plans.extend(
                (1..=*times).map(|n: u32| FaultPlan::nth(u64::from(skipped + n), FaultMode::FailBefore).of(name)),
            );
        }
        self.soft.plan_faults(&plans);
    }

    fn mend(&self) {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.soft.plan_faults(&[]);
    }
}

fn soft_hooks(bench: Bench, soft: Arc<SoftHost>, names: Names) -> Bench {
    let faults = SoftFaults { soft: soft.clone(), names, asked: Mutex::default() };
    bench.with_faults(Box::new(faults)).with_leftovers(move || {
        let ledger = soft.ledger();
        (!ledger.is_clear()).then(|| format!("{ledger:?}"))
    })
}
