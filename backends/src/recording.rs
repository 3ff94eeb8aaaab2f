//! Recordings of a listener's input: a VMM writes them in the field, and `dmaspace replay` or a test reads them
//! elsewhere.
//!
//! ```
//! use std::num::NonZeroU64;
//! use std::sync::{Arc, Mutex};
//!
//! use dmaspace::listener::Update;
//! use dmaspace::recording::{Asked, Event, JsonLines, Reader};
//! use dmaspace::{Access, FrontEnd, HostAddress, HostMemory, Iova, Listener, Section};
//!
//! // In the VMM, once. A file serves as well as this vector.
//! let lines = Arc::new(Mutex::new(JsonLines::new(Vec::new())));
//! let mut listener = Listener::new(FrontEnd::pc());
//! listener.record_to(Box::new(lines.clone()));
//! let gib = NonZeroU64::new(1 << 30).ok_or("none")?;
//! let memory = HostMemory::unbacked(HostAddress::new(0x7f00_0000_0000), gib).ok_or("it wraps")?;
//! listener.commit(Update::new().adding(Section::ram("pc.ram", Iova::new(0), memory, Access::READ_WRITE)?))?;
//!
//! // The recording:
//! drop(listener);
//! let recording = String::from_utf8(lines.lock().map_err(|_| "poisoned")?.get_ref().clone())?;
//! assert_eq!(recording, concat!(
//!     r#"{"event":"begin","version":1,"shrink":"refuse","#,
//!     r#""cuts":[{"first":"0xa0000","last":"0xbffff","step":131072},"#,
//!     r#"{"first":"0xc0000","last":"0xfffff","step":4096}],"#,
//!     r#""chunk":1073741824,"in_force":[],"spaces":[]}"#, "\n",
//!     r#"{"event":"update","removed":[],"added":[{"space":"pci","first":"0x0","last":"0x3fffffff","name":"pc.ram","#,
//!     r#""kind":"ram","access":"read-write","host":"0x7f0000000000","unit":0}]}"#, "\n",
//!     r#"{"event":"ended","result":"ok"}"#, "\n",
//! ));
//!
//! // Elsewhere: the replay, with unbacked memory of the same addresses.
//! let mut again = Listener::default();
//! for event in Reader::new(recording.as_bytes(), Asked::unbacked) {
//!     match event?.event {
//!         Event::Begins { front, in_force, .. } => {
//!             again = Listener::new(front);
//!             again.commit(in_force)?;
//!         }
//!         Event::Commits { update, .. } => drop(again.commit(update)?),
//!         Event::Joins { .. } | Event::Leaves { .. } => {}
//!     }
//! }
//! assert_eq!(again.sections().count(), 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The format, version 1
//! A recording is JSON lines: UTF-8, one object on each line, in the order of the events. A reader skips empty lines.
//! Addresses are strings, `"0x"` and up to 16 hexadecimal digits; `last` is the last byte of a range; sizes are numbers
//! of bytes. A field that is not listed here is an error: a reader must not skip a field that it does not know.
//!
//! The field `event` is the kind of the line:
//!
//! - `begin`: the first line, and only the first. Fields: `version`, `shrink`, `cuts`, optionally `chunk`, `in_force`,
//!   `spaces`.
//! - `update`: a commit begins. Fields: `removed` and `added`; removals come first. If both are empty, spaces are
//!   brought in step with windows that changed.
//! - `join`: a space is about to be served, as the last one. Field: `space`.
//! - `leave`: a space is about to be served no longer. Field: `space`, its number among the served spaces, from 0.
//! - `ended`: the result of the line before. Fields: `result`, optionally `text`. The line is missing only at the end
//!   of a recording, for instance because the VMM ended.
//!
//! The fields:
//!
//! - `version` is 1. Another number is another format.
//! - `shrink` is `refuse` or `report`: the treatment of required sections that lose bytes to alignment.
//! - `cuts` are the places where the front end expects later changes, each `{first, last, step}`, with at most 65,536
//!   pieces in all.
//! - `chunk` is the size that a change of a few pages may disturb elsewhere.
//! - `in_force`, `removed` and `added` are lists of pieces. The pieces in force never overlap in one address space, and
//!   a piece is removed exactly as it was added.
//! - `spaces`, and the `space` of a `join`, describe hosts for people: `{backend, windows}`, each window `{first, last,
//!   page_sizes}`. A replay has its own host.
//! - `result` is `ok`; `refused` if a host could not provide a required section; or `error` if a kernel call failed or
//!   the update was invalid. After `refused` and `error` nothing has changed; `text` is the reason.
//!
//! A piece is a section of the PCI address space, or target memory. Its fields:
//!
//! - `space`: `pci` for a section, at bus addresses; `memory` for target memory, at system addresses, of the kind
//!   `ram`.
//! - `first`, `last`, `name`.
//! - `kind`: `ram`, `discardable` (RAM in blocks), `device` (another device's memory), `translated`, `msi` or
//!   `nothing`.
//! - `access`, for memory in `pci`: `read-write`, `read-only`, `write-only` or `no access` for devices.
//! - `host`, for `ram`, `discardable` and `device`: the address of the first byte in the recorded process.
//! - `unit`, for memory: a number that is shared by memory which is plugged and unplugged together. Only such memory is
//!   ever joined.
//! - `backing_page`, optional, for memory: the size of the pages behind the memory, if the VMM stated it (hugetlbfs).
//! - `host_read_only`, optional, for memory: `true` if the process itself could only read it.
//! - `device_memory`, optional, for memory: `true` if it is another device's memory.
//! - `page`, for `translated` and `discardable`: the size of an entry, or of a block.
//!
//! A recording holds names and addresses only: no entry of a translated window, no populated block, and no byte of
//! memory.

mod reader;
mod writer;

pub use dmaspace_listener::recording::{Asked, Ending, Hex, JsonWindow, RecordedSpace, SpaceOf, VERSION};
pub use reader::{BadRecording, Event, Numbered, Outcome, Reader};
pub use writer::JsonLines;
