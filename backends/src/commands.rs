//! The commands that the Linux door makes, and the form of their arguments.
//!
//! [`Door::ioctl`](dmaspace_core::door::Door::ioctl) may be called with any number and any bytes. ioctl(2) may not:
//! some numbers make the kernel follow a pointer in the bytes, or write more bytes than there are. The door therefore
//! makes only the commands that are listed here, on the kind of handle that they are listed for, in the form that their
//! [`Rule`] describes. [`judge`] decides, without a kernel. The map and unmap calls that a guest makes by the million
//! bypass it, as structs of the door's own (src/linux/direct.rs).
//!
//! The rules rely on the kernel in these points:
//! - VFIO and iommufd read and write no further than the first field of a struct says (`argsz`, `size`): it must not
//!   exceed the bytes.
//! - They follow the pointers listed here and no others, unless a flag says otherwise. Flags that are not listed are
//!   refused, because a later kernel may give one a pointer.
//! - No other driver uses these numbers (linux: Documentation/userspace-api/ioctl/ioctl-number.rst), so a descriptor
//!   that was adopted under a wrong kind answers `ENOTTY` or, within VFIO, keeps to `argsz`.

use std::mem::offset_of;

use dmaspace_abi::{IovaSpan, device, iommufd, spapr, type1, vfio};
use dmaspace_core::HostMemory;
use dmaspace_core::contract::AttachPlace;
use dmaspace_core::door::{Argument, Attached, Attachment, Command, Errno, Handle, HandleKind, Request};

use crate::host_page::host_page;

/// A command that the door makes.
#[derive(Debug)]
pub(crate) struct Rule {
    request: Request,
    shape: Shape,
    opens: Option<HandleKind>,
}

impl Rule {
    const fn new(request: Request, shape: Shape) -> Self {
        Self { request, shape, opens: None }
    }

    /// Makes the command's result a descriptor.
    const fn opening(mut self, kind: HandleKind) -> Self {
        self.opens = Some(kind);
        self
    }

    /// The kind of the descriptor that the command returns. `None` if it returns a number.
    pub(crate) fn opens(&self) -> Option<HandleKind> {
        self.opens
    }
}

/// The form of a command's argument.
#[derive(Debug)]
enum Shape {
    /// No argument.
    Nothing,
    /// A number.
    Value,
    /// Bytes with a NUL among them.
    Text,
    /// The descriptor of a container of one of these kinds, which a space lets a group join, and nothing else.
    Container(&'static [HandleKind]),
    /// A struct.
    Struct(Layout),
    /// A struct with two fields that the door fills in, the second of them as described.
    Two(Layout, Field),
    /// A struct that reads or sets a feature of a device, with exactly these flags: other features have pointers in
    /// other fields.
    Feature(u32, Layout),
}

/// The form of a struct. Its first word is the number of bytes that the kernel touches, its second holds flags.
#[derive(Debug)]
struct Layout {
    least: u32,
    most: u32,
    flags: u32,
    field: Option<Field>,
}

/// The field that the door fills in.
#[derive(Debug)]
struct Field {
    at: usize,
    holds: Holds,
}

/// The content of a field.
#[derive(Debug)]
enum Holds {
    /// The address of memory that outlives the call; the u64 at `len_at` says how much of it.
    Memory { len_at: usize },
    /// The address of a buffer for this call: an array of `each` bytes an element, whose number is the u32 at
    /// `count_at`.
    Array { count_at: usize, each: u64 },
    /// The address of a buffer for this call, of as many bytes as the u64 at `len_at` says.
    Buffer { len_at: usize },
    /// The address of a bitmap for this call, one bit for each page of the size at `page_at` of the bytes at
    /// `length_at`. The kernel may set bits behind the last one, as far as the host page reaches that it lies in: all
    /// of that page must be the buffer's (linux: drivers/iommu/iommufd/iova_bitmap.c, iova_bitmap_set).
    Log { length_at: usize, page_at: usize },
    /// A descriptor of one of these kinds.
    Descriptor(&'static [HandleKind]),
    /// As many descriptors of one of these kinds as the u32 at `count_at` says.
    Descriptors { count_at: usize, kinds: &'static [HandleKind] },
    /// As many descriptors of eventfds as the u32 at `count_at` says.
    Eventfds { count_at: usize },
    /// A descriptor of this kind that the kernel returns.
    Opens(HandleKind),
    /// The token of a virtual function, of 16 bytes.
    Token,
    /// Zero: the number of descriptors that follow.
    Zero,
    /// The descriptor of a container of one of these kinds, which a space lets a group join.
    Container(&'static [HandleKind]),
    /// The length of memory that is mapped elsewhere and that a space lets the call map once more.
    Copied,
    /// The number of ranges behind it, which is 1, in a struct for that feature and no other: others hold pointers.
    OneRangeToExport,
    /// The descriptor of the file that memory is mapped from: the u64s at `start_at` and `len_at` say which bytes of
    /// it, no others than the memory's.
    File { start_at: usize, len_at: usize },
}

/// The second word may have any value: it is an output, or holds no flags.
const ANY_FLAGS: u32 = u32::MAX;

/// A struct of `size` bytes, no more: a later kernel may know pointers in a longer one. No flag is allowed.
const fn exactly(size: u32) -> Layout {
    Layout { least: size, most: size, flags: 0, field: None }
}

/// A struct of `least` bytes or more that the kernel fills, with room for capabilities behind it.
const fn reply(least: u32) -> Layout {
    Layout { least, most: u32::MAX, flags: ANY_FLAGS, field: None }
}

impl Layout {
    const fn allowing(mut self, flags: u32) -> Self {
        self.flags = flags;
        self
    }

    const fn with(mut self, at: usize, holds: Holds) -> Self {
        self.field = Some(Field { at, holds });
        self
    }

    const fn shape(self) -> Shape {
        Shape::Struct(self)
    }
}

/// The commands of `/dev/vfio/vfio`.
const CONTAINER: &[Rule] = &[
    MAP_DMA,
    UNMAP_DMA,
    Rule::new(vfio::UNMAP_DMA, unmap_telling().shape()),
    // DIRTY_PAGES has the same number. REGISTER_MEMORY never has a flag, DIRTY_PAGES always has one, and each driver
    // refuses the call of the other driver.
    Rule::new(spapr::REGISTER_MEMORY, registration().shape()),
    Rule::new(
        type1::DIRTY_PAGES,
        exactly(type1::DIRTY_BITMAP_HEAD).allowing(type1::DIRTY_START | type1::DIRTY_STOP).shape(),
    ),
    Rule::new(type1::DIRTY_PAGES, dirty_bitmap().shape()),
    Rule::new(spapr::UNREGISTER_MEMORY, registration().shape()),
    Rule::new(spapr::TCE_CREATE, exactly(spapr::TceCreate::SIZE).shape()),
    Rule::new(spapr::TCE_REMOVE, exactly(spapr::TceRemove::SIZE).shape()),
    Rule::new(spapr::EEH_PE_OP, exactly(spapr::EehPeOp::SIZE).shape()),
    Rule::new(spapr::ENABLE, Shape::Nothing),
    Rule::new(spapr::DISABLE, Shape::Nothing),
    GET_INFO,
    GET_API_VERSION,
    CHECK_EXTENSION,
    SET_IOMMU,
];

const MAP_DMA: Rule = Rule::new(
    vfio::MAP_DMA,
    exactly(vfio::MapDma::SIZE)
        .allowing(vfio::MAP_READ | vfio::MAP_WRITE | type1::MAP_VADDR)
        .with(offset_of!(vfio::MapDma, vaddr), Holds::Memory { len_at: offset_of!(vfio::MapDma, size) })
        .shape(),
);
const UNMAP_DMA: Rule =
    Rule::new(vfio::UNMAP_DMA, exactly(vfio::UnmapDma::SIZE).allowing(type1::UNMAP_ALL | type1::UNMAP_VADDR).shape());
/// sPAPR's TCE_GET_INFO has this number too. Both drivers need at least 16 bytes.
const GET_INFO: Rule = Rule::new(type1::GET_INFO, reply(16).shape());
const GET_API_VERSION: Rule = Rule::new(vfio::GET_API_VERSION, Shape::Nothing);
const CHECK_EXTENSION: Rule = Rule::new(vfio::CHECK_EXTENSION, Shape::Value);
const SET_IOMMU: Rule = Rule::new(vfio::SET_IOMMU, Shape::Value);

/// The struct of REGISTER_MEMORY and UNREGISTER_MEMORY.
const fn registration() -> Layout {
    let len_at = offset_of!(spapr::RegisterMemory, size);
    exactly(spapr::RegisterMemory::SIZE).with(offset_of!(spapr::RegisterMemory, vaddr), Holds::Memory { len_at })
}

/// The struct of an UNMAP_DMA that returns the written pages.
const fn unmap_telling() -> Layout {
    const BITMAP: usize = offset_of!(type1::UnmapDirty, bitmap);
    let len_at = BITMAP + offset_of!(type1::Bitmap, size);
    exactly(type1::UnmapDirty::SIZE)
        .allowing(type1::UNMAP_GET_DIRTY)
        .with(BITMAP + offset_of!(type1::Bitmap, data), Holds::Buffer { len_at })
}

/// The struct of a DIRTY_PAGES that reads the log.
const fn dirty_bitmap() -> Layout {
    const BITMAP: usize = offset_of!(type1::DirtyBitmap, bitmap);
    let len_at = BITMAP + offset_of!(type1::Bitmap, size);
    exactly(type1::DirtyBitmap::SIZE)
        .allowing(type1::DIRTY_GET_BITMAP)
        .with(BITMAP + offset_of!(type1::Bitmap, data), Holds::Buffer { len_at })
}

/// The commands of `/dev/vfio/<group>`.
const GROUP: &[Rule] = &[
    Rule::new(vfio::GROUP_GET_STATUS, reply(vfio::GroupStatus::SIZE).shape()),
    // The kernel accepts /dev/iommu too, in place of a container.
    Rule::new(vfio::GROUP_SET_CONTAINER, Shape::Container(&[HandleKind::Container, HandleKind::Iommufd])),
    Rule::new(vfio::GROUP_UNSET_CONTAINER, Shape::Nothing),
    Rule::new(vfio::GROUP_GET_DEVICE_FD, Shape::Text).opening(HandleKind::Device),
];

/// The commands of a device.
const DEVICE: &[Rule] = &[
    Rule::new(device::DEVICE_GET_INFO, reply(16).shape()),
    Rule::new(device::DEVICE_GET_REGION_INFO, reply(device::RegionInfo::SIZE).shape()),
    Rule::new(device::DEVICE_GET_IRQ_INFO, reply(device::IrqInfo::SIZE).shape()),
    // The kernel reads a byte for each interrupt at most, and none behind argsz.
    Rule::new(device::DEVICE_SET_IRQS, irqs(device::IRQ_DATA_NONE | device::IRQ_DATA_BOOL).shape()),
    Rule::new(device::DEVICE_SET_IRQS, irqs_of_eventfds().shape()),
    Rule::new(device::DEVICE_RESET, Shape::Nothing),
    Rule::new(device::DEVICE_GET_PCI_HOT_RESET_INFO, reply(device::HotResetInfo::SIZE).shape()),
    // The kernel reads the descriptors whatever argsz says.
    Rule::new(
        device::DEVICE_PCI_HOT_RESET,
        exactly(device::HotReset::SIZE).with(offset_of!(device::HotReset, count), Holds::Zero).shape(),
    ),
    Rule::new(device::DEVICE_PCI_HOT_RESET, hot_reset_of_groups().shape()),
    Rule::new(device::DEVICE_FEATURE, feature(SET, device::FEATURE_VF_TOKEN, exactly(device::FeatureToken::SIZE))),
    Rule::new(device::DEVICE_FEATURE, feature(GET, device::FEATURE_MIGRATION, exactly(device::FeatureMigration::SIZE))),
    Rule::new(device::DEVICE_FEATURE, feature(GET, device::FEATURE_MIG_STATE, exactly(device::FeatureMigState::SIZE))),
    Rule::new(
        device::DEVICE_FEATURE,
        feature(
            SET,
            device::FEATURE_MIG_STATE,
            exactly(device::FeatureMigState::SIZE)
                .with(offset_of!(device::FeatureMigState, data_fd), Holds::Opens(HandleKind::Migration)),
        ),
    ),
    Rule::new(
        device::DEVICE_FEATURE,
        feature(GET, device::FEATURE_MIG_DATA_SIZE, exactly(device::FeatureMigDataSize::SIZE)),
    ),
    Rule::new(device::DEVICE_FEATURE, feature(SET, device::FEATURE_LOGGING_START, logged_ranges())),
    Rule::new(device::DEVICE_FEATURE, feature(SET, device::FEATURE_LOGGING_STOP, exactly(device::FeatureHead::SIZE))),
    Rule::new(device::DEVICE_FEATURE, feature(GET, device::FEATURE_LOGGING_REPORT, logged_pages())),
    Rule::new(
        device::DEVICE_FEATURE,
        exactly(device::ExportRange::SIZE)
            .allowing(device::FEATURE_EXPORT)
            .with(offset_of!(device::ExportRange, nr_ranges), Holds::OneRangeToExport)
            .shape(),
    )
    .opening(HandleKind::Export),
    // Without its flag the kernel ignores the token's address.
    Rule::new(device::DEVICE_BIND_IOMMUFD, bind(0).shape()),
    Rule::new(
        device::DEVICE_BIND_IOMMUFD,
        Shape::Two(
            bind(device::BIND_TOKEN),
            Field { at: offset_of!(device::BindIommufd, token_uuid_ptr), holds: Holds::Token },
        ),
    ),
    Rule::new(device::DEVICE_ATTACH_IOMMUFD_PT, exactly(device::AttachIommufdPt::SIZE).shape()),
    Rule::new(device::DEVICE_DETACH_IOMMUFD_PT, exactly(device::DetachIommufdPt::SIZE).shape()),
];

const GET: u32 = device::FEATURE_GET;
const SET: u32 = device::FEATURE_SET;

const fn feature(access: u32, number: u32, layout: Layout) -> Shape {
    Shape::Feature(access | number, layout.allowing(ANY_FLAGS))
}

/// The struct of SET_IRQS with this kind of data.
const fn irqs(data: u32) -> Layout {
    Layout { least: device::IrqSet::SIZE, ..reply(0) }.allowing(data | device::IRQ_ACTIONS)
}

/// The struct of SET_IRQS with an eventfd or more.
const fn irqs_of_eventfds() -> Layout {
    let count_at = offset_of!(device::IrqSet, count);
    Layout { least: device::IrqSet::SIZE + 4, ..irqs(device::IRQ_DATA_EVENTFD) }
        .with(size_of::<device::IrqSet>(), Holds::Eventfds { count_at })
}

/// The struct of PCI_HOT_RESET with a group or more.
const fn hot_reset_of_groups() -> Layout {
    let count_at = offset_of!(device::HotReset, count);
    Layout { least: device::HotReset::SIZE + 4, ..reply(0) }
        .allowing(0)
        .with(size_of::<device::HotReset>(), Holds::Descriptors { count_at, kinds: &[HandleKind::Group] })
}

const fn logged_ranges() -> Layout {
    let count_at = offset_of!(device::FeatureLoggingStart, num_ranges);
    let each = size_of::<device::LoggingRange>() as u64;
    exactly(device::FeatureLoggingStart::SIZE)
        .with(offset_of!(device::FeatureLoggingStart, ranges), Holds::Array { count_at, each })
}

const fn logged_pages() -> Layout {
    let length_at = offset_of!(device::FeatureLoggingReport, length);
    let page_at = offset_of!(device::FeatureLoggingReport, page_size);
    exactly(device::FeatureLoggingReport::SIZE)
        .with(offset_of!(device::FeatureLoggingReport, bitmap), Holds::Log { length_at, page_at })
}

const fn bind(flags: u32) -> Layout {
    exactly(device::BindIommufd::SIZE)
        .allowing(flags)
        .with(offset_of!(device::BindIommufd, iommufd), Holds::Descriptor(&[HandleKind::Iommufd]))
}

/// The commands of the stream of a device's migration.
const MIGRATION: &[Rule] = &[Rule::new(device::MIG_GET_PRECOPY_INFO, reply(device::PrecopyInfo::SIZE).shape())];

/// The commands of `/dev/iommu`, which understands those of a type1 container too (linux:
/// drivers/iommu/iommufd/vfio_compat.c).
const IOMMUFD: &[Rule] = &[
    Rule::new(
        iommufd::IOAS_MAP,
        exactly(iommufd::IoasMap::SIZE)
            .allowing(COPY_FLAGS)
            .with(offset_of!(iommufd::IoasMap, user_va), Holds::Memory { len_at: offset_of!(iommufd::IoasMap, length) })
            .shape(),
    ),
    // Where others have flags, these have an id, or an option's number.
    Rule::new(iommufd::IOAS_UNMAP, exactly(iommufd::IoasUnmap::SIZE).allowing(ANY_FLAGS).shape()),
    Rule::new(iommufd::IOAS_MAP_FILE, map_file().shape()),
    Rule::new(iommufd::IOAS_IOVA_RANGES, iova_ranges().allowing(ANY_FLAGS).shape()),
    Rule::new(iommufd::DESTROY, exactly(iommufd::Destroy::SIZE).allowing(ANY_FLAGS).shape()),
    Rule::new(
        iommufd::IOAS_COPY,
        exactly(iommufd::IoasCopy::SIZE)
            .allowing(COPY_FLAGS)
            .with(offset_of!(iommufd::IoasCopy, length), Holds::Copied)
            .shape(),
    ),
    Rule::new(iommufd::IOAS_ALLOW_IOVAS, allow_iovas().allowing(ANY_FLAGS).shape()),
    Rule::new(iommufd::OPTION, exactly(iommufd::IommuOption::SIZE).allowing(ANY_FLAGS).shape()),
    Rule::new(iommufd::IOAS_CHANGE_PROCESS, change_process().shape()),
    Rule::new(iommufd::IOAS_ALLOC, exactly(iommufd::IoasAlloc::SIZE).shape()),
    Rule::new(iommufd::HWPT_GET_DIRTY_BITMAP, written().allowing(ANY_FLAGS).shape()),
    Rule::new(
        iommufd::HWPT_SET_DIRTY_TRACKING,
        exactly(iommufd::HwptSetDirtyTracking::SIZE).allowing(iommufd::DIRTY_TRACKING_ENABLE).shape(),
    ),
    // A driver would read its own data from this pointer, or write it there.
    Rule::new(
        iommufd::HWPT_ALLOC,
        exactly(iommufd::HwptAlloc::SIZE)
            .allowing(iommufd::HWPT_ALLOC_DIRTY_TRACKING)
            .with(
                offset_of!(iommufd::HwptAlloc, data_uptr),
                Holds::Array { count_at: offset_of!(iommufd::HwptAlloc, data_len), each: 1 },
            )
            .shape(),
    ),
    Rule::new(
        iommufd::GET_HW_INFO,
        exactly(iommufd::HwInfo::SIZE)
            .with(
                offset_of!(iommufd::HwInfo, data_uptr),
                Holds::Array { count_at: offset_of!(iommufd::HwInfo, data_len), each: 1 },
            )
            .shape(),
    ),
    MAP_DMA,
    UNMAP_DMA,
    GET_INFO,
    GET_API_VERSION,
    CHECK_EXTENSION,
    SET_IOMMU,
];

/// A request with half of the struct only asks whether the call would succeed.
const fn change_process() -> Layout {
    Layout { least: iommufd::IoasChangeProcess::HALF, ..exactly(iommufd::IoasChangeProcess::SIZE) }
}

const fn map_file() -> Layout {
    let start_at = offset_of!(iommufd::IoasMapFile, start);
    let len_at = offset_of!(iommufd::IoasMapFile, length);
    exactly(iommufd::IoasMapFile::SIZE)
        .allowing(COPY_FLAGS)
        .with(offset_of!(iommufd::IoasMapFile, fd), Holds::File { start_at, len_at })
}

const fn written() -> Layout {
    let length_at = offset_of!(iommufd::HwptGetDirtyBitmap, length);
    let page_at = offset_of!(iommufd::HwptGetDirtyBitmap, page_size);
    exactly(iommufd::HwptGetDirtyBitmap::SIZE)
        .with(offset_of!(iommufd::HwptGetDirtyBitmap, data), Holds::Log { length_at, page_at })
}

const fn iova_ranges() -> Layout {
    let count_at = offset_of!(iommufd::IoasIovaRanges, num_iovas);
    let each = size_of::<IovaSpan>() as u64;
    exactly(iommufd::IoasIovaRanges::SIZE)
        .with(offset_of!(iommufd::IoasIovaRanges, allowed_iovas), Holds::Array { count_at, each })
}

const fn allow_iovas() -> Layout {
    let count_at = offset_of!(iommufd::IoasAllowIovas, num_iovas);
    let each = size_of::<IovaSpan>() as u64;
    exactly(iommufd::IoasAllowIovas::SIZE)
        .with(offset_of!(iommufd::IoasAllowIovas, allowed_iovas), Holds::Array { count_at, each })
}

/// The flags of IOAS_MAP and IOAS_COPY.
const COPY_FLAGS: u32 = iommufd::MAP_FIXED_IOVA | iommufd::MAP_WRITEABLE | iommufd::MAP_READABLE;

const fn rules(kind: HandleKind) -> &'static [Rule] {
    match kind {
        HandleKind::Container => CONTAINER,
        HandleKind::Group => GROUP,
        HandleKind::Device => DEVICE,
        HandleKind::Iommufd => IOMMUFD,
        HandleKind::Migration => MIGRATION,
        _ => &[],
    }
}

/// Decides whether `command` may be made on a handle of `kind`, and finds its rule. A number can stand for several
/// shapes.
///
/// # Errors
/// `ENOTTY` for a number that is not listed, `EINVAL` for an argument of another shape, `EFAULT` for memory that is not
/// there.
pub(crate) fn judge(kind: HandleKind, command: &Command<'_>) -> Result<&'static Rule, Errno> {
    let mut refusal = None;
    for rule in rules(kind).iter().filter(|rule| rule.request.number == command.request.number) {
        match rule.judge(command) {
            Ok(rule) => return Ok(rule),
            Err(errno) => refusal = refusal.or(Some(errno)),
        }
    }
    Err(refusal.unwrap_or(Errno::ENOTTY))
}

impl Rule {
    fn judge(&'static self, command: &Command<'_>) -> Result<&'static Self, Errno> {
        let attached = match &*command.attachments {
            [] => None,
            [one] => Some(one),
            [one, two] => return self.shape.fits_two(&command.argument, one, two).map(|()| self),
            _ => return Err(Errno::EINVAL),
        };
        self.shape.fits(&command.argument, attached).map(|()| self)
    }
}

impl Shape {
    fn fits(&self, argument: &Argument<'_>, attached: Option<&Attachment<'_>>) -> Result<(), Errno> {
        match (self, argument, attached) {
            (Self::Struct(layout), Argument::Bytes(bytes), _) => layout.fits(bytes, attached),
            (Self::Container(kinds), Argument::Bytes(bytes), Some(_)) => {
                demand(bytes.len() == DESCRIPTOR)?;
                Field { at: 0, holds: Holds::Container(kinds) }.fits(bytes, attached)
            }
            (Self::Nothing, Argument::None, None) | (Self::Value, Argument::Value(_), None) => Ok(()),
            (Self::Text, Argument::Bytes(bytes), None) => demand(bytes.contains(&0)),
            (Self::Feature(flags, layout), Argument::Bytes(bytes), _) => {
                demand(u32_at(bytes, 4) == Some(*flags))?;
                layout.fits(bytes, attached)
            }
            _ => Err(Errno::EINVAL),
        }
    }

    #[cold]
    fn fits_two(&self, argument: &Argument<'_>, one: &Attachment<'_>, two: &Attachment<'_>) -> Result<(), Errno> {
        let (Self::Two(layout, second), Argument::Bytes(bytes)) = (self, argument) else { return Err(Errno::EINVAL) };
        layout.fits(bytes, Some(one))?;
        second.fits(bytes, Some(two))
    }
}

impl Layout {
    fn fits(&self, bytes: &[u8], attached: Option<&Attachment<'_>>) -> Result<(), Errno> {
        let touched = u32_at(bytes, 0).ok_or(Errno::EINVAL)?;
        demand(self.least <= touched && touched <= self.most && touched as usize <= bytes.len())?;
        demand(u32_at(bytes, 4).is_some_and(|flags| flags & !self.flags == 0))?;
        match &self.field {
            Some(field) => field.fits(bytes, attached),
            None => demand(attached.is_none()),
        }
    }
}

impl Field {
    /// Checks that the caller left the field to the door, and attached the right content.
    fn fits(&self, bytes: &[u8], attached: Option<&Attachment<'_>>) -> Result<(), Errno> {
        demand(attached.is_none_or(|attached| attached.offset == self.at))?;
        match attached.map(|attached| &attached.what) {
            Some(Attached::Memory(memory)) => self.fits_memory(bytes, memory),
            Some(Attached::Copied(memory)) => self.fits_copied(bytes, memory),
            Some(Attached::FileOf(memory)) => self.fits_file(bytes, memory),
            Some(Attached::Buffer(buffer)) => self.fits_buffer(bytes, buffer),
            Some(Attached::Handle(handle)) => match &self.holds {
                Holds::Descriptor(kinds) => self.fits_descriptor(bytes, kinds, handle.kind()),
                _ => Err(Errno::EINVAL),
            },
            Some(Attached::Container(point)) => match (&self.holds, point.place()) {
                (Holds::Container(kinds), AttachPlace::Container(handle)) => {
                    self.fits_descriptor(bytes, kinds, handle.kind())
                }
                _ => Err(Errno::EINVAL),
            },
            Some(Attached::Handles(handles)) => self.fits_handles(bytes, handles),
            Some(Attached::Eventfds(eventfds)) => {
                let Holds::Eventfds { count_at } = &self.holds else { return Err(Errno::EINVAL) };
                self.fits_descriptors(bytes, *count_at, eventfds.len())
            }
            Some(Attached::Opened { kind, .. }) => {
                demand(matches!(&self.holds, Holds::Opens(known) if known == kind))?;
                demand(u32_at(bytes, self.at) == Some(0))
            }
            None => self.fits_nothing(bytes),
        }
    }

    fn fits_memory(&self, bytes: &[u8], memory: &HostMemory) -> Result<(), Errno> {
        let Holds::Memory { len_at } = &self.holds else { return Err(Errno::EINVAL) };
        demand(u64_at(bytes, self.at) == Some(0))?;
        demand(u64_at(bytes, *len_at).is_some_and(|len| len <= memory.len().get()))?;
        demand_backed(memory)
    }

    fn fits_copied(&self, bytes: &[u8], memory: &HostMemory) -> Result<(), Errno> {
        let Holds::Copied = &self.holds else { return Err(Errno::EINVAL) };
        demand(u64_at(bytes, self.at).is_some_and(|len| len <= memory.len().get()))?;
        demand_backed(memory)
    }

    fn fits_file(&self, bytes: &[u8], memory: &HostMemory) -> Result<(), Errno> {
        let Holds::File { start_at, len_at } = &self.holds else { return Err(Errno::EINVAL) };
        demand(u32_at(bytes, self.at) == Some(0))?;
        demand(memory.file().is_some_and(|(_, offset)| u64_at(bytes, *start_at) == Some(offset)))?;
        demand(u64_at(bytes, *len_at).is_some_and(|len| len <= memory.len().get()))?;
        demand_backed(memory)
    }

    fn fits_buffer(&self, bytes: &[u8], buffer: &[u8]) -> Result<(), Errno> {
        demand(u64_at(bytes, self.at) == Some(0))?;
        match &self.holds {
            Holds::Array { count_at, each } => {
                let needed = u32_at(bytes, *count_at).map(|count| u64::from(count) * each);
                demand(needed.is_some_and(|needed| needed <= buffer.len() as u64))
            }
            Holds::Buffer { len_at } => demand(u64_at(bytes, *len_at).is_some_and(|len| len <= buffer.len() as u64)),
            Holds::Token => demand(buffer.len() >= TOKEN),
            Holds::Log { length_at, page_at } => {
                let (length, page) = (u64_at(bytes, *length_at), u64_at(bytes, *page_at).filter(|page| *page > 0));
                let needed = length.zip(page).map(|(length, page)| length.div_ceil(page).div_ceil(64) * 8);
                demand(needed.is_some_and(|needed| holds_pages_of(buffer, needed)))
            }
            _ => Err(Errno::EINVAL),
        }
    }

    fn fits_descriptor(&self, bytes: &[u8], kinds: &[HandleKind], kind: HandleKind) -> Result<(), Errno> {
        demand(u32_at(bytes, self.at) == Some(0) && kinds.contains(&kind))
    }

    #[cold]
    fn fits_handles(&self, bytes: &[u8], handles: &[Handle]) -> Result<(), Errno> {
        let Holds::Descriptors { count_at, kinds } = &self.holds else { return Err(Errno::EINVAL) };
        demand(handles.iter().all(|handle| kinds.contains(&handle.kind())))?;
        self.fits_descriptors(bytes, *count_at, handles.len())
    }

    /// Checks that the struct ends with room for exactly `count` descriptors, as it claims to.
    #[cold]
    fn fits_descriptors(&self, bytes: &[u8], count_at: usize, count: usize) -> Result<(), Errno> {
        demand(u32_at(bytes, count_at).is_some_and(|claimed| claimed as usize == count))?;
        let end = count.checked_mul(DESCRIPTOR).and_then(|len| self.at.checked_add(len)).ok_or(Errno::EINVAL)?;
        let room = bytes.get(self.at..end).ok_or(Errno::EINVAL)?;
        demand(u32_at(bytes, 0).is_some_and(|argsz| argsz as usize == end) && room.iter().all(|byte| *byte == 0))
    }

    fn fits_nothing(&self, bytes: &[u8]) -> Result<(), Errno> {
        match &self.holds {
            Holds::Zero => demand(u32_at(bytes, self.at) == Some(0)),
            Holds::Array { count_at, .. } => {
                demand(u64_at(bytes, self.at) == Some(0) && u32_at(bytes, *count_at) == Some(0))
            }
            Holds::OneRangeToExport => {
                demand(u32_at(bytes, 4) == Some(device::FEATURE_EXPORT) && u32_at(bytes, self.at) == Some(1))
            }
            _ => Err(Errno::EINVAL),
        }
    }
}

/// Refuses memory of which there is only an address, with the errno that the kernel has for it.
fn demand_backed(memory: &HostMemory) -> Result<(), Errno> {
    if memory.is_unbacked() { Err(Errno::EFAULT) } else { Ok(()) }
}

/// Returns `true` if the buffer reaches to the end of the host page in which its first `needed` bytes end.
fn holds_pages_of(buffer: &[u8], needed: u64) -> bool {
    let page = usize::try_from(host_page().bytes()).unwrap_or(usize::MAX);
    let Some(end) = usize::try_from(needed).ok().and_then(|needed| buffer.as_ptr().addr().checked_add(needed)) else {
        return false;
    };
    end.checked_next_multiple_of(page).is_some_and(|page_end| page_end <= buffer.as_ptr_range().end.addr())
}

/// The size of a descriptor.
const DESCRIPTOR: usize = size_of::<i32>();
/// The size of the token of a virtual function.
const TOKEN: usize = 16;

fn demand(condition: bool) -> Result<(), Errno> {
    if condition { Ok(()) } else { Err(Errno::EINVAL) }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_ne_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().copied().map(u64::from_ne_bytes)
}

#[cfg(test)]
mod tests;
