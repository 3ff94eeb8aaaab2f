//! Options, and ranges that must stay mappable (linux: drivers/iommu/iommufd/main.c, drivers/iommu/iommufd/ioas.c).

use std::mem::offset_of;

use dmaspace_abi::IovaSpan;
use dmaspace_abi::iommufd::{self, IoasAllowIovas, IommuOption};
use dmaspace_core::door::Errno;
use dmaspace_core::{Iova, IovaRange};
use zerocopy::FromBytes;

use super::{Context, ioas_of, read};
use crate::dialect::call::Call;
use crate::dialect::{System, require};

impl Context {
    /// iommufd_option.
    pub(super) fn option(&mut self, system: &mut System, call: &mut Call<'_, '_>) -> Result<(), Errno> {
        let mut option: IommuOption = read(call)?;
        require(option.reserved == 0, Errno::EOPNOTSUPP)?;
        option.val64 = match option.option_id {
            iommufd::OPTION_RLIMIT_MODE => self.rlimit_mode(system, call, &option)?,
            iommufd::OPTION_HUGE_PAGES => self.huge_pages(system, &option)?,
            _ => return Err(Errno::EOPNOTSUPP),
        };
        call.write(&option);
        Ok(())
    }

    /// iommufd_option_rlimit_mode. A process without a limit has CAP_SYS_RESOURCE too.
    fn rlimit_mode(&mut self, system: &mut System, call: &Call<'_, '_>, option: &IommuOption) -> Result<u64, Errno> {
        require(option.object_id == 0, Errno::EOPNOTSUPP)?;
        match option.op {
            iommufd::OPTION_OP_GET => Ok(self.pages.charges_process.into()),
            iommufd::OPTION_OP_SET => {
                require(system.account(call.by).limit.is_none(), Errno::EPERM)?;
                require(self.objects.is_empty(), Errno::EBUSY)?;
                self.pages.charges_process = yes_or_no(option.val64)?;
                Ok(option.val64)
            }
            _ => Err(Errno::EOPNOTSUPP),
        }
    }

    /// iommufd_ioas_option.
    fn huge_pages(&mut self, system: &System, option: &IommuOption) -> Result<u64, Errno> {
        let ioas = ioas_of(&mut self.objects, option.object_id)?;
        match option.op {
            iommufd::OPTION_OP_GET => Ok(ioas.has_huge_pages().into()),
            iommufd::OPTION_OP_SET => {
                ioas.allow_huge_pages(system.page(), yes_or_no(option.val64)?)?;
                Ok(option.val64)
            }
            _ => Err(Errno::EOPNOTSUPP),
        }
    }

    /// iommufd_ioas_allow_iovas.
    pub(super) fn allow_iovas(&mut self, call: &mut Call<'_, '_>) -> Result<(), Errno> {
        let allow: IoasAllowIovas = read(call)?;
        require(allow.reserved == 0, Errno::EOPNOTSUPP)?;
        let ioas = ioas_of(&mut self.objects, allow.ioas_id)?;
        let mut promised: Vec<IovaRange> = Vec::new();
        for n in 0..allow.num_iovas as usize {
            let array = call.buffer(offset_of!(IoasAllowIovas, allowed_iovas)).ok_or(Errno::EFAULT)?;
            let at = n * size_of::<IovaSpan>();
            let element = array.get(at..at + size_of::<IovaSpan>()).ok_or(Errno::EFAULT)?;
            let span = IovaSpan::read_from_bytes(element).map_err(|_| Errno::EFAULT)?;
            require(span.start < span.last, Errno::EINVAL)?;
            let range = IovaRange::new(Iova::new(span.start), Iova::new(span.last)).map_err(|_| Errno::EINVAL)?;
            require(!promised.iter().any(|other| other.overlaps(range)), Errno::EINVAL)?;
            promised.push(range);
        }
        ioas.allow(promised)
    }
}

fn yes_or_no(value: u64) -> Result<bool, Errno> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Errno::EINVAL),
    }
}
