//! Options of an iommufd and its address spaces: the account that is charged, huge pages, and ranges that must stay
//! mappable.

use std::mem::offset_of;

use dmaspace_abi::IovaSpan;
use dmaspace_abi::iommufd::{self, IoasAllowIovas, IommuOption};
use dmaspace_core::IovaRange;
use dmaspace_core::contract::ObjectId;
use dmaspace_core::door::{Attached, Attachment, Command, Failure};
use dmaspace_core::words::locked::AccountingMode;
use zerocopy::IntoBytes;

use crate::Ioas;
use crate::object::Iommufd;

impl Iommufd {
    /// Charges pins to come to `payer`: to the user (the default), whose processes share one limit, or to this process
    /// alone, as type1 does. Must be called before anything else: an iommufd with objects does not change its account.
    ///
    /// # Errors
    /// `EPERM` without CAP_SYS_RESOURCE, `EBUSY` if there is an object already (linux: drivers/iommu/iommufd/ioas.c,
    /// iommufd_option_rlimit_mode), or another failure of the kernel. Nothing has changed then.
    pub fn charge(&self, payer: AccountingMode) -> Result<(), Failure> {
        let per_process = payer == AccountingMode::Process;
        self.set(iommufd::OPTION_RLIMIT_MODE, None, per_process)?;
        self.remember_payer(payer);
        Ok(())
    }

    /// The account that pins are charged to, which the kernel is asked for.
    ///
    /// # Errors
    /// The kernel's failure.
    pub fn payer(&self) -> Result<AccountingMode, Failure> {
        let per_process = self.get(iommufd::OPTION_RLIMIT_MODE, None)?;
        Ok(if per_process { AccountingMode::Process } else { AccountingMode::User })
    }

    fn set(&self, option: u32, object: Option<ObjectId>, value: bool) -> Result<(), Failure> {
        self.option(option, iommufd::OPTION_OP_SET, object, value.into()).map(drop)
    }

    fn get(&self, option: u32, object: Option<ObjectId>) -> Result<bool, Failure> {
        match self.option(option, iommufd::OPTION_OP_GET, object, 0)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Failure::malformed(iommufd::OPTION.name, "neither yes nor no")),
        }
    }

    fn option(&self, option_id: u32, op: u16, object: Option<ObjectId>, val64: u64) -> Result<u64, Failure> {
        let object_id = object.map_or(0, ObjectId::get);
        let mut option = IommuOption { size: IommuOption::SIZE, option_id, op, reserved: 0, object_id, val64 };
        self.call(Command::with_bytes(iommufd::OPTION, option.as_mut_bytes()))?;
        Ok(option.val64)
    }
}

impl Ioas {
    /// Allows or forbids huge pages in the page tables of this address space. The kernel allows them by default;
    /// without them every translation costs more, and pages can be logged one by one from the start.
    ///
    /// # Errors
    /// `EINVAL` while a device is attached and memory is mapped (linux: drivers/iommu/iommufd/io_pagetable.c,
    /// iopt_disable_large_pages), `EADDRINUSE` if a mapping is smaller than a page, or another failure of the kernel.
    /// Nothing has changed then.
    pub fn allow_huge_pages(&self, allowed: bool) -> Result<(), Failure> {
        self.iommufd().set(iommufd::OPTION_HUGE_PAGES, Some(self.id()), allowed)
    }

    /// Returns whether huge pages are allowed, which the kernel is asked for.
    ///
    /// # Errors
    /// The kernel's failure.
    pub fn allows_huge_pages(&self) -> Result<bool, Failure> {
        self.iommufd().get(iommufd::OPTION_HUGE_PAGES, Some(self.id()))
    }

    /// Requires that these ranges can always be mapped (IOMMU_IOAS_ALLOW_IOVAS), in place of the ranges required
    /// before: an attach of a device that does not reach one of them is refused with `EADDRINUSE`. Other ranges can
    /// still be mapped.
    ///
    /// # Errors
    /// `EADDRINUSE` if an attached device does not reach one of them, `EINVAL` if two share a byte or one has a single
    /// byte (linux: drivers/iommu/iommufd/ioas.c, iommufd_ioas_load_iovas), or another failure of the kernel. The
    /// earlier requirement stands then.
    pub fn promise(&self, ranges: &[IovaRange]) -> Result<(), Failure> {
        let mut spans: Vec<_> = ranges.iter().map(span_of).collect();
        let too_many = Failure::malformed(iommufd::IOAS_ALLOW_IOVAS.name, "more ranges than can be counted");
        let mut allow = IoasAllowIovas {
            size: IoasAllowIovas::SIZE,
            ioas_id: self.id().get(),
            num_iovas: u32::try_from(spans.len()).map_err(|_| too_many)?,
            ..IoasAllowIovas::default()
        };
        let array = Attached::Buffer(spans.as_mut_slice().as_mut_bytes());
        let mut array = [Attachment { offset: offset_of!(IoasAllowIovas, allowed_iovas), what: array }];
        let command = Command::with_bytes(iommufd::IOAS_ALLOW_IOVAS, allow.as_mut_bytes());
        self.iommufd().call(command.attaching(&mut array))
    }
}

fn span_of(range: &IovaRange) -> IovaSpan {
    IovaSpan { start: range.first().get(), last: range.last().get() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::ioas;
    use dmaspace_core::Iova;
    use dmaspace_core::door::Errno;
    use dmaspace_soft::{Reply, ScriptedDoor};
    use zerocopy::FromBytes;

    fn yes(bytes: &mut [u8]) -> Result<i32, Errno> {
        IommuOption::mut_from_bytes(bytes).expect("room for the struct").val64 = 1;
        Ok(0)
    }

    fn neither_yes_nor_no(bytes: &mut [u8]) -> Result<i32, Errno> {
        IommuOption::mut_from_bytes(bytes).expect("room for the struct").val64 = 2;
        Ok(0)
    }

    fn option(option_id: u32, op: u16, object_id: u32, val64: u64) -> Vec<u8> {
        IommuOption { size: 24, option_id, op, reserved: 0, object_id, val64 }.as_bytes().to_vec()
    }

    #[test]
    fn the_accounting_mode_is_set_on_the_iommufd_and_remembered() {
        let door = ScriptedDoor::new(&[|_| Err(Errno::EPERM), |_| Ok(0), yes as Reply]);
        let iommufd = Iommufd::new(crate::fixture::iommufd(&door));
        let refused = iommufd.charge(AccountingMode::Process).expect_err("without CAP_SYS_RESOURCE");
        assert_eq!((refused.errno(), iommufd.charged()), (Some(Errno::EPERM), AccountingMode::User));
        iommufd.charge(AccountingMode::Process).expect("done");
        assert_eq!((iommufd.charged(), iommufd.payer()), (AccountingMode::Process, Ok(AccountingMode::Process)));
        let asked: Vec<_> = door.take().into_iter().map(|call| call.bytes).collect();
        assert_eq!(asked, [option(0, 0, 0, 1), option(0, 0, 0, 1), option(0, 1, 0, 0)]);
    }

    #[test]
    fn huge_pages_are_an_option_of_the_address_space() {
        let (door, ioas) = ioas(&[|_| Ok(0), yes, neither_yes_nor_no]);
        ioas.allow_huge_pages(false).expect("done");
        assert_eq!(ioas.allows_huge_pages(), Ok(true));
        ioas.allows_huge_pages().expect_err("neither yes nor no");
        let asked: Vec<_> = door.take().into_iter().map(|call| call.bytes).collect();
        assert_eq!(asked, [option(1, 0, 7, 0), option(1, 1, 7, 0), option(1, 1, 7, 0)]);
    }

    #[test]
    fn required_ranges_are_passed_with_their_last_byte() {
        let (door, ioas) = ioas(&[]);
        let all = IovaRange::all();
        let low = IovaRange::with_len(Iova::new(0), 0x1000).expect("a range of the test");
        ioas.promise(&[low, all]).expect("the kernel decides");
        ioas.promise(&[]).expect("nothing is promised any more");
        let calls = door.take();
        let [first, second] = [0, 1].map(|n: usize| IoasAllowIovas::read_from_bytes(&calls[n].bytes));
        let expected = IoasAllowIovas { size: 24, ioas_id: 7, num_iovas: 2, reserved: 0, allowed_iovas: 0 };
        assert_eq!((first, calls[0].attached.as_slice()), (Ok(expected), &[16][..]));
        assert_eq!(second.expect("the struct").num_iovas, 0);
    }
}
