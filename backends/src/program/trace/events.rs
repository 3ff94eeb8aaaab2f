//! QEMU's trace events, in every form that a QEMU from 2.5 on prints (qemu: hw/vfio/trace-events,
//! backends/trace-events; before 2.7 both were in trace-events). Up to 2.9 numbers in hexadecimal had no `0x`.

use dmaspace::{Access, Iova, PageSize};

use super::form::{Fields, shown};
use super::said::{Ioas, Said, memory_at, memory_behind, range, span};

/// An event of QEMU's.
pub(super) struct Event {
    pub(super) name: &'static str,
    /// The forms of what follows the name.
    forms: &'static [Form],
    read: fn(&Fields<'_>) -> Result<Said, String>,
    /// `true` if a replay goes wrong without the content: then a line in no known form is refused, and otherwise
    /// passed over.
    pub(super) is_needed: bool,
}

/// A form, and the versions of QEMU that print it.
struct Form {
    text: &'static str,
    since: &'static str,
    until: Option<&'static str>,
}

const fn now(since: &'static str, text: &'static str) -> Form {
    Form { text, since, until: None }
}

const fn old(since: &'static str, until: &'static str, text: &'static str) -> Form {
    Form { text, since, until: Some(until) }
}

impl Event {
    /// The event of that name, if it is known here.
    pub(super) fn called(name: &str) -> Option<&'static Self> {
        EVENTS.iter().find(|event| event.name == name)
    }

    /// The content of a line, of which `rest` follows the name.
    ///
    /// # Errors
    /// The expected form, in words.
    pub(super) fn read(&self, rest: &str) -> Result<Said, String> {
        match self.fields(rest) {
            Some(fields) => (self.read)(&fields),
            None => Err(self.expected()),
        }
    }

    fn fields<'a>(&self, rest: &'a str) -> Option<Fields<'a>> {
        let fields = self.forms.iter().find_map(|form| Fields::of(form.text, rest));
        if fields.is_some() || !rest.contains(" pid=") {
            return fields;
        }
        self.forms.iter().find_map(|form| Fields::of_pairs(form.text, rest))
    }

    fn expected(&self) -> String {
        let forms = self.forms.iter().map(|form| {
            let until = form.until.map_or_else(String::new, |until| format!(" (QEMU {} to {until})", form.since));
            format!("`{} {}`{until}", self.name, shown(form.text))
        });
        forms.collect::<Vec<_>>().join(" or ")
    }
}

const fn needed(name: &'static str, forms: &'static [Form], read: fn(&Fields<'_>) -> Result<Said, String>) -> Event {
    Event { name, forms, read, is_needed: true }
}

const fn helpful(name: &'static str, forms: &'static [Form], read: fn(&Fields<'_>) -> Result<Said, String>) -> Event {
    Event { name, forms, read, is_needed: false }
}

fn irrelevant(_: &Fields<'_>) -> Result<Said, String> {
    Ok(Said::Irrelevant)
}

/// Every event that is known here. Others are passed over.
const EVENTS: [Event; 21] = [
    // hw/vfio/listener.c, vfio_listener_region_add (hw/vfio/common.c up to 10.0)
    needed(
        "vfio_listener_region_add_ram",
        &[
            now("2.10", "region_add [ram] 0x{iova_start:x} - 0x{iova_end:x} [{vaddr:p}]"),
            old("2.5", "2.9", "region_add [ram] {iova_start:x} - {iova_end:x} [{vaddr:p}]"),
        ],
        |fields| {
            let at = range(fields.number("iova_start")?, fields.number("iova_end")?)?;
            Ok(Said::Memory { at, memory: memory_behind(at, fields.number("vaddr")?)? })
        },
    ),
    needed(
        "vfio_listener_region_add_iommu",
        &[
            now("8.2", "region_add [iommu] {name:s} 0x{start:x} - 0x{end:x}"),
            old("2.10", "8.1", "region_add [iommu] 0x{start:x} - 0x{end:x}"),
            old("2.5", "2.9", "region_add [iommu] {start:x} - {end:x}"),
        ],
        |fields| {
            let name = fields.text("name").unwrap_or("iommu").to_owned();
            Ok(Said::Translated { at: start_to_end(fields)?, name })
        },
    ),
    needed("vfio_listener_region_skip", &[now("8.0", "SKIPPING {name:s} 0x{start:x} - 0x{end:x}")], |fields| {
        let at = start_to_end(fields)?;
        Ok(match fields.text("name") {
            Some("region_add" | "vfio_listener_region_add") => Said::Nothing { at },
            Some("region_del" | "vfio_listener_region_del") => Said::Gone { at },
            _ => Said::Irrelevant,
        })
    }),
    needed(
        "vfio_listener_region_add_skip",
        &[
            old("2.10", "7.2", "SKIPPING region_add 0x{start:x} - 0x{end:x}"),
            old("2.5", "2.9", "SKIPPING region_add {start:x} - {end:x}"),
        ],
        |fields| Ok(Said::Nothing { at: start_to_end(fields)? }),
    ),
    needed(
        "vfio_listener_region_del_skip",
        &[
            old("2.10", "7.2", "SKIPPING region_del 0x{start:x} - 0x{end:x}"),
            old("2.5", "2.9", "SKIPPING region_del {start:x} - {end:x}"),
        ],
        |fields| Ok(Said::Gone { at: start_to_end(fields)? }),
    ),
    // hw/vfio/listener.c, vfio_listener_region_del
    needed(
        "vfio_listener_region_del",
        &[now("2.10", "region_del 0x{start:x} - 0x{end:x}"), old("2.5", "2.9", "region_del {start:x} - {end:x}")],
        |fields| Ok(Said::Gone { at: start_to_end(fields)? }),
    ),
    // A `region_del` with the range follows.
    helpful("vfio_listener_region_del_iommu", &[now("8.2", "region_del [iommu] {name:s}")], irrelevant),
    // hw/vfio/listener.c, vfio_listener_region_add: memory of a device whose bounds are no pages of the IOMMU's
    needed(
        "vfio_listener_region_add_no_dma_map",
        &[now(
            "2.12",
            "Region \"{name:s}\" 0x{iova:x} size=0x{size:x} is not aligned to 0x{page_size:x} and cannot be mapped for \
             DMA",
        )],
        not_mapped,
    ),
    // QEMU with memory_region_set_skip_iommu_map (include/system/memory.h), for memory that goes by another way
    needed(
        "vfio_listener_region_skip_dma_map",
        &[now("10.1", "Region \"{name:s}\" 0x{iova:x} size=0x{size:x} marked to skip IOMMU mapping")],
        not_mapped,
    ),
    // hw/vfio/listener.c, vfio_known_safe_misalignment: a TPM's command buffer, which no device reads
    helpful(
        "vfio_known_safe_misalignment",
        &[now(
            "7.1",
            "Region \"{name:s}\" iova=0x{iova:x} offset_within_region=0x{offset_within_region:x} \
             qemu_real_host_page_size=0x{page_size:x}{rest:*}",
        )],
        irrelevant,
    ),
    // hw/vfio/region.c, vfio_region_mmap (hw/vfio/helpers.c or common.c up to 10.0)
    helpful(
        "vfio_region_mmap",
        &[
            now("2.10", "Region {name:s} [0x{offset:x} - 0x{end:x}]"),
            old("2.6", "2.9", "Region {name:s} [{offset:x} - {end:x}]"),
        ],
        |fields| {
            let (first, last) = (fields.number("offset")?, fields.number("end")?);
            range(first, last)?;
            let name = fields.text("name").unwrap_or_default().to_owned();
            Ok(Said::BarArea { name, first, last, is_exported: false })
        },
    ),
    // hw/vfio/region.c, vfio_region_create_dma_buf
    helpful(
        "vfio_region_dmabuf",
        &[now("11.0", "Device {dev:s}, region \"{name:s}\", offset: 0x{offset:x}, size: 0x{size:x}")],
        |fields| {
            let at = span(fields, "offset", "size")?;
            let name = fields.text("name").unwrap_or_default().to_owned();
            Ok(Said::BarArea { name, first: at.first().get(), last: at.last().get(), is_exported: true })
        },
    ),
    // hw/vfio/spapr.c, vfio_prereg_listener_region_add and _del
    helpful("vfio_prereg_listener_region_add_skip", SKIPPED_BY_PREREG, irrelevant),
    helpful("vfio_prereg_listener_region_del_skip", SKIPPED_BY_PREREG, irrelevant),
    needed("vfio_prereg_register", PREREG, |fields| {
        let memory = memory_at(fields.number("va")?, fields.number("size")?)?;
        Ok(Said::Target { memory, errno: fields.errno("ret")? })
    }),
    needed("vfio_prereg_unregister", PREREG, |fields| {
        let memory = memory_at(fields.number("va")?, fields.number("size")?)?;
        Ok(Said::TargetGone { memory, errno: fields.errno("ret")? })
    }),
    // hw/vfio/spapr.c, vfio_spapr_create_window and vfio_spapr_remove_window
    helpful(
        "vfio_spapr_create_window",
        &[
            now("4.0", "pageshift=0x{ps:x} levels={levels:d} winsize=0x{ws:x} offset=0x{off:x}"),
            old("2.7", "3.1", "pageshift=0x{ps:x} winsize=0x{ws:x} offset=0x{off:x}"),
        ],
        |fields| {
            let shift = fields.number("ps")?;
            let known = u32::try_from(shift).ok().and_then(PageSize::from_shift);
            let page = known.ok_or_else(|| format!("a pageshift below 64, which {shift:#x} is not"))?;
            Ok(Said::Window { first: Iova::new(fields.number("off")?), page })
        },
    ),
    helpful(
        "vfio_spapr_remove_window",
        &[now("2.10", "offset=0x{off:x}"), old("2.7", "2.9", "offset={off:x}")],
        irrelevant,
    ),
    // backends/iommufd.c, iommufd_backend_map_dma and its like
    needed(
        "iommufd_backend_map_dma",
        &[now(
            "9.0",
            "iommufd={iommufd:d} ioas={ioas:d} iova=0x{iova:x} size=0x{size:x} addr={vaddr:p} readonly={readonly:d} \
             ({ret:d})",
        )],
        |fields| {
            let at = span(fields, "iova", "size")?;
            let memory = memory_behind(at, fields.number("vaddr")?)?;
            Ok(Said::Map { ioas: ioas(fields)?, at, memory, access: access(fields)?, errno: fields.errno("ret")? })
        },
    ),
    needed(
        "iommufd_backend_map_file_dma",
        &[now(
            "10.1",
            "iommufd={iommufd:d} ioas={ioas:d} iova=0x{iova:x} size=0x{size:x} fd={fd:d} start={start:d} \
             readonly={readonly:d} ({ret:d})",
        )],
        |fields| {
            let at = span(fields, "iova", "size")?;
            // The trace does not say where QEMU has the file mapped: its own offsets do, one unit for each file.
            let memory = memory_behind(at, fields.number("start")?)?.in_unit(fields.number("fd")?);
            Ok(Said::Map { ioas: ioas(fields)?, at, memory, access: access(fields)?, errno: fields.errno("ret")? })
        },
    ),
    needed(
        "iommufd_backend_unmap_dma",
        &[now("9.0", "iommufd={iommufd:d} ioas={ioas:d} iova=0x{iova:x} size=0x{size:x} ({ret:d})")],
        |fields| {
            let at = span(fields, "iova", "size")?;
            Ok(Said::Unmap { ioas: ioas(fields)?, at, errno: fields.errno("ret")? })
        },
    ),
];

const SKIPPED_BY_PREREG: &[Form] = &[now("2.10", "0x{start:x} - 0x{end:x}"), old("2.7", "2.9", "{start:x} - {end:x}")];

const PREREG: &[Form] =
    &[now("2.10", "va=0x{va:x} size=0x{size:x} ret={ret:d}"), old("2.7", "2.9", "va={va:x} size={size:x} ret={ret:d}")];

fn start_to_end(fields: &Fields<'_>) -> Result<dmaspace::IovaRange, String> {
    range(fields.number("start")?, fields.number("end")?)
}

fn not_mapped(fields: &Fields<'_>) -> Result<Said, String> {
    let name = fields.text("name").unwrap_or_default().to_owned();
    Ok(Said::NotMapped { at: span(fields, "iova", "size")?, name })
}

fn ioas(fields: &Fields<'_>) -> Result<Ioas, String> {
    Ok(Ioas { iommufd: fields.number("iommufd")?, id: fields.number("ioas")? })
}

fn access(fields: &Fields<'_>) -> Result<Access, String> {
    Ok(if fields.number("readonly")? == 0 { Access::READ_WRITE } else { Access::READ })
}
