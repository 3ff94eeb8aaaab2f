//! One PC with a few devices behind a scripted door, for this crate's unit tests: they see which calls are made, in
//! which order, and make each of them fail in turn.

use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;

use dmaspace_core::contract::AttachPlace;
use dmaspace_core::door::{Argument, Attached, Command, Errno, Handle, HandleKind};
use dmaspace_core::{HostAddress, HostMemory, PageSize};
use dmaspace_soft::{Script, ScriptedDoor};

use crate::registry::Registry;

/// The door of the tests.
pub(crate) type Scripted = ScriptedDoor<Pc>;

/// The kernel of a PC with one group.
#[derive(Debug, Default)]
pub(crate) struct Pc {
    groups_in_container: usize,
    /// `true` if the group has joined an iommufd, which lets a group leave whose devices are open.
    in_an_iommufd: bool,
    devices_of_group: usize,
    driver: Option<u64>,
    /// The errno of every ioctl that should open a descriptor.
    opens_nothing: Option<Errno>,
    /// The bytes that reads and writes of any region reach.
    registers: [[u8; 32]; 2],
}

pub(crate) fn door() -> Arc<Scripted> {
    ScriptedDoor::with_script(Pc::default(), PageSize::K4)
}

/// A door whose call `n` fails.
pub(crate) fn door_failing_at(n: usize) -> Arc<Scripted> {
    let door = door();
    door.fail_at(n);
    door
}

/// From now on no ioctl opens a descriptor.
pub(crate) fn refuse_to_open(door: &Scripted, errno: Errno) {
    door.change_script(|pc| pc.opens_nothing = Some(errno));
}

impl Script for Pc {
    fn ioctl(&mut self, _: Handle, command: &mut Command<'_>) -> Result<i32, Errno> {
        match (command.request.name, &mut command.argument) {
            ("VFIO_GROUP_GET_STATUS", Argument::Bytes(bytes)) => put(bytes, 4, 1),
            ("VFIO_GROUP_SET_CONTAINER", _) => {
                self.groups_in_container += 1;
                self.in_an_iommufd = command.attachments.iter().any(|attachment| joins_an_iommufd(&attachment.what));
            }
            ("VFIO_GROUP_UNSET_CONTAINER", _) if self.devices_of_group > 0 && !self.in_an_iommufd => {
                return Err(Errno::EBUSY);
            }
            ("VFIO_GROUP_UNSET_CONTAINER", _) if self.groups_in_container == 0 => return Err(Errno::EINVAL),
            ("VFIO_GROUP_UNSET_CONTAINER", _) => {
                self.groups_in_container -= 1;
                self.driver = self.driver.filter(|_| self.groups_in_container > 0);
            }
            ("VFIO_SET_IOMMU", Argument::Value(driver)) => self.driver = Some(*driver),
            ("VFIO_IOMMU_GET_INFO", _) if self.driver.is_none() => return Err(Errno::EINVAL),
            ("VFIO_IOMMU_GET_INFO", Argument::Bytes(bytes)) => {
                // Page sizes, 4K.
                put(bytes, 4, 1);
                put(bytes, 8, 0x1000);
            }
            ("IOMMU_IOAS_ALLOC", Argument::Bytes(bytes)) => put(bytes, 8, 5),
            ("IOMMU_IOAS_IOVA_RANGES", Argument::Bytes(bytes)) => {
                put(bytes, 8, 1);
                put(bytes, 24, 1);
                for attachment in command.attachments.iter_mut() {
                    if let Attached::Buffer(spans) = &mut attachment.what {
                        spans[..16].fill(0);
                        put(spans, 8, 0xffff_ffff);
                    }
                }
            }
            ("VFIO_DEVICE_GET_REGION_INFO", Argument::Bytes(bytes)) => {
                let index = bytes[8];
                // Readable, writable, mappable; 4 KiB at index << 40.
                put(bytes, 4, 7);
                put(bytes, 16, 0x1000);
                bytes[29] = index;
            }
            _ => {}
        }
        Ok(0)
    }

    fn open(&mut self, _: &Path) -> Result<(), Errno> {
        Ok(())
    }

    fn ioctl_opening(&mut self, _: &Command<'_>, kind: HandleKind) -> Result<(), Errno> {
        if let Some(errno) = self.opens_nothing {
            return Err(errno);
        }
        self.devices_of_group += usize::from(kind == HandleKind::Device);
        Ok(())
    }

    fn closed(&mut self, handle: Handle, name: &str) {
        self.devices_of_group -= usize::from(handle.kind() == HandleKind::Device && !name.starts_with('/'));
    }

    fn pread(&mut self, offset: u64, into: &mut [u8]) -> Result<usize, Errno> {
        let at = (offset & 0xfff) as usize;
        let from = &self.registers.as_flattened()[at..];
        let moved = from.len().min(into.len());
        into[..moved].copy_from_slice(&from[..moved]);
        Ok(moved)
    }

    fn pwrite(&mut self, offset: u64, from: &[u8]) -> Result<usize, Errno> {
        let at = (offset & 0xfff) as usize;
        self.registers.as_flattened_mut()[at..at + from.len()].copy_from_slice(from);
        Ok(from.len())
    }

    fn mmap(&mut self, len: NonZeroU64) -> Result<HostMemory, Errno> {
        HostMemory::unbacked(HostAddress::new(0x7000_0000), len).ok_or(Errno::EFAULT)
    }
}

fn joins_an_iommufd(attached: &Attached<'_>) -> bool {
    let Attached::Container(point) = attached else { return false };
    matches!(point.place(), AttachPlace::Container(handle) if handle.kind() == HandleKind::Iommufd)
}

/// Writes the low half of a little-endian field; the hosts of the unit tests are little-endian.
fn put(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// A registry that records its entries among the calls of its door, and fails as the door's calls do.
#[derive(Debug)]
pub(crate) struct ScriptedRegistry(pub(crate) Arc<Scripted>);

/// The name under which an entry of the registry counts as open.
const ENTRY: &str = "an entry";

impl Registry for ScriptedRegistry {
    fn add(&self, handle: Handle) -> Result<(), Errno> {
        let name = self.0.name_of(handle).ok_or(Errno::EBADF)?;
        self.0.record("register", format!("register {name}"))?;
        self.0.hold(ENTRY);
        Ok(())
    }

    fn remove(&self, handle: Handle) -> Result<(), Errno> {
        self.0.release(ENTRY);
        let name = self.0.name_of(handle).ok_or(Errno::EBADF)?;
        let _refusal = self.0.record("unregister", format!("unregister {name}"));
        Ok(())
    }
}
