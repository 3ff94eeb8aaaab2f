//! Code of the caller that has to wait until the locks of a space are released.

use std::sync::Arc;

use crate::space::attachments::Attached;
use crate::space::reports::{Outbox, Report};
use crate::sync::{self, Rank};
use crate::words::memory::HostMemory;

/// Owners to drop and dirty pages to report at the end of a verb.
///
/// The last owner of memory runs the caller's code in its `Drop`, and so does a dirty sink; both may look at the
/// space. A verb declares this value before its first guard, so that it is dropped after the last.
#[derive(Debug, Default)]
pub(super) struct Deferred {
    /// The first memory has a place of its own: an unmap of one mapping allocates nothing.
    first: Option<HostMemory>,
    /// The first report has a place of its own too: a sync allocates nothing.
    first_report: Option<(Arc<Outbox>, Arc<Report>)>,
    /// Everything else. A place of its own keeps a verb that defers nothing short.
    more: Option<Box<More>>,
}

/// The one owner that a verb for a single page may release, which is dropped as those of [`Deferred`] are.
#[derive(Debug, Default)]
pub(super) struct LastOwner(pub(super) Option<HostMemory>);

impl Drop for LastOwner {
    fn drop(&mut self) {
        if self.0.is_some() {
            sync::assert_none_held_from(Rank::Gate, "an owner of memory");
        }
    }
}

/// The owners and the reports beside the first ones.
#[derive(Debug, Default)]
struct More {
    memory: Vec<HostMemory>,
    devices: Vec<Attached>,
    reports: Vec<(Arc<Outbox>, Arc<Report>)>,
}

impl Deferred {
    /// Drops `memory` once the locks are released.
    pub(super) fn release(&mut self, memory: HostMemory) {
        if self.first.is_none() {
            self.first = Some(memory);
        } else {
            self.more.get_or_insert_default().memory.push(memory);
        }
    }

    /// Drops a device that was detached once the locks are released.
    pub(super) fn release_device(&mut self, device: Attached) {
        self.more.get_or_insert_default().devices.push(device);
    }

    /// Delivers a report once the locks are released.
    pub(super) fn report(&mut self, outbox: Arc<Outbox>, report: Arc<Report>) {
        if self.first_report.is_none() {
            self.first_report = Some((outbox, report));
        } else {
            self.more.get_or_insert_default().reports.push((outbox, report));
        }
    }

    #[inline]
    fn is_empty(&self) -> bool {
        self.first.is_none() && self.first_report.is_none() && self.more.is_none()
    }
}

impl Drop for Deferred {
    #[inline]
    fn drop(&mut self) {
        if !self.is_empty() {
            self.settle();
        }
    }
}

impl Deferred {
    #[inline(never)]
    fn settle(&mut self) {
        sync::assert_none_held_from(Rank::Gate, "an owner of memory, a device or a dirty sink");
        let more = self.more.as_mut().map(|more| std::mem::take(&mut more.reports)).unwrap_or_default();
        if let Some((outbox, report)) = self.first_report.take() {
            outbox.deliver(report);
        }
        for (outbox, report) in more {
            outbox.deliver(report);
        }
    }
}
