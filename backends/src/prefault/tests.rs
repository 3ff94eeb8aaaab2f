use std::cell::RefCell;
use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};

use dmaspace_core::{HostAddress, Iova, PageSize, SystemAddress};
use dmaspace_listener::Section;
use dmaspace_listener::section::TargetMemory;
use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap};

use super::*;

const MIB: u64 = 1 << 20;

fn number(n: u64) -> NonZeroU64 {
    NonZeroU64::new(n).expect("not zero")
}

fn threads(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).expect("not zero")
}

/// Memory of this process of which no page is present, aligned for huge pages.
fn memory(bytes: u64) -> HostMemory {
    let len = usize::try_from(bytes + 2 * MIB).expect("a length");
    let region: GuestRegionMmap<()> = GuestRegionMmap::from_range(GuestAddress(0), len, None).expect("address space");
    let around = HostMemory::of_region(&region).expect("not empty");
    around.slice(around.address().get().wrapping_neg() % (2 * MIB), bytes).expect("inside")
}

/// The present bytes of `memory`, as the kernel tells them.
#[expect(unsafe_code, reason = "UNSAFETY: mincore(2) has no safe form")]
fn present(memory: &HostMemory) -> u64 {
    let page = crate::host_page::host_page().bytes();
    let len = usize::try_from(memory.len().get()).expect("a length");
    let mut pages = vec![0_u8; len.div_ceil(usize::try_from(page).expect("a page"))];
    let first = std::ptr::without_provenance_mut(usize::try_from(memory.address().get()).expect("an address"));
    // SAFETY: the kernel writes a byte for each page of the span, and as many there are.
    let result = unsafe { libc::mincore(first, len, pages.as_mut_ptr()) };
    assert_eq!(result, 0);
    pages.iter().filter(|present| **present & 1 != 0).count() as u64 * page
}

fn go_on(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Skips what needs Linux 5.14 on an older kernel, and in qemu-user, which answers zero to advice that it ignores.
fn is_known() -> bool {
    ThisKernel.is_known() && cfg!(target_arch = "x86_64")
}

/// A kernel that remembers the calls, and refuses one address.
#[derive(Default)]
struct Recorder {
    calls: Mutex<BTreeSet<(u64, u64, bool)>>,
    refuses: Option<(u64, Errno)>,
    is_old: bool,
}

impl Recorder {
    /// First address, length, and whether for writing.
    fn calls(&self) -> Vec<(u64, u64, bool)> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
}

impl Populate for Recorder {
    fn is_known(&self) -> bool {
        !self.is_old
    }

    fn populate(&self, memory: &HostMemory, writes: bool) -> Result<(), Errno> {
        let (first, len) = (memory.address().get(), memory.len().get());
        match self.refuses {
            Some((address, errno)) if address == first => Err(errno),
            _ => {
                self.calls.lock().unwrap_or_else(PoisonError::into_inner).insert((first, len, writes));
                Ok(())
            }
        }
    }
}

#[test]
fn all_pages_are_present_to_the_byte_and_no_byte_has_changed() {
    if !is_known() {
        return;
    }
    let (whole, part) = (memory(16 * MIB), memory(8 * MIB));
    let part = part.slice(2 * MIB, 4 * MIB).expect("inside");
    whole.write(5 * MIB, b"bytes").expect("inside");
    assert!(present(&whole) < 16 * MIB && present(&part) == 0, "they are there before");
    let prefault = Prefault::default().with_chunk(number(2 * MIB)).with_threads(threads(2));
    let prefault = prefault.with_memory(&whole, Access::READ_WRITE).with_memory(&part, Access::READ_WRITE);
    let made = prefault.run(go_on).expect("there is memory");
    assert_eq!((made.bytes, made.calls, made.threads), (20 * MIB, 10, 2));
    assert_eq!((present(&whole), present(&part)), (16 * MIB, 4 * MIB));
    let mut bytes = [0; 5];
    whole.read(5 * MIB, &mut bytes).expect("inside");
    assert_eq!(&bytes, b"bytes");
}

#[test]
fn progress_begins_at_nothing_never_falls_and_ends_at_all() {
    let ram = memory(64 * MIB);
    let prefault = Prefault::default().with_chunk(number(MIB)).with_threads(threads(4));
    let prefault = prefault.with_memory(&ram, Access::READ_WRITE);
    let mut seen = Vec::new();
    let kernel = Recorder::default();
    let made = prefault.run_on(&kernel, |progress| {
        seen.push(progress.done);
        assert_eq!(progress.total, 64 * MIB);
        ControlFlow::Continue(())
    });
    assert_eq!(made.map(|made| made.calls), Ok(64));
    let expected: Vec<_> = (0..=64).map(|done| done * MIB).collect();
    assert_eq!(seen, expected);
    assert_eq!(kernel.calls().len(), 64);
}

#[test]
fn a_cancelled_prefault_leaves_the_rest_absent() {
    if !is_known() {
        return;
    }
    let ram = memory(64 * MIB);
    let prefault = Prefault::default().with_chunk(number(2 * MIB)).with_threads(threads(1));
    let prefault = prefault.with_memory(&ram, Access::READ_WRITE);
    // A thread may be some calls ahead of the progress: the slowest progress stops it all the same.
    let calls = RefCell::new(0);
    let cancelled = prefault.run(|progress| {
        *calls.borrow_mut() += 1;
        if progress.done == 0 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    match cancelled {
        Err(PrefaultError::Cancelled { done }) => assert_eq!(present(&ram), done),
        // The thread had made all calls when the first answer was read.
        other => assert_eq!(other.map(|made| made.bytes), Ok(64 * MIB)),
    }
    assert_eq!(calls.into_inner(), 2);
    let before = prefault.run(|_| ControlFlow::Break(()));
    assert_eq!(before, Err(PrefaultError::Cancelled { done: 0 }));
}

#[test]
fn a_refusal_names_the_part_the_errno_and_the_way_out() {
    let ram = memory(8 * MIB);
    let prefault = Prefault::default().with_chunk(number(2 * MIB)).with_threads(threads(1));
    let prefault = prefault.with_memory(&ram, Access::READ_WRITE);
    for (errno, advice) in [
        (Errno::ENOMEM, "less memory"),
        (Errno::EFAULT, "huge pages"),
        (Errno::EHWPOISON, "broken"),
        (Errno::EINVAL, "does not allow"),
        (Errno::EIO, "EIO"),
    ] {
        let third = ram.slice(4 * MIB, 2 * MIB).expect("inside");
        let kernel = Recorder { refuses: Some((third.address().get(), errno)), ..Recorder::default() };
        let error = prefault.run_on(&kernel, go_on).expect_err("it refuses");
        assert!(error.to_string().contains(advice), "{error}");
        let PrefaultError::Refused { memory, errno: told, done } = error else { panic!("{error}") };
        assert_eq!((memory.address(), memory.len(), told), (third.address(), third.len(), errno));
        assert_eq!(done, kernel.calls().iter().map(|(_, len, _)| len).sum::<u64>());
    }
}

#[test]
fn memory_behind_the_end_of_its_file_is_an_error_and_no_signal() {
    if !is_known() {
        return;
    }
    let file = tempfile::tempfile().expect("a file");
    file.set_len(4 * MIB).expect("a length");
    let offset = FileOffset::new(file.try_clone().expect("a descriptor"), 0);
    let len = usize::try_from(4 * MIB).expect("a length");
    let region: GuestRegionMmap<()> =
        GuestRegionMmap::from_range(GuestAddress(0), len, Some(offset)).expect("address space");
    let ram = HostMemory::of_region(&region).expect("not empty");
    file.set_len(2 * MIB).expect("a length");
    let prefault = Prefault::default().with_memory(&ram, Access::READ_WRITE);
    let error = prefault.with_chunk(number(MIB)).run(go_on).expect_err("half of the file is gone");
    assert!(matches!(error, PrefaultError::Refused { errno: Errno::EFAULT, done: 0..=0x20_0000, .. }), "{error}");
}

#[test]
fn an_old_kernel_is_not_asked() {
    let ram = memory(2 * MIB);
    let kernel = Recorder { is_old: true, ..Recorder::default() };
    let error = Prefault::default().with_memory(&ram, Access::READ).run_on(&kernel, |_| panic!("no progress"));
    assert_eq!((error, kernel.calls()), (Err(PrefaultError::Unsupported), Vec::new()));
}

#[test]
fn an_update_is_made_present_without_its_discardable_and_device_memory() {
    let backing = memory(32 * MIB);
    let part = |n: u64| backing.slice(n * 4 * MIB, 4 * MIB).expect("inside");
    let at = |n: u64| Iova::new(n << 32);
    let unbacked = HostMemory::unbacked(HostAddress::new(1 << 46), number(MIB)).expect("no wrap");
    let update = Update::new()
        .adding(Section::ram("ram", at(0), part(0), Access::READ_WRITE).expect("a range"))
        .adding(Section::ram("rom", at(1), part(1), Access::READ).expect("a range"))
        .adding(Section::ram("sealed", at(2), part(2).host_read_only(), Access::READ_WRITE).expect("a range"))
        .adding(Section::discardable("mem", at(3), part(3), Access::READ_WRITE, PageSize::M2).expect("a range"))
        .adding(Section::device_memory("bar", at(4), part(4).device_memory(), Access::READ_WRITE).expect("a range"))
        .adding(Section::ram("planned", at(5), unbacked, Access::READ_WRITE).expect("a range"))
        .adding(Section::nothing("mmio", dmaspace_core::IovaRange::with_len(at(6), MIB).expect("a range")))
        .adding_target(TargetMemory::new("target", SystemAddress::new(0), part(5)).expect("a range"))
        // The RAM once more.
        .adding_target(TargetMemory::new("ram", SystemAddress::new(1 << 40), part(0)).expect("a range"));
    let prefault = Prefault::of(&update);
    let kernel = Recorder::default();
    let made = prefault.run_on(&kernel, go_on).expect("nothing is refused");
    let of = |n: u64, writes| (part(n).address().get(), 4 * MIB, writes);
    assert_eq!(kernel.calls(), [of(0, true), of(1, false), of(2, false), of(5, true)]);
    assert_eq!((made.bytes, prefault.bytes()), (16 * MIB, 16 * MIB));
}

#[test]
fn overlapping_memory_is_made_present_once_and_chunks_are_aligned() {
    let backing = memory(8 * MIB);
    let (low, high) = (backing.slice(MIB, 4 * MIB).expect("inside"), backing.slice(3 * MIB, 4 * MIB).expect("inside"));
    let prefault = Prefault::default().with_chunk(number(2 * MIB));
    let prefault = prefault.with_memory(&high, Access::READ_WRITE).with_memory(&low, Access::READ_WRITE);
    let kernel = Recorder::default();
    assert_eq!(prefault.run_on(&kernel, go_on).map(|made| made.bytes), Ok(6 * MIB));
    let base = backing.address().get();
    let ends: Vec<_> = kernel.calls().iter().map(|(first, len, _)| ((first - base) / MIB, len / MIB)).collect();
    assert_eq!(ends, [(1, 1), (2, 2), (4, 1), (5, 1), (6, 1)]);
}

#[test]
fn nothing_to_do_takes_no_thread_and_no_call() {
    let mut seen = Vec::new();
    let made = Prefault::default().run_on(&Recorder::default(), |progress| {
        seen.push(progress);
        ControlFlow::Continue(())
    });
    assert_eq!(made, Ok(Prefaulted { bytes: 0, calls: 0, threads: 0 }));
    assert_eq!(seen, [Progress { done: 0, total: 0 }]);
}
