//! The world a sequence is run in: a soft host, spaces with their devices, a listener, and a guest's memory.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::Write as _;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use crate::dirty::{Told, page_of};
use crate::watched_door::{WatchedDoor, Watcher};
use dmaspace::choose::{BackendKind, OpenRequest};
use dmaspace::facts::Facts;
use dmaspace::open::{Host, OpenError, Opened};
use dmaspace::options::OpenOptions;
use dmaspace::pci::PciAddress;
use dmaspace_core::contract::live_update::{Handover, NamedMemory};
use dmaspace_core::contract::{Attachable, MemoryRegistration, PinSharing, WindowControl};
use dmaspace_core::door::{Answer, Argument, Command, Failure};
use dmaspace_core::error::Kind;
use dmaspace_core::words::locked::AccountingMode;
use dmaspace_core::{Error, HostMemory, Iova, IovaRange, PciAddressSpace};
use dmaspace_iommufd::Pool;
use dmaspace_listener::Listener;
use dmaspace_listener::section::{Backing, FrontEnd};
use dmaspace_listener::{BlockError, CommitError, DiscardableRam, EntryError, Fate, Report, TranslatedWindow, Update};
use dmaspace_soft::{Profile, SoftDevice, SoftHost};
use dmaspace_spapr_guest::{PciHostBridge, WindowError};
use vm_memory::mmap::MmapRegion;
use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap};

/// A host, and the way its IOMMU is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostConfig {
    /// The soft host's preset ([`crate::soft::profile`]).
    pub preset: &'static str,
    /// The backend.
    pub backend: BackendKind,
}

impl HostConfig {
    /// sPAPR's first version is where no windows can be created.
    fn profile(self) -> Profile {
        let profile = crate::soft::profile(self.preset);
        if self.backend == BackendKind::SpaprV1 { profile.with_fixed_window() } else { profile }
    }
}

impl fmt::Display for HostConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.preset, self.backend)
    }
}

/// The result of an operation that succeeded.
#[derive(Clone, Debug, Default)]
pub struct Done {
    /// Best-effort sections that were reported and passed over.
    pub(super) skipped: Vec<IovaRange>,
}

/// It succeeded.
///
/// # Errors
/// None.
pub fn done() -> Result<Done, Trouble> {
    Ok(Done::default())
}

/// The failure of an operation, from any part of the library.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// The whole message.
    pub(super) text: String,
    /// The request, as the message must name it.
    pub(super) asked: String,
    /// The error's kind, where the contract has one.
    pub(super) kind: Option<Kind>,
    /// The kernel's answer.
    pub(super) answer: Option<Answer>,
    /// The ranges that were named as fenced.
    pub(super) fenced: Vec<IovaRange>,
}

impl Trouble {
    fn without_a_call(text: String) -> Self {
        Self { text, asked: String::new(), kind: None, answer: None, fenced: Vec::new() }
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        let answer = error.failure().map(|failure: Failure| failure.answer());
        let asked = format!("{} {}", error.operation(), error.subject());
        Self {
            text: error.to_string(),
            asked,
            kind: Some(error.kind().clone()),
            answer,
            fenced: error.fenced().to_vec(),
        }
    }
}

impl From<EntryError> for Trouble {
    fn from(error: EntryError) -> Self {
        let text = error.to_string();
        match error {
            EntryError::Space(error) => error.into(),
            EntryError::PagesTooLarge(error, _) => Self { text, ..error.into() },
            other => Self::without_a_call(other.to_string()),
        }
    }
}

impl From<WindowError> for Trouble {
    fn from(error: WindowError) -> Self {
        match error {
            WindowError::Commit(error) => error.into(),
            other => Self::without_a_call(other.to_string()),
        }
    }
}

impl From<BlockError> for Trouble {
    fn from(error: BlockError) -> Self {
        match error {
            BlockError::Space(error) => error.into(),
            other => Self::without_a_call(other.to_string()),
        }
    }
}

impl From<CommitError> for Trouble {
    fn from(error: CommitError) -> Self {
        let text = error.to_string();
        match error {
            CommitError::Step { error, fenced } => {
                let step = Self::from(error);
                Self { text, fenced: [step.fenced, fenced].concat(), ..step }
            }
            _ => Self::without_a_call(text),
        }
    }
}

impl From<OpenError> for Trouble {
    fn from(error: OpenError) -> Self {
        let text = error.to_string();
        match error {
            OpenError::Attach { error } | OpenError::NotUndone { undoing: error, .. } => Self { text, ..error.into() },
            OpenError::Refused { failure, .. } => Self { answer: Some(failure.answer()), ..Self::without_a_call(text) },
            OpenError::Node { errno, .. } => Self { answer: Some(Answer::Errno(errno)), ..Self::without_a_call(text) },
            _ => Self::without_a_call(text),
        }
    }
}

/// The sizes of the guest's memory regions. Each is an unplug unit of its own.
const REGIONS: [u64; 3] = [2 << 20, 1 << 20, 0x1_0000];
/// The offset of the next region's bytes in the file behind all of them.
const STRIDE: u64 = 4 << 20;
/// Every host's page divides this, and it must divide registered memory; the kernel aligns a mapping to less.
const ALIGNMENT: u64 = 0x1_0000;
/// Every page of the file begins with its number, counted from 1.
const PAGE: u64 = 0x1000;

/// The region whose page begins like that.
pub(super) fn region_of(stamp: u64) -> usize {
    usize::try_from((stamp - 1) * PAGE / STRIDE).expect("the number of a page")
}

/// The bytes of the memory of all hosts: they never change, so all hosts share them.
fn stamped_file() -> Arc<File> {
    static FILE: OnceLock<Arc<File>> = OnceLock::new();
    let make = || {
        let descriptor = rustix::fs::memfd_create("stamps", rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd");
        let mut file = File::from(descriptor);
        for page in 1..=REGIONS.len() as u64 * STRIDE / PAGE {
            let mut bytes = vec![0; usize::try_from(PAGE).expect("small")];
            bytes[..8].copy_from_slice(&page.to_ne_bytes());
            file.write_all(&bytes).expect("memory for the test");
        }
        Arc::new(file)
    };
    FILE.get_or_init(make).clone()
}

/// A region of the guest's memory, and whether it is still mapped into this process.
pub(super) struct Region {
    pub(super) memory: HostMemory,
    pub(super) life: Weak<MmapRegion<()>>,
}

impl Region {
    fn new(number: u64, len: u64) -> Self {
        let file = FileOffset::from_arc(stamped_file(), number * STRIDE);
        let size = usize::try_from(len + ALIGNMENT).expect("small");
        let region = GuestRegionMmap::<()>::from_range(GuestAddress(0), size, Some(file)).expect("memory for the test");
        let life = Arc::downgrade(&region.get_mmap());
        let all = HostMemory::of_region(&region).expect("a mapping");
        let offset = all.address().get().next_multiple_of(ALIGNMENT) - all.address().get();
        Self { memory: all.slice(offset, len).expect("room was left"), life }
    }
}

fn all_regions() -> Vec<Region> {
    (0..).zip(REGIONS).map(|(number, len)| Region::new(number, len)).collect()
}

fn named(regions: &[Region]) -> NamedMemory {
    regions.iter().enumerate().fold(NamedMemory::new(), |named: NamedMemory, (n, region): (usize, &Region)| {
        named.with(format!("region {n}"), region.memory.clone())
    })
}

/// A call that was heard at the door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) name: &'static str,
    /// The bytes of a VFIO_IOMMU_MAP_DMA.
    pub(super) bytes: u64,
}

/// The calls that went through a door.
#[derive(Debug, Default)]
struct Heard(Mutex<Vec<Call>>);

impl Heard {
    fn add(&self, name: &'static str, bytes: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Call { name, bytes });
    }

    fn take(&self) -> Vec<Call> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Watcher for Heard {
    fn command(&self, command: &Command<'_>) {
        // struct vfio_iommu_type1_dma_map: argsz, flags, vaddr, iova, size.
        let bytes = match (&command.argument, command.request.name) {
            (Argument::Bytes(bytes), "VFIO_IOMMU_MAP_DMA") => bytes.get(24..32).and_then(|size| size.try_into().ok()),
            _ => None,
        };
        self.add(command.request.name, bytes.map_or(0, u64::from_ne_bytes));
    }

    fn call(&self, name: &'static str) {
        self.add(name, 0);
    }
}

/// A soft host and a VMM's objects on it.
pub struct SweptHost {
    /// The guest's view. Without hints unless the sequence says otherwise.
    pub listener: Listener,
    /// A guest's bridge, whose windows the listener has.
    pub bridge: Option<PciHostBridge>,
    /// Devices that sequences detach and attach themselves.
    pub attached: Vec<Arc<dyn Attachable>>,
    /// Spaces, each with its devices.
    pub opened: Vec<Opened>,
    /// The pool in which some of them share their pins.
    pub(super) pool: Weak<Pool>,
    pub(super) regions: Vec<Region>,
    /// The second mapping of the guest's memory.
    pub(super) elsewhere: Vec<Region>,
    /// The pages told as written by devices.
    told: Arc<Told>,
    /// Pages a device wrote, by their number in this process.
    written: BTreeSet<u64>,
    host: Host,
    door: Arc<WatchedDoor<Heard>>,
    pub(super) soft: Arc<SoftHost>,
    config: HostConfig,
}

impl SweptHost {
    pub(super) fn new(config: HostConfig) -> Self {
        let soft = SoftHost::new(config.profile()).expect("presets make sense");
        let door = Arc::new(WatchedDoor { soft: soft.clone(), watcher: Heard::default() });
        Self {
            listener: Listener::new(FrontEnd::default()),
            bridge: None,
            attached: Vec::new(),
            opened: Vec::new(),
            pool: Weak::new(),
            regions: all_regions(),
            elsewhere: all_regions(),
            told: Arc::default(),
            written: BTreeSet::new(),
            host: Host::new(door.clone(), Facts::of_soft(soft.profile())),
            door,
            soft,
            config,
        }
    }

    /// The address of the host's `n`th device.
    pub fn address(&self, n: usize) -> PciAddress {
        self.soft.profile().groups[n].devices[0].address.parse().expect("a PCI address")
    }

    /// Opens a space with the host's `n`th device.
    ///
    /// # Errors
    /// What opening says.
    pub fn open(&mut self, n: usize) -> Result<(), Trouble> {
        let wish = OpenRequest::device(self.address(n)).with_backend(self.config.backend);
        self.opened.push(self.host.open(&wish)?);
        Ok(())
    }

    /// Opens a space with the host's `n`th device, on the best backend.
    ///
    /// # Errors
    /// What opening says.
    pub fn open_the_best(&mut self, n: usize) -> Result<(), Trouble> {
        self.opened.push(self.host.open(&OpenRequest::device(self.address(n)))?);
        Ok(())
    }

    /// Opens a space with the host's `n`th device, on another backend if the host has one.
    ///
    /// # Errors
    /// What opening says.
    pub fn open_elsewhere(&mut self, n: usize) -> Result<(), Trouble> {
        let backend = match self.config.backend {
            BackendKind::Type1 => BackendKind::Iommufd,
            BackendKind::Iommufd => BackendKind::Type1,
            BackendKind::Type1OnIommufd => BackendKind::Iommufd,
            _ => self.config.backend,
        };
        self.opened.push(self.host.open(&OpenRequest::device(self.address(n)).with_backend(backend))?);
        Ok(())
    }

    /// Opens a space with the host's `n`th device, asking for everything there is to ask for.
    ///
    /// # Errors
    /// What opening says.
    pub fn open_asking(&mut self, n: usize, promised: IovaRange) -> Result<(), Trouble> {
        let options = OpenOptions::new()
            .with_accounting(AccountingMode::Process)
            .with_huge_pages(false)
            .with_required_iovas(promised);
        let wish = OpenRequest::device(self.address(n)).with_backend(self.config.backend);
        self.opened.push(self.host.clone().with_options(options).open(&wish)?);
        Ok(())
    }

    /// Opens a space with the host's `n`th device that shares its pins with the others opened so.
    ///
    /// # Errors
    /// What opening says.
    pub fn open_sharing(&mut self, n: usize) -> Result<(), Trouble> {
        let pool = self.pool.upgrade().map_or_else(|| self.host.open_pool(), Ok)?;
        self.opened.push(self.host.open_in(&pool, &OpenRequest::device(self.address(n)))?);
        self.pool = Arc::downgrade(&pool);
        Ok(())
    }

    /// Opens a space without a device.
    ///
    /// # Errors
    /// What opening says.
    pub fn open_empty(&mut self) -> Result<(), Trouble> {
        self.opened.push(self.host.open(&OpenRequest::devices([]).with_backend(self.config.backend))?);
        Ok(())
    }

    /// Adds the host's `n`th device to an open space.
    ///
    /// # Errors
    /// What opening says.
    pub fn add(&mut self, space: usize, n: usize) -> Result<(), Trouble> {
        let address = self.address(n);
        let opened = &mut self.opened[space];
        let device = opened.space.add(&self.host, address)?;
        opened.devices.push(device);
        Ok(())
    }

    /// Closes one of an open space's devices, and keeps what can be detached: its group, or the device's node.
    pub fn ready_to_detach(&mut self, space: usize, device: usize) {
        let device = self.opened[space].devices.remove(device);
        let node = device.cdev().cloned().map(|node| node as Arc<dyn Attachable>);
        let group = device.group().cloned().map(|group| group as Arc<dyn Attachable>);
        self.attached.extend(node.or(group));
    }

    /// An open space.
    pub fn space(&self, n: usize) -> Arc<dyn PciAddressSpace> {
        self.opened[n].space.space().clone()
    }

    /// The first space's windows, on a host that creates them.
    pub fn control<T>(&self, work: impl FnOnce(&dyn WindowControl) -> T) -> T {
        work(self.space(0).powers().window_control.expect("a host that creates windows"))
    }

    /// The first space's registrations, on a host that wants them.
    pub fn registration<T>(&self, work: impl FnOnce(&dyn MemoryRegistration) -> T) -> T {
        work(self.space(0).powers().registration.expect("a host that registers"))
    }

    /// The memory whose pins a space shares, if it shares any.
    pub fn sharing<T>(&self, space: usize, work: impl FnOnce(&dyn PinSharing) -> T) -> T {
        work(self.space(space).powers().pin_sharing.expect("a space in a pool"))
    }

    /// Limits the memory the VMM may lock.
    pub fn limit_locked_memory(&self, bytes: u64) {
        self.soft.set_memlock(Some(bytes));
    }

    /// Memory is of the host's page, whatever is said of it.
    pub fn deny_huge_pages(&self) {
        self.soft.deny_huge_pages();
    }

    /// Returns whether the host creates windows and registers memory.
    pub fn creates_windows(&self) -> bool {
        self.config.backend == BackendKind::Spapr
    }

    /// Returns whether there is one window, into which everything has to fit.
    pub fn has_one_window(&self) -> bool {
        self.config.backend == BackendKind::SpaprV1
    }

    /// Has the listener serve an open space.
    ///
    /// # Errors
    /// The listener's error.
    pub fn join(&mut self, n: usize) -> Result<Done, Trouble> {
        let report = self.listener.attach(self.space(n))?;
        Ok(Done { skipped: skipped_by(&report) })
    }

    /// Commits an update.
    ///
    /// # Errors
    /// The listener's error.
    pub fn commit(&mut self, update: Update) -> Result<Done, Trouble> {
        let report = self.listener.commit(update)?;
        Ok(Done { skipped: skipped_by(&report) })
    }

    /// Has the bridge do something to the listener.
    ///
    /// # Errors
    /// The bridge's error.
    pub fn on_bridge(
        &mut self,
        work: impl FnOnce(&mut PciHostBridge, &mut Listener) -> Result<(), WindowError>,
    ) -> Result<Done, Trouble> {
        work(self.bridge.as_mut().expect("a bridge"), &mut self.listener)?;
        done()
    }

    /// The host.
    pub fn soft(&self) -> &Arc<SoftHost> {
        &self.soft
    }

    /// The translated window at a bus address.
    pub fn window(&self, first: u64) -> TranslatedWindow {
        self.listener.translated(Iova::new(first)).expect("the window is in force")
    }

    /// The discardable section at a bus address.
    pub fn discardable(&self, first: u64) -> DiscardableRam {
        self.listener.discardable(Iova::new(first)).expect("the section is in force")
    }

    /// A part of a region of the guest's memory.
    pub fn ram(&self, region: usize, offset: u64, len: u64) -> HostMemory {
        self.regions[region].memory.slice(offset, len).expect("inside the region")
    }

    /// Hands a space over, or repeats the description of one that is handed over.
    ///
    /// # Errors
    /// The space's error.
    pub fn hand_over(&self, n: usize) -> Result<Handover, Trouble> {
        Ok(self.space(n).powers().live_update.hand_over(&named(&self.regions))?)
    }

    /// Hands over all spaces the listener serves.
    ///
    /// # Errors
    /// The listener's error.
    pub fn hand_over_all(&self) -> Result<Done, Trouble> {
        self.listener.hand_over(&named(&self.regions))?;
        done()
    }

    /// Adopts a space that was handed over, with the second mapping of its memory.
    ///
    /// # Errors
    /// The space's error.
    pub fn adopt_elsewhere(&self, n: usize, handover: &Handover) -> Result<Done, Trouble> {
        crate::owned::adopt(&*self.space(n), handover, &named(&self.elsewhere))?;
        done()
    }

    /// Begins to track what devices write.
    ///
    /// # Errors
    /// The space's error.
    pub fn track(&self) -> Result<Done, Trouble> {
        self.space(0).powers().dirty_tracking.start(self.told.clone())?;
        done()
    }

    /// Has a space's `n`th device write the bytes that are there already, into a page of memory that is mapped at `at`.
    pub fn write(&mut self, n: usize, at: u64) {
        let device = self.soft.device(self.opened[0].devices[n].name()).expect("it is there");
        let mut bytes = [0; 8];
        device.dma_read(Iova::new(at), &mut bytes).expect("it is mapped");
        device.dma_write(Iova::new(at), &bytes).expect("it is mapped for writing");
        let mapping = self.space(0).lookup(Iova::new(at)).expect("it is mapped");
        self.written.insert(page_of(&mapping.memory, mapping.range.offset_of(Iova::new(at))));
    }

    /// Asks what devices wrote. Whatever comes of it, everything they did is told.
    ///
    /// # Errors
    /// The space's error.
    pub fn sync(&self) -> Result<Done, Trouble> {
        let synced = self.space(0).powers().dirty_tracking.sync(IovaRange::all());
        if synced.is_err() {
            assert_eq!(self.untold(), None, "a page that was written was not told after an error");
        }
        synced?;
        done()
    }

    /// A page that a device wrote and that was not told.
    pub(super) fn untold(&self) -> Option<u64> {
        let told = self.told.seen();
        self.written.iter().find(|page| !told.contains(page)).copied()
    }

    /// The calls since the last time, one after the other.
    pub(super) fn take_calls(&self) -> Vec<Call> {
        self.door.watcher.take()
    }

    /// A device whose DMA goes through a space.
    pub(super) fn device_of(&self, space: usize) -> Option<SoftDevice> {
        self.soft.device(self.opened[space].devices.first()?.name())
    }

    /// Drops everything of the VMM's. Returns the host, and signs of life of the guest's memory.
    pub(super) fn close(self) -> (Arc<SoftHost>, Vec<Weak<MmapRegion<()>>>) {
        let Self { listener, attached, opened, regions, elsewhere, host, door, soft, .. } = self;
        let lives = regions.iter().chain(&elsewhere).map(|region| region.life.clone()).collect();
        drop((regions, elsewhere, listener, attached, opened, host, door));
        (soft, lives)
    }
}

/// Sections of device memory that a commit could not map.
fn skipped_by(report: &Report) -> Vec<IovaRange> {
    let sections = report.spaces.iter().flat_map(|space| &space.sections);
    let skipped = sections.filter(|verdict| {
        verdict.fate == Fate::Skipped && matches!(verdict.piece.backing(), Backing::DeviceMemory { .. })
    });
    skipped.map(|verdict| verdict.piece.range()).collect()
}
