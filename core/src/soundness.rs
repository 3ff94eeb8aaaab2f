//! The ways in which safe code could leave a device with DMA into memory that is gone, and that do not compile.
//!
//! Each of them compiled once, under `#![forbid(unsafe_code)]`; three were seen on a real kernel with the device's
//! bytes in a live allocation. Two ways are not of this kind: a hand-over whose space is dropped while a duplicate of
//! its container is open (the memory is kept:
//! `tests/tests/soundness.rs`), and an attach whose undo fails (the device stays one of the space's devices: the same
//! file).
//!
//! The examples share this setting, which compiles:
//!
//! ```
//! # use std::sync::Arc;
//! # use dmaspace_core::door::{HandleKind, OwnedHandle};
//! # use dmaspace_core::{HostMemory, PageSize, Space};
//! # use dmaspace_iommufd::Ioas;
//! # use dmaspace_soft::{Profile, SoftHost};
//! let door = SoftHost::new(Profile::vtd())?;
//! let iommufd = OwnedHandle::open(door.clone(), "/dev/iommu".as_ref(), HandleKind::Iommufd)?;
//! let space = Space::new(Ioas::new(iommufd)?)?;
//! let memory = HostMemory::zeroed(0x1000.try_into()?, PageSize::K4).ok_or("no memory")?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # A door's own ioctl
//! A call that maps memory takes a lease, not memory, and only a space makes leases:
//!
//! ```compile_fail,E0308
//! # use dmaspace_core::HostMemory;
//! # use dmaspace_core::door::{Attached, Attachment};
//! fn attach(memory: &HostMemory) {
//!     let _ = Attachment { offset: 8, what: Attached::Memory(memory) };
//! }
//! ```
//!
//! ```compile_fail,E0624
//! # use dmaspace_core::HostMemory;
//! # use dmaspace_core::door::Lease;
//! fn lease(memory: &HostMemory) -> Lease<'_> {
//!     Lease::kept_by_space(memory)
//! }
//! ```
//!
//! ```compile_fail,E0133
//! # use dmaspace_core::HostMemory;
//! # use dmaspace_core::door::Lease;
//! fn lease(memory: &HostMemory) -> Lease<'_> {
//!     Lease::kept_by_caller(memory)
//! }
//! ```
//!
//! # The verbs of a backend
//! They take a lease as well:
//!
//! ```compile_fail,E0308
//! # use dmaspace_core::{Access, Backend, HostMemory, IovaRange};
//! fn map(backend: &impl Backend, memory: &HostMemory) {
//!     let _ = backend.map(IovaRange::all(), memory, Access::READ_WRITE);
//! }
//! ```
//!
//! # A device type that reports a detach it does not make
//! The trait is unsafe to implement, and so are those of a door that reports unmaps it does not make, of a backend, and
//! of a kernel's writer:
//!
//! ```compile_fail,E0200
//! # use dmaspace_core::contract::{AttachPoint, Attachable};
//! # use dmaspace_core::door::Failure;
//! # use dmaspace_core::retry::Undone;
//! #[derive(Debug)]
//! struct Nothing;
//!
//! impl Attachable for Nothing {
//!     fn name(&self) -> String {
//!         String::new()
//!     }
//!     fn attach_to(&self, _: AttachPoint<'_>) -> Result<(), Failure> {
//!         Ok(())
//!     }
//!     fn detach_from(&self, _: AttachPoint<'_>) -> Result<Undone, Failure> {
//!         Ok(Undone::Done(()))
//!     }
//! }
//! ```
//!
//! # A second group, joined by its own verb
//! The verb takes an attach point, and only a space makes attach points:
//!
//! ```compile_fail,E0624
//! # use dmaspace_core::contract::{AttachPlace, AttachPoint, Attachable};
//! fn join(group: &dyn Attachable, place: AttachPlace) {
//!     let _ = group.attach_to(AttachPoint::of_space(place));
//! }
//! ```
//!
//! ```compile_fail,E0133
//! # use dmaspace_core::contract::{AttachPlace, AttachPoint, Attachable};
//! fn join(group: &dyn Attachable, place: AttachPlace) {
//!     let _ = group.attach_to(AttachPoint::beside_spaces(place));
//! }
//! ```
//!
//! # Two spaces on one container
//! A backend takes the handle by value:
//!
//! ```compile_fail,E0382
//! # use dmaspace_core::door::OwnedHandle;
//! # use dmaspace_iommufd::Ioas;
//! fn twice(iommufd: OwnedHandle) {
//!     let _ = (Ioas::new(iommufd), Ioas::new(iommufd));
//! }
//! ```
//!
//! ```compile_fail,E0599
//! # use dmaspace_core::door::OwnedHandle;
//! fn twice(container: OwnedHandle) -> [OwnedHandle; 2] {
//!     [container.clone(), container]
//! }
//! ```
//!
//! ```compile_fail,E0133
//! # use std::sync::Arc;
//! # use dmaspace_core::door::{Door, OwnedHandle};
//! fn again(door: Arc<dyn Door>, container: &OwnedHandle) -> OwnedHandle {
//!     OwnedHandle::claim(door, container.handle())
//! }
//! ```
//!
//! # A hand-over that is adopted with other memory
//!
//! ```compile_fail,E0133
//! # use dmaspace_core::PciAddressSpace;
//! # use dmaspace_core::contract::live_update::{Handover, NamedMemory};
//! fn adopt(space: &dyn PciAddressSpace, handover: &Handover, others: &NamedMemory) {
//!     let _ = space.powers().live_update.adopt(handover, others);
//! }
//! ```
//!
//! # A duplicate of a container's descriptor
//!
//! ```compile_fail,E0133
//! # use std::os::fd::OwnedFd;
//! # use std::sync::Arc;
//! # use dmaspace_core::door::{Door, HandleKind, OwnedHandle};
//! fn duplicate(door: Arc<dyn Door>, container: OwnedFd) {
//!     let _ = OwnedHandle::adopt(door, container, HandleKind::Container);
//! }
//! ```
//!
//! # A door around a door
//!
//! ```compile_fail,E0200
//! # use std::num::NonZeroU64;
//! # use std::os::fd::OwnedFd;
//! # use std::path::Path;
//! # use dmaspace_core::door::registrations::ProcessRegistrations;
//! # use dmaspace_core::door::{Command, Door, Errno, Handle, HandleKind};
//! # use dmaspace_core::{Access, HostMemory, PageSize};
//! #[derive(Debug)]
//! struct Liar<D>(D);
//!
//! impl<D: Door> Door for Liar<D> {
//!     fn ioctl(&self, _: Handle, _: &mut Command<'_>) -> Result<i32, Errno> {
//!         Ok(0)
//!     }
//! #   fn open(&self, path: &Path, kind: HandleKind) -> Result<Handle, Errno> { self.0.open(path, kind) }
//! #   fn adopt(&self, fd: OwnedFd, kind: HandleKind) -> Result<Handle, Errno> { self.0.adopt(fd, kind) }
//! #   fn ioctl_opening(&self, on: Handle, c: &mut Command<'_>, k: HandleKind) -> Result<Handle, Errno> {
//! #       self.0.ioctl_opening(on, c, k)
//! #   }
//! #   fn pread(&self, on: Handle, at: u64, into: &mut [u8]) -> Result<usize, Errno> { self.0.pread(on, at, into) }
//! #   fn pwrite(&self, on: Handle, at: u64, from: &[u8]) -> Result<usize, Errno> { self.0.pwrite(on, at, from) }
//! #   fn mmap(&self, on: Handle, at: u64, len: NonZeroU64, access: Access) -> Result<HostMemory, Errno> {
//! #       self.0.mmap(on, at, len, access)
//! #   }
//! #   fn close(&self, handle: Handle) -> Result<(), Errno> { self.0.close(handle) }
//! #   fn host_page(&self) -> PageSize { self.0.host_page() }
//! #   fn runs(&self) -> &ProcessRegistrations { self.0.runs() }
//! #   fn is_real(&self) -> bool { self.0.is_real() }
//! }
//! ```
