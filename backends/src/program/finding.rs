//! Findings: the calls that failed where a log was written, and what else it says of failures.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use dmaspace::section::TargetMemory;
use dmaspace::{Iova, IovaRange};

use crate::program::trace::said::{Call, Failed, Message};

/// Something that failed where the log was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// The first line that says so.
    pub(crate) line: usize,
    /// The failure.
    pub(crate) failure: Failure,
}

/// A failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// A call, and whether it was for a BAR.
    Call {
        /// The call and its range.
        failed: Failed,
        /// `true` if the memory was another device's.
        is_device: bool,
    },
    /// A message without a range.
    Message(Message),
}

/// Findings, each failure once.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    findings: Vec<Finding>,
    /// The places of calls in the list.
    calls: BTreeMap<(Call, Iova, Iova), usize>,
    /// The messages that are in the list.
    messages: BTreeMap<Message, usize>,
}

impl Findings {
    /// A call failed. QEMU's backend and its listener both say so.
    pub(crate) fn add(&mut self, line: usize, failed: Failed, is_device: bool) {
        /// Up to QEMU 9.0 a call of iommufd's returned this, whatever the error was.
        const UNKNOWN: u32 = 1;
        let key = (failed.call, failed.at.first(), failed.at.last());
        let known = self.calls.get(&key).and_then(|place| self.findings.get_mut(*place));
        let Some(Finding { failure: Failure::Call { failed: there, is_device: there_is }, .. }) = known else {
            self.calls.insert(key, self.findings.len());
            self.findings.push(Finding { line, failure: Failure::Call { failed, is_device } });
            return;
        };
        *there_is |= is_device;
        if there.errno == UNKNOWN {
            there.errno = failed.errno;
        }
        there.name = there.name.take().or(failed.name);
    }

    /// Memory could not be registered.
    pub(crate) fn add_target(&mut self, line: usize, target: &TargetMemory, errno: u32) {
        let first = Iova::new(target.range().first().get());
        // A trace says where it is in the host, and not where the guest sees it.
        if let Ok(at) = IovaRange::with_len(first, target.memory().len().get()) {
            self.add(line, Failed { call: Call::Register, at, errno, name: None }, false);
        }
    }

    /// The log has a message.
    pub(crate) fn add_message(&mut self, line: usize, message: Message) {
        if let Entry::Vacant(place) = self.messages.entry(message) {
            place.insert(line);
            self.findings.push(Finding { line, failure: Failure::Message(message) });
        }
    }

    /// The last failure, if a line not before `since` has it, was a BAR's. Returns whether there is one.
    pub(crate) fn make_last_device(&mut self, since: usize) -> bool {
        match self.findings.last_mut() {
            Some(Finding { line, failure: Failure::Call { is_device, .. } }) if *line >= since => {
                *is_device = true;
                true
            }
            _ => false,
        }
    }

    /// All of them, in the order of their lines.
    pub(crate) fn finish(self) -> Vec<Finding> {
        self.findings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(errno: u32, name: Option<&str>) -> Failed {
        let at = IovaRange::with_len(Iova::new(0x1000), 0x1000).expect("a range of the test");
        Failed { call: Call::Map, at, errno, name: name.map(str::to_owned) }
    }

    #[test]
    fn a_failure_that_is_told_twice_is_one_and_the_better_error_counts() {
        let mut findings = Findings::default();
        findings.add(3, failed(1, None), false);
        findings.add(4, failed(22, Some("pc.ram")), true);
        findings.add_message(5, Message::Firmware);
        findings.add_message(6, Message::Firmware);
        let call = Failure::Call { failed: failed(22, Some("pc.ram")), is_device: true };
        let message = Failure::Message(Message::Firmware);
        assert_eq!(findings.finish(), [Finding { line: 3, failure: call }, Finding { line: 5, failure: message }]);
    }
}
