//! Registering memory, which POWER wants before it maps ([`RegistrationCalls`]).
//!
//! Registration is where the kernel pins and charges; maps and unmaps after it are free of both. Three things it does not do well
//! are the caller's to avoid, because only the caller has an index:
//! - unregistering memory that a table entry still points to succeeds, and leaks the pins (linux:
//!   drivers/vfio/vfio_iommu_spapr_tce.c, tce_iommu_unregister_pages);
//! - registrations belong to the process: one that overlaps another, of whatever container, is refused only after pinning (linux:
//!   arch/powerpc/mm/book3s64/iommu_api.c, mm_iommu_do_alloc), so that all containers have to register the same runs
//!   ([`dmaspace_core::door::registrations`]);
//! - a map that meets an unregistration ends early and says nothing (tce_iommu_build_v2).
//!
//! A fourth is caught here: registering over a hole answers with the number of pages before it, a positive number, and
//! registers nothing.

use std::mem::offset_of;

use dmaspace_abi::spapr::{self, RegisterMemory};
use dmaspace_core::backend::RegistrationCalls;
use dmaspace_core::door::registrations::ProcessRegistrations;
use dmaspace_core::door::{Attached, Attachment, Command, Errno, Failure, Lease, Request};
use dmaspace_core::retry::Undone;
use zerocopy::IntoBytes;

use crate::Spapr;

impl RegistrationCalls for Spapr {
    fn register(&self, memory: &Lease<'_>) -> Result<(), Failure> {
        self.call_about(spapr::REGISTER_MEMORY, memory)
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
