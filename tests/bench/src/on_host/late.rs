//! A space that joins a listener late, and leaves it: all entries of a window are mapped, and unmapped.

use dmaspace_core::{Access, Iova, IovaRange, PageSize, SystemAddress};
use dmaspace_listener::section::TargetMemory;
use dmaspace_listener::{FrontEnd, Listener, Section, TranslatedWindow, Update};

use crate::compare::{Tried, instructions, report};
use crate::{Bench, PAGE, offset};

/// The guest's window: the library's entries are in its lower half, the mappings of the raw calls in its upper half.
const WINDOW: u64 = 1 << 30;
const RAW: u64 = WINDOW / 2;
/// The entries: every other page, and no two continue each other.
const LIVE: u64 = 30_000;

/// Both comparisons. The space of `first` is served from the start; that of `late` joins.
pub(crate) fn measure(first: &Bench, late: &Bench) -> Tried {
    let kind = late.opened.space.backend();
    let (maps, unmaps) = raw(late)?;
    let (attach, detach) = ours(first, late)?;
    report(&format!("{kind}: attach of a late space, 30,000 scattered entries, an entry"), LIVE, maps, attach);
    report(&format!("{kind}: teardown of a space with 30,000 scattered entries, an entry"), LIVE, unmaps, detach);
    Ok(())
}

/// The raw loop maps and unmaps page by page. The listener is there because a container on POWER needs a window and
/// registered memory.
fn raw(late: &Bench) -> Tried<(f64, f64)> {
    let (mut listener, _window) = served_by(late, late)?;
    let place = |n: u64| RAW + 2 * n * PAGE;
    let maps = instructions(|| {
        for n in 0..LIVE {
            late.raw.map(place(n), late.page(n), PAGE)?;
        }
        Ok(())
    })?;
    let unmaps = instructions(|| {
        for n in 0..LIVE {
            late.raw.unmap(place(n), PAGE)?;
        }
        Ok(())
    })?;
    listener.detach(late.opened.space.space())?;
    Ok((maps, unmaps))
}

fn ours(first: &Bench, late: &Bench) -> Tried<(f64, f64)> {
    let (mut listener, window) = served_by(first, late)?;
    for n in 0..LIVE {
        window.put(Iova::new(2 * n * PAGE), SystemAddress::new(offset(n)), Access::READ_WRITE)?;
    }
    let space = late.opened.space.space();
    let attach = instructions(|| Ok(listener.attach(space.clone()).map(drop)?))?;
    let detach = instructions(|| Ok(listener.detach(space).map(drop)?))?;
    listener.detach(first.opened.space.space())?;
    Ok((attach, detach))
}

/// A window onto the memory of `memory`, which the space of `first` serves.
fn served_by(first: &Bench, memory: &Bench) -> Tried<(Listener, TranslatedWindow)> {
    let mut listener = Listener::new(FrontEnd::default());
    listener.attach(first.opened.space.space().clone())?;
    let section = Section::translated("window", IovaRange::with_len(Iova::new(0), WINDOW)?, PageSize::K4);
    let target = TargetMemory::new("ram", SystemAddress::new(0), memory.ram.clone())?;
    listener.commit(Update::new().adding(section).adding_target(target))?;
    let window = listener.translated(Iova::new(0)).ok_or("the section is there")?;
    Ok((listener, window))
}
