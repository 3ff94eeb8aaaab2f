//! Registering memory, which POWER requires before a map ([`RegistrationCalls`]; the kernel's word is preregistration).
//!
//! The kernel pins and charges memory when it is registered; maps and unmaps after that do neither. The caller must
//! avoid three faults of the kernel's, because only the caller has an index:
//! - unregistering memory that a table entry still points to succeeds, and leaks the pins (linux:
//!   drivers/vfio/vfio_iommu_spapr_tce.c, tce_iommu_unregister_pages);
//! - registrations belong to the process: one that overlaps another, of any container, is refused only after pinning
//!   (linux: arch/powerpc/mm/book3s64/iommu_api.c, mm_iommu_do_alloc), so that all containers have to register the same
//!   runs ([`dmaspace_core::door::registrations`]);
//! - a map during an unregistration may end early without an error (tce_iommu_build_v2).
//!
//! This module catches a fourth: registering memory with a hole registers nothing and answers with the number of pages
//! before the hole, a positive number.

use std::mem::offset_of;

use dmaspace_abi::spapr::{self, RegisterMemory};
use dmaspace_core::backend::RegistrationCalls;
use dmaspace_core::door::registrations::ProcessRegistrations;
use dmaspace_core::door::{Answer, Attached, Attachment, Cause, Command, Errno, Failure, Lease, Request};
use dmaspace_core::retry::Undone;
use zerocopy::IntoBytes;

use crate::Spapr;

impl RegistrationCalls for Spapr {
    fn register(&self, memory: &Lease<'_>) -> Result<(), Failure> {
        // Over a hole the kernel answers with the number of pages before it.
        let registered = self.call_about(spapr::REGISTER_MEMORY, memory);
        registered.map_err(|failure| match failure.answer() {
            Answer::Positive(_) => failure.caused_by(Cause::BadAddress),
            _ => failure,
        })
    }

    fn unregister(&self, memory: &Lease<'_>) -> Result<Undone, Failure> {
        Undone::unless_absent(self.call_about(spapr::UNREGISTER_MEMORY, memory), &[Errno::ENOENT])
    }

    fn runs(&self) -> &ProcessRegistrations {
        self.container.door().runs()
    }
}

impl Spapr {
    fn call_about(&self, request: Request, memory: &Lease<'_>) -> Result<(), Failure> {
        let mut span = RegisterMemory { argsz: RegisterMemory::SIZE, flags: 0, vaddr: 0, size: memory.len().get() };
        let mut vaddr = [Attachment { offset: offset_of!(RegisterMemory, vaddr), what: Attached::Memory(memory) }];
        self.container.call(Command::with_bytes(request, span.as_mut_bytes()).attaching(&mut vaddr))
    }
}
