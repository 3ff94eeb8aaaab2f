//! Memory that a real kernel maps by its file: RAM of a memfd, and a BAR that its device exported.

use dmaspace_core::contract::MapRequest;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use dmaspace::OpenError;
use dmaspace::choose::OpenRequest;
use dmaspace::device::Device;
use dmaspace::open::{Host, Opened};
use dmaspace::pci::PciAddress;
use dmaspace_core::{Access, HostMemory, Iova, IovaRange, MemoryFile};
use dmaspace_listener::Update;
use dmaspace_listener::{FrontEnd, Listener, Section};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use crate::device::TestDevice;
use crate::edu::Edu;
use crate::ram::Ram;

const MIB: u64 = 1 << 20;
const RW: Access = Access::READ_WRITE;

/// The offset of the memory under test in its file.
const OFFSET: u64 = MIB;

/// A MiB of this process that claims to be a file's. It is not, so the bytes that a device reaches show whether the
/// kernel used the file or the address.
pub(crate) fn impostor() -> (Arc<File>, HostMemory) {
    let file = Arc::new(File::from(memfd_create("guest", MemfdFlags::CLOEXEC).expect("a file for memory")));
    ftruncate(&file, 2 * MIB).expect("the file grows");
    let known = MemoryFile::new(file.clone()).expect("a memfd is of memory");
    (file, Ram::new(1 << 20).all().clone().in_file(known, OFFSET))
}

/// A device reads and writes the bytes of the file, not those at the address.
///
/// # Errors
/// What opening says.
pub fn devices_reach_the_file(host: &Host, device: PciAddress) -> Result<(), OpenError> {
    reaches_the_file(host.open(&OpenRequest::device(device).with_backend(dmaspace::BackendKind::Iommufd))?);
    Ok(())
}

/// Devices of a pool reach the file, which is mapped in the pool and copied from there.
///
/// # Errors
/// What opening says.
pub fn devices_of_a_pool_reach_the_file(host: &Host, device: PciAddress) -> Result<(), OpenError> {
    reaches_the_file(host.open_in(&host.open_pool()?, &OpenRequest::device(device))?);
    Ok(())
}

fn reaches_the_file(mut opened: Opened) {
    let (file, memory) = impostor();
    let mut device = Edu::new(opened.devices.remove(0));
    let mut listener = Listener::new(FrontEnd::default());
    listener.attach(opened.space.space().clone()).expect("an empty view fits");
    let ram = Section::ram("pc.ram", Iova::new(0), memory.clone(), RW).expect("a proper range");
    listener.commit(Update::new().adding(ram)).expect("it fits");

    file.write_all_at(b"from the file", OFFSET + 0x5010).expect("inside");
    device.load(Iova::new(0x5010), 13);
    device.store(Iova::new(0x8_0020), 13);
    let mut found = [0; 13];
    file.read_exact_at(&mut found, OFFSET + 0x8_0020).expect("inside");
    assert_eq!(&found, b"from the file");
    memory.read(0x8_0020, &mut found).expect("inside");
    assert_eq!(found, [0; 13], "it was mapped by its address");
}

/// The register in which `edu` keeps the address of its next transfer: a register of eight bytes that can be read back.
const SOURCE: u64 = 0x80;

fn source_of(device: &Device) -> u64 {
    let registers = device.region(0).expect("the device has a BAR");
    let mut bytes = [0; 8];
    device.read(&registers, SOURCE, &mut bytes).expect("the BAR can be read");
    u64::from_le_bytes(bytes)
}

/// One device writes into a register of the other, and reads it, through a BAR that was exported.
///
/// # Errors
/// What opening says.
pub fn a_device_reaches_the_bar_of_another(host: &Host, devices: [PciAddress; 2]) -> Result<(), OpenError> {
    let mut opened =
        host.open(&OpenRequest::devices(devices.iter().copied()).with_backend(dmaspace::BackendKind::Iommufd))?;
    let space = opened.space.space().clone();
    let mut device = Edu::new(opened.devices.remove(0));
    let peer = opened.devices.remove(0);
    peer.enable().expect("its memory can be enabled");
    let bar = peer.region(0).expect("it has a BAR");
    let memory = peer.map_exported(&bar, bar.mappable[0]).expect("all of it is memory");
    assert!(memory.file().is_some(), "this kernel exports BARs");

    let (at, ram) = (Iova::new(0x8000_0000), Ram::new(1 << 16));
    let size = memory.len().get();
    space.map(MapRequest::new(Iova::new(0), &ram.slice(0, 0x1_0000), RW)).expect("RAM");
    space.map(MapRequest::new(at, &memory, RW)).expect("the BAR, as the file it was exported as");
    let register = Iova::new(at.get() + SOURCE);

    let word = 0x0123_4567_89ab_cdef_u64;
    assert_ne!(source_of(&peer), word);
    ram.all().write(0x100, &word.to_le_bytes()).expect("inside");
    device.load(Iova::new(0x100), 8);
    device.store(register, 8);
    assert_eq!(source_of(&peer), word, "the peer's register was written");

    ram.all().write(0x100, &[0; 8]).expect("inside");
    device.load(register, 8);
    device.store(Iova::new(0x200), 8);
    let mut found = [0; 8];
    ram.all().read(0x200, &mut found).expect("inside");
    assert_eq!(u64::from_le_bytes(found), word, "the peer's register was read");

    // The kernel revokes the exported memory; the mapping can still be unmapped, and made anew.
    let range = IovaRange::with_len(at, size).expect("a proper range");
    let config = peer.region(7).expect("it has a configuration space");
    peer.write(&config, 4, &[0, 0]).expect("its memory can be disabled");
    assert!(space.map(MapRequest::new(Iova::new(at.get() + size), &memory, RW)).is_err(), "there is nothing to map");
    assert_eq!(space.unmap(range).expect("it is there"), size);
    peer.enable().expect("its memory can be enabled");
    space.map(MapRequest::new(at, &memory, RW)).expect("the same file");
    device.load(register, 8);
    assert_eq!(space.unmap(range).expect("it is there"), size);
    Ok(())
}
