//! MSI-X: the table in which the guest says how each of the device's interrupts is to reach it, and KVM's routes that
//! do so.
//!
//! A device's interrupt signals an eventfd of VFIO, which is also an irqfd of KVM: KVM looks up the message and
//! delivers it without leaving the kernel. While a vector is masked its eventfd is no irqfd. A signal of that time
//! stays in the eventfd, and KVM delivers it when the eventfd becomes an irqfd again (linux: virt/kvm/eventfd.c,
//! kvm_irqfd_assign): it is the vector's pending bit.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_entry__bindgen_ty_1 as Target, kvm_irq_routing_irqchip, kvm_irq_routing_msi,
    kvm_irq_routing_msi__bindgen_ty_1 as Requester,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::Result;
use crate::layout::IO_APIC_INPUTS;

/// The bytes of a vector in the table.
const ENTRY: usize = 16;
/// The bit that masks a vector, in the last word of its entry.
const MASKED: u32 = 1;

/// The message of a vector.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Message {
    pub(crate) address: u64,
    pub(crate) data: u32,
}

/// The table as the guest sees it. The device's own is VFIO's.
#[derive(Debug)]
pub(crate) struct Table {
    bytes: Vec<u8>,
}

impl Table {
    /// A table after a reset: all vectors are masked.
    pub(crate) fn new(vectors: u16) -> Self {
        let masked = [[0; 12].as_slice(), &MASKED.to_le_bytes()].concat();
        Self { bytes: masked.repeat(vectors.into()) }
    }

    /// The number of bytes.
    pub(crate) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    pub(crate) fn read(&self, offset: usize, into: &mut [u8]) {
        let from = self.bytes.get(offset..).unwrap_or_default();
        for (into, from) in into.iter_mut().zip(from) {
            *into = *from;
        }
    }

    pub(crate) fn write(&mut self, offset: usize, from: &[u8]) {
        let into = self.bytes.get_mut(offset..).unwrap_or_default();
        for (into, from) in into.iter_mut().zip(from) {
            *into = *from;
        }
    }

    /// The message of each vector. `None` for those that are masked.
    pub(crate) fn messages(&self) -> Vec<Option<Message>> {
        self.bytes.chunks_exact(ENTRY).map(message).collect()
    }
}

fn message(entry: &[u8]) -> Option<Message> {
    let (low, high, data, control) = (word(entry, 0)?, word(entry, 4)?, word(entry, 8)?, word(entry, 12)?);
    if control & MASKED != 0 {
        return None;
    }
    Some(Message { address: (u64::from(high) << 32) | u64::from(low), data })
}

/// The word at an offset of an entry.
fn word(entry: &[u8], at: usize) -> Option<u32> {
    entry.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

/// The eventfds of a device's vectors, and their routes to the guest.
#[derive(Debug)]
pub(crate) struct Interrupts {
    vm: Arc<VmFd>,
    eventfds: Vec<EventFd>,
    /// The messages of the vectors whose eventfds are irqfds.
    routed: Vec<Option<Message>>,
}

impl Interrupts {
    /// Those of a device with this many vectors, all masked.
    pub(crate) fn new(vm: Arc<VmFd>, vectors: u16) -> Result<Self> {
        let mut eventfds = Vec::new();
        for _ in 0..vectors {
            eventfds.push(EventFd::new(EFD_NONBLOCK)?);
        }
        let interrupts = Self { vm, eventfds, routed: vec![None; vectors.into()] };
        interrupts.vm.set_gsi_routing(&routes(&interrupts.routed)?)?;
        Ok(interrupts)
    }

    /// The eventfds, for VFIO.
    #[expect(unsafe_code, reason = "an EventFd lends its descriptor as a number only")]
    pub(crate) fn eventfds(&self) -> Vec<Option<BorrowedFd<'_>>> {
        // SAFETY: the descriptor is open for as long as `self` is borrowed.
        self.eventfds.iter().map(|eventfd| Some(unsafe { BorrowedFd::borrow_raw(eventfd.as_raw_fd()) })).collect()
    }

    // docs: interrupts
    /// Delivers each vector as its message from now on, and none without a message.
    pub(crate) fn route(&mut self, messages: Vec<Option<Message>>) -> Result<()> {
        if messages == self.routed {
            return Ok(());
        }
        let vectors = || self.eventfds.iter().zip(IO_APIC_INPUTS..).zip(self.routed.iter().zip(&messages));
        for ((eventfd, gsi), (old, new)) in vectors() {
            if old.is_some() && new.is_none() {
                self.vm.unregister_irqfd(eventfd, gsi)?;
            }
        }
        self.vm.set_gsi_routing(&routes(&messages)?)?;
        for ((eventfd, gsi), (old, new)) in vectors() {
            if old.is_none() && new.is_some() {
                self.vm.register_irqfd(eventfd, gsi)?;
            }
        }
        self.routed = messages;
        Ok(())
    }
    // docs: end
}

/// KVM's table of routes: the inputs of the I/O APIC, and behind them the vectors.
fn routes(messages: &[Option<Message>]) -> Result<KvmIrqRouting> {
    let inputs = (0..IO_APIC_INPUTS).map(|pin| {
        let irqchip = kvm_irq_routing_irqchip { irqchip: KVM_IRQCHIP_IOAPIC, pin };
        kvm_irq_routing_entry { gsi: pin, type_: KVM_IRQ_ROUTING_IRQCHIP, u: Target { irqchip }, ..Default::default() }
    });
    let vectors = (IO_APIC_INPUTS..).zip(messages).filter_map(|(gsi, message)| Some(vector(gsi, (*message)?)));
    let routes: Vec<_> = inputs.chain(vectors).collect();
    KvmIrqRouting::from_entries(&routes).map_err(|error| format!("{error:?}").into())
}

#[expect(clippy::cast_possible_truncation, reason = "the halves of the address")]
fn vector(gsi: u32, message: Message) -> kvm_irq_routing_entry {
    let msi = kvm_irq_routing_msi {
        address_lo: message.address as u32,
        address_hi: (message.address >> 32) as u32,
        data: message.data,
        // Only Arm's controllers ask for the device.
        __bindgen_anon_1: Requester { pad: 0 },
    };
    kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, u: Target { msi }, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_masked_until_the_guest_unmasks_them() {
        let mut table = Table::new(2);
        assert_eq!((table.len(), table.messages()), (32, vec![None, None]));
        table.write(16, &0xfee0_1000_u32.to_le_bytes());
        table.write(24, &0x41_u32.to_le_bytes());
        assert_eq!(table.messages(), [None, None]);
        table.write(28, &0_u32.to_le_bytes());
        assert_eq!(table.messages(), [None, Some(Message { address: 0xfee0_1000, data: 0x41 })]);
    }

    #[test]
    fn a_guest_reads_the_words_that_it_has_written() {
        let mut table = Table::new(1);
        table.write(0, &0x1_0000_0002_u64.to_le_bytes());
        let mut bytes = [0xff; 8];
        table.read(4, &mut bytes);
        assert_eq!(bytes, [1, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn accesses_past_the_end_have_no_effect() {
        let mut table = Table::new(1);
        table.write(14, &[0; 8]);
        table.write(1000, &[0; 8]);
        let mut bytes = [0xaa; 4];
        table.read(1000, &mut bytes);
        assert_eq!(bytes, [0xaa; 4]);
    }

    #[test]
    fn routes_are_the_inputs_and_the_vectors_that_are_not_masked() {
        let routes = routes(&[None, Some(Message { address: (1 << 32) | 2, data: 3 })]).expect("few");
        let last = routes.as_slice().last().expect("a vector");
        assert_eq!((routes.as_slice().len(), last.gsi, last.type_), (25, 25, KVM_IRQ_ROUTING_MSI));
    }
}
