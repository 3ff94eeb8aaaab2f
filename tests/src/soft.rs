//! Fixtures on the soft host: the same opening code, the same backends, another door.

use std::num::NonZeroU64;
use std::sync::Arc;

use dmaspace::choose::{BackendKind, OpenRequest};
use dmaspace::device::Device;
use dmaspace::facts::Facts;
use dmaspace::open::{Host, Opened};
use dmaspace_core::door::Door;
use dmaspace_core::words::locked::LockedMemory;
use dmaspace_core::{Access, HostAddress, HostMemory, Iova, IovaRange};
use dmaspace_listener::Section;
use dmaspace_soft::{Profile, SoftDevice, SoftHost};

use crate::device::TestDevice;
use crate::fixture::Fixture;
use crate::limits::LockLimit;
use crate::ram::SPOT;

/// A preset with each backend, and the presets on which sPAPR differs. The first version of sPAPR, with one window that
/// is always there, is not among them.
pub const HOSTS: [(&str, BackendKind); 6] = [
    ("vtd", BackendKind::Type1),
    ("vtd", BackendKind::Iommufd),
    ("vtd", BackendKind::Type1OnIommufd),
    ("powernv9", BackendKind::Spapr),
    ("powernv9-64k", BackendKind::Spapr),
    ("pseries", BackendKind::Spapr),
];

/// A soft host's device with a buffer, as `edu` has one.
struct BufferedDevice {
    device: SoftDevice,
    buffer: [u8; SPOT],
    /// A write under way: one that takes its time reaches memory when it begins and when it ends.
    under_way: Option<(Iova, usize)>,
    /// Its descriptor, open for as long as it is used.
    _open: Device,
}

impl TestDevice for BufferedDevice {
    fn load(&mut self, from: Iova, len: usize) {
        // A device is not told why its read failed: its buffer has the bytes that arrived.
        let _ = self.device.dma_read(from, &mut self.buffer[..len]);
    }

    fn begin_store(&mut self, to: Iova, len: usize) {
        let _ = self.device.dma_write(to, &self.buffer[..len]);
        self.under_way = Some((to, len));
    }

    fn finish(&mut self) {
        if let Some((to, len)) = self.under_way.take() {
            let _ = self.device.dma_write(to, &self.buffer[..len]);
        }
    }
}

/// The limit on locked memory of a soft host.
struct OfSoftProcess(Arc<SoftHost>);

impl LockLimit for OfSoftProcess {
    fn locked(&self) -> LockedMemory {
        self.0.locked_memory().expect("a soft host tells")
    }

    fn limit(&self, bytes: u64) {
        self.0.set_memlock(Some(bytes));
    }
}

/// The preset of that name, with another kernel if a version follows after an `@`: `vtd@7.2`.
pub fn profile(preset: &str) -> Profile {
    let (name, kernel) = preset.split_once('@').map_or((preset, None), |(name, kernel)| (name, Some(kernel)));
    let mut profile = Profile::preset(name).expect("a preset of the soft host");
    profile.kernel = kernel.map_or(profile.kernel, |version| version.parse().expect("a version"));
    profile
}

/// A soft host of that [`profile`].
pub fn host(preset: &str) -> Arc<SoftHost> {
    SoftHost::new(profile(preset)).expect("presets make sense")
}

/// The backends of that preset.
pub fn backends_of(preset: &str) -> &'static [BackendKind] {
    match preset {
        "powernv9" | "powernv9-64k" | "pseries" => &[BackendKind::Spapr, BackendKind::SpaprV1],
        _ => &[BackendKind::Type1, BackendKind::Iommufd, BackendKind::Type1OnIommufd],
    }
}

/// A space on `soft` with its first device.
pub fn open(soft: &Arc<SoftHost>, backend: BackendKind) -> Opened {
    let host = Host::new(soft.clone(), Facts::of_soft(soft.profile()));
    let device = soft.profile().groups[0].devices[0].address.parse().expect("a PCI address");
    host.open(&OpenRequest::device(device).with_backend(backend)).expect("the soft host opens its device")
}

/// Host addresses without bytes: all that a host in software needs.
pub fn memory(address: u64, len: u64) -> HostMemory {
    HostMemory::unbacked(HostAddress::new(address), NonZeroU64::new(len).expect("not empty")).expect("no wrap")
}

/// `len` such bytes from `host`, as RAM at `at`.
pub fn ram(at: u64, host: u64, len: u64) -> Section {
    Section::ram("ram", Iova::new(at), memory(host, len), Access::READ_WRITE).expect("a proper range")
}

/// `len` bus addresses from `first`.
pub fn range(first: u64, len: u64) -> IovaRange {
    IovaRange::with_len(Iova::new(first), len).expect("a proper range")
}

/// A fixture on `soft` with its first device.
pub fn fixture(soft: &Arc<SoftHost>, backend: BackendKind) -> Fixture {
    fixture_of(soft, open(soft, backend))
}

/// A space on `soft` with its first device, in a pool.
pub fn open_in_a_pool(soft: &Arc<SoftHost>) -> Opened {
    let host = Host::new(soft.clone(), Facts::of_soft(soft.profile()));
    let device = soft.profile().groups[0].devices[0].address.parse().expect("a PCI address");
    let pool = host.open_pool().expect("the soft host has it");
    host.open_in(&pool, &OpenRequest::device(device)).expect("the soft host opens its device")
}

/// A fixture on `soft` with its first device, in a pool.
pub fn fixture_in_a_pool(soft: &Arc<SoftHost>) -> Fixture {
    fixture_of(soft, open_in_a_pool(soft))
}

fn fixture_of(soft: &Arc<SoftHost>, mut opened: Opened) -> Fixture {
    // The guest's RAM is of this process, whose pages are small.
    soft.deny_huge_pages();
    let device = buffered(soft, opened.devices.remove(0));
    Fixture::new(opened.space.space().clone(), device, lock_limit(soft)).keeping(opened)
}

/// The device of `soft` that was opened.
pub fn buffered(soft: &SoftHost, opened: Device) -> Box<dyn TestDevice> {
    let device = soft.device(opened.name()).expect("it is there");
    Box::new(BufferedDevice { device, buffer: [0; SPOT], under_way: None, _open: opened })
}

/// The limit on locked memory of `soft`.
pub fn lock_limit(soft: &Arc<SoftHost>) -> Box<dyn LockLimit> {
    Box::new(OfSoftProcess(soft.clone()))
}
