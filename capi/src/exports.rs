//! The functions of `include/dmaspace.h`: the door through which pointers of the caller come in and go out.
//!
//! All unsafe code of the crate is here. It leans on the contract that the header states for every function: a pointer
//! is null or points to as much memory as its type or the length beside it says, nothing else writes there meanwhile, a
//! handle was made by this library, and a handle is not used while it is freed. A violation that can be seen without
//! following a bad pointer is answered with `-EINVAL`.
#![expect(unsafe_code, reason = "UNSAFETY: pointers of a C program, for which the program vouches in the header")]
#![allow(clippy::missing_safety_doc, reason = "the header states the contract of all functions once")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};

use dmaspace::HostMemory;
use dmaspace::door::{Errno, HandleKind, OwnedHandle};

use crate::arguments::{CSection, CWindow, in_file, length, range};
use crate::calls::{self, Mark};
use crate::failure::{Failed, VERSION, answer, sentence};
use crate::handle::{DeviceHandle, DomainHandle, Handle, HostHandle, Kind, SpaceHandle, UpdateHandle};

// --- Pointers of the caller -------------------------------------------------------------------------------------

/// Refuses a pointer that is null or not aligned.
fn check<T>(pointer: *const T, name: &str) -> Result<(), Failed> {
    match pointer {
        pointer if pointer.is_null() => Err(Failed::argument(format!("{name} is NULL"))),
        pointer if !pointer.is_aligned() => Err(Failed::argument(format!("{name} is not aligned"))),
        _ => Ok(()),
    }
}

/// The value behind a handle.
///
/// # Safety
/// `handle` is null, or a handle of any kind that is not freed during `'a`.
unsafe fn value<'a, T: Kind>(handle: *const Handle<T>) -> Result<&'a T, Failed> {
    check(handle, T::NAME)?;
    // SAFETY: each handle begins with its mark, so that this may be read of a handle of another kind, too.
    let mark = unsafe { handle.cast::<u64>().read() };
    if mark != T::MARK {
        return Err(Failed::argument(format!("no {} is there", T::NAME)));
    }
    // SAFETY: the mark says that it is one, and the caller that it stays.
    unsafe { &*handle }.check()
}

/// The place for a new handle, with NULL, which stays there if the call fails.
///
/// # Safety
/// `out` is null or may be written, by nothing else during `'a`.
unsafe fn place_for<'a, T: Kind>(out: *mut *mut Handle<T>) -> Result<&'a mut *mut Handle<T>, Failed> {
    check(out, "the place for the new handle")?;
    // SAFETY: it may be written, also if it was never written before.
    unsafe { out.write(ptr::null_mut()) };
    // SAFETY: it was written, and is this function's alone.
    Ok(unsafe { &mut *out })
}

/// Stores a new handle.
fn store<T: Kind>(place: &mut *mut Handle<T>, value: T) {
    *place = Box::into_raw(Box::new(Handle::new(value)));
}

/// Takes the handle at `place` from the caller, and stores NULL there. `None` for NULL.
///
/// # Safety
/// `place` is null, or has null or a handle that nothing else uses.
unsafe fn take<T: Kind>(place: *mut *mut Handle<T>) -> Result<Option<T>, Failed> {
    check(place, "the place of the handle")?;
    // SAFETY: it may be read.
    let handle = unsafe { place.read() };
    if handle.is_null() {
        return Ok(None);
    }
    // SAFETY: nothing else uses the handle.
    let _is_one = unsafe { value(handle) }?;
    // SAFETY: it may be written.
    unsafe { place.write(ptr::null_mut()) };
    // SAFETY: `store` made it of a box, and it is taken once: its mark is spoilt.
    let mut owned = unsafe { Box::from_raw(handle) };
    owned.spoil();
    Ok(Some(owned.value))
}

/// Frees the handle at `place`. Does nothing for NULL, or for anything that is no such handle.
///
/// # Safety
/// As [`take`].
unsafe fn free<T: Kind>(place: *mut *mut Handle<T>) {
    let _errno = answer(|| {
        // SAFETY: as the caller says.
        let freed = unsafe { take(place) }?;
        drop(freed);
        Ok(())
    });
}

/// The text at `text`. `None` for NULL.
///
/// # Safety
/// `text` is null, or ends with a zero.
unsafe fn text<'a>(text: *const c_char, name: &str) -> Result<Option<&'a str>, Failed> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: it ends with a zero, as the caller says.
    let bytes = unsafe { CStr::from_ptr(text) };
    bytes.to_str().map(Some).map_err(|_| Failed::argument(format!("{name} is not UTF-8")))
}

/// The text at `text`, which must be there.
///
/// # Safety
/// As [`text`].
unsafe fn needed_text<'a>(pointer: *const c_char, name: &str) -> Result<&'a str, Failed> {
    // SAFETY: as the caller says.
    unsafe { text(pointer, name) }?.ok_or_else(|| Failed::argument(format!("{name} is NULL")))
}

/// Stores a value at `out`, unless that is null.
///
/// # Safety
/// `out` is null or may be written.
unsafe fn give<T>(out: *mut T, value: T) -> Result<(), Failed> {
    if !out.is_null() {
        check(out, "the place for a result")?;
        // SAFETY: it may be written.
        unsafe { out.write(value) };
    }
    Ok(())
}

/// Copies `items` to `out`, which has room for `*count`, and stores their number in `*count`: `-EMSGSIZE` if the room
/// is too small.
///
/// # Safety
/// `count` is null or may be read and written, and `out` has room for `*count` items, or is null with a count of zero.
unsafe fn fill<T: Copy>(out: *mut T, count: *mut usize, items: &[T]) -> Result<(), Failed> {
    check(count, "the place of the count")?;
    // SAFETY: it may be read.
    let room = unsafe { count.read() };
    // SAFETY: it may be written.
    unsafe { count.write(items.len()) };
    if room < items.len() {
        return Err(Failed::new(Errno::EMSGSIZE, format!("{} items need more room than {room}", items.len())));
    }
    if !items.is_empty() {
        check(out, "the room for the result")?;
        // SAFETY: the room is large enough, and the caller's own.
        unsafe { ptr::copy_nonoverlapping(items.as_ptr(), out, items.len()) };
    }
    Ok(())
}

/// Copies a text with its zero to `out`, as [`fill`] does.
///
/// # Safety
/// As [`fill`].
unsafe fn fill_text(out: *mut c_char, size: *mut usize, mut words: String) -> Result<(), Failed> {
    words.retain(|letter| letter != '\0');
    words.push('\0');
    // SAFETY: as the caller says; c_char has the size of a byte.
    unsafe { fill(out.cast::<u8>(), size, words.as_bytes()) }
}

/// The memory at `address`.
///
/// # Safety
/// The memory stays mapped until its last mapping is gone, as the header asks.
unsafe fn memory(address: *mut c_void, len: u64) -> Result<HostMemory, Failed> {
    let base = NonNull::new(address.cast::<u8>()).ok_or_else(|| Failed::argument("the memory is at NULL"))?;
    let len = NonZeroUsize::try_from(length(len)?).map_err(|_| Failed::argument("the memory wraps around"))?;
    // SAFETY: the caller vouches.
    unsafe { HostMemory::vouch_for(base, len) }.ok_or_else(|| Failed::argument("the memory wraps around"))
}

/// A duplicate of a descriptor of the caller.
///
/// # Safety
/// `fd` is open for the length of the call, or negative.
unsafe fn duplicate(fd: c_int) -> Result<OwnedFd, Failed> {
    if fd < 0 {
        return Err(Failed::new(Errno::EBADF, "the descriptor is negative"));
    }
    // SAFETY: it is open, as the caller says.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    borrowed
        .try_clone_to_owned()
        .map_err(|error| Failed::new(error.into(), format!("the descriptor {fd} cannot be used")))
}

/// The section at `section`.
///
/// # Safety
/// `section` is null, or points to as many bytes as its first field says, whose pointers are as the header asks.
unsafe fn piece(section: *const CSection) -> Result<crate::arguments::Piece, Failed> {
    check(section, "the section")?;
    // SAFETY: the first field is there in any struct.
    let size = unsafe { section.cast::<u32>().read() } as usize;
    if size != size_of::<CSection>() {
        let expected = size_of::<CSection>();
        return Err(Failed::argument(format!("struct dms_section has {size} bytes, and {expected} in this version")));
    }
    // SAFETY: all of it is there, and every bit pattern is one.
    let section = unsafe { section.read() };
    section.check()?;
    // SAFETY: as the caller says.
    let name = unsafe { text(section.name, "the name") }?.unwrap_or("memory");
    if !section.has_memory()? {
        return section.piece(name, None);
    }
    // SAFETY: as the caller says.
    let memory = unsafe { memory(section.address, section.len) }?;
    let memory = if section.fd >= 0 {
        // SAFETY: as the caller says.
        in_file(memory, unsafe { duplicate(section.fd) }?, section.fd_offset)?
    } else {
        memory
    };
    section.piece(name, Some(memory))
}

/// Takes over a duplicate of a descriptor of the caller.
///
/// # Safety
/// `fd` is open and of `kind`, and the promises of [`OwnedHandle::adopt`] hold for it and its duplicates.
unsafe fn adopt(
    door: &std::sync::Arc<dyn dmaspace::door::Door>,
    fd: c_int,
    kind: HandleKind,
) -> Result<OwnedHandle, Failed> {
    // SAFETY: as the caller says.
    let owned = unsafe { duplicate(fd) }?;
    // SAFETY: as the caller says.
    let adopted = unsafe { OwnedHandle::adopt(door.clone(), owned, kind) };
    adopted.map_err(|errno| Failed::new(errno, format!("the descriptor {fd} cannot be adopted")))
}

// --- Errors and hosts -------------------------------------------------------------------------------------------

/// `dms_error`: the sentence about the last error of this thread.
#[unsafe(no_mangle)]
pub extern "C" fn dms_error() -> *const c_char {
    sentence()
}

/// `dms_version`: the version of the library.
#[unsafe(no_mangle)]
pub extern "C" fn dms_version() -> *const c_char {
    VERSION.as_ptr()
}

/// `dms_host_open`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dms_host_open(out: *mut *mut Handle<HostHandle>, name: *const c_char, flags: u32) -> c_int {
    answer(|| {
        // SAFETY: the contract of the header.
        let place = unsafe { place_for(out) }?;
        if flags != 0 {
            return Err(Failed::argument(format!("{flags:#x} are no flags of dms_host_open")));
        }
        // SAFETY: the contract of the header.
        let name = unsafe { text(name, "the name of the host") }?;
        store(place, HostHandle::open(name)?);
        Ok(())
    })
}

/// `dms_host_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dms_host_free(place: *mut *mut Handle<HostHandle>) {
    // SAFETY: the contract of the header.
    unsafe { free(place) };
}

// --- Domains ----------------------------------------------------------------------------------------------------

/// `dms_domain_new`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dms_domain_new(
    out: *mut *mut Handle<DomainHandle>,
    host: *const Handle<HostHandle>,
    backend: *const c_char,
    front_end: u32,
) -> c_int {
    answer(|| {
        // SAFETY: the contract of the header.
        let place = unsafe { place_for(out) }?;
        // SAFETY: the contract of the header.
        let host = unsafe { value(host) }?;
        // SAFETY: the contract of the header.
        let backend = unsafe { text(backend, "the backend") }?;
        store(place, calls::new_domain(host, backend, front_end)?);
        Ok(())
    })
}

/// `dms_domain_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dms_domain_free(place: *mut *mut Handle<DomainHandle>) {
    // SAFETY: the contract of the header.
    unsafe { free(place) };
}

/// `dms_domain_add`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dms_domain_add(
    domain: *const Handle<DomainHandle>,
    address: *const c_char,
    out: *mut *mut Handle<DeviceHandle>,
) -> c_int {
    answer(|| {
        // SAFETY: the contract of the header.
        let place = unsafe { place_for(out) }?;
        // SAFETY: the contract of the header.
        let domain = unsafe { value(domain) }?;
        // SAFETY: the contract of the header.
        let address = unsafe { needed_text(address, "the address of the device") }?;
        store(place, calls::add(domain, address)?);
        Ok(())
    })
}

/// `dms_domain_remove`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dms_domain_remove(
    domain: *const Handle<DomainHandle>,
    device: *mut *mut Handle<DeviceHandle>,
) -> c_int {
    answer(|| {
        // SAFETY: the contract of the header.
        let domain = unsafe { value(domain) }?;
        // SAFETY: the contract of the header.
        let device = unsafe { take(device) }?.ok_or_else(|| Failed::argument("the device is NULL"))?;
        calls::remove(domain, device.0)
    })
}

/// `dms_domain_sync`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dms_domain_sync(domain: *const Handle<DomainHandle>) -> c_int {
    answer(|| {
        // SAFETY: the contract of the header.
        calls::sync(unsafe { value(domain) }?)
    })
}

/// `dms_domain_windows`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dms_domain_windows(
    domain: *const Handle<DomainHandle>,
    space: usize,
    out: *mut CWindow,
    count: *mut usize,
) -> c_int {
    answer(|| {
        // SAFETY: the contract of the header.
        let domain = unsafe { value(domain) }?;
        let windows = calls::windows_of_domain(domain, space)?;
        // SAFETY: the contract of the header.
        unsafe { fill(out, count, &windows) }
    })
}

/// `dms_domain_report`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dms_domain_report(
    domain: *const Handle<DomainHandle>,
    out: *mut c_char,
    size: *mut usize,
) -> c_int {
    answer(|| {
        // SAFETY: the contract of the header.
        let domain = unsafe { value(domain) }?;
        // SAFETY: the contract of the header.
        unsafe { fill_text(out, size, calls::report(domain)) }
    })
}

/// `dms_domain_state`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dms_domain_state(
    domain: *const Handle<DomainHandle>,
    out: *mut c_char,
    size: *mut usize,
) -> c_int {
    answer(|| {
        // SAFETY: the contract of the header.
        let domain = unsafe { value(domain) }?;
        // SAFETY: the contract of the header.
        unsafe { fill_text(out, size, domain.domain.state().to_string()) }
    })
}

/// `dms_translate`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dms_translate(
    domain: *const Handle<DomainHandle>,
    iova: u64,
    address: *mut *mut c_void,
    access: *mut u32,
) -> c_int {
    answer(|| {
        // SAFETY: the contract of the header.
        let domain = unsafe { value(domain) }?;
        let (found, allowed) = calls::translate(domain, iova)?;
        let found = usize::try_from(found).unwrap_or_default();
        // SAFETY: the contract of the header.
        unsafe { give(address, ptr::with_exposed_provenance_mut(found)) }?;
        // SAFETY: the contract of the header.
        unsafe { give(access, allowed) }
    })
}

// --- Devices ----------------------------------------------------------------------------------------------------

/// `dms_device_fd`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dms_device_fd(device: *const Handle<DeviceHandle>, fd: *mut c_int) -> c_int {
    answer(|| {
        // SAFETY: the contract of the header.
        let device = unsafe { value(device) }?;
        check(fd, "the place for the descriptor")?;
        let lent = device.0.descriptor().map_err(|errno| Failed::new(errno, "the device has no descriptor"))?;
        // SAFETY: the contract of the header.
        unsafe { give(fd, lent.as_raw_fd()) }
    })
}

/// `dms_device_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dms_device_free(place: *mut *mut Handle<DeviceHandle>) {
    // SAFETY: the contract of the header.
    unsafe { free(place) };
}

// --- Updates ----------------------------------------------------------------------------------------------------

/// `dms_update_new`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dms_update_new(out: *mut *mut Handle<UpdateHandle>) -> c_int {
    answer(|| {
        // SAFETY: the contract of the header.
        let place = unsafe { place_for(out) }?;
        store(place, UpdateHandle::default());
        Ok(())
    })
}

/// `dms_update_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dms_update_free(place: *mut *mut Handle<UpdateHandle>) {
    // SAFETY: the contract of the header.
    unsafe { free(place) };
}

/// `dms_update_add`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dms_update_add(update: *const Handle<UpdateHandle>, section: *const CSection) -> c_int {
    answer(|| {
        // SAFETY: the contract of the header.
        let update = unsafe { value(update) }?;
        // SAFETY: the contract of the header.
        calls::add_piece(update, unsafe { piece(section) }?);
        Ok(())
    })
}

/// `dms_update_remove`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dms_update_remove(update: *const Handle<UpdateHandle>, iova: u64, len: u64) -> c_int {
    answer(|| {
        // SAFETY: the contract of the header.
        let update = unsafe { value(update) }?;
        let removed = range(iova, len)?;
        calls::change(update, |changes| changes.removed.push(removed));
        Ok(())
    })
}

/// `dms_update_remove_target`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dms_update_remove_target(
    update: *const Handle<UpdateHandle>,
    address: u64,
    len: u64,
) -> c_int {
    answer(|| {
        // SAFETY: the contract of the header.
        let update = unsafe { value(update) }?;
        let removed = calls::system_range(address, len)?;
        calls::change(update, |changes| changes.removed_targets.push(removed));
        Ok(())
    })
}

/// `dms_commit`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dms_commit(
    domain: *const Handle<DomainHandle>,
    update: *mut *mut Handle<UpdateHandle>,
    pending: *mut u64,
) -> c_int {
    answer(|| {
        // SAFETY: the contract of the header.
        let domain = unsafe { value(domain) }?;
        // SAFETY: the contract of the header.
        let update = unsafe { take(update) }?.ok_or_else(|| Failed::argument("the update is NULL"))?;
        let number = calls::commit(domain, dmaspace::sync::past_poison(update.0.into_inner()))?;
        // SAFETY: the contract of the header.
        unsafe { give(pending, number) }
    })
}

// --- Entries, blocks and dirty pages ----------------------------------------------------------------------------

/// `dms_put`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dms_put(
    domain: *const Handle<DomainHandle>,
    iova: u64,
    target: u64,
    len: u64,
    access: u32,
) -> c_int {
    answer(|| {
        // SAFETY: the contract of the header.
        calls::put(unsafe { value(domain) }?, iova, target, len, access)
    })
}

/// `dms_replace`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dms_replace(
    domain: *const Handle<DomainHandle>,
    iova: u64,
    target: u64,
    len: u64,
    access: u32,
) -> c_int {
    answer(|| {
        // SAFETY: the contract of the header.
        calls::replace(unsafe { value(domain) }?, iova, target, len, access)
    })
}

/// `dms_clear`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dms_clear(domain: *const Handle<DomainHandle>, iova: u64, len: u64, bytes: *mut u64) -> c_int {
    answer(|| {
        // SAFETY: the contract of the header.
        let domain = unsafe { value(domain) }?;
        let cleared = calls::clear(domain, iova, len)?;
        // SAFETY: the contract of the header.
        unsafe { give(bytes, cleared) }
    })
}

/// `dms_populate`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dms_populate(domain: *const Handle<DomainHandle>, iova: u64, len: u64) -> c_int {
    answer(|| {
        // SAFETY: the contract of the header.
        let domain = unsafe { value(domain) }?;
        Ok(domain.domain.populate(range(iova, len)?)?)
    })
}

/// `dms_discard`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dms_discard(domain: *const Handle<DomainHandle>, iova: u64, len: u64) -> c_int {
    answer(|| {
        // SAFETY: the contract of the header.
        let domain = unsafe { value(domain) }?;
        Ok(domain.domain.discard(range(iova, len)?)?)
    })
}

/// `dms_may_discard`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dms_may_discard(domain: *const Handle<DomainHandle>, address: *mut c_void, len: u64) -> c_int {
    answer(|| {
        // SAFETY: the contract of the header.
        let domain = unsafe { value(domain) }?;
        // SAFETY: the contract of the header.
        calls::may_discard(domain, &unsafe { memory(address, len) }?)
    })
}

/// `dms_track_dirty`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dms_track_dirty(
    domain: *const Handle<DomainHandle>,
    mark: Option<Mark>,
    opaque: *mut c_void,
) -> c_int {
    answer(|| {
        // SAFETY: the contract of the header.
        calls::track_dirty(unsafe { value(domain) }?, mark, opaque)
    })
}

/// `dms_sync_dirty`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dms_sync_dirty(domain: *const Handle<DomainHandle>) -> c_int {
    answer(|| {
        // SAFETY: the contract of the header.
        let domain = unsafe { value(domain) }?;
        domain.domain.sync_dirty()?;
        Ok(())
    })
}

/// `dms_stop_tracking`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dms_stop_tracking(domain: *const Handle<DomainHandle>) -> c_int {
    answer(|| {
        // SAFETY: the contract of the header.
        let domain = unsafe { value(domain) }?;
        domain.domain.stop_tracking();
        Ok(())
    })
}

// --- Spaces without a listener ----------------------------------------------------------------------------------

/// `dms_space_open`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dms_space_open(
    out: *mut *mut Handle<SpaceHandle>,
    host: *const Handle<HostHandle>,
    backend: *const c_char,
) -> c_int {
    answer(|| {
        // SAFETY: the contract of the header.
        let place = unsafe { place_for(out) }?;
        // SAFETY: the contract of the header.
        let host = unsafe { value(host) }?;
        // SAFETY: the contract of the header.
        let backend = unsafe { needed_text(backend, "the backend") }?;
        store(place, calls::open_space(host, backend)?);
        Ok(())
    })
}

/// `dms_space_of_fd`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dms_space_of_fd(
    out: *mut *mut Handle<SpaceHandle>,
    host: *const Handle<HostHandle>,
    backend: *const c_char,
    fd: c_int,
) -> c_int {
    answer(|| {
        // SAFETY: the contract of the header.
        let place = unsafe { place_for(out) }?;
        // SAFETY: the contract of the header.
        let host = unsafe { value(host) }?;
        // SAFETY: the contract of the header.
        let backend = calls::backend(unsafe { needed_text(backend, "the backend") }?)?;
        // SAFETY: the contract of the header.
        let handle = unsafe { adopt(host.0.door(), fd, calls::kind_of(backend)) }?;
        store(place, calls::space_of_handle(host, backend, handle)?);
        Ok(())
    })
}

/// `dms_space_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dms_space_free(place: *mut *mut Handle<SpaceHandle>) {
    // SAFETY: the contract of the header.
    unsafe { free(place) };
}

/// `dms_space_add`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dms_space_add(
    space: *const Handle<SpaceHandle>,
    address: *const c_char,
    out: *mut *mut Handle<DeviceHandle>,
) -> c_int {
    answer(|| {
        // SAFETY: the contract of the header.
        let place = unsafe { place_for(out) }?;
        // SAFETY: the contract of the header.
        let space = unsafe { value(space) }?;
        // SAFETY: the contract of the header.
        let address = unsafe { needed_text(address, "the address of the device") }?;
        store(place, calls::add_to_space(space, address)?);
        Ok(())
    })
}

/// `dms_space_add_fd`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dms_space_add_fd(
    space: *const Handle<SpaceHandle>,
    fd: c_int,
    name: *const c_char,
    out: *mut *mut Handle<DeviceHandle>,
) -> c_int {
    answer(|| {
        // SAFETY: the contract of the header.
        let place = unsafe { place_for(out) }?;
        // SAFETY: the contract of the header.
        let space = unsafe { value(space) }?;
        // SAFETY: the contract of the header.
        let name = unsafe { needed_text(name, "the name of the device") }?;
        // SAFETY: the contract of the header.
        let handle = unsafe { adopt(space.host.door(), fd, HandleKind::Device) }?;
        store(place, calls::add_opened_to_space(space, handle, name)?);
        Ok(())
    })
}

/// `dms_space_remove`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dms_space_remove(
    space: *const Handle<SpaceHandle>,
    device: *mut *mut Handle<DeviceHandle>,
) -> c_int {
    answer(|| {
        // SAFETY: the contract of the header.
        let space = unsafe { value(space) }?;
        // SAFETY: the contract of the header.
        let device = unsafe { take(device) }?.ok_or_else(|| Failed::argument("the device is NULL"))?;
        calls::remove_from_space(space, device.0)
    })
}

/// `dms_space_windows`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dms_space_windows(
    space: *const Handle<SpaceHandle>,
    out: *mut CWindow,
    count: *mut usize,
) -> c_int {
    answer(|| {
        // SAFETY: the contract of the header.
        let space = unsafe { value(space) }?;
        // SAFETY: the contract of the header.
        unsafe { fill(out, count, &calls::windows_of_space(space)) }
    })
}

/// `dms_map`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dms_map(
    space: *const Handle<SpaceHandle>,
    iova: u64,
    address: *mut c_void,
    len: u64,
    access: u32,
    unit: u64,
) -> c_int {
    answer(|| {
        // SAFETY: the contract of the header.
        let space = unsafe { value(space) }?;
        // SAFETY: the contract of the header.
        let memory = unsafe { memory(address, len) }?;
        calls::map(space, iova, &memory, access, unit)
    })
}

/// `dms_unmap`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dms_unmap(space: *const Handle<SpaceHandle>, iova: u64, len: u64, bytes: *mut u64) -> c_int {
    answer(|| {
        // SAFETY: the contract of the header.
        let space = unsafe { value(space) }?;
        let unmapped = calls::unmap(space, range(iova, len)?)?;
        // SAFETY: the contract of the header.
        unsafe { give(bytes, unmapped) }
    })
}

/// `dms_register`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dms_register(space: *const Handle<SpaceHandle>, address: *mut c_void, len: u64) -> c_int {
    answer(|| {
        // SAFETY: the contract of the header.
        let space = unsafe { value(space) }?;
        // SAFETY: the contract of the header.
        calls::register(space, &unsafe { memory(address, len) }?)
    })
}

/// `dms_unregister`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dms_unregister(space: *const Handle<SpaceHandle>, address: *mut c_void, len: u64) -> c_int {
    answer(|| {
        // SAFETY: the contract of the header.
        let space = unsafe { value(space) }?;
        // SAFETY: the contract of the header.
        calls::unregister(space, &unsafe { memory(address, len) }?)
    })
}

/// `dms_window_create`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dms_window_create(
    space: *const Handle<SpaceHandle>,
    first: u64,
    len: u64,
    page_size: u64,
    granted: *mut CWindow,
) -> c_int {
    answer(|| {
        // SAFETY: the contract of the header.
        let space = unsafe { value(space) }?;
        let window = calls::create_window(space, range(first, len)?, page_size)?;
        // SAFETY: the contract of the header.
        unsafe { give(granted, window) }
    })
}

/// `dms_window_remove`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dms_window_remove(space: *const Handle<SpaceHandle>, first: u64) -> c_int {
    answer(|| {
        // SAFETY: the contract of the header.
        calls::remove_window(unsafe { value(space) }?, first)
    })
}
