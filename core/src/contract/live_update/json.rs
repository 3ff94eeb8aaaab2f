//! A description in a form that serde can write and read. Addresses are `"0x…"`, sizes are numbers of bytes. The input
//! comes from another program: no number in it is trusted.

use std::borrow::Cow;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::contract::Unit;
use crate::contract::live_update::{HandedMapping, Handover, Place};
use crate::words::access::Access;
use crate::words::address::{Iova, IovaRange};
use crate::words::json::{Hex, JsonWindow, shortened};
use crate::words::page::{PageSize, PageSizes};
use crate::words::window;

/// The version that is written here, and the only one that is read.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    version: u32,
    backend: String,
    devices: Vec<String>,
    windows: Vec<JsonWindow>,
    mappings: Vec<Mapping>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mappings_left: Option<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mapping {
    first: Hex,
    last: Hex,
    memory: String,
    offset: u64,
    access: String,
    /// The bytes of a page that can be unmapped by itself; none when all of it goes at once.
    unit: Option<u64>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    device_memory: bool,
}

impl Serialize for Handover {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let written = Written {
            version: VERSION,
            backend: self.backend.clone(),
            devices: self.devices.clone(),
            windows: self.windows.iter().map(JsonWindow::of).collect(),
            mappings: self.mappings.iter().map(Mapping::of).collect(),
            mappings_left: self.mappings_left,
        };
        written.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Handover {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = Written::deserialize(deserializer).map_err(brief)?;
        written.read().map_err(|why| D::Error::custom(shortened(&why)))
    }
}

/// The error without most of the input that it repeats: serde repeats a text or a name of any length.
fn brief<E: serde::de::Error>(error: E) -> E {
    let text = error.to_string();
    match shortened(&text) {
        Cow::Borrowed(_) => error,
        Cow::Owned(short) => E::custom(short),
    }
}

impl Written {
    fn read(self) -> Result<Handover, String> {
        if self.version != VERSION {
            return Err(format!("expected a hand-over of version {VERSION}, found {}", self.version));
        }
        Ok(Handover {
            backend: self.backend,
            devices: self.devices,
            windows: self.windows.iter().map(read_window).collect::<Result<_, _>>()?,
            mappings: self.mappings.into_iter().map(Mapping::read).collect::<Result<_, _>>()?,
            mappings_left: self.mappings_left,
        })
    }
}

impl Mapping {
    fn of(handed: &HandedMapping) -> Self {
        let unit = match handed.unit {
            Unit::Whole => None,
            Unit::Pages(page) => Some(page.bytes()),
        };
        Self {
            first: Hex(handed.range.first().get()),
            last: Hex(handed.range.last().get()),
            memory: handed.place.name.clone(),
            offset: handed.place.offset,
            access: handed.access.to_string(),
            unit,
            device_memory: handed.device_memory,
        }
    }

    fn read(self) -> Result<HandedMapping, String> {
        let known = [Access::READ_WRITE, Access::READ, Access::WRITE];
        let access = known.into_iter().find(|access| access.to_string() == self.access);
        let access = access.ok_or_else(|| format!("expected the access of devices, found {:?}", self.access))?;
        let unit = match self.unit {
            None => Unit::Whole,
            Some(bytes) => Unit::Pages(page(bytes)?),
        };
        Ok(HandedMapping {
            range: range(self.first, self.last)?,
            place: Place { name: self.memory, offset: self.offset },
            access,
            unit,
            device_memory: self.device_memory,
        })
    }
}

fn read_window(written: &JsonWindow) -> Result<window::Window, String> {
    let sizes = written.page_sizes.iter().map(|bytes| page(*bytes)).collect::<Result<Vec<_>, _>>()?;
    let mask = sizes.iter().fold(0, |mask, page| mask | page.bytes());
    let page_sizes = PageSizes::from_mask(mask).ok_or("expected the pages of a window, found none")?;
    Ok(window::Window { range: range(written.first, written.last)?, page_sizes })
}

fn range(first: Hex, last: Hex) -> Result<IovaRange, String> {
    let range = IovaRange::new(Iova::new(first.0), Iova::new(last.0));
    range.map_err(|_| format!("expected a last address that does not lie before the first, found {first} and {last}"))
}

fn page(bytes: u64) -> Result<PageSize, String> {
    PageSize::from_bytes(bytes).ok_or_else(|| format!("expected a power of two as the size of a page, found {bytes}"))
}
