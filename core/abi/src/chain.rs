//! Capability chains, as VFIO's info calls append them to their structs.
//!
//! A struct holds the offset of the first capability, each capability that of the next, and 0 ends the chain; offsets
//! count from the start of the struct. A reply is not trusted: an offset must lie behind the struct and inside the
//! reply, and a chain has at most 64 capabilities.
//!
//! Offsets are multiples of 4, the alignment of the headers, but not always of 8: older kernels appended without
//! padding (linux: drivers/vfio/vfio_main.c, vfio_info_cap_add). So the body of a capability must be read unaligned.

use std::error::Error;
use std::fmt;

use zerocopy::FromBytes;

use crate::vfio::CapabilityHeader;

/// The longest chain. No kernel's info call has more than a handful of capabilities; a longer chain is a ring.
const MOST_CAPABILITIES: usize = 64;

/// A capability in a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capability<'a> {
    /// The kind of capability, and its version; later versions only add fields at the end.
    pub header: CapabilityHeader,
    /// The bytes from the header to the end of the reply: a capability does not tell its length.
    pub bytes: &'a [u8],
}

/// A chain that no correct kernel writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChainError {
    /// The chain has more than 64 capabilities.
    Endless,
    /// A capability overlaps the struct that the chain belongs to.
    InsideStruct,
    /// The offset of a capability is not a multiple of 4.
    Misaligned,
    /// A capability lies outside the reply.
    OutsideReply,
}

impl ChainError {
    /// The fault in words, for [`Answer::Malformed`](dmaspace_core::door::Answer::Malformed).
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Endless => "its chain of capabilities does not end",
            Self::InsideStruct => "a capability overlaps the struct it belongs to",
            Self::Misaligned => "the offset of a capability is not aligned",
            Self::OutsideReply => "a capability lies outside the reply",
        }
    }
}

impl fmt::Display for ChainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

impl Error for ChainError {}

/// Returns the capabilities of `reply`, whose struct has `head` bytes and whose first capability is at the offset
/// `first`.
///
/// # Errors
/// The fault of a chain that no correct kernel writes.
pub fn capabilities(reply: &[u8], head: usize, first: u32) -> Result<Vec<Capability<'_>>, ChainError> {
    let mut found = Vec::new();
    let mut offset = first;
    while offset != 0 {
        if found.len() == MOST_CAPABILITIES {
            return Err(ChainError::Endless);
        }
        let capability = capability_at(reply, head, offset)?;
        offset = capability.header.next;
        found.push(capability);
    }
    Ok(found)
}

fn capability_at(reply: &[u8], head: usize, offset: u32) -> Result<Capability<'_>, ChainError> {
    let offset = usize::try_from(offset).unwrap_or(usize::MAX);
    if offset < head {
        return Err(ChainError::InsideStruct);
    }
    if offset % align_of::<CapabilityHeader>() != 0 {
        return Err(ChainError::Misaligned);
    }
    let bytes = reply.get(offset..).unwrap_or_default();
    match CapabilityHeader::read_from_prefix(bytes) {
        Ok((header, _)) => Ok(Capability { header, bytes }),
        Err(_) => Err(ChainError::OutsideReply),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    /// A reply with a struct of 8 bytes, then headers that hold these offsets.
    fn reply(next: &[u32]) -> Vec<u8> {
        let headers = next.iter().zip(1..).map(|(&next, id)| CapabilityHeader { id, version: 1, next });
        let mut bytes = vec![0; 8];
        for header in headers {
            bytes.extend_from_slice(header.as_bytes());
        }
        bytes
    }

    fn ids(reply: &[u8], first: u32) -> Result<Vec<u16>, ChainError> {
        capabilities(reply, 8, first).map(|found| found.iter().map(|capability| capability.header.id).collect())
    }

    #[test]
    fn a_chain_is_followed_in_its_own_order() {
        assert_eq!(ids(&reply(&[0, 8, 16]), 24), Ok(vec![3, 2, 1]));
        assert_eq!(ids(&reply(&[]), 0), Ok(vec![]));
    }

    #[test]
    fn a_capability_reaches_to_the_end_of_the_reply() {
        let bytes = reply(&[16, 0]);
        let found = capabilities(&bytes, 8, 8).expect("a chain of two");
        assert_eq!(found.iter().map(|capability| capability.bytes.len()).collect::<Vec<_>>(), [16, 8]);
    }

    #[test]
    fn offsets_need_not_be_multiples_of_eight() {
        let mut bytes = reply(&[]);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(CapabilityHeader { id: 7, version: 1, next: 0 }.as_bytes());
        assert_eq!(ids(&bytes, 12), Ok(vec![7]));
    }

    #[test]
    fn chains_that_no_kernel_writes_are_refused() {
        let table = [
            (&[8][..], 8, ChainError::Endless),
            (&[16, 8], 8, ChainError::Endless),
            (&[0], 4, ChainError::InsideStruct),
            (&[0], 10, ChainError::Misaligned),
            (&[12], 8, ChainError::OutsideReply),
            (&[0], 16, ChainError::OutsideReply),
            (&[0xffff_fffc], 8, ChainError::OutsideReply),
        ];
        for (next, first, why) in table {
            assert_eq!(ids(&reply(next), first), Err(why), "{next:?} from {first}");
        }
    }
}
