//! Devices' reads and writes: across pages and mappings, and each platform's reading of access.

use crate::setting::{GIB, MIB, Opened, PAGE, memory, unbacked};
use dmaspace_core::words::memory::CopyError;
use dmaspace_core::{Access, HostMemory, Iova};
use dmaspace_soft::conformance::Dialect;
use dmaspace_soft::conformance::raw;
use dmaspace_soft::{DmaError, Profile};

/// Maps pages of a fresh memory at 1 MiB, in this order, each by itself.
fn shuffled(opened: &Opened, pages: &[u64]) -> HostMemory {
    let ram = memory(8 * PAGE);
    if matches!(opened.context, raw::Context::Spapr(_)) {
        raw::register(&*opened.host, opened.handle(), Some(&ram), 8 * PAGE).expect("registered");
    }
    for (at, page) in (0u64..).zip(pages) {
        let page = ram.slice(page * PAGE, PAGE).expect("inside");
        raw::map(&*opened.host, opened.context, MIB + at * PAGE, PAGE, Some(&page), Access::READ_WRITE)
            .expect("mapped");
    }
    ram
}

#[test]
fn transfers_cross_mappings_in_bus_order() {
    for (profile, dialect) in [
        (Profile::vtd(), Dialect::Type1),
        (Profile::vtd(), Dialect::Ioas),
        (Profile::powernv9(), Dialect::Spapr),
        (Profile::pseries(), Dialect::Spapr),
    ] {
        let opened = Opened::new(profile, dialect);
        let ram = shuffled(&opened, &[3, 1, 2]);
        let device = opened.device();
        let sent: Vec<u8> = (0..2 * PAGE + 1).map(|byte| u8::try_from(byte % 251).expect("small")).collect();
        device.dma_write(Iova::new(MIB + PAGE - 1), &sent).expect("all of it is mapped");
        let mut first = [0; 1];
        ram.read(4 * PAGE - 1, &mut first).expect("there");
        assert_eq!(first[0], sent[0], "the last byte of the first mapping");
        let mut middle = [0; 1];
        ram.read(PAGE, &mut middle).expect("there");
        assert_eq!(middle[0], sent[1], "the first byte of the second");
        let mut back = vec![0; sent.len()];
        device.dma_read(Iova::new(MIB + PAGE - 1), &mut back).expect("all of it is mapped");
        assert_eq!(back, sent);
    }
}

#[test]
fn a_transfer_ends_at_the_first_byte_that_is_not_mapped() {
    let opened = Opened::new(Profile::vtd(), Dialect::Type1);
    let ram = shuffled(&opened, &[0]);
    let fault = opened.device().dma_write(Iova::new(MIB + PAGE - 2), &[1, 2, 3]).expect_err("a byte too many");
    assert_eq!((fault.at, fault.why), (Iova::new(MIB + PAGE), DmaError::NotMapped));
    assert_eq!(fault.to_string(), "DMA at 0x101000: nothing is mapped there");
    let mut bytes = [0; 2];
    ram.read(PAGE - 2, &mut bytes).expect("there");
    assert_eq!(bytes, [1, 2], "the bytes before were written");
    assert_eq!(
        opened.device().dma_read(Iova::new(u64::MAX), &mut [0; 2]).map_err(|fault| fault.at),
        Err(Iova::new(u64::MAX))
    );
}

#[test]
fn dma_of_a_device_that_is_not_attached_faults() {
    let host = dmaspace_soft::SoftHost::new(Profile::vtd()).expect("sound");
    let device = host.device("0000:00:03.0").expect("the profile's");
    let fault = device.dma_read(Iova::new(0), &mut [0]).expect_err("nothing there");
    assert_eq!(fault.why, DmaError::NotAttached);
    assert!(host.device("0000:00:1f.0").is_none());
    assert_eq!(device.address(), "0000:00:03.0");
}

/// A device's access where only `access` was asked for: read, write.
fn rights(profile: Profile, dialect: Dialect, access: Access) -> (bool, bool) {
    let opened = Opened::new(profile, dialect);
    let ram = memory(0x1_0000);
    if dialect == Dialect::Spapr {
        raw::register(&*opened.host, opened.handle(), Some(&ram), 0x1_0000).expect("registered");
    }
    raw::map(&*opened.host, opened.context, MIB, 0x1_0000, Some(&ram), access).expect("mapped");
    let device = opened.device();
    (device.dma_read(Iova::new(MIB), &mut [0]).is_ok(), device.dma_write(Iova::new(MIB), &[0]).is_ok())
}

#[test]
fn read_only_mappings_refuse_writes_on_every_host() {
    for name in Profile::PRESETS {
        let profile = Profile::preset(name).expect("a preset");
        for dialect in crate::setting::dialects(&profile) {
            if dialect != Dialect::SpaprV1 {
                assert_eq!(rights(profile.clone(), dialect, Access::READ), (true, false), "{name}, {dialect:?}");
            }
        }
    }
}

#[test]
fn write_only_mappings_can_be_read_except_on_pseries() {
    assert_eq!(rights(Profile::vtd(), Dialect::Type1, Access::WRITE), (true, true));
    assert_eq!(rights(Profile::vtd(), Dialect::Ioas, Access::WRITE), (true, true));
    assert_eq!(rights(Profile::powernv9(), Dialect::Spapr, Access::WRITE), (true, true));
    assert_eq!(rights(Profile::powernv9_64k(), Dialect::Spapr, Access::WRITE), (true, true));
    assert_eq!(rights(Profile::pseries(), Dialect::Spapr, Access::WRITE), (false, true));
}

#[test]
fn memory_without_bytes_is_mapped_but_not_copied() {
    let opened = Opened::new(Profile::vtd(), Dialect::Type1);
    let nothing = unbacked(GIB, PAGE);
    raw::map(&*opened.host, opened.context, MIB, PAGE, Some(&nothing), Access::READ_WRITE).expect("mapped");
    let fault = opened.device().dma_read(Iova::new(MIB), &mut [0]).expect_err("no bytes");
    assert_eq!(fault.why, DmaError::Memory(CopyError::Unbacked));
}
