//! Which windows a host that creates them should have.
//!
//! Every translated section gets a window of its own, exactly where it lies. RAM that lies in the PCI address space itself, a PC's
//! map on a POWER host, gets one window over all of it.

use std::num::NonZeroU64;

use crate::plan::continues;
use crate::section::{Backing, Cuts, Section};
use crate::update::View;
use dmaspace_core::contract::{Fence, WindowOffer, WindowRequest};
use dmaspace_core::words::address::{Iova, IovaRange};
use dmaspace_core::words::memory::HostMemory;
use dmaspace_core::words::page::{PageSize, PageSizes};
use dmaspace_core::words::window::{Window, Windows};

/// How the windows have to change.
#[derive(Debug, Default)]
pub(super) struct WindowPlan {
    /// The windows to remove, with everything in them.
    pub(super) removed: Vec<IovaRange>,
    /// The windows to create, in ascending order: platforms fill their slots from the bottom of the bus up.
    pub(super) created: Vec<WindowRequest>,
    /// Whether there is room for them before any goes: what is not removed yet need not be brought back.
    pub(super) come_first: bool,
    /// The windows in force afterwards, if all are granted.
    pub(super) after: Windows,
    /// Sections for which there can be no window, by first address, and why.
    pub(super) refused: Vec<(Iova, String)>,
    /// The largest page that the memory behind entries allows, where windows are created.
    pub(super) backing: Option<PageSize>,
}

impl WindowPlan {
    pub(super) fn refusal(&self, section: &Section) -> Option<&str> {
        let refused = self.refused.iter().find(|(first, _)| *first == section.range().first());
        refused.map(|(_, reason)| reason.as_str())
    }

    /// Why a window that was created for entries of `page` has pages of `granule`, in words that follow it.
    pub(super) fn why_of_page(&self, granule: PageSize, page: PageSize) -> String {
        match self.backing {
            None => String::new(),
            Some(_) if granule == page => ", which are the guest's".into(),
            Some(backing) if granule == backing => {
                format!(", which the memory behind it is made of; the guest's are {page}")
            }
            Some(backing) => format!(", the largest of the host's up to {}; the guest's are {page}", backing.min(page)),
        }
    }
}

/// Plans the windows for `view`.
pub(super) fn plan(
    view: &View,
    cuts: &[Cuts],
    host_page: PageSize,
    offer: &WindowOffer,
    now: &Windows,
    fences: &[Fence],
) -> WindowPlan {
    let backing = backing_page(view.targets.iter().map(|target| target.memory()), host_page);
    let mut plan = WindowPlan { backing: Some(backing), ..WindowPlan::default() };
    let mut wanted = translated_windows(view, backing, offer, &mut plan);
    if let Some(hull) = ram_hull(view) {
        match ram_window(view, hull, cuts, host_page, offer, now, &wanted) {
            Ok(window) => wanted.push(window),
            Err(reason) => {
                plan.refused.extend(ram(view).map(|(section, ..)| (section.range().first(), reason.clone())))
            }
        }
    }
    wanted.sort_by_key(|window| window.range);
    for surplus in wanted.drain(offer.slots.min(wanted.len())..) {
        let reason = format!("the host has {} window slots, and they are taken", offer.slots);
        plan.refused
            .extend(view.sections.within(surplus.range).map(|section| (section.range().first(), reason.clone())));
    }
    let will_do = |window: &Window, wanted: &WindowRequest| {
        wanted.range == window.range && window.granule() <= coarsest(view, wanted)
    };
    // Behind a fence nothing is created; what is there stays as it is.
    let fence = |wanted: &WindowRequest| fences.iter().find(|fence| fence.range.overlaps(wanted.range));
    let is_missing = |wanted: &&WindowRequest| !now.iter().any(|window| will_do(window, wanted));
    let blocked: Vec<_> = wanted.iter().filter(is_missing).filter_map(|it| Some((it.range, fence(it)?))).collect();
    for (range, fence) in &blocked {
        let reason = format!("{} is fenced after an earlier failure", fence.range);
        plan.refused.extend(view.sections.within(*range).map(|section| (section.range().first(), reason.clone())));
    }
    let is_blocked = |range: IovaRange| blocked.iter().any(|(blocked, _)| blocked.overlaps(range));
    let kept = |window: &Window| is_blocked(window.range) || wanted.iter().any(|wanted| will_do(window, wanted));
    // From the top down: taken back in reverse, they are created from the bottom up.
    plan.removed = now.iter().rev().filter(|window| !kept(window)).map(|window| window.range).collect();
    plan.created = wanted.iter().filter(is_missing).filter(|it| !is_blocked(it.range)).copied().collect();
    plan.come_first = !plan.removed.is_empty() && have_room(&plan.created, offer, now);
    let stays = now.iter().filter(|window| kept(window)).copied();
    let comes =
        plan.created.iter().map(|request| Window { range: request.range, page_sizes: PageSizes::only(request.page) });
    // Disjoint: sections are, and the RAM's window was checked against them.
    plan.after = Windows::new(stays.chain(comes).collect()).unwrap_or_default();
    plan
}

/// Whether the platform would put these windows where they belong next to those there are `now`. It fills the lowest place that is free,
/// so a window that went first might not come back to a higher one. A firmware's default window is only created alone.
pub(super) fn have_room(created: &[WindowRequest], offer: &WindowOffer, now: &Windows) -> bool {
    let mut taken: Vec<_> = now.iter().map(|window| window.range).collect();
    created.iter().all(|request| {
        let is_free = |first: Iova| !taken.iter().any(|range| range.contains(first));
        let next = offer.places.iter().find(|place| is_free(place.first));
        let is_next = next.is_some_and(|place| place.first == request.range.first() && place.longest.is_none());
        let fits = taken.len() < offer.slots && !taken.iter().any(|range| range.overlaps(request.range));
        taken.push(request.range);
        is_next && fits
    })
}

/// The largest page of a window that can stay in place of a new one: larger ones lose bytes, or entries.
fn coarsest(view: &View, wanted: &WindowRequest) -> PageSize {
    match view.sections.beginning_at(wanted.range.first()).map(Section::backing) {
        Some(Backing::Translated { page }) => *page,
        _ => wanted.page,
    }
}

fn translated_windows(
    view: &View,
    backing: PageSize,
    offer: &WindowOffer,
    plan: &mut WindowPlan,
) -> Vec<WindowRequest> {
    let mut wanted = Vec::new();
    for section in view.sections.iter() {
        let Backing::Translated { page } = section.backing() else { continue };
        match translated_window(section.range(), backing.min(*page), offer) {
            Ok(window) => wanted.push(window),
            Err(reason) => plan.refused.push((section.range().first(), reason)),
        }
    }
    wanted
}

/// A window that is exactly `range`, in the largest pages up to `limit`. Where the platform is not known to put windows, it is asked
/// all the same.
fn translated_window(range: IovaRange, limit: PageSize, offer: &WindowOffer) -> Result<WindowRequest, String> {
    let len = range.len().map_or(0, NonZeroU64::get);
    if !len.is_power_of_two() {
        return Err("the host's windows are powers of two in size".into());
    }
    let place = offer.places.iter().find(|place| place.first == range.first());
    if let Some(longest) = place.filter(|place| !place.holds(len)).and_then(|place| place.longest) {
        return Err(format!("the host's window at {} is at most {longest:#x} bytes long", range.first()));
    }
    let sizes = place.map_or(offer.page_sizes, |place| place.page_sizes);
    let page = sizes.largest_up_to(limit);
    let none = || format!("the guest's page and the memory behind it allow {limit}, the host's pages here are {sizes}");
    let page = page.ok_or_else(none)?;
    match range.is_aligned_to(page) {
        true => Ok(WindowRequest { range, page }),
        false => Err(format!("its bounds are no multiples of {page}")),
    }
}

fn ram(view: &View) -> impl Iterator<Item = (&Section, &HostMemory)> {
    view.sections.iter().filter_map(|section| match section.backing() {
        Backing::Ram { memory, .. } | Backing::Discardable { memory, .. } => Some((section, memory)),
        _ => None,
    })
}

fn ram_hull(view: &View) -> Option<IovaRange> {
    ram(view).map(|(section, _)| section.range()).reduce(IovaRange::hull)
}

/// One window over all RAM: the one there is, if it will do, else a new one from where the platform lets windows begin.
fn ram_window(
    view: &View,
    hull: IovaRange,
    cuts: &[Cuts],
    host_page: PageSize,
    offer: &WindowOffer,
    now: &Windows,
    translated: &[WindowRequest],
) -> Result<WindowRequest, String> {
    let is_translated = |window: &Window| translated.iter().any(|other| other.range == window.range);
    let afresh = ram_page(view, cuts, host_page, offer.page_sizes);
    let is_fine = |window: &Window| afresh.is_some_and(|page| window.granule() <= page);
    if let Some(window) = now.covering(hull).filter(|window| !is_translated(window) && is_fine(window)) {
        return Ok(WindowRequest { range: window.range, page: window.granule() });
    }
    let request = offer.places.iter().find_map(|place| {
        let page = ram_page(view, cuts, host_page, place.page_sizes)?;
        let range = window_from(place.first, hull, page)?;
        place.holds(range.len()?.get()).then_some(WindowRequest { range, page })
    });
    let request = request.ok_or_else(|| "no window of the host reaches all of the guest's RAM".to_string())?;
    match translated.iter().find(|other| other.range.overlaps(request.range)) {
        Some(other) => Err(format!("the window over all RAM would overlap the translated window {}", other.range)),
        None => Ok(request),
    }
}

fn window_from(start: Iova, hull: IovaRange, page: PageSize) -> Option<IovaRange> {
    let reach = (start <= hull.first()).then(|| hull.last().get() - start.get())?;
    let len = reach.checked_add(1)?.checked_next_power_of_two()?.max(page.bytes());
    IovaRange::with_len(start, len).ok()
}

/// The largest page that the memory's own pages and all steps allow, and to which no more bytes are lost than to the smallest.
fn ram_page(view: &View, cuts: &[Cuts], host_page: PageSize, sizes: PageSizes) -> Option<PageSize> {
    let sizes = sizes.up_to(backing_page(ram(view).map(|(_, memory)| memory), host_page))?;
    let runs = ram_runs(view);
    let reached = |page: PageSize| -> u128 {
        let congruent = |(range, address): &&(IovaRange, u64)| page.divides(range.first().get().wrapping_sub(*address));
        let trimmed = runs.iter().filter(congruent).filter_map(|(range, _)| range.trimmed_to(page));
        trimmed.map(IovaRange::bytes).sum()
    };
    let most = reached(sizes.smallest());
    let granules = ram(view).filter_map(|(section, _)| match section.backing() {
        Backing::Discardable { granule, .. } => Some(*granule),
        _ => None,
    });
    let steps: Vec<_> = cuts.iter().map(|cuts| cuts.step).chain(granules).collect();
    let steps_allow = |page: &PageSize| steps.iter().all(|step| page.divides(step.bytes()));
    // A registration that ends within a page does not hold it (linux: arch/powerpc/mm/book3s64/iommu_api.c, mm_iommu_do_alloc).
    let bounds: Vec<_> = ram(view)
        .flat_map(|(section, memory)| [memory.address(), memory.len().get(), section.range().first().get()])
        .collect();
    let registered = |page: &PageSize| *page <= host_page || bounds.iter().all(|bound| page.divides(*bound));
    let allowed = sizes.iter().rev().filter(steps_allow).filter(registered);
    Some(allowed.into_iter().find(|page| reached(*page) == most).unwrap_or(sizes.smallest()))
}

/// The RAM, sections that continue each other as one: where it lies, and the host address of its first byte.
fn ram_runs(view: &View) -> Vec<(IovaRange, u64)> {
    let mut runs: Vec<(IovaRange, u64)> = Vec::new();
    let mut before = None;
    for (section, memory) in ram(view) {
        match runs.last_mut().filter(|_| before.is_some_and(|before| continues(before, section))) {
            Some((range, _)) => *range = range.hull(section.range()),
            None => runs.push((section.range(), memory.address())),
        }
        before = Some(section);
    }
    runs
}

/// The largest page that one entry may stand for: an entry holds one page frame, so the memory behind it must be of one piece
/// (linux: drivers/vfio/vfio_iommu_spapr_tce.c, tce_page_is_contained).
fn backing_page<'a>(memory: impl Iterator<Item = &'a HostMemory>, host_page: PageSize) -> PageSize {
    memory.map(|memory| memory.backing_page().unwrap_or(host_page)).min().unwrap_or(host_page)
}
