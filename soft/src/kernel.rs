//! The host's kernel: open files, the objects they stand for, and the processes that hold them.
//!
//! A file is gone when the last process that holds it has closed it; its object may outlive it, as in the kernel: a
//! container while it has groups, a group while one of its devices is open, an iommufd while a device is bound to it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use dmaspace_core::door::{Command, Errno, Handle};
use dmaspace_core::{Access, Iova, IovaRange};

use crate::dialect::call::Call;
use crate::dialect::cdev::NodeFile;
use crate::dialect::iommufd::{Context, DeviceIndex};
use crate::dialect::spapr::Pe;
use crate::dialect::vfio::{Container, Device, Driver, Group};
use crate::dialect::{Pid, System};
use crate::engine::{Run, Table};
use crate::facts::Facts;
use crate::ledger::Ledger;
use crate::profile::{BadProfile, KernelInterface, Profile, TceManager};

/// A container, known by the number of the file that made it.
pub(crate) type ContainerId = u64;
/// An open `/dev/iommu`, known by the number of the file that made it.
pub(crate) type ContextId = u64;

/// The object of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum File {
    Container(ContainerId),
    Group(u32),
    DeviceOfGroup(DeviceIndex),
    Node(NodeFile),
    Iommufd(ContextId),
    /// The data of a device's migration, and the number of the stream.
    Stream(DeviceIndex, u64),
}

/// An open file and the processes that hold it.
#[derive(Debug)]
struct OpenFile {
    file: File,
    holders: BTreeSet<Pid>,
}

impl OpenFile {
    fn holds_context(&self, id: ContextId) -> bool {
        match self.file {
            File::Iommufd(context) => context == id,
            File::Node(NodeFile { bound: Some((context, _)), .. }) => context == id,
            _ => false,
        }
    }
}

/// The result of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Number(i32),
    Opened(File),
}

/// The kernel of one host.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) system: System,
    backends: Vec<KernelInterface>,
    files: BTreeMap<u64, OpenFile>,
    last_file: u64,
    last_process: u64,
    pub(crate) containers: BTreeMap<ContainerId, Container>,
    pub(crate) groups: BTreeMap<u32, Group>,
    pub(crate) devices: Vec<Device>,
    pub(crate) contexts: BTreeMap<ContextId, Context>,
}

impl Kernel {
    pub(crate) fn boot(profile: &Profile) -> Result<Self, BadProfile> {
        let groups = profile.groups.iter().map(|group| (group.number, Group::new(group.held_by_kernel)));
        Ok(Self {
            system: System::new(Facts::of(profile)?, profile.limits.memlock),
            backends: profile.backends.clone(),
            files: BTreeMap::new(),
            last_file: 0,
            last_process: 0,
            containers: BTreeMap::new(),
            groups: groups.collect(),
            devices: Device::all(profile),
            contexts: BTreeMap::new(),
        })
    }

    pub(crate) fn has(&self, backend: KernelInterface) -> bool {
        self.backends.contains(&backend)
    }

    /// Starts a process without files.
    pub(crate) fn spawn(&mut self) -> Pid {
        self.last_process += 1;
        Pid(self.last_process)
    }

    /// Starts a process with the files of another.
    pub(crate) fn fork(&mut self, parent: Pid) -> Pid {
        let child = self.spawn();
        for file in self.files.values_mut().filter(|file| file.holders.contains(&parent)) {
            file.holders.insert(child);
        }
        child
    }

    /// Ends a process: closes its files and drops its registrations, leaked ones included.
    pub(crate) fn exit(&mut self, pid: Pid) {
        let held: Vec<_> =
            self.files.iter().filter(|(_, file)| file.holders.contains(&pid)).map(|(id, _)| *id).collect();
        for id in held {
            // The descriptor is open, so that closing it cannot fail.
            let _ = self.close(pid, id);
        }
        if let Some(mut process) = self.system.processes.remove(&pid) {
            for block in process.registry.drain() {
                self.system.release(block.memory);
            }
        }
    }

    /// open(2).
    pub(crate) fn open(&mut self, by: Pid, path: &Path) -> Result<u64, Errno> {
        let node = Node::at(path).ok_or(Errno::ENOENT)?;
        let id = self.last_file + 1;
        let containers = self.has(KernelInterface::Type1) || self.has(KernelInterface::Spapr);
        let file = match node {
            Node::Container if containers => {
                self.containers.insert(id, Container::new());
                File::Container(id)
            }
            Node::Group(number) if containers || self.has(KernelInterface::Iommufd) => self.open_group(number)?,
            Node::Iommufd if self.has(KernelInterface::Iommufd) => {
                self.contexts.insert(id, Context::default());
                File::Iommufd(id)
            }
            Node::Device(number) if self.has(KernelInterface::Iommufd) => {
                let device = self.devices.iter().position(|device| device.node == Some(number)).ok_or(Errno::ENOENT)?;
                File::Node(NodeFile { device, bound: None })
            }
            Node::Container | Node::Group(_) | Node::Iommufd | Node::Device(_) => return Err(Errno::ENOENT),
        };
        Ok(self.install(by, file))
    }

    /// Gives a file a descriptor. Numbers are never used again.
    pub(crate) fn install(&mut self, by: Pid, file: File) -> u64 {
        self.last_file += 1;
        self.files.insert(self.last_file, OpenFile { file, holders: BTreeSet::from([by]) });
        self.last_file
    }

    /// The object of a process's descriptor.
    pub(crate) fn file(&self, by: Pid, handle: Handle) -> Result<File, Errno> {
        let held = self.files.get(&handle.id()).filter(|file| file.holders.contains(&by));
        held.map(|file| file.file).ok_or(Errno::EBADF)
    }

    /// Gives a descriptor another object.
    pub(crate) fn replace_file(&mut self, id: u64, file: File) {
        if let Some(open) = self.files.get_mut(&id) {
            open.file = file;
        }
    }

    /// ioctl(2).
    pub(crate) fn ioctl(&mut self, by: Pid, on: Handle, command: &mut Command<'_>) -> Result<Reply, Errno> {
        let file = self.file(by, on)?;
        let mut call = Call::new(by, command);
        match file {
            File::Container(id) => self.container_ioctl(id, &mut call),
            File::Group(number) => self.group_ioctl(number, &mut call),
            File::DeviceOfGroup(index) => self.device_ioctl(index, None, &mut call),
            File::Stream(index, stream) => self.stream_ioctl(index, stream, &mut call),
            File::Node(node) => self.node_ioctl(on.id(), node, &mut call),
            File::Iommufd(id) => {
                let Self { system, contexts, .. } = self;
                contexts.get_mut(&id).ok_or(Errno::EBADF)?.ioctl(system, &mut call).map(Reply::Number)
            }
        }
    }

    /// close(2).
    pub(crate) fn close(&mut self, by: Pid, id: u64) -> Result<(), Errno> {
        let open = self.files.get_mut(&id).ok_or(Errno::EBADF)?;
        if !open.holders.remove(&by) {
            return Err(Errno::EBADF);
        }
        if open.holders.is_empty() {
            let file = open.file;
            self.files.remove(&id);
            self.release(file);
        }
        Ok(())
    }

    /// Releases a file whose last descriptor was closed.
    pub(crate) fn release(&mut self, file: File) {
        match file {
            File::Container(id) => self.close_container(id),
            File::Group(number) => self.put_group(number),
            File::DeviceOfGroup(device) => self.close_device_of_group(device),
            File::Node(node) => self.close_node(node),
            File::Iommufd(id) => self.put_context(id),
            File::Stream(..) => {}
        }
    }

    /// The devices that are bound by their own nodes: each with the iommufd and its id there.
    pub(crate) fn bound_nodes(&self) -> impl Iterator<Item = (DeviceIndex, (ContextId, u32))> + '_ {
        self.files.values().filter_map(|open| match open.file {
            File::Node(NodeFile { device, bound: Some(place) }) => Some((device, place)),
            _ => None,
        })
    }

    /// Removes an iommufd that no descriptor, group or bound device holds any more.
    pub(crate) fn put_context(&mut self, id: ContextId) {
        let is_used_by_groups = self.groups.values().any(|group| group.context == Some(id));
        let is_bound = self.devices.iter().any(|device| matches!(device.bound, Some((context, _)) if context == id));
        if self.files.values().any(|file| file.holds_context(id)) || is_used_by_groups || is_bound {
            return;
        }
        if let Some(mut context) = self.contexts.remove(&id) {
            context.release(&mut self.system);
        }
    }

    /// The index of a device in the list.
    pub(crate) fn device(&self, address: &str) -> Option<DeviceIndex> {
        self.devices.iter().position(|device| device.address == address)
    }

    /// The translation that a device uses while its group is attached, and whether write access implies read access
    /// there.
    fn translation_of(&self, device: DeviceIndex) -> Option<(&Table, bool)> {
        let number = self.devices.get(device)?.group;
        let facts = &self.system.facts;
        let through_container =
            self.groups.get(&number)?.container.and_then(|id| self.containers.get(&id)?.driver.as_ref());
        let fixed = facts.fixed.as_ref().is_some_and(|fixed| fixed.write_implies_read);
        match through_container {
            Some(driver @ Driver::Type1(_)) => Some((driver.table(), fixed)),
            Some(driver @ Driver::Spapr(_)) => {
                // powernv adds read access to every writable entry (linux: pnv_tce_xchg).
                let platform = facts.tce.as_ref()?.platform;
                Some((driver.table(), platform == TceManager::PowerNv))
            }
            None => self.contexts.values().find_map(|context| context.table_of(number)).map(|table| (table, fixed)),
        }
    }

    /// The translation that a device uses. `None` if the device is not attached.
    pub(crate) fn table_of(&self, device: DeviceIndex) -> Option<&Table> {
        Some(self.translation_of(device)?.0)
    }

    /// The run that a device reaches at `at`, with the device's access. `None` if the device is not attached.
    pub(crate) fn translate(&self, device: DeviceIndex, at: Iova) -> Option<Option<(&Run, Access)>> {
        let (table, write_implies_read) = self.translation_of(device)?;
        Some(table.reached_at(at).map(|run| {
            let implied = write_implies_read && run.access.contains(Access::WRITE);
            (run, if implied { run.access | Access::READ } else { run.access })
        }))
    }

    /// Freezes a device's PE, on hosts with EEH.
    pub(crate) fn freeze(&mut self, device: DeviceIndex) {
        let eeh = self.system.facts.tce.as_ref().is_some_and(|tce| tce.eeh);
        if let Some(device) = self.devices.get(device).filter(|_| eeh) {
            *self.system.pe(device.group) = Pe::FROZEN;
        }
    }

    /// Returns whether a device's PE keeps it from memory.
    pub(crate) fn is_frozen(&self, device: DeviceIndex) -> bool {
        self.devices.get(device).is_some_and(|device| self.system.is_frozen(device.group))
    }

    /// Notes that a device wrote in `range`, which lies in one run. Some page tables log that.
    pub(crate) fn note_write(&mut self, device: DeviceIndex, range: IovaRange) {
        let Some(number) = self.devices.get(device).map(|device| device.group) else { return };
        let Self { system, contexts, .. } = self;
        for context in contexts.values_mut() {
            context.note_write(system, number, range);
        }
        if let Some(device) = self.devices.get_mut(device) {
            device.function.log.note(range);
        }
    }

    /// The resources that are held and were used.
    pub(crate) fn ledger(&self) -> Ledger {
        let mut ledger = Ledger::default();
        for file in self.files.values() {
            match file.file {
                File::Container(_) => ledger.containers += 1,
                File::Group(_) => ledger.groups += 1,
                File::DeviceOfGroup(_) | File::Node(_) => ledger.devices += 1,
                File::Iommufd(_) => ledger.iommufds += 1,
                File::Stream(..) => ledger.streams += 1,
            }
        }
        let drivers = self.containers.values().filter_map(|container| container.driver.as_ref());
        let known: BTreeSet<_> = drivers.clone().flat_map(registered).collect();
        for driver in drivers {
            count_driver(&mut ledger, driver);
        }
        for context in self.contexts.values() {
            ledger.objects += context.object_count();
            for table in context.tables() {
                count_table(&mut ledger, table);
            }
        }
        for (pid, process) in &self.system.processes {
            ledger.count_account(&process.account);
            for block in process.registry.iter() {
                ledger.registrations += 1;
                ledger.leaked += if known.contains(&(*pid, block.id)) { 0 } else { block.memory.len().get() };
            }
        }
        ledger
    }
}

/// The registrations that a driver knows: the process and the number.
fn registered(driver: &Driver) -> Vec<(Pid, u64)> {
    match driver {
        Driver::Type1(_) => Vec::new(),
        Driver::Spapr(spapr) => spapr.registered(),
    }
}

fn count_driver(ledger: &mut Ledger, driver: &Driver) {
    match driver {
        Driver::Type1(type1) => {
            count_table(ledger, type1.table());
            ledger.without_address += type1.count_without_address();
        }
        Driver::Spapr(spapr) => {
            ledger.windows += spapr.window_count();
            ledger.mappings += spapr.live_entries();
            ledger.mapped += spapr.table().bytes();
        }
    }
}

/// Counts translations that are kept as whole mappings.
fn count_table(ledger: &mut Ledger, table: &Table) {
    ledger.mappings += table.len() as u64;
    ledger.mapped = ledger.mapped.saturating_add(table.bytes());
}

/// The object of a path below /dev.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    Container,
    Group(u32),
    Device(u32),
    Iommufd,
}

impl Node {
    fn at(path: &Path) -> Option<Self> {
        match path.to_str()? {
            "/dev/iommu" => Some(Self::Iommufd),
            "/dev/vfio/vfio" => Some(Self::Container),
            other => match other.strip_prefix("/dev/vfio/devices/vfio") {
                Some(number) => number.parse().ok().map(Self::Device),
                None => other.strip_prefix("/dev/vfio/")?.parse().ok().map(Self::Group),
            },
        }
    }
}
