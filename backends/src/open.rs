//! Opening: from PCI addresses to a space with its devices attached.
//!
//! [`Host::open`] does everything: it reads the facts, chooses a backend, opens the nodes and attaches the devices. An
//! [`OpenSpace`] can also be made of descriptors that another process opened (a VMM in a jail is given its
//! descriptors), and around a backend of another crate. The table of [`OpenSpace`] says what each way asks of the
//! caller.
//!
//! # Order
//! For a group: open its node, tell the registry (KVM), check that the group is viable, put it into the container,
//! open its device. For a device with a node of its own: open it, tell the registry, bind it, attach it. Each step is
//! owned by the value that was made of it, so a failure closes the steps before it in reverse order, and so does
//! dropping: devices first, then the space with its groups and its container. A [`Device`](crate::Device) keeps its
//! space open, so a caller may drop the two in any order.

mod add;
mod advice;
mod error;
mod host;
mod node;
mod space;
#[cfg(test)]
mod tests;

pub use error::OpenError;
pub use host::{Host, Opened};
pub(crate) use node::open_node;
pub use space::OpenSpace;
