//! Replies that grow with their capabilities.

use dmaspace_core::door::{Command, Door, Failure, Handle, Kernel, Request};

/// The meaning of a reply.
pub(super) enum Reply<T> {
    /// The whole description.
    Complete(T),
    /// The capabilities did not fit. The description needs this many bytes.
    Needs(u32),
}

/// The number of attempts to get a description that keeps growing.
const ATTEMPTS: usize = 8;
/// An upper bound for the size of a description, enough for 4,096 areas.
const MOST_ROOM: u32 = 1 << 16;

/// Asks for a description whose struct is `head`, with a larger buffer each time until the capabilities fit.
pub(super) fn ask<T>(
    door: &dyn Door,
    device: Handle,
    request: Request,
    head: &[u8],
    parse: impl Fn(&[u8]) -> Result<Reply<T>, &'static str>,
) -> Result<T, Failure> {
    let mut room = u32::try_from(head.len()).unwrap_or(MOST_ROOM);
    for _ in 0..ATTEMPTS {
        let mut reply = question(head, room);
        door.call(device, Command::with_bytes(request, &mut reply))?;
        match parse(&reply).map_err(|why| Failure::malformed(request.name, why))? {
            Reply::Complete(description) => return Ok(description),
            Reply::Needs(more) if more > MOST_ROOM => {
                return Err(Failure::malformed(request.name, "it needs an absurdly large buffer"));
            }
            Reply::Needs(more) => room = more,
        }
    }
    Err(Failure::malformed(request.name, "it needs a larger buffer every time"))
}

/// The struct with `room` bytes, whose first field says so.
fn question(head: &[u8], room: u32) -> Vec<u8> {
    let mut bytes = head.to_vec();
    bytes.resize(room as usize, 0);
    if let Some(argsz) = bytes.first_chunk_mut() {
        *argsz = room.to_ne_bytes();
    }
    bytes
}
