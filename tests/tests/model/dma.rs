//! The device itself: it reaches what its space says, and nothing beside that.

use dmaspace_core::{Access, HostMemory, Iova};
use dmaspace_soft::DmaError;
use dmaspace_tests::model::Stretch;
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use crate::test_host::TestHost;

/// Looks at both ends and the middle of live mappings, and at the addresses around them. `salt` makes this time's bytes
/// other ones.
pub(crate) fn check(place: &TestHost, memory: &HostMemory, salt: u64) -> TestCaseResult {
    if place.host_under_test.devices() == 0 {
        return Ok(());
    }
    for (n, stretch) in place.live.0.iter().enumerate() {
        check_inside(place, memory, stretch, (salt << 16) | n as u64)?;
        check_around(place, stretch)?;
    }
    Ok(())
}

fn check_inside(place: &TestHost, memory: &HostMemory, stretch: &Stretch, salt: u64) -> TestCaseResult {
    let device = &place.host_under_test.dma;
    let len = stretch.range.bytes() as u64;
    for offset in [0, len / 2, len - 8] {
        let at = Iova::new(stretch.range.first().get() + offset);
        let behind = stretch.host + offset - memory.address().get();
        let (sent, mut found) = (salt.to_be_bytes(), [0; 8]);
        if stretch.access.contains(Access::READ) {
            memory.write(behind, &sent).expect("the guest's memory");
            prop_assert_eq!(device.dma_read(at, &mut found), Ok(()), "at {}", at);
            prop_assert_eq!(found, sent, "the device reads other bytes at {}", at);
        }
        let sent = sent.map(|byte| !byte);
        let written = device.dma_write(at, &sent);
        let may_write = stretch.access.contains(Access::WRITE);
        prop_assert_eq!(written.is_ok(), may_write, "a write at {}: {:?}", at, written);
        if may_write {
            memory.read(behind, &mut found).expect("the guest's memory");
            prop_assert_eq!(found, sent, "the device writes other bytes at {}", at);
        }
    }
    Ok(())
}

fn check_around(place: &TestHost, stretch: &Stretch) -> TestCaseResult {
    let fences = place.host().fences;
    let around = [stretch.range.first().get().checked_sub(1), stretch.range.end().map(Iova::get)];
    for at in around.into_iter().flatten().map(Iova::new) {
        let is_live = place.live.0.iter().any(|other| other.range.contains(at));
        if !is_live && !fences.iter().any(|fence| fence.contains(at)) {
            let read = place.host_under_test.dma.dma_read(at, &mut [0]);
            prop_assert_eq!(read.map_err(|fault| fault.why), Err(DmaError::NotMapped), "at {}", at);
        }
    }
    Ok(())
}
