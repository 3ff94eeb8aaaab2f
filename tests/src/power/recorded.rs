//! A guest as QEMU had it, on this host.

use dmaspace_core::contract::WindowRequest;
use dmaspace_core::{Access, Iova, IovaRange, PageSize, SystemAddress};
use dmaspace_listener::section::{FrontEnd, TargetMemory};
use dmaspace_listener::{Listener, Section};

use crate::fixture::Fixture;
use crate::flat_view;
use crate::power::machine::Machine;
use crate::power::windows::{PAGE, control, registration};
use crate::ram::Ram;

/// The first window has been there from the beginning, in pages of 4K; the guest asked for the second, in pages of 64K.
fn section((range, name): (IovaRange, &str)) -> Section {
    match name {
        "msi" => Section::msi(name, range),
        "tce-iommu-80000000" => Section::translated(name, range, PageSize::K4),
        _ => Section::translated(name, range, PageSize::K64),
    }
}

/// A guest of 4 GiB with two windows: there are two of the host behind them, of the pages that the guest and the memory
/// allow, and the report says why. All of the guest's RAM is one registration, and the device reaches its ends through
/// the ends of both windows.
pub(super) fn two_windows_of_a_recorded_guest_are_two_of_the_host(machine: &Machine) {
    let mut fixture = machine.fixture();
    let space = fixture.space.clone();
    let host_page = space.describe().capabilities.host_page;
    let empty = machine.locked();
    let ram = Ram::new(usize::try_from(flat_view::ram().bytes()).expect("4 GiB"));
    let target = TargetMemory::new("ppc_spapr.ram", flat_view::ram().first(), ram.all().clone());
    let sections: Vec<_> = flat_view::bus().into_iter().map(section).collect();
    let mut listener = Listener::new(FrontEnd::default());
    listener.attach(space.clone()).expect("an empty view fits");
    let update = listener.update_to(&sections, &[target.expect("a proper range")]);
    let report = listener.commit(update).expect("two windows fit").spaces.remove(0);

    let windows: Vec<_> = space.windows().windows.iter().map(|window| (window.range, window.granule())).collect();
    let [low, _, high] = [0, 1, 2].map(|n| sections[n].range());
    assert_eq!(windows, [(low, PageSize::K4), (high, host_page)]);
    let why = match host_page {
        PageSize::K64 => "64K pages, which are the guest's",
        _ => "4K pages, which the memory behind it is made of; the guest's are 64K",
    };
    let said: Vec<_> = report.sections.iter().map(ToString::to_string).collect();
    let fate = |n: usize, why: &str| {
        let range = sections[n].range();
        format!("{}: window: the host's window {range} with {why}", sections[n])
    };
    assert_eq!([&said[0], &said[2]], [&fate(0, "4K pages, which are the guest's"), &fate(2, why)]);
    assert_eq!(registration(&*space).registered(), [ram.all().clone()]);
    let requests = windows.into_iter().map(|(range, page)| WindowRequest::new(range, page));
    let tables: u64 = requests.map(|request| control(&*space).table_bytes(request)).sum();
    assert_eq!((report.pinned, machine.locked() - empty), (ram.all().len().get(), ram.all().len().get() + tables));

    assert_reaches_both_ends(&mut fixture, &listener, &ram, [low, high]);
    listener.detach(&space).expect("everything can be taken out");
    assert_eq!(machine.locked(), empty);
}

/// The device reads the first page of RAM at the beginning of each window, and writes the last at its end.
fn assert_reaches_both_ends(fixture: &mut Fixture, listener: &Listener, ram: &Ram, windows: [IovaRange; 2]) {
    let last_page = ram.all().len().get() - PAGE;
    for range in windows {
        let window = listener.translated(range.first()).expect("the window is in force");
        let ends = [(range.first().get(), 0), (range.last().get() - (PAGE - 1), last_page)];
        for (at, target) in ends {
            let target = SystemAddress::new(target);
            window.put_run(Iova::new(at), target, PAGE, Access::READ_WRITE).expect("RAM is there");
        }
        let [(first, _), (last, _)] = ends;
        fixture.show_results_at(Iova::new(first + 0x1000), ram.slice(0x1000, 0x1000));
        fixture.assert_readable(Iova::new(first), &ram.slice(0, 0x1000));
        fixture.assert_writable(Iova::new(last + PAGE - 0x1000), &ram.slice(last_page + PAGE - 0x1000, 0x1000));
    }
}
