//! The windows that a host should have which creates windows.
//!
//! Every translated section gets a window of its own, exactly where the section lies. RAM that lies in the PCI address
//! space itself, a PC's map on a POWER host, gets one window over all of it.

use std::num::NonZeroU64;

use crate::section::{Backing, Cuts, Section};
use crate::update::{View, continues};
use dmaspace_core::contract::{Fence, WindowOffer, WindowRequest};
use dmaspace_core::words::address::{Iova, IovaRange};
use dmaspace_core::words::memory::HostMemory;
use dmaspace_core::words::page::{PageSize, PageSizes};
use dmaspace_core::words::window::{Window, Windows};

/// The changes of a host's windows.
#[derive(Debug, Default)]
pub(super) struct WindowPlan {
    /// The windows to remove, with everything in them.
    pub(super) removed: Vec<IovaRange>,
    /// The windows to create, in ascending order: platforms fill their slots from the bottom of the bus up.
    pub(super) created: Vec<WindowRequest>,
    /// True if there is room for them before any window is removed: a window that is still there need not be restored.
    pub(super) come_first: bool,
    /// The windows in force afterwards, if all are granted.
    pub(super) after: Windows,
    /// The sections for which there can be no window, by first address, with the reason.
    refused: Vec<(Iova, String)>,
    /// The largest page that the memory behind entries allows, where windows are created.
    backing: Option<PageSize>,
}

impl WindowPlan {
    /// The plan for a host whose windows are fixed.
    pub(super) fn fixed(windows: Windows) -> Self {
        Self { after: windows, ..Self::default() }
    }

    /// The reason why there can be no window for `section`.
    pub(super) fn refusal(&self, section: &Section) -> Option<&str> {
        let refused = self.refused.iter().find(|(first, _)| *first == section.range().first());
        refused.map(|(_, reason)| reason.as_str())
    }

    /// The reason why a window that was created for entries of `page` has pages of `granule`, in words that follow it.
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

/// Plans the windows for `view` on a host with such an `offer`, whose windows are `now`. `cuts` are where the front end
/// expects changes.
pub(super) fn plan(
    view: &View,
    cuts: &[Cuts],
    host_page: PageSize,
    offer: &WindowOffer,
    now: &Windows,
    fences: &[Fence],
) -> WindowPlan {
    let backing = backing_page(view.targets.iter().map(|target| target.memory()), host_page);
    let plan = WindowPlan { backing: Some(backing), ..WindowPlan::default() };
    WindowPlanner { view, cuts, host_page, backing, offer, now, fences, plan }.plan()
}

/// A window plan in the making.
struct WindowPlanner<'a> {
    view: &'a View,
    cuts: &'a [Cuts],
    host_page: PageSize,
    backing: PageSize,
    offer: &'a WindowOffer,
    now: &'a Windows,
    fences: &'a [Fence],
    plan: WindowPlan,
}

impl WindowPlanner<'_> {
    fn plan(mut self) -> WindowPlan {
        let mut wanted = self.translated_windows();
        wanted.extend(self.ram_window(&wanted));
        wanted.sort_by_key(|window| window.range);
        for surplus in wanted.split_off(self.offer.slots.min(wanted.len())) {
            self.refuse_all_in(
                surplus.range,
                &format!("the host has {} window slots, and they are taken", self.offer.slots),
            );
        }
        let missing: Vec<_> = wanted.iter().copied().filter(|window| !self.is_there(window)).collect();
        let (blocked, created): (Vec<_>, Vec<_>) =
            missing.into_iter().partition(|window| self.fence_over(window.range).is_some());
        self.refuse_fenced(&blocked);
        let kept: Vec<Window> =
            self.now.iter().copied().filter(|window| self.stays(window, &wanted, &blocked)).collect();
        let created = self.refuse_behind(&kept, created);
        self.settle(created, kept)
    }

    fn refuse_all_in(&mut self, range: IovaRange, reason: &str) {
        for section in self.view.sections.within(range) {
            self.plan.refused.push((section.range().first(), reason.to_owned()));
        }
    }

    /// Refuses the sections of windows that cannot be created behind a fence.
    fn refuse_fenced(&mut self, blocked: &[WindowRequest]) {
        for window in blocked {
            if let Some(fence) = self.fence_over(window.range) {
                self.refuse_all_in(window.range, &format!("{fence} is fenced after an earlier failure"));
            }
        }
    }

    /// Refuses the sections of windows that overlap one which stays, since a fence keeps its successor from being
    /// created.
    /// Returns the windows that can be created.
    fn refuse_behind(&mut self, kept: &[Window], wanted: Vec<WindowRequest>) -> Vec<WindowRequest> {
        let mut created = Vec::new();
        for window in wanted {
            match kept.iter().find(|kept| kept.range.overlaps(window.range)) {
                Some(kept) => self.refuse_all_in(
                    window.range,
                    &format!("the window {} stays until a fence in it is gone", kept.range),
                ),
                None => created.push(window),
            }
        }
        created
    }

    fn fence_over(&self, range: IovaRange) -> Option<IovaRange> {
        self.fences.iter().map(|fence| fence.range).find(|fence| fence.overlaps(range))
    }

    /// Returns whether a window that will do for `wanted` is there.
    fn is_there(&self, wanted: &WindowRequest) -> bool {
        self.now.iter().any(|window| self.will_do(window, wanted))
    }

    fn will_do(&self, window: &Window, wanted: &WindowRequest) -> bool {
        wanted.range == window.range && window.granule() <= self.coarsest(wanted)
    }

    /// Returns whether a window stays: it is wanted, or overlaps one that a fence keeps from being created.
    fn stays(&self, window: &Window, wanted: &[WindowRequest], blocked: &[WindowRequest]) -> bool {
        blocked.iter().any(|blocked| blocked.range.overlaps(window.range))
            || wanted.iter().any(|wanted| self.will_do(window, wanted))
    }

    /// Completes the plan.
    fn settle(self, created: Vec<WindowRequest>, kept: Vec<Window>) -> WindowPlan {
        let Self { mut plan, now, offer, .. } = self;
        // From the top down: undone in reverse, they are created from the bottom up.
        for window in now.iter().rev() {
            if !kept.contains(window) {
                plan.removed.push(window.range);
            }
        }
        plan.come_first = !plan.removed.is_empty() && have_room(&created, offer, now);
        let mut after = kept;
        for request in &created {
            after.push(Window::new(request.range, PageSizes::only(request.page)));
        }
        let after = Windows::new(after);
        debug_assert!(after.is_ok(), "sections are disjoint, and the RAM's window was checked against them");
        plan.after = after.unwrap_or_default();
        plan.created = created;
        plan
    }

    /// The largest page of a window that can stay in place of a new one: larger ones lose bytes, or entries.
    fn coarsest(&self, wanted: &WindowRequest) -> PageSize {
        match self.view.sections.beginning_at(wanted.range.first()).map(Section::backing) {
            Some(Backing::Translated { page }) => *page,
            _ => wanted.page,
        }
    }

    /// A window for every translated section that can have one; the others are refused.
    fn translated_windows(&mut self) -> Vec<WindowRequest> {
        let mut wanted = Vec::new();
        for section in self.view.sections.iter() {
            let Backing::Translated { page } = section.backing() else { continue };
            match translated_window(section.range(), self.backing.min(*page), self.offer) {
                Ok(window) => wanted.push(window),
                Err(reason) => self.plan.refused.push((section.range().first(), reason)),
            }
        }
        wanted
    }

    /// One window over all RAM, if there is any; if no window can reach it, all RAM is refused.
    fn ram_window(&mut self, translated: &[WindowRequest]) -> Option<WindowRequest> {
        let hull = ram(self.view).map(|(section, _)| section.range()).reduce(IovaRange::hull)?;
        match self.ram_window_over(hull, translated) {
            Ok(window) => Some(window),
            Err(reason) => {
                for (section, _) in ram(self.view) {
                    self.plan.refused.push((section.range().first(), reason.clone()));
                }
                None
            }
        }
    }

    /// The window over all RAM: the one there is, if it will do, else a new one from where the platform lets windows
    /// begin.
    fn ram_window_over(&self, hull: IovaRange, translated: &[WindowRequest]) -> Result<WindowRequest, String> {
        if let Some(window) = self.ram_window_there(hull, translated) {
            return Ok(WindowRequest::new(window.range, window.granule()));
        }
        let Some(request) = self.offer.places.iter().find_map(|place| {
            let page = self.ram_page(place.page_sizes)?;
            let range = window_from(place.first, hull, page)?;
            if place.holds(range.len()?.get()) { Some(WindowRequest::new(range, page)) } else { None }
        }) else {
            return Err("no window of the host reaches all of the guest's RAM".to_string());
        };
        match translated.iter().find(|other| other.range.overlaps(request.range)) {
            Some(other) => Err(format!("the window over all RAM would overlap the translated window {}", other.range)),
            None => Ok(request),
        }
    }

    /// The window there is over all RAM, if no translated one needs its place and its pages are small enough.
    fn ram_window_there(&self, hull: IovaRange, translated: &[WindowRequest]) -> Option<Window> {
        let window = self.now.covering(hull)?;
        let is_taken = translated.iter().any(|other| other.range.overlaps(window.range));
        let page = self.ram_page(self.offer.page_sizes)?;
        if is_taken || window.granule() > page { None } else { Some(*window) }
    }

    /// The largest page that the memory's own pages and all steps allow, and to which no more bytes are lost than to
    /// the smallest.
    fn ram_page(&self, offered: PageSizes) -> Option<PageSize> {
        let sizes = offered.up_to(backing_page(ram(self.view).map(|(_, memory)| memory), self.host_page))?;
        let runs = ram_runs(self.view);
        let most = bytes_in_whole_pages(&runs, sizes.smallest());
        let steps = self.steps();
        let largest = sizes.iter().rev().find(|page| {
            steps.iter().all(|step| page.divides(step.bytes()))
                && self.is_whole_in_registrations(*page)
                && bytes_in_whole_pages(&runs, *page) == most
        });
        Some(largest.unwrap_or(sizes.smallest()))
    }

    /// The steps in which RAM is expected to change.
    fn steps(&self) -> Vec<PageSize> {
        let mut steps: Vec<_> = self.cuts.iter().map(|cuts| cuts.step).collect();
        for (section, _) in ram(self.view) {
            if let Backing::Discardable { granule, .. } = section.backing() {
                steps.push(*granule);
            }
        }
        steps
    }

    /// Returns whether no registration ends within such a page. It would not hold the page then (linux:
    /// arch/powerpc/mm/book3s64/iommu_api.c, mm_iommu_do_alloc).
    fn is_whole_in_registrations(&self, page: PageSize) -> bool {
        page <= self.host_page
            || ram(self.view).all(|(section, memory)| {
                let bounds = [memory.address().get(), memory.len().get(), section.range().first().get()];
                bounds.iter().all(|bound| page.divides(*bound))
            })
    }
}

/// Returns whether the platform would put these windows where they belong next to those there are `now`. It fills the
/// lowest place that is free, so a window that went first might not come back to a higher one. A firmware's default
/// window is only created alone.
pub(super) fn have_room(created: &[WindowRequest], offer: &WindowOffer, now: &Windows) -> bool {
    let mut taken: Vec<_> = now.iter().map(|window| window.range).collect();
    for request in created {
        let next = offer.places.iter().find(|place| !taken.iter().any(|range| range.contains(place.first)));
        let is_next = next.is_some_and(|place| place.first == request.range.first() && place.longest.is_none());
        if !is_next || taken.len() >= offer.slots || taken.iter().any(|range| range.overlaps(request.range)) {
            return false;
        }
        taken.push(request.range);
    }
    true
}

/// A window that is exactly `range`, in the largest pages up to `limit`. At a place where the platform is not known to
/// put windows, it is asked all the same.
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
    let Some(page) = sizes.largest_up_to(limit) else {
        return Err(format!(
            "the guest's page and the memory behind it allow {limit}, the host's pages here are {sizes}"
        ));
    };
    if range.is_aligned_to(page) {
        Ok(WindowRequest::new(range, page))
    } else {
        Err(format!("its bounds are no multiples of {page}"))
    }
}

fn ram(view: &View) -> impl Iterator<Item = (&Section, &HostMemory)> {
    view.sections.iter().filter_map(|section| match section.backing() {
        Backing::Ram { memory, .. } | Backing::Discardable { memory, .. } => Some((section, memory)),
        _ => None,
    })
}

fn window_from(start: Iova, hull: IovaRange, page: PageSize) -> Option<IovaRange> {
    if hull.first() < start {
        return None;
    }
    let reach = hull.last().get() - start.get();
    let len = reach.checked_add(1)?.checked_next_power_of_two()?.max(page.bytes());
    IovaRange::with_len(start, len).ok()
}

/// The RAM, sections that continue each other as one: its range, and the host address of its first byte.
fn ram_runs(view: &View) -> Vec<(IovaRange, u64)> {
    let mut runs: Vec<(IovaRange, u64)> = Vec::new();
    let mut before: Option<&Section> = None;
    for (section, memory) in ram(view) {
        let is_continued = before.is_some_and(|before| continues(before, section));
        match runs.last_mut() {
            Some((range, _)) if is_continued => *range = range.hull(section.range()),
            _ => runs.push((section.range(), memory.address().get())),
        }
        before = Some(section);
    }
    runs
}

/// The bytes of `runs` that lie in whole pages, on the bus and in the host.
fn bytes_in_whole_pages(runs: &[(IovaRange, u64)], page: PageSize) -> u128 {
    let mut bytes = 0;
    for (range, address) in runs {
        if page.divides(range.first().get().wrapping_sub(*address)) {
            bytes += range.trimmed_to(page).map_or(0, IovaRange::bytes);
        }
    }
    bytes
}

/// The largest page that one entry may stand for: an entry holds one page frame, so the memory behind it must be of one
/// piece (linux: drivers/vfio/vfio_iommu_spapr_tce.c, tce_page_is_contained).
fn backing_page<'a>(memory: impl Iterator<Item = &'a HostMemory>, host_page: PageSize) -> PageSize {
    memory.map(|memory| memory.backing_page().unwrap_or(host_page)).min().unwrap_or(host_page)
}
