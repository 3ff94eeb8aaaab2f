//! The contract, case by case: one answer where kernels give three. Each case begins with an empty space in which the first GiB can be
//! mapped, and says nothing about the backend behind it.

use dmaspace::choose::BackendKind;
use dmaspace_core::contract::{
    Mapping, MappingModel, MemoryRegistration, PciAddressSpace, Swap, Unit, WindowControl, WindowRequest,
};
use dmaspace_core::error::{Error, Kind};
use dmaspace_core::{Access, HostMemory, Iova, IovaRange, PageSize};

use crate::stage::Stage;

/// A case by name.
pub struct Case {
    /// The name in reports.
    pub name: &'static str,
    /// Where there is something to check.
    on: On,
    /// What is checked.
    pub check: fn(&Field<'_>),
}

/// The backends that a case is about.
enum On {
    Every,
    /// Those that cannot map another device's memory.
    ThoseThatPin,
    /// Those that register memory and create windows.
    Spapr,
}

impl Case {
    /// Whether there is something to check on `backend`.
    pub fn applies_to(&self, backend: BackendKind) -> bool {
        match self.on {
            On::Every => true,
            On::ThoseThatPin => backend != BackendKind::Type1,
            On::Spapr => backend == BackendKind::Spapr,
        }
    }
}

macro_rules! cases {
    ($($on:ident: $($name:ident)*;)*) => {
        /// All there are.
        pub const ALL: &[Case] = &[$($(Case { name: stringify!($name), on: On::$on, check: $name }),*),*];
    };
}

cases! {
    Every:
    what_is_mapped_is_found_until_it_is_unmapped
    a_map_over_a_live_unit_is_refused
    unmapping_nothing_is_no_error
    a_whole_unit_is_not_cut
    an_unmap_spans_gaps_and_counts_bytes
    any_run_of_pages_can_go
    a_replacement_needs_live_units
    bounds_and_host_address_must_be_aligned
    a_range_must_lie_inside_one_window
    access_must_be_asked_for_and_be_possible
    a_range_must_not_wrap;
    ThoseThatPin:
    device_memory_is_refused;
    Spapr:
    unregistered_memory_is_refused
    registered_memory_stays_while_it_is_used
    windows_are_created_and_removed_exactly;
}

const GIB: u64 = 1 << 30;
const PAGE: u64 = 0x1_0000;

/// A space in which the first GiB can be mapped with the guest's RAM.
pub struct Field<'a> {
    stage: &'a Stage,
}

impl<'a> Field<'a> {
    /// Prepares the stage: on hosts that want it, the RAM is registered and a window created; in a pool, the RAM is held.
    pub fn new(stage: &'a Stage) -> Self {
        let field = Self { stage };
        if let Some(registration) = field.registration() {
            registration.register(stage.ram.all()).expect("the guest's RAM can be registered");
        }
        if let Some(sharing) = field.space().sharing() {
            sharing.share_pins(stage.ram.all()).expect("the guest's RAM can be held");
        }
        if let Some(control) = field.windows() {
            let request = WindowRequest { range: range(0, GIB), page: PageSize::K4 };
            control.create_window(request).expect("a window of 1 GiB at 0");
        }
        field
    }

    /// Maps the first MiB of the guest's RAM at 0.
    pub fn map_something(&self) {
        self.map(0, &self.ram(0, 16), Unit::Whole).expect("it fits");
    }

    fn space(&self) -> &dyn PciAddressSpace {
        self.stage.space.as_ref()
    }

    fn registration(&self) -> Option<&dyn MemoryRegistration> {
        self.space().registration()
    }

    fn windows(&self) -> Option<&dyn WindowControl> {
        self.space().window_control()
    }

    /// The `n`-th piece of RAM, of `pages` times 64 KiB: a multiple of every host's page.
    fn ram(&self, n: u64, pages: u64) -> HostMemory {
        self.stage.ram.slice(n * PAGE, pages * PAGE)
    }

    fn map(&self, at: u64, memory: &HostMemory, unit: Unit) -> Result<(), Error> {
        self.space().map(Iova::new(at), memory, Access::READ_WRITE, unit)
    }

    fn live(&self) -> Vec<Mapping> {
        self.space().mappings(IovaRange::all())
    }

    /// `attempt` fails with `kind`, without a kernel call's trace, and changes nothing.
    fn refuses<T: std::fmt::Debug>(&self, kind: &Kind, attempt: impl FnOnce() -> Result<T, Error>) {
        let before = self.live();
        let error = attempt().expect_err("the contract says no");
        assert_eq!(&error.kind, kind, "{error}");
        assert_eq!(error.failure, None, "found before the kernel was asked: {error}");
        assert_eq!(self.live(), before, "after {error}");
    }
}

fn range(first: u64, len: u64) -> IovaRange {
    IovaRange::with_len(Iova::new(first), len).expect("a range of the case")
}

const PAGES: Unit = Unit::Pages(PageSize::K64);

fn what_is_mapped_is_found_until_it_is_unmapped(field: &Field<'_>) {
    let memory = field.ram(1, 2);
    field.map(4 * PAGE, &memory, Unit::Whole).expect("it fits");
    let found = field.space().lookup(Iova::new(5 * PAGE)).expect("it is live");
    assert_eq!((found.range, found.memory, found.access), (range(4 * PAGE, 2 * PAGE), memory, Access::READ_WRITE));
    assert_eq!(field.space().unmap(range(4 * PAGE, 2 * PAGE)).expect("whole units"), 2 * PAGE);
    assert_eq!(field.space().lookup(Iova::new(5 * PAGE)), None);
}

fn a_map_over_a_live_unit_is_refused(field: &Field<'_>) {
    field.map(4 * PAGE, &field.ram(0, 4), PAGES).expect("it fits");
    for (at, pages) in [(4, 4), (3, 2), (7, 2), (5, 1), (2, 8)] {
        let overlap = Kind::Overlap(range(4 * PAGE, 4 * PAGE));
        field.refuses(&overlap, || field.map(at * PAGE, &field.ram(8, pages), PAGES));
    }
    field.map(3 * PAGE, &field.ram(8, 1), PAGES).expect("touching is not overlapping");
    field.map(8 * PAGE, &field.ram(9, 1), PAGES).expect("touching is not overlapping");
}

fn unmapping_nothing_is_no_error(field: &Field<'_>) {
    assert_eq!(field.space().unmap(range(0, GIB)).expect("gaps are fine"), 0);
    assert_eq!(field.space().unmap(IovaRange::all()).expect("outside windows too"), 0);
}

fn a_whole_unit_is_not_cut(field: &Field<'_>) {
    field.map(4 * PAGE, &field.ram(0, 4), Unit::Whole).expect("it fits");
    field.map(8 * PAGE, &field.ram(4, 1), Unit::Whole).expect("it fits");
    let cut = Kind::CutsUnit(range(4 * PAGE, 4 * PAGE));
    for (first, pages) in [(4, 1), (5, 1), (7, 1), (0, 6), (7, 4)] {
        field.refuses(&cut, || field.space().unmap(range(first * PAGE, pages * PAGE)));
    }
    assert_eq!(field.space().unmap(range(8 * PAGE, PAGE)).expect("the neighbour is whole"), PAGE);
}

fn an_unmap_spans_gaps_and_counts_bytes(field: &Field<'_>) {
    for at in [2, 5, 9] {
        field.map(at * PAGE, &field.ram(at, 1), Unit::Whole).expect("it fits");
    }
    assert_eq!(field.space().unmap(range(0, 9 * PAGE)).expect("gaps are fine"), 2 * PAGE);
    assert_eq!(field.live().len(), 1);
    assert_eq!(field.space().unmap(IovaRange::all()).expect("everything"), PAGE);
}

fn any_run_of_pages_can_go(field: &Field<'_>) {
    field.map(0, &field.ram(0, 8), PAGES).expect("it fits");
    assert_eq!(field.space().unmap(range(2 * PAGE, 3 * PAGE)).expect("whole pages"), 3 * PAGE);
    let left: Vec<_> = field.live().into_iter().map(|mapping| (mapping.range, mapping.memory)).collect();
    assert_eq!(left, [(range(0, 2 * PAGE), field.ram(0, 2)), (range(5 * PAGE, 3 * PAGE), field.ram(5, 3))]);
    let cut = Kind::CutsUnit(range(0, PAGE));
    field.refuses(&cut, || field.space().unmap(range(0, PAGE / 2)));
    field.map(2 * PAGE, &field.ram(2, 3), PAGES).expect("the gap can be filled");
    assert_eq!(field.live().len(), 1, "what continues each other is one run");
}

fn a_replacement_needs_live_units(field: &Field<'_>) {
    field.map(0, &field.ram(0, 4), PAGES).expect("it fits");
    let replace = |at: u64, n, pages| {
        field.space().replace(Iova::new(at * PAGE), &field.ram(n, pages), Access::READ, PageSize::K64)
    };
    field.refuses(&Kind::NotLive(range(4 * PAGE, PAGE)), || replace(3, 8, 2));
    let swap = replace(1, 8, 2).expect("they are live");
    let seamless = field.space().powers().keeps == MappingModel::PageEntries;
    assert_eq!(swap, if seamless { Swap::Seamless } else { Swap::WithGap });
    let found = field.space().lookup(Iova::new(2 * PAGE)).expect("it is live");
    assert_eq!((found.memory, found.access), (field.ram(8, 2), Access::READ));
    field.map(8 * PAGE, &field.ram(12, 2), Unit::Whole).expect("it fits");
    field.refuses(&Kind::CutsUnit(range(8 * PAGE, 2 * PAGE)), || replace(8, 9, 1));
}

fn bounds_and_host_address_must_be_aligned(field: &Field<'_>) {
    let granule = field.space().windows().windows.containing(Iova::new(0)).expect("there is a window").granule();
    let misaligned = Kind::Misaligned(granule);
    let half = granule.bytes() / 2;
    let ram = &field.stage.ram;
    field.refuses(&misaligned, || field.map(half, &field.ram(0, 1), Unit::Whole));
    field.refuses(&misaligned, || field.map(0, &ram.slice(0, half), Unit::Whole));
    field.refuses(&misaligned, || field.map(0, &ram.slice(half, granule.bytes()), Unit::Whole));
    let small = PageSize::from_shift(granule.shift() - 1).expect("smaller");
    field.refuses(&Kind::BadUnit(small), || field.map(0, &field.ram(0, 1), Unit::Pages(small)));
    field.refuses(&Kind::BadUnit(PageSize::M2), || field.map(0, &field.ram(0, 1), Unit::Pages(PageSize::M2)));
}

fn a_range_must_lie_inside_one_window(field: &Field<'_>) {
    let top = field.space().windows().windows.top().expect("there is a window");
    let outside = Kind::OutsideWindows(Some(top));
    field.refuses(&outside, || field.map(top.get() + 1, &field.ram(0, 1), Unit::Whole));
    field.refuses(&outside, || field.map(top.get() + 1 - PAGE, &field.ram(0, 2), Unit::Whole));
    field.map(top.get() + 1 - PAGE, &field.ram(0, 1), Unit::Whole).expect("the last page is inside");
    assert_eq!(field.space().unmap(range(top.get() + 1 - PAGE, PAGE)).expect("the last page"), PAGE);
    // A PC's hole, where a write is an interrupt.
    if field.space().powers().keeps == MappingModel::Mappings {
        field.refuses(&outside, || field.map(0xfee0_0000, &field.ram(0, 1), Unit::Whole));
        field.refuses(&outside, || field.map(0xfedf_0000, &field.ram(0, 2), Unit::Whole));
    }
}

fn access_must_be_asked_for_and_be_possible(field: &Field<'_>) {
    let nothing = || field.space().map(Iova::new(0), &field.ram(0, 1), Access::empty(), Unit::Whole);
    field.refuses(&Kind::NoAccess, nothing);
    let read_only = field.ram(0, 1).host_read_only();
    field.refuses(&Kind::HostReadOnly(Access::READ_WRITE), || field.map(0, &read_only, Unit::Whole));
    let for_reading = || field.space().map(Iova::new(0), &read_only, Access::READ, Unit::Whole);
    if field.space().powers().maps_host_read_only {
        for_reading().expect("it is there to be read");
    } else {
        field.refuses(&Kind::HostReadOnly(Access::READ_WRITE), for_reading);
    }
}

fn a_range_must_not_wrap(field: &Field<'_>) {
    let overflow = Kind::BadRange(dmaspace_core::words::address::BadRange::Overflow);
    field.refuses(&overflow, || field.map(u64::MAX - PAGE + 1, &field.ram(0, 2), Unit::Whole));
}

fn device_memory_is_refused(field: &Field<'_>) {
    field.refuses(&Kind::DeviceMemory, || field.map(0, &field.ram(0, 1).device_memory(), Unit::Whole));
}

fn unregistered_memory_is_refused(field: &Field<'_>) {
    let registration = field.registration().expect("this backend registers memory");
    let all = field.stage.ram.all();
    registration.unregister(all).expect("nothing leans on it");
    registration.register(&field.ram(0, 4)).expect("a part of it");
    field.refuses(&Kind::NotRegistered, || field.map(0, &field.ram(4, 1), PAGES));
    field.refuses(&Kind::NotRegistered, || field.map(0, &field.ram(3, 2), PAGES));
    registration.register(&field.ram(4, 4)).expect("the part behind it");
    field.map(0, &field.ram(3, 2), PAGES).expect("neighbouring registrations serve one map");
    let overlapping = field.ram(7, 2);
    field.refuses(&Kind::AlreadyRegistered, || registration.register(&overlapping));
}

fn registered_memory_stays_while_it_is_used(field: &Field<'_>) {
    let registration = field.registration().expect("this backend registers memory");
    let all = field.stage.ram.all();
    field.map(0, &field.ram(3, 2), PAGES).expect("it fits");
    field.refuses(&Kind::InUse(range(0, 2 * PAGE)), || registration.unregister(all));
    field.refuses(&Kind::NotRegistered, || registration.unregister(&field.ram(8, 1)));
    field.space().unmap(range(0, GIB)).expect("everything");
    registration.unregister(all).expect("nothing leans on it");
    assert!(registration.registered().is_empty());
}

fn windows_are_created_and_removed_exactly(field: &Field<'_>) {
    let control = field.windows().expect("this backend creates windows");
    let offer = control.offer().expect("a device is attached");
    let second = WindowRequest { range: range(1 << 59, GIB), page: PageSize::K4 };
    let granted = control.create_window(second).expect("a second window");
    assert_eq!(granted.range, second.range);
    let windows = field.space().windows();
    assert_eq!(windows.windows.iter().count(), 2);

    let create = |first, len, page| control.create_window(WindowRequest { range: range(first, len), page });
    field.refuses(&Kind::Overlap(range(0, GIB)), || create(GIB / 2, GIB / 2, PageSize::K4));
    field.refuses(&Kind::BadWindowSize, || create(2 * GIB, 3 * PAGE, PageSize::K4));
    let lacking = PageSize::from_shift(13).expect("8 KiB");
    field.refuses(&Kind::UnsupportedPage(offer.page_sizes), || create(2 * GIB, GIB, lacking));
    let third = create(2 * GIB, GIB, PageSize::K4).expect_err("there are two slots");
    assert_eq!(third.kind, Kind::NoWindowSlot, "{third}");

    // The kernel would remove the window around any address in it.
    field.refuses(&Kind::NoSuchWindow, || control.remove_window(range((1 << 59) + PAGE, PAGE)));
    field.map(1 << 59, &field.ram(0, 2), PAGES).expect("it fits");
    let lost = control.remove_window(second.range).expect("live entries are no obstacle");
    assert_eq!(lost.len(), 1);
    assert_eq!(field.space().lookup(second.range.first()), None);
    assert!(field.space().windows().generation > windows.generation);
    create(1 << 59, GIB, PageSize::K4).expect("the slot is free again");
}
