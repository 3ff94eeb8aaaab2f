//! The Linux door: kernel calls for real.
//!
//! All of the façade's unsafe code is in this file, but for KVM's calls on POWER. A table (src/commands.rs) decides which commands are made at all and that their
//! arguments are shaped so that the kernel stays inside the bytes it is given; here addresses and descriptors are filled in, the call
//! is made, and they are taken out again, so that no caller ever holds an address it could use elsewhere.
//!
//! What the door does *not* keep is memory: a mapping outlives the call that made it, and whoever makes the call through the door
//! directly has to hold the [`HostMemory`] until the mapping is gone. [`dmaspace_core::Space`] does, for all who use it.
#![expect(unsafe_code, reason = "UNSAFETY: the one place that makes system calls std has no safe form of")]

use std::ffi::c_void;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::num::{NonZeroU64, NonZeroUsize};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicPtr;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use dmaspace_core::contract::AttachPlace;
use dmaspace_core::door::registrations::ProcessRegistrations;
use dmaspace_core::door::{Argument, Attached, Attachment, Command, Door, Errno, Handle, HandleKind};
use dmaspace_core::words::locked::LockedMemory;
use dmaspace_core::{Access, HostMemory, PageSize};

use crate::commands;
use crate::facts::locked_memory;

/// The door to the kernel this process runs on.
///
/// It owns the descriptors behind its handles and closes what is left when it is dropped. Calls from several threads do not wait for
/// one another; a handle closed during another thread's call is closed when that call returns.
#[derive(Default)]
pub struct LinuxDoor {
    /// By handle number. Numbers are never used again, so this only grows: by a few bytes for every handle ever opened.
    open: RwLock<Vec<Option<Open>>>,
    runs: ProcessRegistrations,
}

/// An open descriptor.
#[derive(Clone)]
struct Open {
    kind: HandleKind,
    file: Arc<File>,
}

impl LinuxDoor {
    /// A door with nothing open.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lends the descriptor behind `handle`: for KVM, for interrupts, for whatever else a VMM does with its devices.
    ///
    /// It stays open until `borrow` returns, whoever closes the handle meanwhile.
    ///
    /// # Errors
    /// `EBADF` when the handle is not open.
    pub fn with_descriptor<T>(&self, handle: Handle, borrow: impl FnOnce(BorrowedFd<'_>) -> T) -> Result<T, Errno> {
        let file = self.file(handle)?;
        Ok(borrow(file.as_fd()))
    }

    fn table(&self) -> RwLockReadGuard<'_, Vec<Option<Open>>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn table_mut(&self) -> RwLockWriteGuard<'_, Vec<Option<Open>>> {
        self.open.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, file: File, kind: HandleKind) -> Handle {
        let mut table = self.table_mut();
        let handle = Handle::new(table.len() as u64, kind);
        table.push(Some(Open { kind, file: Arc::new(file) }));
        handle
    }

    /// The file behind a handle. Anyone can spell a handle, so its kind is believed only if it is the one the door gave it: the
    /// kind decides which commands are made.
    #[inline]
    fn file(&self, handle: Handle) -> Result<Arc<File>, Errno> {
        let index = usize::try_from(handle.id()).map_err(|_| Errno::EBADF)?;
        let table = self.table();
        let open = table.get(index).and_then(Option::as_ref).filter(|open| open.kind == handle.kind());
        open.map(|open| open.file.clone()).ok_or(Errno::EBADF)
    }

    /// Makes a command whose result is `opens`.
    fn make(&self, on: Handle, command: &mut Command<'_>, opens: Option<HandleKind>) -> Result<i32, Errno> {
        let file = self.file(on)?;
        let rule = commands::judge(on.kind(), command)?;
        // A descriptor must not get lost as a number, nor a number become a descriptor.
        if rule.opens() != opens {
            return Err(Errno::EINVAL);
        }
        let number = command.request.number;
        match (&mut command.argument, &mut *command.attachments) {
            (Argument::None, _) => ioctl(&file, number, ptr::null_mut()),
            // Passed in the register a pointer would be in.
            (Argument::Value(value), _) => {
                ioctl(&file, number, ptr::without_provenance_mut(usize::try_from(*value).map_err(|_| Errno::EINVAL)?))
            }
            (Argument::Bytes(bytes), [Attachment { offset, what }]) => {
                self.make_filled(&file, number, bytes, *offset, what)
            }
            (Argument::Bytes(bytes), _) => ioctl(&file, number, bytes.as_mut_ptr().cast()),
        }
    }

    /// Makes a command with what is attached in its place, and takes it out again.
    #[inline(always)]
    fn make_filled(
        &self,
        file: &File,
        number: u32,
        bytes: &mut [u8],
        at: usize,
        what: &mut Attached<'_>,
    ) -> Result<i32, Errno> {
        match what {
            Attached::Memory(memory) => {
                filled(bytes, at, memory.address().to_ne_bytes(), |argument| ioctl(file, number, argument))
            }
            Attached::Buffer(buffer) => {
                let address = buffer.as_mut_ptr().expose_provenance() as u64;
                filled(bytes, at, address.to_ne_bytes(), |argument| ioctl(file, number, argument))
            }
            Attached::Handle(handle) => {
                // Held open for the time of the call.
                let lent = self.file(*handle)?;
                filled(bytes, at, lent.as_raw_fd().to_ne_bytes(), |argument| ioctl(file, number, argument))
            }
            Attached::Container(point) => {
                let AttachPlace::Container(container) = point.place() else { return Err(Errno::EINVAL) };
                let lent = self.file(container)?;
                filled(bytes, at, lent.as_raw_fd().to_ne_bytes(), |argument| ioctl(file, number, argument))
            }
            // The caller fills in the field.
            Attached::Copied(_) => ioctl(file, number, bytes.as_mut_ptr().cast()),
            Attached::FileOf(memory) => {
                let (behind, _) = memory.file().ok_or(Errno::EBADF)?;
                let lent = behind.handle().map(|handle| self.file(handle)).transpose()?;
                let descriptor = lent.as_ref().map(|lent| lent.as_fd()).or(behind.descriptor()).ok_or(Errno::EBADF)?;
                filled(bytes, at, descriptor.as_raw_fd().to_ne_bytes(), |argument| ioctl(file, number, argument))
            }
        }
    }
}

/// Calls with `field` in its place, and puts zeros there afterwards.
#[inline]
fn filled<const N: usize>(
    bytes: &mut [u8],
    at: usize,
    field: [u8; N],
    call: impl FnOnce(*mut c_void) -> Result<i32, Errno>,
) -> Result<i32, Errno> {
    put(bytes, at, field)?;
    let result = call(bytes.as_mut_ptr().cast());
    put(bytes, at, [0; N])?;
    result
}

#[inline]
fn put<const N: usize>(bytes: &mut [u8], at: usize, field: [u8; N]) -> Result<(), Errno> {
    let place = bytes.get_mut(at..).and_then(|from| from.first_chunk_mut());
    place.map(|place| *place = field).ok_or(Errno::EINVAL)
}

/// The page this process's memory is made of.
pub(crate) fn host_page() -> PageSize {
    // SAFETY: takes a number and touches no memory.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(bytes).ok().and_then(PageSize::from_bytes).unwrap_or(PageSize::K4)
}

/// Makes the call. Only [`LinuxDoor::make`] may, with a command that was judged and filled.
#[inline]
fn ioctl(file: &File, number: u32, argument: *mut c_void) -> Result<i32, Errno> {
    // SAFETY: the command passed `commands::judge`. Its argument is nothing, a number, a string with its NUL, or a struct of which the
    // kernel touches no more than the bytes there, borrowed for the call; every pointer in it is the address of a buffer of at least
    // the length the struct claims, borrowed likewise, or of memory whose owner vouched for it; descriptors are held open.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), number as libc::Ioctl, argument) };
    if result < 0 { Err(last_error()) } else { Ok(result) }
}

#[cold]
fn last_error() -> Errno {
    io::Error::last_os_error().into()
}

/// An mmap, undone when the last holder lets go.
struct Mapped {
    /// Only ever read; atomic because a raw pointer could not be shared between threads.
    base: AtomicPtr<c_void>,
    len: NonZeroUsize,
}

impl Mapped {
    fn new(file: &File, offset: u64, len: NonZeroUsize, access: Access) -> Result<Self, Errno> {
        let offset = libc::off_t::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
        let protection = protection(access);
        // SAFETY: with a null hint and without MAP_FIXED the kernel picks addresses nothing else uses.
        let base =
            unsafe { libc::mmap(ptr::null_mut(), len.get(), protection, libc::MAP_SHARED, file.as_raw_fd(), offset) };
        if base == libc::MAP_FAILED { Err(last_error()) } else { Ok(Self { base: AtomicPtr::new(base), len }) }
    }

    /// The mapping as memory that keeps it.
    fn into_memory(mut self) -> Option<HostMemory> {
        let base = NonNull::new(self.base.get_mut().cast::<u8>())?;
        let len = self.len;
        // SAFETY: the span is `self`'s mapping, which lasts until `self` is dropped, and nothing else knows its address.
        unsafe { HostMemory::held_by(base, len, Arc::new(self)) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let base = *self.base.get_mut();
        // SAFETY: the span is the mapping made in `new`. Pointers into it are only in `HostMemory`s that hold `self`: none is left.
        let result = unsafe { libc::munmap(base, self.len.get()) };
        if result != 0 {
            log::error!("munmap of {:#x} bytes at {base:p}: {}", self.len, last_error());
        }
    }
}

fn protection(access: Access) -> libc::c_int {
    let read = if access.contains(Access::READ) { libc::PROT_READ } else { 0 };
    let write = if access.contains(Access::WRITE) { libc::PROT_WRITE } else { 0 };
    read | write
}

// SAFETY: each command goes to this process's kernel as it is, and its answer is returned; numbers are places in a list that only grows;
// `commands::judge` refuses memory that is not there, and what makes memory or devices known without a lease or an attach point.
unsafe impl Door for LinuxDoor {
    fn open(&self, path: &Path, kind: HandleKind) -> Result<Handle, Errno> {
        // std adds O_CLOEXEC to everything it opens.
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(self.keep(file, kind))
    }

    fn adopt(&self, descriptor: OwnedFd, kind: HandleKind) -> Result<Handle, Errno> {
        Ok(self.keep(File::from(descriptor), kind))
    }

    fn ioctl(&self, on: Handle, command: &mut Command<'_>) -> Result<i32, Errno> {
        self.make(on, command, None)
    }

    fn ioctl_opening(&self, on: Handle, command: &mut Command<'_>, kind: HandleKind) -> Result<Handle, Errno> {
        let descriptor = self.make(on, command, Some(kind))?;
        // SAFETY: the kernel just made this descriptor for us (the rule says that its result is one), so nobody else owns it.
        let file = unsafe { File::from_raw_fd(descriptor) };
        Ok(self.keep(file, kind))
    }

    fn pread(&self, on: Handle, offset: u64, into: &mut [u8]) -> Result<usize, Errno> {
        Ok(self.file(on)?.read_at(into, offset)?)
    }

    fn pwrite(&self, on: Handle, offset: u64, from: &[u8]) -> Result<usize, Errno> {
        Ok(self.file(on)?.write_at(from, offset)?)
    }

    /// What is mapped of a device is [`HostMemory::device_memory`].
    ///
    /// The kernel keeps a device open for as long as a part of it is mapped, whether its handle is closed or not. Reading a BAR
    /// while the device's memory is disabled gives all ones or a SIGBUS, depending on the kernel.
    fn mmap(&self, on: Handle, offset: u64, len: NonZeroU64, access: Access) -> Result<HostMemory, Errno> {
        // Memory that cannot even be read is none.
        if access.is_empty() {
            return Err(Errno::EINVAL);
        }
        let len = NonZeroUsize::try_from(len).map_err(|_| Errno::EOVERFLOW)?;
        let mapped = Mapped::new(&*self.file(on)?, offset, len, access)?;
        let memory = mapped.into_memory().ok_or(Errno::EFAULT)?;
        let memory = if access.contains(Access::WRITE) { memory } else { memory.host_read_only() };
        Ok(if on.kind() == HandleKind::Device { memory.device_memory() } else { memory })
    }

    fn close(&self, handle: Handle) -> Result<(), Errno> {
        self.file(handle)?;
        let index = usize::try_from(handle.id()).map_err(|_| Errno::EBADF)?;
        let closed = self.table_mut().get_mut(index).and_then(Option::take);
        // Dropped here, when the lock is free again: closing a device resets it, which can take seconds.
        closed.map(drop).ok_or(Errno::EBADF)
    }

    fn host_page(&self) -> PageSize {
        host_page()
    }

    fn locked_memory(&self) -> Option<LockedMemory> {
        locked_memory()
    }

    fn runs(&self) -> &ProcessRegistrations {
        &self.runs
    }

    fn is_real(&self) -> bool {
        true
    }
}

impl fmt::Debug for LinuxDoor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let open = self.table().iter().flatten().count();
        write!(f, "LinuxDoor({open} open)")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use dmaspace_abi::iommufd::{IOAS_MAP_FILE, IoasMapFile};
    use dmaspace_abi::vfio;
    use dmaspace_core::contract::AttachPoint;
    use dmaspace_core::door::Lease;
    use zerocopy::IntoBytes;

    use super::*;

    const NULL: &str = "/dev/null";

    /// `len` bytes of memory that is there.
    pub(crate) fn anonymous_memory(len: u64) -> HostMemory {
        let door = LinuxDoor::new();
        let file = door.adopt(file_of(len).into(), HandleKind::Container).expect("adopting cannot fail");
        door.mmap(file, 0, NonZeroU64::new(len).expect("not empty"), Access::READ_WRITE).expect("a file can be mapped")
    }

    /// A lease for commands that are judged and not made.
    pub(crate) fn lease(memory: &HostMemory) -> Lease<'_> {
        // SAFETY: nothing is mapped.
        unsafe { Lease::kept_by_caller(memory) }
    }

    /// A point for commands that reach no kernel, or a file that is no VFIO descriptor.
    pub(crate) fn point(container: Handle) -> AttachPoint<'static> {
        // SAFETY: nothing is attached.
        unsafe { AttachPoint::beside_spaces(AttachPlace::Container(container)) }
    }

    fn file_of(len: u64) -> File {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(b"dma").expect("written");
        file.set_len(len).expect("made longer");
        file
    }

    fn door_with_null(kind: HandleKind) -> (LinuxDoor, Handle) {
        let door = LinuxDoor::new();
        let handle = door.open(Path::new(NULL), kind).expect("everybody may open it");
        (door, handle)
    }

    #[test]
    fn a_missing_node_says_so() {
        let door = LinuxDoor::new();
        assert_eq!(door.open(Path::new("/dev/vfio/none"), HandleKind::Group), Err(Errno::ENOENT));
        assert_eq!(format!("{door:?}"), "LinuxDoor(0 open)");
    }

    #[test]
    fn a_number_is_never_used_again() {
        let (door, first) = door_with_null(HandleKind::Group);
        door.close(first).expect("it is open");
        let second = door.open(Path::new(NULL), HandleKind::Group).expect("opens again");
        assert_ne!(first.id(), second.id());
        assert_eq!(door.close(first), Err(Errno::EBADF));
        assert_eq!(door.close(second), Ok(()));
    }

    #[test]
    fn a_handle_spelt_with_another_kind_is_not_open() {
        let (door, group) = door_with_null(HandleKind::Group);
        let forged = Handle::new(group.id(), HandleKind::Container);
        assert_eq!(door.close(forged), Err(Errno::EBADF));
        assert_eq!(door.ioctl(forged, &mut Command::bare(vfio::GET_API_VERSION)), Err(Errno::EBADF));
        assert_eq!(door.close(group), Ok(()));
    }

    #[test]
    fn closing_closes_the_descriptor_but_not_under_a_borrower() {
        let (reader, writer) = UnixStream::pair().expect("a pair of sockets");
        let door = LinuxDoor::new();
        let handle = door.adopt(writer.into(), HandleKind::Device).expect("adopted");
        let lent = door.with_descriptor(handle, |descriptor| {
            door.close(handle).expect("it is open");
            descriptor.try_clone_to_owned().map(drop).is_ok()
        });
        assert_eq!(lent, Ok(true));
        // With the other end closed there is nothing more to come.
        assert_eq!(io::read_to_string(reader).expect("readable"), "");
        assert_eq!(door.with_descriptor(handle, |_| ()), Err(Errno::EBADF));
    }

    #[test]
    fn descriptors_are_not_inherited() {
        let (door, handle) = door_with_null(HandleKind::Group);
        let descriptor = door.with_descriptor(handle, |descriptor| descriptor.as_raw_fd()).expect("open");
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}")).expect("it is ours");
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).expect("every fdinfo has flags");
        let flags = i32::from_str_radix(flags.trim(), 8).expect("octal");
        assert_eq!(flags & libc::O_CLOEXEC, libc::O_CLOEXEC);
        assert_eq!(flags & libc::O_ACCMODE, libc::O_RDWR);
    }

    #[test]
    fn the_kernel_says_enotty_where_the_door_let_a_command_through() {
        let (door, null) = door_with_null(HandleKind::Container);
        assert_eq!(door.ioctl(null, &mut Command::bare(vfio::GET_API_VERSION)), Err(Errno::ENOTTY));
    }

    #[test]
    fn a_command_that_opens_needs_to_be_asked_as_one_and_no_other() {
        let (door, group) = door_with_null(HandleKind::Group);
        let mut name = *b"0000:00:03.0\0";
        let mut open = Command::with_bytes(vfio::GROUP_GET_DEVICE_FD, &mut name);
        assert_eq!(door.ioctl(group, &mut open), Err(Errno::EINVAL));
        assert_eq!(door.ioctl_opening(group, &mut open, HandleKind::Group), Err(Errno::EINVAL));
        assert_eq!(door.ioctl_opening(group, &mut open, HandleKind::Device), Err(Errno::ENOTTY));
        let mut unset = Command::bare(vfio::GROUP_UNSET_CONTAINER);
        assert_eq!(door.ioctl_opening(group, &mut unset, HandleKind::Device), Err(Errno::EINVAL));
    }

    #[test]
    fn descriptors_are_taken_out_of_the_bytes_again() {
        let (door, group) = door_with_null(HandleKind::Group);
        let container = door.open(Path::new(NULL), HandleKind::Container).expect("opens");
        let mut bytes = [0; 4];
        let mut attached = [Attachment { offset: 0, what: Attached::Container(point(container)) }];
        let mut command = Command::with_bytes(vfio::GROUP_SET_CONTAINER, &mut bytes).attaching(&mut attached);
        assert_eq!(door.ioctl(group, &mut command), Err(Errno::ENOTTY));
        assert_eq!(bytes, [0; 4]);
    }

    #[test]
    fn the_file_behind_memory_is_named_for_the_call_only() {
        let (door, iommufd) = door_with_null(HandleKind::Iommufd);
        let file = tempfile::tempfile_in("/dev/shm").expect("a file of tmpfs");
        let file = dmaspace_core::MemoryFile::new(Arc::new(file)).expect("it is of memory");
        let never = dmaspace_core::MemoryFile::unbacked(1);
        for (file, expected) in [(file, Errno::ENOTTY), (never, Errno::EBADF)] {
            let memory = anonymous_memory(0x1000).in_file(file, 0x3000);
            let mut map = IoasMapFile { size: 40, flags: 7, start: 0x3000, length: 0x1000, ..Default::default() };
            let lease = lease(&memory);
            let mut attached = [Attachment { offset: 12, what: Attached::FileOf(&lease) }];
            let command = Command::with_bytes(IOAS_MAP_FILE, map.as_mut_bytes());
            assert_eq!(door.ioctl(iommufd, &mut command.attaching(&mut attached)), Err(expected));
            assert_eq!(map.fd, 0);
        }
    }

    #[test]
    fn an_attached_handle_must_be_open() {
        let (door, group) = door_with_null(HandleKind::Group);
        let mut bytes = [0; 4];
        let never = Handle::new(7, HandleKind::Container);
        let mut attached = [Attachment { offset: 0, what: Attached::Container(point(never)) }];
        let mut command = Command::with_bytes(vfio::GROUP_SET_CONTAINER, &mut bytes).attaching(&mut attached);
        assert_eq!(door.ioctl(group, &mut command), Err(Errno::EBADF));
    }

    #[test]
    fn what_is_filled_in_is_there_for_the_call_only() {
        let mut bytes = [1; 16];
        let result = filled(&mut bytes, 4, [7; 8], |argument| {
            assert!(!argument.is_null());
            Err(Errno::ENOTTY)
        });
        assert_eq!(result, Err(Errno::ENOTTY));
        assert_eq!(bytes, [1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1]);
        assert_eq!(filled(&mut bytes, 9, [7; 8], |_| Ok(0)), Err(Errno::EINVAL));
        assert_eq!(filled(&mut bytes, usize::MAX, [7; 8], |_| Ok(0)), Err(Errno::EINVAL));
    }

    #[test]
    fn reads_and_writes_go_to_their_offset() {
        let door = LinuxDoor::new();
        let file = door.adopt(file_of(16).into(), HandleKind::Device).expect("adopted");
        assert_eq!(door.pwrite(file, 4, b"space"), Ok(5));
        let mut bytes = [0; 9];
        assert_eq!(door.pread(file, 0, &mut bytes), Ok(9));
        assert_eq!(&bytes, b"dma\0space");
        assert_eq!(door.pread(file, 16, &mut bytes), Ok(0));
        assert_eq!(door.pread(file, u64::MAX, &mut bytes), Err(Errno::EINVAL));
    }

    #[test]
    fn a_mapping_shows_the_file_and_outlives_handle_and_door() {
        let door = LinuxDoor::new();
        let file = door.adopt(file_of(0x2000).into(), HandleKind::Device).expect("adopted");
        let len = NonZeroU64::new(0x2000).expect("not zero");
        let memory = door.mmap(file, 0, len, Access::READ_WRITE).expect("mapped");
        memory.write(0x1ffe, &[7, 8]).expect("inside");
        let mut end = [0; 2];
        door.pread(file, 0x1ffe, &mut end).expect("read");
        assert_eq!(end, [7, 8]);
        drop(door);
        let mut start = [0; 3];
        memory.read(0, &mut start).expect("inside");
        assert_eq!(&start, b"dma");
    }

    #[test]
    fn a_mapping_says_what_it_is() {
        let door = LinuxDoor::new();
        let device = door.adopt(file_of(0x1000).into(), HandleKind::Device).expect("adopted");
        let other = door.adopt(file_of(0x1000).into(), HandleKind::Container).expect("adopted");
        let page = NonZeroU64::new(0x1000).expect("not zero");
        let read_only = door.mmap(device, 0, page, Access::READ).expect("mapped");
        assert!(read_only.is_device_memory() && read_only.is_host_read_only() && !read_only.is_unbacked());
        let writable = door.mmap(other, 0, page, Access::READ_WRITE).expect("mapped");
        assert!(!writable.is_device_memory() && !writable.is_host_read_only());
    }

    #[test]
    fn what_cannot_be_mapped_says_why() {
        let door = LinuxDoor::new();
        let file = door.adopt(file_of(0x1000).into(), HandleKind::Device).expect("adopted");
        let page = NonZeroU64::new(0x1000).expect("not zero");
        assert_eq!(door.mmap(file, 1, page, Access::READ), Err(Errno::EINVAL));
        assert_eq!(door.mmap(file, u64::MAX, page, Access::READ), Err(Errno::EOVERFLOW));
        assert_eq!(door.mmap(file, 0, NonZeroU64::MAX, Access::READ), Err(Errno::ENOMEM));
        assert_eq!(door.mmap(file, 0, page, Access::empty()), Err(Errno::EINVAL));
    }

    #[test]
    fn the_host_page_is_the_kernels() {
        let smaps = std::fs::read_to_string("/proc/self/smaps").expect("it is ours");
        let kib = smaps.lines().find_map(|line| line.strip_prefix("KernelPageSize:")?.trim().strip_suffix(" kB"));
        let bytes = kib.and_then(|kib| kib.trim().parse::<u64>().ok()).expect("a size") * 1024;
        assert_eq!(LinuxDoor::new().host_page().bytes(), bytes);
    }
}
