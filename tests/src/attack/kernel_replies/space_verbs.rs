//! The verbs of a space, with arguments of the input.

use dmaspace::choose::OpenRequest;
use dmaspace_core::contract::eeh::PeOperation;
use dmaspace_core::contract::{MapBatch, MapRequest, Unit, WindowRequest};
use dmaspace_core::{IovaRange, PageSize};

use super::{Run, Verb};
use crate::owned;

/// The verbs.
pub(super) const SPACE_VERBS: &[Verb] = &[
    ("map", map),
    ("map", map),
    ("map_batch", map_batch),
    ("replace", replace),
    ("unmap", unmap),
    ("unmap", unmap),
    ("ask", ask),
    ("create_window", create_window),
    ("remove_window", remove_window),
    ("register", register),
    ("unregister", unregister),
    ("share_pins", share_pins),
    ("stop_sharing", stop_sharing),
    ("track", track),
    ("sync_dirty", sync_dirty),
    ("stop_tracking", stop_tracking),
    ("hand_over", hand_over),
    ("take_back", take_back),
    ("adopt", adopt),
    ("operate_on_pe", operate_on_pe),
    ("add_device", add_device),
    ("add_device", add_device),
    ("add_device", add_device),
    ("remove_device", remove_device),
    ("open_another", open_another),
    ("open_in_a_pool", open_in_a_pool),
    ("close", close),
];

fn unit(run: &mut Run) -> Unit {
    run.input.choose(&[Unit::Whole, Unit::Whole, Unit::Pages(PageSize::K64), Unit::Pages(PageSize::K4)])
}

fn map(run: &mut Run) {
    let Some(space) = run.space() else { return };
    let (at, memory, access, unit) = (run.at(), run.part(), run.access(), unit(run));
    let _result = space.map(MapRequest::new(at, &memory, access).with_unit(unit));
}

fn map_batch(run: &mut Run) {
    let Some(space) = run.space() else { return };
    let mut batch = MapBatch::new(unit(run));
    for _ in 0..1 + run.input.below(4) {
        let (at, memory, access) = (run.at(), run.part(), run.access());
        let Ok(range) = IovaRange::with_len(at, memory.len().get()) else { continue };
        batch.set_memory(&memory);
        batch.add(range, 0, access).expect("as long as the memory");
    }
    let _result = space.map_batch(&batch);
}

fn replace(run: &mut Run) {
    let Some(space) = run.space() else { return };
    let (memory, access, unit) = (run.part(), run.access(), unit(run));
    let live = space.mappings(IovaRange::all());
    let at = if live.is_empty() { run.at() } else { live[run.input.index(live.len())].range.first() };
    let _result = space.replace(MapRequest::new(at, &memory, access).with_unit(unit));
}

fn unmap(run: &mut Run) {
    let Some(space) = run.space() else { return };
    let live = space.mappings(IovaRange::all());
    let range = match run.input.below(4) {
        0..=1 if !live.is_empty() => live[run.input.index(live.len())].range,
        2 => IovaRange::all(),
        _ => run.range(),
    };
    let _result = space.unmap(range);
}

/// Questions make no change, and their answers agree.
fn ask(run: &mut Run) {
    let Some(space) = run.space() else { return };
    let at = run.at();
    let found = space.lookup(at).map(|mapping| mapping.memory.address().get() + mapping.range.offset_of(at));
    assert_eq!(space.translate(at).map(|(address, _)| address.get()), found, "{at}");
    let range = run.range();
    let mappings = space.mappings(range);
    assert!(mappings.iter().all(|mapping| mapping.range.overlaps(range)), "{mappings:?} in {range}");
    let (_, _, _) = (space.describe(), space.windows(), space.powers().mappings_left());
}

fn create_window(run: &mut Run) {
    let Some(space) = run.space() else { return };
    let Some(control) = space.powers().window_control else { return };
    let first = control.offer().and_then(|offer| {
        let place = run.input.index(offer.places.len());
        offer.places.get(place).map(|place| place.first)
    });
    let (first, len) = (first.unwrap_or_else(|| run.at()), 1 << (16 + run.input.below(16)));
    let page = run.input.choose(&[PageSize::K4, PageSize::K64, PageSize::M2, PageSize::M16]);
    let Ok(range) = IovaRange::with_len(first, len) else { return };
    let request = WindowRequest::new(range, page);
    let _bytes = control.table_bytes(request);
    let _result = control.create_window(request);
}

fn remove_window(run: &mut Run) {
    let Some(space) = run.space() else { return };
    let windows: Vec<_> = space.windows().windows.iter().map(|window| window.range).collect();
    let range = if windows.is_empty() { run.range() } else { windows[run.input.index(windows.len())] };
    let _result = space.powers().window_control.map(|control| control.remove_window(range));
}

fn register(run: &mut Run) {
    let Some(space) = run.space() else { return };
    let memory = if run.input.once_in(4) { run.part() } else { run.memory[run.input.index(4)].clone() };
    let _result = space.powers().registration.map(|registration| registration.register(&memory));
}

fn unregister(run: &mut Run) {
    let Some(space) = run.space() else { return };
    let Some(registration) = space.powers().registration else { return };
    let registered = registration.registered();
    let memory = if registered.is_empty() { run.part() } else { registered[run.input.index(registered.len())].clone() };
    let _result = registration.unregister(&memory);
}

fn share_pins(run: &mut Run) {
    let Some(space) = run.space() else { return };
    let memory = run.part();
    let Some(sharing) = space.powers().pin_sharing else { return };
    let _result = sharing.share_pins(&memory);
    let _sharers = sharing.sharers(&memory);
}

fn stop_sharing(run: &mut Run) {
    let Some(space) = run.space() else { return };
    let Some(sharing) = space.powers().pin_sharing else { return };
    let shared = sharing.shared();
    let memory = if shared.is_empty() { run.part() } else { shared[run.input.index(shared.len())].clone() };
    let _result = sharing.stop_sharing(&memory);
}

/// A space that is tracked past the listener tells its pages to the same sink.
fn track(run: &mut Run) {
    let Some(space) = run.space() else { return };
    let _result = space.powers().dirty_tracking.start(run.untold.clone());
}

fn sync_dirty(run: &mut Run) {
    let Some(space) = run.space() else { return };
    let range = run.range();
    let _result = space.powers().dirty_tracking.sync(range);
}

fn stop_tracking(run: &mut Run) {
    let Some(space) = run.space() else { return };
    run.forget_writes();
    run.is_tracking = false;
    let _result = space.powers().dirty_tracking.stop();
}

fn hand_over(run: &mut Run) {
    let place = run.input.index(run.opened.len());
    let names = run.names();
    let Some(opened) = run.opened.get(place) else { return };
    let live_update = opened.space.space().powers().live_update;
    match live_update.hand_over(&names) {
        Ok(handover) if run.input.once_in(3) => run.handed_over.push((place, handover)),
        _ => drop(live_update.take_back()),
    }
}

fn take_back(run: &mut Run) {
    let Some(space) = run.space() else { return };
    let _result = space.powers().live_update.take_back();
}

fn adopt(run: &mut Run) {
    let Some((place, handover)) = run.handed_over.pop() else { return };
    let names = run.names();
    let Some(opened) = run.opened.get(place) else { return };
    let _result = owned::adopt(&**opened.space.space(), &handover, &names);
}

fn operate_on_pe(run: &mut Run) {
    let Some(space) = run.space() else { return };
    let Some(eeh) = space.powers().eeh else { return };
    let operation = run.input.choose(&[PeOperation::Enable, PeOperation::Disable, PeOperation::State]);
    let _available = eeh.is_available();
    let _result = eeh.operate(operation);
    let _state = eeh.state();
}

fn add_device(run: &mut Run) {
    let n = run.input.index(4);
    let address = run.address(n);
    let place = run.input.index(run.opened.len());
    let Some(opened) = run.opened.get_mut(place) else { return };
    if let Ok(device) = opened.space.add(&run.host, address) {
        opened.devices.push(device);
    }
}

fn remove_device(run: &mut Run) {
    let place = run.input.index(run.opened.len());
    let Some(opened) = run.opened.get_mut(place) else { return };
    if opened.devices.is_empty() {
        return;
    }
    let device = opened.devices.remove(run.input.index(opened.devices.len()));
    let _result = opened.space.remove(device);
}

fn open_another(run: &mut Run) {
    if run.opened.len() < 3 {
        run.open();
    }
}

fn open_in_a_pool(run: &mut Run) {
    if run.opened.len() >= 3 {
        return;
    }
    if run.pool.is_none() {
        run.pool = run.host.open_pool().ok();
    }
    let request = OpenRequest::device(run.address(run.opened.len()));
    let Some(pool) = &run.pool else { return };
    if let Ok(opened) = run.host.open_in(pool, &request) {
        let _result = run.listener.attach(opened.space.space().clone());
        run.opened.push(opened);
    }
}

fn close(run: &mut Run) {
    if run.opened.len() < 2 || run.input.once_in(2) {
        return;
    }
    let opened = run.opened.remove(run.input.index(run.opened.len()));
    let _result = run.listener.detach(opened.space.space());
    // A space that the listener could not leave stays open with it.
    if run.listener.spaces().any(|space| std::sync::Arc::ptr_eq(space, opened.space.space())) {
        run.opened.push(opened);
    }
    run.handed_over.clear();
}
