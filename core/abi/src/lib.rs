//! The kernel's ABI, as dmaspace uses it: request numbers, argument structs and flags. No calls, no state, no `unsafe`.
//!
//! The backends build arguments from these structs and the soft host reads them, so each struct exists once, here. One
//! module per kind of descriptor, because a number has a meaning on one kind only: 0x3b71 maps memory on a container
//! and resets a device.
//!
//! | module | descriptor | header (linux: include/uapi/linux/) |
//! |---|---|---|
//! | [`vfio`] | containers of every driver, groups | vfio.h |
//! | [`type1`] | containers of the type1 driver | vfio.h |
//! | [`spapr`] | containers of the sPAPR TCE driver | vfio.h |
//! | [`device`] | VFIO devices, opened through a group or by their own node | vfio.h |
//! | [`iommufd`] | `/dev/iommu` | iommufd.h |
//!
//! The compiler checks every struct's size and offsets against bindgen's reading of the header, and every number
//! against the header's x86 literal, on each architecture this crate is built for. Fields that hold an address of this
//! process or a descriptor are left zero by the caller and attached instead (see [`dmaspace_core::door`]).
//!
//! [`chain`] walks the capabilities that VFIO's info calls append to their replies.
//!
//! VFIO's structs begin with `argsz`, iommufd's with `size`: the caller sets either to the struct's `SIZE`.
#![forbid(unsafe_code)]

/// Gives a struct its `SIZE`, the value of its `size` or `argsz` field, and checks size and offsets against the
/// kernel's struct.
macro_rules! laid_out_as {
    ($ours:ident, $header:ident::$kernel:ident { $($field:ident $(as $theirs:ident)?),+ $(,)? }) => {
        laid_out_as!(@size $ours);

        const _: () = {
            assert!(size_of::<$ours>() == size_of::<$header::$kernel>());
            $(laid_out_as!(@offset $ours, $header::$kernel, $field $($theirs)?);)+
        };
    };
    (@size $ours:ident) => {
        impl $ours {
            /// The struct's size in bytes.
            #[allow(clippy::cast_possible_truncation, reason = "no struct has 4 GiB")]
            pub const SIZE: u32 = size_of::<Self>() as u32;
        }
    };
    (@offset $ours:ident, $header:ident::$kernel:ident, $field:ident $theirs:ident) => {
        assert!(std::mem::offset_of!($ours, $field) == std::mem::offset_of!($header::$kernel, $theirs))
    };
    (@offset $ours:ident, $header:ident::$kernel:ident, $field:ident) => {
        assert!(std::mem::offset_of!($ours, $field) == std::mem::offset_of!($header::$kernel, $field))
    };
}

use dmaspace_core::PageSize;

pub mod chain;
pub mod device;
pub mod iommufd;
mod span;
pub mod spapr;
pub mod type1;
pub mod vfio;

pub use span::IovaSpan;

/// The largest page that any Linux kernel manages memory in: 1 MiB (linux: arch/hexagon/Kconfig, PAGE_SIZE_1MB).
pub const LARGEST_HOST_PAGE: PageSize = match PageSize::from_shift(20) {
    Some(page) => page,
    None => PageSize::K64,
};
