//! Chains of capabilities, with anything in them.

use dmaspace_abi::chain::capabilities;

use super::input::Input;

/// Follows a chain through any reply: each capability lies behind the struct and inside the reply, and the number of
/// capabilities is bounded.
pub fn attack(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (head, first) = (usize::from(input.byte()), u32::from(input.byte()) * 4 + u32::from(input.once_in(16)));
    let reply = bytes.get(3..).unwrap_or_default();
    let Ok(found) = capabilities(reply, head, first) else { return };
    assert!(found.len() <= 64, "{} capabilities", found.len());
    assert_eq!(found.is_empty(), first == 0);
    for capability in &found {
        let offset = reply.len() - capability.bytes.len();
        assert!(offset >= head && offset % 4 == 0 && capability.bytes.len() >= 8, "a capability at {offset}");
    }
    assert!(found.last().is_none_or(|last| last.header.next == 0));
}
