//! Capability chains, as VFIO's info calls append them to their structs.
//!
//! A struct names the offset of the first capability, each capability that of the next, 0 ends the chain; all offsets count
//! from the start of the struct. A reply is not believed: an offset must lie behind the struct and inside the reply, and a chain
//! ends after [`MOST_CAPABILITIES`].
//!
//! Offsets are multiples of 4, which is what the headers are made of, but not always of 8: kernels used to append without padding
//! (linux: drivers/vfio/vfio_main.c, vfio_info_cap_add). So what a capability holds has to be read unaligned.

use zerocopy::FromBytes;

use crate::vfio::CapabilityHeader;

/// No info call of any kernel has more than a handful; a chain that is longer than this is a ring.
pub const MOST_CAPABILITIES: usize = 64;

/// A capability in a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability<'a> {
    /// Which, and in which version; versions only add to the end.
    pub header: CapabilityHeader,
    /// Its bytes, header included, and whatever follows: a capability does not say where it ends.
    pub bytes: &'a [u8],
}

/// The capabilities of `reply`, whose struct takes `head` bytes and names `first` as the offset of the first of them.
///
/// # Errors
/// What is wrong with the chain, in words for [`Answer::Malformed`](dmaspace_core::door::Answer::Malformed).
pub fn capabilities(reply: &[u8], head: usize, first: u32) -> Result<Vec<Capability<'_>>, &'static str> {
    let mut found = Vec::new();
    let mut offset = first;
    while offset != 0 {
        if found.len() == MOST_CAPABILITIES {
            return Err("its chain of capabilities does not end");
        }
        let capability = capability_at(reply, head, offset)?;
        offset = capability.header.next;
        found.push(capability);
    }
    Ok(found)
}

fn capability_at(reply: &[u8], head: usize, offset: u32) -> Result<Capability<'_>, &'static str> {
    let offset = usize::try_from(offset).unwrap_or(usize::MAX);
    if offset < head {
        return Err("a capability overlaps the struct it belongs to");
    }
    if offset % align_of::<CapabilityHeader>() != 0 {
        return Err("the offset of a capability is not aligned");
    }
    let bytes = reply.get(offset..).unwrap_or_default();
    match CapabilityHeader::read_from_prefix(bytes) {
        Ok((header, _)) => Ok(Capability { header, bytes }),
        Err(_) => Err("a capability lies outside the reply"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    /// A head of 8 bytes, then headers that point to these offsets.
    fn reply(next: &[u32]) -> Vec<u8> {
        let headers = next.iter().zip(1..).map(|(&next, id)| CapabilityHeader { id, version: 1, next });
        let mut bytes = vec![0; 8];
        headers.for_each(|header| bytes.extend_from_slice(header.as_bytes()));
        bytes
    }

    fn ids(reply: &[u8], first: u32) -> Result<Vec<u16>, &'static str> {
        capabilities(reply, 8, first).map(|found| found.iter().map(|capability| capability.header.id).collect())
    }

    #[test]
    fn a_chain_is_followed_in_its_own_order() {
        assert_eq!(ids(&reply(&[0, 8, 16]), 24), Ok(vec![3, 2, 1]));
        assert_eq!(ids(&reply(&[]), 0), Ok(vec![]));
    }

    #[test]
    fn a_capability_reaches_to_the_end_of_the_reply() {
        let reply = reply(&[16, 0]);
        let found = capabilities(&reply, 8, 8).expect("a chain of two");
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
    fn chains_that_cannot_be_true_are_refused() {
        let table = [
            (&[8][..], 8, "its chain of capabilities does not end"),
            (&[16, 8], 8, "its chain of capabilities does not end"),
            (&[0], 4, "a capability overlaps the struct it belongs to"),
            (&[0], 10, "the offset of a capability is not aligned"),
            (&[12], 8, "a capability lies outside the reply"),
            (&[0], 16, "a capability lies outside the reply"),
            (&[0xffff_fffc], 8, "a capability lies outside the reply"),
        ];
        for (next, first, why) in table {
            assert_eq!(ids(&reply(next), first), Err(why), "{next:?} from {first}");
        }
    }
}
