//! The options of opening a space, on the soft host.

use dmaspace::choose::{BackendKind, OpenRequest};
use dmaspace::facts::Facts;
use dmaspace::open::Host;
use dmaspace::options::OpenOptions;
use dmaspace::pci::PciAddress;
use dmaspace_core::Iova;
use dmaspace_core::contract::MapRequest;
use dmaspace_core::contract::Unit;
use dmaspace_core::error::Kind;
use dmaspace_core::words::locked::AccountingMode;
use dmaspace_core::{Access, PageSize};
use dmaspace_tests::soft::{host, memory, range};

fn on(preset: &str) -> (std::sync::Arc<dmaspace_soft::SoftHost>, Host, PciAddress) {
    let soft = host(preset);
    let device = soft.profile().groups[0].devices[0].address.parse().expect("a PCI address");
    let host = Host::new(soft.clone(), Facts::of_soft(soft.profile()));
    (soft, host, device)
}

#[test]
fn options_are_kept() {
    let (soft, host, device) = on("vtd");
    dmaspace_tests::options::options_are_kept(&host, device).expect("it opens");
    assert!(soft.ledger().is_clear(), "{:?}", soft.ledger());
}

#[test]
fn options_that_the_kernel_accepts_and_refuses() {
    let (soft, host, device) = on("vtd");
    dmaspace_tests::options::options_that_the_kernel_accepts_and_refuses(&host, device).expect("it opens");
    assert!(soft.ledger().is_clear(), "{:?}", soft.ledger());
}

#[test]
fn the_accounting_mode_of_the_process_takes_a_capability() {
    let (soft, host, device) = on("vtd");
    soft.set_memlock(Some(1 << 20));
    let wish = OpenRequest::device(device).with_backend(BackendKind::Iommufd);
    let open = |payer| host.clone().with_options(OpenOptions::new().with_accounting(payer)).open(&wish);
    let refused = open(AccountingMode::Process).expect_err("it takes a capability").to_string();
    let expected =
        "/dev/iommu: IOMMU_OPTION: EPERM; grant CAP_SYS_RESOURCE, or leave the accounting to the user's limit";
    assert!(refused.contains(expected), "{refused}");
    assert!(soft.ledger().is_clear());
    drop(open(AccountingMode::User).expect("as it is anyway"));
}

#[test]
fn a_limit_of_the_process_is_told_from_a_limit_of_its_user() {
    let (soft, host, device) = on("vtd");
    let wish = OpenRequest::device(device).with_backend(BackendKind::Iommufd);
    let opened =
        host.with_options(OpenOptions::new().with_accounting(AccountingMode::Process)).open(&wish).expect("it opens");
    soft.set_memlock(Some(0x3000));
    let map = |at: u64, pages: u64| {
        let unit = Unit::Pages(PageSize::K4);
        opened
            .space
            .space()
            .map(MapRequest::new(Iova::new(at), &memory(1 << 45, pages << 12), Access::READ_WRITE).with_unit(unit))
    };
    map(0, 2).expect("it fits");
    let error = map(0x10_0000, 2).expect_err("it does not fit");
    let Kind::PinLimit(limit) = error.kind() else { panic!("another error") };
    let allowance = limit.allowance.expect("known");
    assert_eq!((allowance.payer, allowance.taken, limit.is_reached()), (AccountingMode::Process, 0x2000, Some(true)));
}

#[test]
fn backends_without_a_choice_report_their_only_behaviour() {
    let asked = [
        OpenOptions::new().with_accounting(AccountingMode::User),
        OpenOptions::new().with_huge_pages(false),
        OpenOptions::new().with_required_iovas(range(0, 1 << 30)),
    ];
    for (preset, backend) in [("vtd", BackendKind::Type1), ("powernv9", BackendKind::Spapr)] {
        let (soft, host, device) = on(preset);
        let wish = OpenRequest::device(device).with_backend(backend);
        for options in asked.clone() {
            let refused = host.clone().with_options(options).open(&wish).expect_err("no choice").to_string();
            assert!(refused.starts_with(&format!("{backend} ")), "{refused}");
            assert!(soft.ledger().is_clear());
        }
        host.with_options(OpenOptions::new().with_accounting(AccountingMode::Process))
            .open(&wish)
            .expect("as it does anyway");
    }
}
