//! The rows. Where two kernels are known to differ, a row has both answers.

use dmaspace_abi::type1::{DIRTY_START, DIRTY_STOP};
use dmaspace_core::Access;
use dmaspace_core::door::Errno;

use super::BusAddress::{Address, BelowTop, Inside, Reserved, Unreached};
use super::Dialect::{Compat, CompatV1, Ioas, Spapr, SpaprV1, Type1, Type1V1};
use super::ExpectedAnswer::{
    Arrives, Bits, Done, Fails, Pages, Platforms, Result, Since72, SizeUntouched, Vanishes, WindowAt,
};
use super::Length::Bytes;
use super::Memory::{Absent, Both, Empty, Holed, Page, Part, ReadOnly};
use super::Only::{Anywhere, WithDevice};
use super::{Act, BusAddress, Dialect, ExpectedAnswer, Leaves, Length, Memory, Only, Row, Step};

/// Every row.
pub const ROWS: &[Row] = &[
    // type1: rules of both versions are checked on v2.
    row("a map over a live mapping is refused", Type1, OVER_LIVE),
    row("an unmap of nothing succeeds and says so", Type1, &[unmap(0, 1, Pages(0))]),
    row(
        "an unmap inside a mapping changes nothing",
        Type1,
        &[
            map(0, Both, Done),
            unmap(0, 1, Fails(Errno::EINVAL)),
            unmap(1, 1, Fails(Errno::EINVAL)),
            unmap(0, 2, Pages(2)),
        ],
    ),
    row(
        "an unmap of one mapping and half of the next changes nothing",
        Type1,
        &[
            map(0, Page(0), Done),
            map(1, Both, Done),
            unmap(0, 2, Fails(Errno::EINVAL)),
            map(0, Page(0), Fails(Errno::EEXIST)),
            unmap(0, 3, Pages(3)),
        ],
    ),
    row("an unmap over mappings and holes says how much there was", Type1, WITH_HOLES),
    row("everything can be unmapped at once", Type1, ALL_AT_ONCE),
    row(
        "an unmap must be whole pages, and some",
        Type1,
        &[
            act(Act::Unmap(Inside(0, 0x10), Length::Pages(1)), Fails(Errno::EINVAL)),
            act(Act::Unmap(BusAddress::Page(0), Bytes(0x10)), Fails(Errno::EINVAL)),
            unmap(0, 0, Fails(Errno::EINVAL)),
        ],
    ),
    row(
        "reserved ranges and addresses beyond the page tables cannot be mapped",
        Type1,
        &[map_at(Reserved, Page(0), Fails(Errno::EINVAL)), map_at(Unreached, Page(0), Fails(Errno::EINVAL))],
    ),
    row(
        "a map that wraps around is refused",
        Type1,
        &[map_at(BelowTop(1), Both, Since72(&Fails(Errno::EINVAL), &Fails(Errno::EOVERFLOW)))],
    ),
    row(
        "an unmap that wraps around is refused",
        Type1,
        &[act(Act::Unmap(BelowTop(1), Length::Pages(2)), Since72(&Fails(Errno::EINVAL), &Fails(Errno::EOVERFLOW)))],
    ),
    row(
        "a map of memory that is not there leaves nothing behind",
        Type1,
        &[
            map(0, Absent, Fails(Errno::EFAULT)),
            map(0, Holed, Fails(Errno::EFAULT)),
            map(0, Both, Done),
            unmap(0, 2, Pages(2)),
        ],
    ),
    row(
        "memory the process may only read can be mapped for reading",
        Type1,
        &[
            map(0, ReadOnly, Fails(Errno::EFAULT)),
            act(Act::Map(BusAddress::Page(0), ReadOnly, Access::READ), Done),
            unmap(0, 1, Pages(1)),
        ],
    ),
    row("a map must allow something", Type1, NO_RIGHTS),
    row("a map must be whole pages, and some", Type1, MISALIGNED),
    row("mapped memory is reached, and no longer once it is unmapped", Type1, REACHED).only(WithDevice),
    row("a mapping for reading refuses writes", Type1, READ_ONLY).only(WithDevice),
    row(
        "written pages are logged from the start of the log",
        Type1,
        &[
            map(0, Page(0), Done),
            get_log(0, 1, Fails(Errno::EINVAL)),
            act(Act::UnmapAndGetLog(BusAddress::Page(0), Length::Pages(1)), Fails(Errno::EINVAL)),
            act(Act::DirtyPages(DIRTY_STOP), Done),
            act(Act::DirtyPages(DIRTY_START), Done),
            act(Act::DirtyPages(DIRTY_START), Done),
            act(Act::DirtyPages(DIRTY_START | DIRTY_STOP), Fails(Errno::EINVAL)),
            get_log(0, 1, Bits(1)),
            act(Act::DirtyPages(DIRTY_STOP), Done),
            get_log(0, 1, Fails(Errno::EINVAL)),
            unmap(0, 1, Pages(1)),
        ],
    ),
    row(
        "all that is mapped for a device that does not tell counts as written, and holes do not",
        Type1,
        &[
            map(0, Page(0), Done),
            act(Act::DirtyPages(DIRTY_START), Done),
            map(4, Both, Done),
            get_log(0, 1, Bits(1)),
            get_log(1, 2, Bits(0)),
            act(Act::UnmapAndGetLog(BusAddress::Page(4), Length::Pages(8)), Bits(2)),
            map(4, Both, Done),
            get_log(0, 16, Bits(3)),
            unmap(4, 8, Pages(2)),
            get_log(0, 16, Bits(1)),
            unmap(0, 16, Pages(1)),
            act(Act::DirtyPages(DIRTY_STOP), Done),
        ],
    ),
    row(
        "a second question tells pages behind a mapping that is not at the beginning of a word",
        Type1,
        &[
            map(4, Both, Done),
            act(Act::DirtyPages(DIRTY_START), Done),
            get_log(0, 16, Bits(2)),
            get_log(0, 16, Bits(4)),
            get_log(0, 16, Bits(6)),
            get_log(4, 12, Bits(8)),
            unmap(4, 2, Pages(2)),
            act(Act::DirtyPages(DIRTY_STOP), Done),
        ],
    ),
    row(
        "a question about written pages cuts no mapping, and is about whole pages, and some",
        Type1,
        &[
            map(0, Both, Done),
            act(Act::DirtyPages(DIRTY_START), Done),
            get_log(0, 1, Fails(Errno::EINVAL)),
            get_log(1, 1, Fails(Errno::EINVAL)),
            act(Act::UnmapAndGetLog(BusAddress::Page(0), Length::Pages(1)), Fails(Errno::EINVAL)),
            act(Act::GetLog(Inside(0, 0x10), Length::Pages(1)), Fails(Errno::EINVAL)),
            act(Act::GetLog(BusAddress::Page(0), Bytes(0x10)), Fails(Errno::EINVAL)),
            get_log(0, 0, Fails(Errno::EINVAL)),
            act(Act::GetLog(BelowTop(1), Length::Pages(1)), Since72(&Fails(Errno::EINVAL), &Bits(0))),
            act(Act::GetLog(BelowTop(1), Length::Pages(2)), Since72(&Fails(Errno::EINVAL), &Fails(Errno::EOVERFLOW))),
            get_log(0, 2, Bits(2)),
            unmap(0, 2, Pages(2)),
            act(Act::DirtyPages(DIRTY_STOP), Done),
        ],
    ),
    row(
        "an address is let go of once, and given once, to the mapping that is exactly there",
        Type1,
        &[
            map(0, Page(0), Done),
            map(1, Page(1), Done),
            update_vaddr(0, Page(0), Fails(Errno::EINVAL)),
            invalidate_vaddrs(0, 2, Pages(2)),
            invalidate_vaddrs(1, 1, Fails(Errno::EINVAL)),
            update_vaddr(8, Page(0), Fails(Errno::ENOENT)),
            update_vaddr(0, Both, Fails(Errno::EINVAL)),
            update_vaddr(0, Page(1), Done),
            act(Act::InvalidateAllVaddrs, Fails(Errno::EINVAL)),
            update_vaddr(0, Page(1), Fails(Errno::EINVAL)),
            update_vaddr(1, Page(0), Done),
            act(Act::InvalidateAllVaddrs, Pages(2)),
            unmap(0, 2, Pages(2)),
            act(Act::InvalidateAllVaddrs, Pages(0)),
        ],
    ),
    row(
        "letting go of an address cuts no mapping, and giving one brings no rights and no memory",
        Type1,
        &[
            map(0, Both, Done),
            invalidate_vaddrs(0, 1, Fails(Errno::EINVAL)),
            invalidate_vaddrs(1, 1, Fails(Errno::EINVAL)),
            invalidate_vaddrs(4, 1, Pages(0)),
            invalidate_vaddrs(0, 8, Pages(2)),
            act(Act::UpdateVaddr(BusAddress::Page(0), Both, Access::READ), Fails(Errno::EINVAL)),
            update_vaddr(0, Holed, Done),
            unmap(0, 2, Pages(2)),
        ],
    ),
    row(
        "logged pages stay with a mapping whose address changes",
        Type1,
        &[
            map(0, Page(0), Done),
            act(Act::DirtyPages(DIRTY_START), Done),
            invalidate_vaddrs(0, 1, Pages(1)),
            get_log(0, 1, Bits(1)),
            update_vaddr(0, Page(1), Done),
            get_log(0, 1, Bits(1)),
            unmap(0, 1, Pages(1)),
            act(Act::DirtyPages(DIRTY_STOP), Done),
        ],
    ),
    row(
        "a device reaches the pinned pages, whatever the address",
        Type1,
        &[
            map(0, Page(0), Done),
            invalidate_vaddrs(0, 1, Pages(1)),
            store(0, Arrives(0)),
            update_vaddr(0, Page(1), Done),
            store(0, Arrives(0)),
            unmap(0, 1, Pages(1)),
        ],
    )
    .only(WithDevice),
    // type1 v1: its differences.
    row("v1: nothing is logged", Type1V1, &[act(Act::DirtyPages(DIRTY_START), Fails(Errno::EACCES))]),
    row(
        "v1: an unmap that begins inside a mapping does nothing",
        Type1V1,
        &[map(0, Both, Done), unmap(1, 1, Pages(0)), unmap(0, 2, Pages(2))],
    ),
    row(
        "v1: an unmap that ends inside a mapping takes all of it",
        Type1V1,
        &[map(0, Both, Done), unmap(0, 1, Pages(2)), unmap(0, 2, Pages(0))],
    ),
    row(
        "v1: an address is let go of where a mapping begins",
        Type1V1,
        &[
            map(0, Both, Done),
            invalidate_vaddrs(1, 1, Pages(0)),
            invalidate_vaddrs(0, 1, Pages(2)),
            update_vaddr(0, Both, Done),
            unmap(0, 2, Pages(2)),
        ],
    ),
    // iommufd.
    row("a map over a live mapping is refused", Ioas, OVER_LIVE),
    row("an unmap of nothing fails", Ioas, &[unmap(0, 1, Fails(Errno::ENOENT))]),
    row("an unmap inside a mapping fails", Ioas, INSIDE_FAILS),
    row("an unmap of one mapping and half of the next fails, and the first is gone", Ioas, HALF_FAILS),
    row("an unmap over mappings and holes says how much there was", Ioas, WITH_HOLES),
    row("everything can be unmapped at once, even when it is nothing", Ioas, ALL_AT_ONCE),
    row(
        "an unmap must be of something that fits",
        Ioas,
        &[
            unmap(0, 0, Fails(Errno::EINVAL)),
            act(Act::Unmap(BusAddress::Page(0), Bytes(u64::MAX)), Fails(Errno::EOVERFLOW)),
            act(Act::Unmap(BelowTop(1), Length::Pages(2)), Fails(Errno::EOVERFLOW)),
        ],
    ),
    row(
        "reserved ranges and addresses beyond the page tables cannot be mapped",
        Ioas,
        &[map_at(Reserved, Page(0), Fails(Errno::EINVAL)), map_at(Unreached, Page(0), Fails(Errno::EINVAL))],
    ),
    row("a map that wraps around is refused", Ioas, &[map_at(BelowTop(1), Both, Fails(Errno::EOVERFLOW))]),
    row(
        "a map of memory that is not there leaves nothing behind",
        Ioas,
        &[
            map(0, Absent, Fails(Errno::EFAULT)),
            map(0, Holed, Fails(Errno::EFAULT)),
            map(0, Both, Done),
            unmap(0, 2, Pages(2)),
        ],
    ),
    row(
        "memory the process may only read can be mapped for reading, and so can copies of it",
        Ioas,
        &[
            map(0, ReadOnly, Fails(Errno::EFAULT)),
            act(Act::Map(BusAddress::Page(0), ReadOnly, Access::READ), Done),
            copy(0, 1, 1, Fails(Errno::EPERM)),
            act(Act::Copy(BusAddress::Page(0), BusAddress::Page(1), Length::Pages(1), Access::READ), Done),
            unmap(0, 2, Pages(2)),
        ],
    ),
    row(
        "a copy shows any part of the mappings without a gap",
        Ioas,
        &[
            copy(0, 8, 1, Fails(Errno::ENOENT)),
            map(0, Both, Done),
            copy(1, 8, 1, Done),
            copy(1, 9, 2, Fails(Errno::ENOENT)),
            copy(0, 8, 1, Fails(Errno::EEXIST)),
            unmap(0, 2, Pages(2)),
            copy(8, 0, 1, Done),
            unmap(0, 16, Pages(2)),
        ],
    ),
    row(
        "an address space is neither a device nor a page table",
        Ioas,
        &[
            act(Act::HwInfo, Fails(Errno::ENOENT)),
            act(Act::MakePageTable, Fails(Errno::ENOENT)),
            act(Act::SetPageTableLogging, Fails(Errno::ENOENT)),
            act(Act::GetPageTableLog(0), Fails(Errno::ENOENT)),
            act(Act::GetPageTableLog(2), Fails(Errno::EOPNOTSUPP)),
        ],
    ),
    row(
        "a file is mapped without its address, and unmapped as memory is",
        Ioas,
        &[
            map_file(0, Both, &Done),
            map_file(1, Page(0), &Fails(Errno::EEXIST)),
            act(
                Act::Copy(BusAddress::Page(0), BusAddress::Page(2), Length::Pages(2), Access::READ_WRITE),
                Since72(&Fails(Errno::ENOENT), &Done),
            ),
            act(Act::UnmapAll, Since72(&Pages(0), &Pages(4))),
        ],
    ),
    row(
        "the bytes of a file that are not there cannot be mapped",
        Ioas,
        &[
            map_file(0, Holed, &Fails(Errno::EINVAL)),
            map_file(0, Empty, &Fails(Errno::EINVAL)),
            map_file(0, Page(0), &Done),
            act(Act::UnmapAll, Since72(&Pages(0), &Pages(1))),
        ],
    ),
    row(
        "a file can be written that this process has mapped for reading only",
        Ioas,
        &[map_file(0, ReadOnly, &Done), act(Act::UnmapAll, Since72(&Pages(0), &Pages(1)))],
    ),
    row(
        "a map of a file must allow something, lie on whole pages and below the top",
        Ioas,
        &[
            act(
                Act::MapFile(BusAddress::Page(0), Page(0), Access::empty()),
                Since72(&Fails(Errno::ENOTTY), &Fails(Errno::EINVAL)),
            ),
            act(
                Act::MapFile(Inside(0, 0x10), Page(0), Access::READ_WRITE),
                Since72(&Fails(Errno::ENOTTY), &Fails(Errno::EINVAL)),
            ),
            act(
                Act::MapFile(BelowTop(1), Both, Access::READ_WRITE),
                Since72(&Fails(Errno::ENOTTY), &Fails(Errno::EOVERFLOW)),
            ),
        ],
    ),
    row(
        "a mapping of a file is reached, and no longer once it is unmapped",
        Ioas,
        &[
            map_file(0, Both, &Done),
            act(Act::Store(BusAddress::Page(1)), Since72(&Vanishes, &Arrives(1))),
            act(Act::UnmapAll, Since72(&Pages(0), &Pages(2))),
            act(Act::Store(BusAddress::Page(1)), Vanishes),
        ],
    )
    .only(WithDevice),
    row(
        "mappings of files can change hands, and only where nothing else is mapped",
        Ioas,
        &[
            change_process(&Done),
            map_file(0, Both, &Done),
            change_process(&Done),
            map(8, Page(0), Done),
            change_process(&Fails(Errno::EINVAL)),
            unmap(8, 1, Pages(1)),
            change_process(&Done),
            act(Act::ChangeProcess(4), Since72(&Fails(Errno::ENOTTY), &Fails(Errno::EINVAL))),
            act(Act::UnmapAll, Since72(&Pages(0), &Pages(2))),
        ],
    ),
    row("a map must allow something", Ioas, NO_RIGHTS),
    row("a map must be whole pages, and some", Ioas, MISALIGNED),
    row("mapped memory is reached, and no longer once it is unmapped", Ioas, REACHED).only(WithDevice),
    row("a mapping for reading refuses writes", Ioas, READ_ONLY).only(WithDevice),
    // iommufd in a container's place: type1's requests, iommufd's answers.
    row(
        "no address changes hands",
        Compat,
        &[
            map(0, Page(0), Done),
            invalidate_vaddrs(0, 1, Fails(Errno::EINVAL)),
            act(Act::InvalidateAllVaddrs, Fails(Errno::EINVAL)),
            update_vaddr(0, Page(0), Fails(Errno::EINVAL)),
            unmap(0, 1, Pages(1)),
        ],
    ),
    row("a map over a live mapping is refused", Compat, OVER_LIVE),
    row("an unmap of nothing succeeds and says so", Compat, &[unmap(0, 1, Pages(0))]),
    row("an unmap inside a mapping fails", Compat, INSIDE_FAILS),
    row("an unmap of one mapping and half of the next fails, and the first is gone", Compat, HALF_FAILS),
    row("an unmap over mappings and holes says how much there was", Compat, WITH_HOLES),
    row("everything can be unmapped at once, even when it is nothing", Compat, ALL_AT_ONCE),
    row(
        "an unmap need not be whole pages, but some",
        Compat,
        &[
            act(Act::Unmap(Inside(0, 0x10), Length::Pages(1)), Pages(0)),
            act(Act::Unmap(BusAddress::Page(0), Bytes(0x10)), Pages(0)),
            unmap(0, 0, Fails(Errno::EINVAL)),
            act(Act::Unmap(BelowTop(1), Length::Pages(2)), Fails(Errno::EOVERFLOW)),
        ],
    ),
    row(
        "reserved ranges and addresses beyond the page tables cannot be mapped",
        Compat,
        &[map_at(Reserved, Page(0), Fails(Errno::EINVAL)), map_at(Unreached, Page(0), Fails(Errno::EINVAL))],
    ),
    row("a map that wraps around is refused", Compat, &[map_at(BelowTop(1), Both, Fails(Errno::EOVERFLOW))]),
    row(
        "a map of memory that is not there leaves nothing behind",
        Compat,
        &[
            map(0, Absent, Fails(Errno::EFAULT)),
            map(0, Holed, Fails(Errno::EFAULT)),
            map(0, Both, Done),
            unmap(0, 2, Pages(2)),
        ],
    ),
    row(
        "memory the process may only read can be mapped for reading",
        Compat,
        &[
            map(0, ReadOnly, Fails(Errno::EFAULT)),
            act(Act::Map(BusAddress::Page(0), ReadOnly, Access::READ), Done),
            unmap(0, 1, Pages(1)),
        ],
    ),
    // The kernel's own fault since its page tables are generic: it warns (linux: drivers/iommu/generic_pt/iommu_pt.h,
    // DOMAIN_NS(map_range)).
    row("a map must allow something", Compat, NO_RIGHTS).leaving(Leaves::WarningSince72),
    row("a map must be whole pages, and some", Compat, MISALIGNED),
    row("mapped memory is reached, and no longer once it is unmapped", Compat, REACHED).only(WithDevice),
    row("a mapping for reading refuses writes", Compat, READ_ONLY).only(WithDevice),
    row(
        "v1: an unmap inside a mapping takes just that",
        CompatV1,
        &[map(0, Both, Done), unmap(1, 1, Pages(1)), unmap(0, 2, Pages(1))],
    ),
    row(
        "v1: an unmap of one mapping and half of the next takes just that",
        CompatV1,
        &[
            map(0, Page(0), Done),
            map(1, Both, Done),
            unmap(0, 2, Pages(2)),
            map(1, Page(1), Done),
            unmap(0, 3, Pages(2)),
        ],
    ),
    // sPAPR v2.
    row(
        "nothing can be mapped before something is registered",
        Spapr,
        &[
            map(0, Page(0), Fails(Errno::EPERM)),
            unmap(0, 1, Fails(Errno::EPERM)),
            register(Page(0), Done),
            map(0, Page(0), Done),
            unmap(0, 1, SizeUntouched),
            unregister(Page(0), Done),
        ],
    ),
    row(
        "a map over live entries replaces them",
        Spapr,
        &[
            register(Both, Done),
            map(0, Page(0), Done),
            map(0, Page(1), Done),
            unmap(0, 1, SizeUntouched),
            unregister(Both, Done),
        ],
    ),
    row(
        "the device reaches the memory of a replaced entry",
        Spapr,
        &[
            register(Both, Done),
            map(0, Page(0), Done),
            store(0, Arrives(0)),
            map(0, Page(1), Done),
            store(0, Arrives(1)),
            unmap(0, 1, SizeUntouched),
            unregister(Both, Done),
        ],
    )
    .only(WithDevice),
    row(
        "an unmap of nothing succeeds, and no unmap says how much there was",
        Spapr,
        &[register(Page(0), Done), unmap(0, 8, SizeUntouched), unregister(Page(0), Done)],
    ),
    row(
        "every page can be unmapped by itself, and ranges with holes",
        Spapr,
        &[
            register(Both, Done),
            map(0, Both, Done),
            unmap(1, 1, SizeUntouched),
            map(1, Page(1), Done),
            map(8, Both, Done),
            unmap(0, 16, SizeUntouched),
            unregister(Both, Done),
        ],
    ),
    row(
        "only registered memory can be mapped",
        Spapr,
        &[
            register(Page(0), Done),
            map(0, Page(1), Fails(Errno::EINVAL)),
            map(0, Both, Fails(Errno::EINVAL)),
            unregister(Page(0), Done),
        ],
    ),
    row(
        "a map may show several registrations",
        Spapr,
        &[
            register(Page(0), Done),
            register(Page(1), Done),
            map(0, Both, Done),
            unmap(0, 2, SizeUntouched),
            unregister(Page(1), Done),
            unregister(Page(0), Done),
        ],
    ),
    row(
        "a map that fails has eaten the entries it was to replace",
        Spapr,
        &[
            register(Page(0), Done),
            map(0, Page(0), Done),
            store(0, Arrives(0)),
            map(0, Both, Fails(Errno::EINVAL)),
            store(0, Vanishes),
            unregister(Page(0), Done),
        ],
    )
    .only(WithDevice),
    row(
        "a misaligned bus address is refused by a positive result",
        Spapr,
        &[
            register(Both, Done),
            map_at(Inside(0, 0x10), Page(0), Result(1)),
            act(Act::Unmap(Inside(0, 0x10), Length::Pages(1)), Result(1)),
            unregister(Both, Done),
        ],
    ),
    row(
        "memory and size must be whole pages of the window",
        Spapr,
        &[
            register(Both, Done),
            map(0, Part(0x10, 0x1000), Fails(Errno::EINVAL)),
            map(0, Part(0, 0x10), Fails(Errno::EINVAL)),
            act(Act::Unmap(BusAddress::Page(0), Bytes(0x10)), Fails(Errno::EINVAL)),
            map(0, Empty, Done),
            unregister(Both, Done),
        ],
    ),
    row(
        "a map must allow something",
        Spapr,
        &[
            register(Page(0), Done),
            act(Act::Map(BusAddress::Page(0), Page(0), Access::empty()), Fails(Errno::EINVAL)),
            unregister(Page(0), Done),
        ],
    ),
    row(
        "outside every window nothing can be mapped or unmapped",
        Spapr,
        &[
            register(Page(0), Done),
            map_at(Address(HIGH), Page(0), Fails(Errno::ENXIO)),
            act(Act::Unmap(Address(HIGH), Length::Pages(1)), Fails(Errno::ENXIO)),
            unregister(Page(0), Done),
        ],
    ),
    row(
        "registering over a hole answers with the pages before it, and registers nothing",
        Spapr,
        &[
            register(Holed, Result(1)),
            unregister(Holed, Fails(Errno::ENOENT)),
            map(0, Page(0), Fails(Errno::EPERM)),
            register(Absent, Fails(Errno::EFAULT)),
        ],
    ),
    row("memory the process may only read cannot be registered", Spapr, &[register(ReadOnly, Fails(Errno::EFAULT))]),
    row(
        "a registration is whole, once, and overlaps no other",
        Spapr,
        &[
            register(Part(0x10, 0x1000), Fails(Errno::EINVAL)),
            register(Both, Done),
            register(Both, Fails(Errno::EBUSY)),
            register(Page(0), Fails(Errno::EINVAL)),
            unregister(Page(1), Fails(Errno::ENOENT)),
            unregister(Both, Done),
            unregister(Both, Fails(Errno::ENOENT)),
        ],
    ),
    row("registering nothing wants memory for nothing", Spapr, &[register(Empty, Fails(Errno::ENOMEM))])
        .leaving(Leaves::Warning),
    row(
        "unregistering memory with live entries succeeds, and the memory stays pinned",
        Spapr,
        &[
            register(Page(0), Done),
            map(0, Page(0), Done),
            unregister(Page(0), Done),
            unregister(Page(0), Fails(Errno::ENOENT)),
            register(Both, Fails(Errno::EINVAL)),
            map(1, Page(0), Done),
            unmap(0, 2, SizeUntouched),
        ],
    )
    .leaving(Leaves::LockedMemory),
    row(
        "any address in a window removes it",
        Spapr,
        &[
            register(Page(0), Done),
            map(0, Page(0), Done),
            act(Act::Remove(0x12_3000), Done),
            map(0, Page(0), Fails(Errno::ENXIO)),
            unregister(Page(0), Done),
        ],
    ),
    row(
        "removing a window clears its entries",
        Spapr,
        &[
            register(Page(0), Done),
            map(0, Page(0), Done),
            act(Act::UnmapAll, Done),
            unregister(Page(0), Done),
            register(Page(0), Done),
            unregister(Page(0), Done),
        ],
    ),
    row(
        "the default window is not made if it is removed first",
        Spapr,
        &[
            register(Page(0), Done),
            act(Act::Remove(0), Done),
            act(Act::Remove(0), Fails(Errno::EINVAL)),
            map(0, Page(0), Fails(Errno::ENXIO)),
            unregister(Page(0), Done),
        ],
    ),
    row(
        "the default window is made by the first creation too, and has the first place",
        Spapr,
        &[
            act(Act::Create(12, GIB, 1), WindowAt(HIGH)),
            act(Act::Remove(HIGH), Done),
            act(Act::Remove(0), Done),
            act(Act::Remove(0), Fails(Errno::EINVAL)),
        ],
    ),
    row(
        "there are two windows, where the platform puts them",
        Spapr,
        &[
            act(Act::Remove(0), Done),
            act(Act::Create(12, GIB, 1), WindowAt(0)),
            act(Act::Create(12, GIB, 1), WindowAt(HIGH)),
            act(Act::Create(12, GIB, 1), Fails(Errno::ENOSPC)),
            act(Act::Remove(HIGH), Done),
            act(Act::Create(12, GIB, 1), WindowAt(HIGH)),
            act(Act::Remove(0), Done),
            act(Act::Remove(HIGH), Done),
        ],
    ),
    row(
        "a window's page is one the platform has",
        Spapr,
        &[
            act(Act::Create(76, GIB, 1), Fails(Errno::EINVAL)),
            act(Act::Create(13, GIB, 1), Fails(Errno::EINVAL)),
            act(Act::Remove(HIGH), Fails(Errno::EINVAL)),
            act(Act::Remove(0), Done),
        ],
    ),
    row(
        "a window's size is a power of two",
        Spapr,
        &[act(Act::Remove(0), Done), act(Act::Create(12, 3 * GIB, 1), Fails(Errno::EINVAL))],
    )
    .leaving(Leaves::LockedMemory),
    row(
        "a window without levels is refused",
        Spapr,
        &[
            act(Act::Create(12, GIB, 1), WindowAt(HIGH)),
            act(Act::Remove(0), Done),
            act(Act::Create(12, GIB, 0), Platforms(&Fails(Errno::EINVAL), &Fails(Errno::EPERM))),
            act(Act::Remove(HIGH), Done),
        ],
    )
    .leaving(Leaves::LockedMemory),
    row(
        "v1's calls are not v2's",
        Spapr,
        &[act(Act::Enable, Fails(Errno::ENOTTY)), act(Act::Disable, Fails(Errno::ENOTTY))],
    ),
    // sPAPR v1.
    row(
        "v1: nothing can be mapped before it is enabled, which is once",
        SpaprV1,
        &[
            map(0, Page(0), Fails(Errno::EPERM)),
            act(Act::Enable, Done),
            act(Act::Enable, Fails(Errno::EBUSY)),
            map(0, Page(0), Done),
            map(0, Page(1), Done),
            unmap(0, 1, SizeUntouched),
            act(Act::Disable, Done),
            map(0, Page(0), Fails(Errno::EPERM)),
        ],
    ),
    row(
        "v1: memory must be there, and writable whatever the access",
        SpaprV1,
        &[
            act(Act::Enable, Done),
            map(0, Absent, Fails(Errno::EFAULT)),
            map(0, Holed, Fails(Errno::EFAULT)),
            act(Act::Map(BusAddress::Page(0), ReadOnly, Access::READ), Fails(Errno::EFAULT)),
            map_at(Inside(0, 0x10), Page(0), Result(1)),
            act(Act::Disable, Done),
        ],
    ),
    row(
        "v1: disabling a disabled container does nothing, and nothing can be mapped or unmapped afterwards",
        SpaprV1,
        &[
            act(Act::Disable, Done),
            act(Act::Enable, Done),
            act(Act::Disable, Done),
            act(Act::Disable, Done),
            map(0, Page(0), Fails(Errno::EPERM)),
            unmap(0, 1, Fails(Errno::EPERM)),
            act(Act::Enable, Done),
            unmap(0, 1, SizeUntouched),
            act(Act::Disable, Done),
        ],
    ),
    row(
        "v1: disabling leaves the mappings to the device",
        SpaprV1,
        &[
            act(Act::Enable, Done),
            map(0, Page(1), Done),
            act(Act::Disable, Done),
            store(0, Arrives(1)),
            act(Act::Enable, Done),
            unmap(0, 1, SizeUntouched),
            store(0, Vanishes),
            act(Act::Disable, Done),
        ],
    )
    .only(WithDevice),
    row(
        "v1: a map over live entries replaces them",
        SpaprV1,
        &[
            act(Act::Enable, Done),
            map(0, Page(0), Done),
            store(0, Arrives(0)),
            map(0, Page(1), Done),
            store(0, Arrives(1)),
            unmap(0, 1, SizeUntouched),
            act(Act::Disable, Done),
        ],
    )
    .only(WithDevice),
    row(
        "v1: a map that fails has eaten the entries it was to replace",
        SpaprV1,
        &[
            act(Act::Enable, Done),
            map(0, Page(0), Done),
            store(0, Arrives(0)),
            map(0, Holed, Fails(Errno::EFAULT)),
            store(0, Vanishes),
            act(Act::Disable, Done),
        ],
    )
    .only(WithDevice),
    row(
        "v1: every page can be unmapped by itself, and ranges with holes, and nothing",
        SpaprV1,
        &[
            act(Act::Enable, Done),
            unmap(0, 8, SizeUntouched),
            map(0, Both, Done),
            unmap(1, 1, SizeUntouched),
            map(1, Page(1), Done),
            map(8, Both, Done),
            unmap(0, 16, SizeUntouched),
            act(Act::Disable, Done),
        ],
    ),
    row(
        "v1: the window is made of pages of 4 KiB, whatever the host's are",
        SpaprV1,
        &[
            act(Act::Enable, Done),
            map(0, Part(0x1000, 0x1000), Done),
            map_at(Inside(0, 0x1000), Part(0, 0x1000), Done),
            map(0, Part(0x10, 0x1000), Fails(Errno::EINVAL)),
            map(0, Part(0, 0x10), Fails(Errno::EINVAL)),
            map(0, Empty, Done),
            act(Act::Unmap(BusAddress::Page(0), Bytes(0x10)), Fails(Errno::EINVAL)),
            act(Act::Unmap(Inside(0, 0x10), Bytes(0x1000)), Result(1)),
            act(Act::Unmap(BusAddress::Page(0), Bytes(0x2000)), SizeUntouched),
            act(Act::Disable, Done),
        ],
    ),
    row(
        "v1: a map must allow something, and lie in the window",
        SpaprV1,
        &[
            act(Act::Enable, Done),
            act(Act::Map(BusAddress::Page(0), Page(0), Access::empty()), Fails(Errno::EINVAL)),
            map_at(Address(HIGH), Page(0), Fails(Errno::ENXIO)),
            map_at(Address(4 * GIB), Page(0), Fails(Errno::ENXIO)),
            act(Act::Unmap(Address(HIGH), Length::Pages(1)), Fails(Errno::ENXIO)),
            act(Act::Disable, Done),
        ],
    ),
    row(
        "v1: there are no windows to make and nothing to register",
        SpaprV1,
        &[
            register(Page(0), Fails(Errno::ENOTTY)),
            unregister(Page(0), Fails(Errno::ENOTTY)),
            act(Act::Create(12, GIB, 1), Fails(Errno::ENOTTY)),
            act(Act::Remove(0), Fails(Errno::ENOTTY)),
        ],
    ),
];

const GIB: u64 = 1 << 30;
/// The first address of the second window of sPAPR hosts.
const HIGH: u64 = 1 << 59;

/// A map without access, on type1 and iommufd.
const NO_RIGHTS: &[Step] = &[act(Act::Map(BusAddress::Page(0), Page(0), Access::empty()), Fails(Errno::EINVAL))];

const MISALIGNED: &[Step] = &[
    map_at(Inside(0, 0x10), Page(0), Fails(Errno::EINVAL)),
    map(0, Part(0x10, 0x1000), Fails(Errno::EINVAL)),
    map(0, Part(0, 0x10), Fails(Errno::EINVAL)),
    map(0, Empty, Fails(Errno::EINVAL)),
];

const OVER_LIVE: &[Step] = &[
    map(0, Page(0), Done),
    map(0, Page(1), Fails(Errno::EEXIST)),
    map(0, Both, Fails(Errno::EEXIST)),
    unmap(0, 1, Pages(1)),
];

const INSIDE_FAILS: &[Step] =
    &[map(0, Both, Done), unmap(0, 1, Fails(Errno::ENOENT)), unmap(1, 1, Fails(Errno::ENOENT)), unmap(0, 2, Pages(2))];

const HALF_FAILS: &[Step] = &[
    map(0, Page(0), Done),
    map(1, Both, Done),
    unmap(0, 2, Fails(Errno::ENOENT)),
    map(0, Page(1), Done),
    unmap(0, 3, Pages(3)),
];

const WITH_HOLES: &[Step] = &[map(0, Page(0), Done), map(5, Both, Done), unmap(0, 16, Pages(3))];

const ALL_AT_ONCE: &[Step] =
    &[map(0, Page(0), Done), map(5, Both, Done), act(Act::UnmapAll, Pages(3)), act(Act::UnmapAll, Pages(0))];

const REACHED: &[Step] = &[
    map(0, Page(1), Done),
    map(1, Page(0), Done),
    store(0, Arrives(1)),
    store(1, Arrives(0)),
    unmap(0, 1, Pages(1)),
    store(0, Vanishes),
    store(1, Arrives(0)),
    unmap(1, 1, Pages(1)),
];

const READ_ONLY: &[Step] =
    &[act(Act::Map(BusAddress::Page(0), Page(0), Access::READ), Done), store(0, Vanishes), unmap(0, 1, Pages(1))];

const fn row(name: &'static str, dialect: Dialect, steps: &'static [Step]) -> Row {
    Row { name, dialect, only: Anywhere, steps, leaves: Leaves::Nothing }
}

impl Row {
    const fn only(self, only: Only) -> Self {
        Self { only, ..self }
    }

    const fn leaving(self, leaves: Leaves) -> Self {
        Self { leaves, ..self }
    }
}

const fn act(act: Act, answer: ExpectedAnswer) -> Step {
    Step { act, answer }
}

const fn map(page: u64, memory: Memory, answer: ExpectedAnswer) -> Step {
    map_at(BusAddress::Page(page), memory, answer)
}

const fn map_at(at: BusAddress, memory: Memory, answer: ExpectedAnswer) -> Step {
    act(Act::Map(at, memory, Access::READ_WRITE), answer)
}

/// A map by file, which kernels before 7.2 lack.
const fn map_file(page: u64, memory: Memory, answer: &'static ExpectedAnswer) -> Step {
    act(Act::MapFile(BusAddress::Page(page), memory, Access::READ_WRITE), Since72(&Fails(Errno::ENOTTY), answer))
}

/// A move to this process, which kernels before 7.2 lack.
const fn change_process(answer: &'static ExpectedAnswer) -> Step {
    act(Act::ChangeProcess(8), Since72(&Fails(Errno::ENOTTY), answer))
}

const fn unmap(page: u64, pages: u64, answer: ExpectedAnswer) -> Step {
    act(Act::Unmap(BusAddress::Page(page), Length::Pages(pages)), answer)
}

const fn get_log(page: u64, pages: u64, answer: ExpectedAnswer) -> Step {
    act(Act::GetLog(BusAddress::Page(page), Length::Pages(pages)), answer)
}

const fn invalidate_vaddrs(page: u64, pages: u64, answer: ExpectedAnswer) -> Step {
    act(Act::InvalidateVaddrs(BusAddress::Page(page), Length::Pages(pages)), answer)
}

const fn update_vaddr(page: u64, memory: Memory, answer: ExpectedAnswer) -> Step {
    act(Act::UpdateVaddr(BusAddress::Page(page), memory, Access::empty()), answer)
}

const fn copy(from: u64, to: u64, pages: u64, answer: ExpectedAnswer) -> Step {
    act(Act::Copy(BusAddress::Page(from), BusAddress::Page(to), Length::Pages(pages), Access::READ_WRITE), answer)
}

const fn register(memory: Memory, answer: ExpectedAnswer) -> Step {
    act(Act::Register(memory), answer)
}

const fn unregister(memory: Memory, answer: ExpectedAnswer) -> Step {
    act(Act::Unregister(memory), answer)
}

const fn store(page: u64, answer: ExpectedAnswer) -> Step {
    act(Act::Store(BusAddress::Page(page)), answer)
}
