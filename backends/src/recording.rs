//! What a listener is told, written down by a VMM in the field and read again elsewhere: `dmaspace replay` takes it,
//! and so does a test.
//!
//! ```
//! use std::num::NonZeroU64;
//! use std::sync::{Arc, Mutex};
//!
//! use dmaspace::listener::Update;
//! use dmaspace::recording::{Asked, Event, JsonLines, Reader};
//! use dmaspace::{Access, FrontEnd, HostMemory, Iova, Listener, Section};
//!
//! // In the VMM: once, and then everything as ever. A file does as well as these bytes.
//! let lines = Arc::new(Mutex::new(JsonLines::new(Vec::new())));
//! let mut listener = Listener::new(FrontEnd::pc());
//! listener.record_to(Box::new(lines.clone()));
//! let memory = HostMemory::unbacked(0x7f00_0000_0000, NonZeroU64::new(1 << 30).ok_or("none")?).ok_or("it wraps")?;
//! listener.commit(Update::new().adding(Section::ram("pc.ram", Iova::new(0), memory, Access::READ_WRITE)?))?;
//!
//! // What it wrote:
//! drop(listener);
//! let recording = String::from_utf8(lines.lock().map_err(|_| "poisoned")?.get_ref().clone())?;
//! assert_eq!(recording, concat!(
//!     r#"{"event":"begin","version":1,"shrink":"refuse","#,
//!     r#""cuts":[{"first":"0xc0000","last":"0xfffff","step":4096}],"chunk":1073741824,"in_force":[],"spaces":[]}"#, "\n",
//!     r#"{"event":"update","removed":[],"added":[{"space":"pci","first":"0x0","last":"0x3fffffff","name":"pc.ram","#,
//!     r#""kind":"ram","access":"read-write","host":"0x7f0000000000","unit":0}]}"#, "\n",
//!     r#"{"event":"ended","result":"ok"}"#, "\n",
//! ));
//!
//! // Elsewhere: the same again, with addresses where there was memory.
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
//! JSON lines: UTF-8, one object on each line, in the order in which things happened; lines without anything on them
//! are passed over. Addresses are strings, `"0x"` and up to 16 hexadecimal digits; `last` is the last byte and inside;
//! sizes are numbers of bytes. A field that is not named here is an error: what a reader does not know, it must not
//! pass over.
//!
//! The field `event` says what a line is:
//!
//! | `event` | fields | |
//! |---|---|---|
//! | `begin` | `version`, `shrink`, `cuts`, perhaps `chunk`, `in_force`, `spaces` | The first line, and only the first. |
//! | `update` | `removed`, `added` | A commit begins. What goes, goes first. Both empty: spaces are brought in step with changed windows. |
//! | `join` | `space` | A space is about to be served, as the last. |
//! | `leave` | `space` | A space is about to be served no longer: its number among those served, from 0. |
//! | `ended` | `result`, perhaps `text` | How the line before ended. It is missing only where the recording ends, for instance because the VMM did. |
//!
//! - `version` is 1. Another number is another format.
//! - `shrink` is `refuse` or `report`: what becomes of required sections that lose bytes.
//! - `cuts` are the places where the front end expects later changes, each `{first, last, step}`; 65,536 pieces in all
//!   at most.
//! - `chunk` is what a change of a few pages may disturb elsewhere.
//! - `in_force`, `removed` and `added` are lists of pieces, below. Those in force never overlap in one address space,
//!   and a piece is removed exactly as it was added.
//! - `spaces` and the `space` of a `join` tell of the hosts: `{backend, windows}`, each window `{first, last,
//!   page_sizes}`. A replay has its own host; this is for people.
//! - `result` is `ok`; or `refused`, when a host could not provide something required; or `error`, when a kernel call
//!   failed or the update made no sense. After the latter two everything is as it was; `text` says why.
//!
//! A piece is a section of the PCI address space, or target memory:
//!
//! | field | with | |
//! |---|---|---|
//! | `space` | all | `pci`: a section, at bus addresses. `memory`: target memory, at system addresses; its kind is `ram`. |
//! | `first`, `last`, `name` | all | |
//! | `kind` | all | `ram`, `discardable` (RAM in blocks), `device` (another device's memory), `translated`, `msi`, `nothing` |
//! | `access` | memory in `pci` | what devices may do: `read-write`, `read-only`, `write-only`, `no access` |
//! | `host` | memory: `ram`, `discardable`, `device` | The address of the first byte in the process that was recorded. |
//! | `unit` | memory | A number that memory has in common which comes and goes together. Only that is ever joined. |
//! | `backing_page` | memory; may be missing | the pages behind the memory, where somebody said so (hugetlbfs) |
//! | `host_read_only` | memory; may be missing | `true` where the process itself could only read |
//! | `device_memory` | memory; may be missing | `true` where the memory is another device's |
//! | `page` | `translated`, `discardable` | the size of an entry, or of a block |
//!
//! What guests put into translated windows is not recorded, nor which blocks are populated, and no byte of anybody's
//! memory: names and addresses are all there is.

mod reader;
mod writer;

pub use dmaspace_listener::recording::{Asked, Ending, Hex, Space, SpaceOf, VERSION, Window};
pub use reader::{BadRecording, Event, Numbered, Outcome, Reader};
pub use writer::JsonLines;
