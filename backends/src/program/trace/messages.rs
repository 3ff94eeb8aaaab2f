//! Error lines of QEMU and of the kernel. They are an input of their own: most reports have nothing else.

use super::form::Fields;
use super::said::{Call, Failed, Message, Said, span};

/// A line in which one of these stands may be an error line, or part of one.
const MARKS: [&str; 14] = [
    "dma_map(",
    "dma_unmap(",
    "VFIO_MAP_DMA",
    "IOMMU_IOAS_MAP",
    "PCI BAR?",
    "PCI peer-to-peer transactions on BARs",
    "RLIMIT_MEMLOCK",
    "1:1 IOMMU mapping",
    "platform RMRR requirement",
    "allow_unsafe_interrupts",
    "is not viable",
    "group container: Invalid argument",
    "iommu for container: Operation not permitted",
    "received unaligned region",
];

/// The content of an error line. `None` for another line, and for one whose rest was folded away.
pub(super) fn read(line: &str) -> Option<Said> {
    if !MARKS.iter().any(|mark| line.contains(mark)) {
        return None;
    }
    failed(line).or_else(|| message(line))
}

/// Returns whether an error line may go on in the next one.
pub(super) fn may_go_on(line: &str) -> bool {
    names_region(line) || (CALLS.iter().any(|(name, ..)| line.contains(name)) && failed(line).is_none())
}

/// Returns whether a line ends with the name of a region, and the call that failed for it was folded away.
pub(super) fn names_region(line: &str) -> bool {
    line.ends_with(':') && line.contains("listener initialization failed: Region ")
}

/// The calls that QEMU's error lines name, and the form of what follows (qemu: hw/vfio/listener.c; in
/// hw/vfio/common.c up to 10.0, and as `vfio_dma_map` up to 8.2).
const CALLS: [(&str, Call, &str); 4] = [
    ("vfio_container_dma_map(", Call::Map, MAP),
    ("vfio_dma_map(", Call::Map, MAP),
    ("vfio_container_dma_unmap(", Call::Unmap, UNMAP),
    ("vfio_dma_unmap(", Call::Unmap, UNMAP),
];
const MAP: &str = "{container:p}, 0x{iova:x}, 0x{size:x}, {vaddr:p}) = {ret:d}{rest:*}";
const UNMAP: &str = "{container:p}, 0x{iova:x}, 0x{size:x}) = {ret:d}{rest:*}";

fn failed(line: &str) -> Option<Said> {
    let (name, call, form) = CALLS.iter().find(|(name, ..)| line.contains(name))?;
    let (before, after) = line.split_once(name)?;
    // A mail that was copied as it was sent.
    let arguments = after.replacen(") =3D ", ") = ", 1);
    let fields = Fields::of(form, &arguments)?;
    let (at, errno) = (span(&fields, "iova", "size").ok()?, fields.errno("ret").ok()?);
    if errno == 0 {
        return Some(Said::Irrelevant);
    }
    // hw/vfio/common.c up to 8.2: "Region %s: " before the rest.
    let region = before.rsplit_once("Region ").and_then(|(_, region)| region.trim_end().strip_suffix(':'));
    Some(Said::Failed(Failed { call: *call, at, errno, name: region.map(str::to_owned) }))
}

/// The texts of messages about a BAR (qemu: backends/iommufd.c, iommufd_backend_map_dma; hw/vfio/listener.c,
/// vfio_listener_region_add).
const OF_A_BAR: [&str; 2] = ["PCI BAR?", "PCI peer-to-peer transactions on BARs"];

/// The messages without a number, each by a text that a line of it has.
const MESSAGES: [(&str, Message); 7] = [
    // linux: drivers/iommu/iommu.c, __iommu_device_set_domain (6.6 on); drivers/iommu/intel/iommu.c,
    // intel_iommu_attach_device (before)
    ("1:1 IOMMU mapping", Message::Firmware),
    ("platform RMRR requirement", Message::Firmware),
    // hw/vfio/container.c, vfio_connect_container: since Linux 6.6 the claim of a group with a direct region fails so
    ("group container: Invalid argument", Message::Firmware),
    // hw/vfio/listener.c, vfio_listener_valid_section
    ("received unaligned region", Message::Unaligned),
    // linux: drivers/vfio/vfio_iommu_type1.c, vfio_iommu_type1_attach_group; hw/vfio/container.c, vfio_set_iommu
    ("allow_unsafe_interrupts", Message::Interrupts),
    ("iommu for container: Operation not permitted", Message::Interrupts),
    // hw/vfio/container.c, vfio_group_get
    ("is not viable", Message::NotViable),
];

fn message(line: &str) -> Option<Said> {
    if OF_A_BAR.iter().any(|text| line.contains(text)) {
        return Some(Said::OfABar);
    }
    // linux: drivers/vfio/vfio_iommu_type1.c, vfio_pin_pages_remote and vfio_pin_page_external
    if let Some((_, from_limit)) = line.split_once("RLIMIT_MEMLOCK (") {
        let (limit, _) = from_limit.split_once(')')?;
        return Some(Said::Message(Message::LockedMemory(limit.parse().ok()?)));
    }
    if let Some((_, message)) = MESSAGES.iter().find(|(text, _)| line.contains(text)) {
        return Some(Said::Message(*message));
    }
    // The failed call stands in another line, with its range.
    (line.contains("VFIO_MAP_DMA") || line.contains("IOMMU_IOAS_MAP")).then_some(Said::Irrelevant)
}
