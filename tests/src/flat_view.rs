//! A flat view of QEMU's: `info mtree -f` of a pseries guest of 4 GiB that created its second window.

use dmaspace_core::words::address::SystemRange;
use dmaspace_core::{Iova, IovaRange, SystemAddress};

/// QEMU's words.
const MTREE: &str = include_str!("../../backends/tests/data/mtree/pseries-4g-two-windows.mtree");

/// The parts of the bridge's address space, ascending: where they are, and their names.
pub fn bus() -> Vec<(IovaRange, &'static str)> {
    let range = |first, last| IovaRange::new(Iova::new(first), Iova::new(last)).expect("a proper range");
    parts("pci@800000020000000.iommu-root").map(|(first, last, name)| (range(first, last), name)).collect()
}

/// The guest's RAM.
pub fn ram() -> SystemRange {
    let (first, last, _) = parts("system").find(|(.., name)| *name == "ppc_spapr.ram").expect("the guest has RAM");
    SystemRange::new(SystemAddress::new(first), SystemAddress::new(last)).expect("a proper range")
}

/// The parts of the view of that root.
fn parts(root: &str) -> impl Iterator<Item = (u64, u64, &'static str)> {
    let (_, view) = MTREE.split_once(&format!("Root memory region: {root}\n")).expect("there is such a view");
    let number = |text: &str| u64::from_str_radix(text, 16).expect("a number");
    view.lines().take_while(|line| !line.is_empty()).map(move |line| {
        let (bounds, rest) = line.trim().split_once(' ').expect("bounds and a name");
        let (first, last) = bounds.split_once('-').expect("two bounds");
        (number(first), number(last), rest.rsplit_once(' ').expect("a name").1)
    })
}
