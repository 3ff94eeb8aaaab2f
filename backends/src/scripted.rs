//! A door for this crate's unit tests: it knows one PC with a few devices, writes down every call, and fails on cue.
//!
//! The soft host is the better host; this one shows *which* calls were made, in which order, and lets each of them fail
//! in turn.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dmaspace_core::contract::AttachPlace;
use dmaspace_core::door::registrations::ProcessRegistrations;
use dmaspace_core::door::{Argument, Attached, Command, Door, Errno, Handle, HandleKind};
use dmaspace_core::{Access, HostMemory, PageSize};

use crate::registry::Registry;

/// The door.
#[derive(Debug, Default)]
pub(crate) struct Scripted {
    state: Mutex<State>,
    runs: ProcessRegistrations,
}

#[derive(Debug, Default)]
struct State {
    calls: Vec<String>,
    handles: u64,
    open: BTreeMap<u64, String>,
    groups_in_container: usize,
    /// An iommufd, which lets groups go whose devices are open.
    in_an_iommufd: bool,
    devices_of_group: usize,
    driver: Option<u64>,
    /// What these calls answer, instead of success.
    refusals: BTreeMap<String, Errno>,
    /// What calls say that should open something.
    opens_nothing: Option<Errno>,
    /// The call, counted from 0, that fails with `EIO`.
    failing: Option<usize>,
    /// What reads and writes of any region reach.
    registers: [[u8; 32]; 2],
}

impl Scripted {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Call `n` fails.
    pub(crate) fn failing_at(n: usize) -> Arc<Self> {
        let door = Self::default();
        door.state().failing = Some(n);
        Arc::new(door)
    }

    /// From now on calls written down as `call` are refused.
    pub(crate) fn refuse(&self, call: &str, errno: Errno) {
        self.state().refusals.insert(call.to_owned(), errno);
    }

    /// From now on no call opens anything.
    pub(crate) fn refuse_to_open(&self, errno: Errno) {
        self.state().opens_nothing = Some(errno);
    }

    /// What was called since it was last asked.
    pub(crate) fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.state().calls)
    }

    /// What is open, by name.
    pub(crate) fn open_names(&self) -> Vec<String> {
        self.state().open.values().cloned().collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn note(&mut self, call: String) -> Result<(), Errno> {
        let number = self.calls.len();
        let refusal = self.refusals.get(&call).copied();
        self.calls.push(call);
        match refusal {
            Some(errno) => Err(errno),
            None if self.failing == Some(number) => Err(Errno::EIO),
            None => Ok(()),
        }
    }

    fn keep(&mut self, name: String, kind: HandleKind) -> Handle {
        self.handles += 1;
        self.open.insert(self.handles, name);
        Handle::new(self.handles, kind)
    }

    fn answer(&mut self, command: &mut Command<'_>) -> Result<i32, Errno> {
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
}

fn joins_an_iommufd(attached: &Attached<'_>) -> bool {
    let Attached::Container(point) = attached else { return false };
    matches!(point.place(), AttachPlace::Container(handle) if handle.kind() == HandleKind::Iommufd)
}

/// Writes the low half of a little-endian field; the hosts of the unit tests are little-endian.
fn put(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

// SAFETY: no device is behind it.
#[expect(unsafe_code, reason = "UNSAFETY: a door without devices")]
unsafe impl Door for Scripted {
    fn open(&self, path: &Path, kind: HandleKind) -> Result<Handle, Errno> {
        let mut state = self.state();
        state.note(format!("open {}", path.display()))?;
        Ok(state.keep(path.display().to_string(), kind))
    }

    fn adopt(&self, _: OwnedFd, _: HandleKind) -> Result<Handle, Errno> {
        Err(Errno::EBADF)
    }

    fn ioctl(&self, on: Handle, command: &mut Command<'_>) -> Result<i32, Errno> {
        let mut state = self.state();
        assert!(state.open.contains_key(&on.id()), "{} on a closed handle", command.request.name);
        state.note(match command.argument {
            Argument::Value(value) => format!("{} {value}", command.request.name),
            _ => command.request.name.to_owned(),
        })?;
        state.answer(command)
    }

    fn ioctl_opening(&self, _: Handle, command: &mut Command<'_>, kind: HandleKind) -> Result<Handle, Errno> {
        let Argument::Bytes(name) = &command.argument else { return Err(Errno::EINVAL) };
        let name = String::from_utf8_lossy(name).trim_end_matches('\0').to_owned();
        let mut state = self.state();
        state.note(format!("{} {name}", command.request.name))?;
        if let Some(errno) = state.opens_nothing {
            return Err(errno);
        }
        if kind == HandleKind::Device {
            state.devices_of_group += 1;
        }
        Ok(state.keep(name, kind))
    }

    fn pread(&self, _: Handle, offset: u64, into: &mut [u8]) -> Result<usize, Errno> {
        let mut state = self.state();
        state.note(format!("pread {offset:#x}"))?;
        let at = (offset & 0xfff) as usize;
        let from = &state.registers.as_flattened()[at..];
        let moved = from.len().min(into.len());
        into[..moved].copy_from_slice(&from[..moved]);
        Ok(moved)
    }

    fn pwrite(&self, _: Handle, offset: u64, from: &[u8]) -> Result<usize, Errno> {
        let mut state = self.state();
        state.note(format!("pwrite {offset:#x} {from:x?}"))?;
        let at = (offset & 0xfff) as usize;
        state.registers.as_flattened_mut()[at..at + from.len()].copy_from_slice(from);
        Ok(from.len())
    }

    fn mmap(&self, _: Handle, offset: u64, len: NonZeroU64, access: Access) -> Result<HostMemory, Errno> {
        self.state().note(format!("mmap {len:#x} at {offset:#x} {access}"))?;
        HostMemory::unbacked(0x7000_0000, len).ok_or(Errno::EFAULT)
    }

    fn close(&self, handle: Handle) -> Result<(), Errno> {
        let mut state = self.state();
        let name = state.open.remove(&handle.id()).ok_or(Errno::EBADF)?;
        let _ = state.note(format!("close {name}"));
        if handle.kind() == HandleKind::Device && !name.starts_with('/') {
            state.devices_of_group -= 1;
        }
        Ok(())
    }

    fn host_page(&self) -> PageSize {
        PageSize::K4
    }

    fn runs(&self) -> &ProcessRegistrations {
        &self.runs
    }

    fn is_real(&self) -> bool {
        false
    }
}

/// A registry that writes its entries down among the calls of its door, and refuses like it.
#[derive(Debug)]
pub(crate) struct ScriptedRegistry(pub(crate) Arc<Scripted>);

impl Registry for ScriptedRegistry {
    fn add(&self, handle: Handle) -> Result<(), Errno> {
        let mut state = self.0.state();
        let name = state.open.get(&handle.id()).cloned().ok_or(Errno::EBADF)?;
        state.note(format!("register {name}"))?;
        state.open.insert(u64::MAX, "an entry".to_owned());
        Ok(())
    }

    fn remove(&self, handle: Handle) -> Result<(), Errno> {
        let mut state = self.0.state();
        state.open.remove(&u64::MAX);
        let name = state.open.get(&handle.id()).cloned().ok_or(Errno::EBADF)?;
        let _ = state.note(format!("unregister {name}"));
        Ok(())
    }
}
