//! One VMM makes way for another on a real kernel, with a device at work: first a process that was spawned gets the
//! descriptors through a socket, then that one replaces itself with exec(2).
//!
//! The successor is this program again, which [`is_successor`] tells. Its standard input is a socket with the
//! hand-over.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;

use crate::owned::adopt;
use dmaspace::choose::{BackendKind, OpenRequest};
use dmaspace::device::Device;
use dmaspace::facts::Facts;
use dmaspace::linux::LinuxDoor;
use dmaspace::open::Host;
use dmaspace::pci::PciAddress;
use dmaspace_core::contract::live_update::{Handover, NamedMemory};
use dmaspace_core::door::{Door as _, Handle, HandleKind};
use dmaspace_core::error::Kind;
use dmaspace_core::{Access, HostMemory, Iova, IovaRange, PageSize, PciAddressSpace};
use dmaspace_listener::Update;
use dmaspace_listener::{FrontEnd, Listener, Section};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap};

use crate::device::TestDevice;
use crate::edu::Edu;
use crate::ledger::{OfThisProcess, have_locked_memory_counted};
use crate::limits::LockLimit;
use crate::ram::{SPOT, pattern};

const MIB: u64 = 1 << 20;
const K64: u64 = 0x1_0000;
/// The mapped bytes of the guest's memory: RAM, ROM, two populated blocks. Another device's memory is not charged.
const LOCKED: u64 = MIB + K64 + 2 * K64;
const BLOCKS_AT: u64 = 4 * MIB;
const BAR_AT: u64 = 16 * MIB;

/// In the environment of a process that takes over: `first` or `last`.
const SUCCESSOR: &str = "DMASPACE_TESTS_SUCCESSOR";

/// The message in the socket: the names of device and group, and the hand-over. The descriptors are sent with it:
/// container, group, device, memory.
type HandoverMessage = (String, String, Handover);

/// Returns whether this process must take over from another.
pub fn is_successor() -> bool {
    std::env::var_os(SUCCESSOR).is_some()
}

/// A VMM with a guest of some memory, and a device that is passed through to it.
struct Vmm {
    door: Arc<LinuxDoor>,
    memory: HostMemory,
    file: File,
    listener: Listener,
    device: Option<Edu>,
    handles: [Handle; 3],
    names: [String; 2],
    bar: HostMemory,
    space: Arc<dyn PciAddressSpace>,
    /// The other open descriptors.
    _opened: dmaspace::open::OpenSpace,
}

/// Plays the old VMM, and sees that its successors did well and that it is charged for nothing any more.
///
/// # Panics
/// When anything is not as it should be.
pub fn a_vmm_makes_way_for_another(address: PciAddress) {
    let locked = OfThisProcess.locked().locked;
    let mut vmm = Vmm::start(address);
    assert_eq!(OfThisProcess.locked().locked, locked + LOCKED);
    vmm.transfer(1);
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let mut successor = Command::new("/proc/self/exe");
    let successor = successor.env(SUCCESSOR, "first").stdin(Stdio::from(OwnedFd::from(theirs)));
    let mut successor = successor.spawn().expect("this program starts again");
    vmm.hand_over(&ours);
    drop(vmm);
    assert!(successor.wait().expect("it ends").success(), "the successor failed; its reason is above");
    assert_eq!(OfThisProcess.locked().locked, locked, "the successor is charged, and no process after it");
}

/// Plays a VMM that takes over. The first makes way once more.
///
/// # Panics
/// When anything is not as it should be.
pub fn take_over() {
    have_locked_memory_counted();
    let (message, descriptors) = receive(std::io::stdin().as_fd());
    assert_eq!(OfThisProcess.locked().locked, 0);
    let mut vmm = Vmm::inherit(message, descriptors);
    assert_eq!(OfThisProcess.locked().locked, LOCKED);
    vmm.transfer(3);
    if std::env::var(SUCCESSOR).as_deref() == Ok("first") {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        vmm.hand_over(&ours);
        rustix::stdio::dup2_stdin(&theirs).expect("standard input can be another");
        let error = Command::new("/proc/self/exe").env(SUCCESSOR, "last").exec();
        panic!("this program does not start again: {error}");
    }
    let rom = vmm.listener.sections().find(|section| section.name() == "rom").cloned().expect("it is in force");
    vmm.listener.commit(Update::new().removing(rom)).expect("it goes");
    assert_eq!(OfThisProcess.locked().locked, LOCKED - K64);
    drop(vmm);
    assert_eq!(OfThisProcess.locked().locked, 0);
}

impl Vmm {
    fn start(address: PciAddress) -> Self {
        let door = Arc::new(LinuxDoor::new());
        let facts = Facts::of_this_host(&*door).expect("sysfs is mounted");
        let host = Host::new(door.clone(), facts);
        let mut opened =
            host.open(&OpenRequest::device(address).with_backend(BackendKind::Type1)).expect("the host has it");
        let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).expect("a file for memory"));
        ftruncate(&file, 4 * MIB).expect("the file grows");
        let device = opened.devices.remove(0);
        let group = &opened.space.groups()[0];
        let handles = [opened.space.handle().expect("a container"), group.handle(), device.handle()];
        let names = [device.name().to_owned(), dmaspace_core::contract::Attachable::name(&**group)];
        let memory = map(&file);
        let bar = bar_of(&device);
        let mut listener = Listener::new(FrontEnd::default());
        listener.attach(opened.space.space().clone()).expect("nothing is in force");
        set_up(&mut listener, &memory, &bar);
        let space = opened.space.space().clone();
        assert!(space.lookup(Iova::new(BAR_AT)).is_some(), "the BAR is mapped");
        let device = Some(Edu::new(device));
        Self { door, memory, file, listener, device, handles, names, bar, space, _opened: opened.space }
    }

    /// Asserts that the device reads and writes this process's memory.
    fn transfer(&mut self, seed: u64) {
        let device = self.device.as_mut().expect("it is there");
        check_transfer(device, &self.memory, seed);
    }

    /// Hands over, and sends the description and the descriptors.
    fn hand_over(&mut self, socket: &UnixStream) {
        // Without a successor all goes on.
        let names = named(&self.memory, &self.bar);
        self.listener.hand_over(&names).expect("type1 moves addresses");
        let refused = self.space.unmap(IovaRange::all()).expect_err("it is another's");
        assert_eq!(refused.kind(), Kind::HandedOver);
        self.listener.take_back().expect("no successor has adopted it");
        self.transfer(2);

        let handover = self.listener.hand_over(&names).expect("type1 moves addresses").remove(0);
        let [device, group] = self.names.clone();
        let message: HandoverMessage = (device, group, handover);
        let text = serde_json::to_vec(&message).expect("it can be written");
        let lent = self.handles.map(|handle| self.door.descriptor(handle).expect("it is open"));
        let [container, group, device] = lent.each_ref().map(|descriptor| descriptor.as_fd());
        send(socket, &text, &[container, group, device, self.file.as_fd()]);
    }

    fn inherit((name, group, handover): HandoverMessage, descriptors: Vec<OwnedFd>) -> Self {
        let door = Arc::new(LinuxDoor::new());
        let facts = Facts::of_this_host(&*door).expect("sysfs is mounted");
        let host = Host::new(door.clone(), facts);
        let Ok([container, member, device, file]) = <[OwnedFd; 4]>::try_from(descriptors) else {
            panic!("four descriptors were sent");
        };
        let adopt = |descriptor, kind| crate::owned::adopted(door.clone(), descriptor, kind);
        let (container, member) = (adopt(container, HandleKind::Container), adopt(member, HandleKind::Group));
        let device = adopt(device, HandleKind::Device);
        let handles = [container.handle(), member.handle(), device.handle()];
        let file = File::from(file);
        let memory = map(&file);
        let groups = vec![(group.clone(), member)];
        let opened = host.inherit(BackendKind::Type1, container, groups).expect("it was handed over");
        let member = opened.groups()[0].clone();
        let device = opened.inherit_device(&member, device, &name);
        let bar = bar_of(&device);
        let space = opened.space().clone();
        let mut device = Edu::new(device);
        // Nothing is adopted yet, and the device goes on.
        check_transfer(&mut device, &memory, 4);
        adopt_in_the_end(&space, &handover, &memory, &bar);
        let mut listener = Listener::new(FrontEnd::default());
        set_up(&mut listener, &memory, &bar);
        let report = listener.attach(space.clone()).expect("all of it is there");
        assert_eq!((report.spaces[0].pinned, report.spaces[0].disturbed), (0, 0));
        assert_eq!(listener.audit(), []);
        let names = [name, group];
        Self { door, memory, file, listener, device: Some(device), handles, names, bar, space, _opened: opened }
    }
}

/// Adopts, after attempts that must fail and leave everything to be adopted.
fn adopt_in_the_end(space: &Arc<dyn PciAddressSpace>, handover: &Handover, memory: &HostMemory, bar: &HostMemory) {
    let fails = |handover: &Handover, names: &NamedMemory| {
        adopt(&**space, handover, names).expect_err("it is not as it was").kind().clone()
    };
    let names = named(memory, bar);
    assert!(matches!(fails(handover, &NamedMemory::new().with("bar", bar.clone())), Kind::NoMemory(_)));
    // The kernel has the two blocks as two mappings of 64 KiB.
    let mut joined = handover.clone();
    let blocks = joined.mappings.iter_mut().find(|mapping| mapping.range.first() == Iova::new(BLOCKS_AT));
    blocks.expect("they are populated").unit = dmaspace_core::contract::Unit::Whole;
    assert_eq!(fails(&joined, &names), Kind::NoSuchMapping);
    // Mappings before the one that failed are charged here already; the blocks are not.
    let lock_limit = OfThisProcess;
    lock_limit.limit(K64);
    assert!(matches!(fails(handover, &names), Kind::PinLimit(_)));
    drop(lock_limit);
    adopt(&**space, handover, &names).expect("it is as it was");
}

/// The guest's bus, the same in both processes.
fn set_up(listener: &mut Listener, memory: &HostMemory, bar: &HostMemory) {
    let part = |offset, len| memory.slice(offset, len).expect("inside the memory");
    let (ram, rom, dimm) = (part(0, MIB), part(MIB, K64), part(2 * MIB, MIB));
    let at = Iova::new;
    let sections = [
        Section::ram("ram", at(0), ram, Access::READ_WRITE),
        Section::ram("rom", at(2 * MIB), rom, Access::READ),
        Section::discardable("virtio-mem", at(BLOCKS_AT), dimm, Access::READ_WRITE, PageSize::K64),
        Section::device_memory("bar", at(BAR_AT), bar.clone(), Access::READ_WRITE),
    ];
    let sections = sections.map(|section| section.expect("a section of the test"));
    listener.commit(sections.into_iter().fold(Update::new(), Update::adding)).expect("the host maps it");
    let blocks = IovaRange::with_len(at(BLOCKS_AT), 2 * K64).expect("a range of the test");
    listener.discardable(at(BLOCKS_AT)).expect("in force").populate(blocks).expect("the host maps it");
}

fn named(memory: &HostMemory, bar: &HostMemory) -> NamedMemory {
    NamedMemory::new().with("guest", memory.clone()).with("bar", bar.clone())
}

fn map(file: &File) -> HostMemory {
    let file = FileOffset::new(file.try_clone().expect("one more descriptor"), 0);
    let size = usize::try_from(4 * MIB).expect("small");
    let region = GuestRegionMmap::<()>::from_range(GuestAddress(0), size, Some(file)).expect("memory for the test");
    HostMemory::of_region(&region).expect("not empty")
}

fn bar_of(device: &Device) -> HostMemory {
    let region = device.region(0).expect("the device has a BAR");
    let area = *region.mappable.first().expect("it can be mapped");
    device.map(&region, area).expect("it can be mapped").device_memory()
}

/// The device reads RAM and writes it elsewhere, and into a block.
fn check_transfer(device: &mut Edu, memory: &HostMemory, seed: u64) {
    let sent = pattern(seed);
    memory.write(0, &sent).expect("inside the memory");
    device.load(Iova::new(0), SPOT);
    for (at, offset) in [(0x8_0000, 0x8_0000), (BLOCKS_AT + K64, 2 * MIB + K64)] {
        memory.write(offset, &[0; SPOT]).expect("inside the memory");
        device.store(Iova::new(at), SPOT);
        let mut found = [0; SPOT];
        memory.read(offset, &mut found).expect("inside the memory");
        assert_eq!(found, sent, "the bytes that the device wrote at {at:#x} are not in this process's memory");
    }
}

fn send(socket: &UnixStream, text: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = SendAncillaryBuffer::new(&mut room);
    assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)), "there is room for four");
    let sent = sendmsg(socket, &[IoSlice::new(text)], &mut control, SendFlags::empty()).expect("the socket takes it");
    assert_eq!(sent, text.len());
}

fn receive(socket: BorrowedFd<'_>) -> (HandoverMessage, Vec<OwnedFd>) {
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut room);
    let mut text = vec![0; 0x1_0000];
    let mut parts = [IoSliceMut::new(&mut text)];
    let received = recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).expect("something was sent");
    let message = serde_json::from_slice(&text[..received.bytes]).expect("a message");
    let descriptors = control.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    (message, descriptors.collect())
}
