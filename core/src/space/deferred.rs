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
    more: Vec<HostMemory>,
    devices: Vec<Attached>,
    /// The first report has a place of its own too: a sync allocates nothing.
    first_report: Option<(Arc<Outbox>, Arc<Report>)>,
    more_reports: Vec<(Arc<Outbox>, Arc<Report>)>,
}

impl Deferred {
    /// Drops `memory` once the locks are released.
    pub(super) fn release(&mut self, memory: HostMemory) {
        if self.first.is_none() {
            self.first = Some(memory);
        } else {
            self.more.push(memory);
        }
    }

    /// Drops a device that was detached once the locks are released.
    pub(super) fn release_device(&mut self, device: Attached) {
        self.devices.push(device);
    }

    /// Delivers a report once the locks are released.
    pub(super) fn report(&mut self, outbox: Arc<Outbox>, report: Arc<Report>) {
        if self.first_report.is_none() {
            self.first_report = Some((outbox, report));
        } else {
            self.more_reports.push((outbox, report));
        }
    }

    fn is_empty(&self) -> bool {
        self.first.is_none() && self.devices.is_empty() && self.first_report.is_none()
    }
}

impl Drop for Deferred {
    fn drop(&mut self) {
        if self.is_empty() {
            return;
        }
        sync::assert_none_held_from(Rank::Gate, "an owner of memory, a device or a dirty sink");
        for (outbox, report) in self.first_report.take().into_iter().chain(self.more_reports.drain(..)) {
            outbox.deliver(report);
        }
    }
}
