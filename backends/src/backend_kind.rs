//! The backends by name.

use std::fmt;

/// A way to a host's IOMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum BackendKind {
    /// POWER's TCE tables with windows that are created, through a VFIO container ([`dmaspace_spapr::Spapr`]).
    Spapr,
    /// POWER's TCE tables with one window that exists from the start ([`dmaspace_spapr::SpaprV1`]).
    SpaprV1,
    /// An address space of `/dev/iommu` ([`dmaspace_iommufd`]).
    Iommufd,
    /// A VFIO container of type1 ([`dmaspace_type1`]).
    Type1,
    /// `/dev/iommu` in place of a type1 container: type1's calls, with iommufd's way of pinning. It serves kernels that
    /// have neither containers nor nodes for devices, and VMMs that are given such a descriptor.
    Type1OnIommufd,
    /// A backend of another crate, by its name ([`OpenSpace::around`](crate::OpenSpace::around)).
    Other(&'static str),
}

impl BackendKind {
    /// The backends that this library opens, in the order of preference.
    pub const ALL: [Self; 5] = [Self::Spapr, Self::SpaprV1, Self::Iommufd, Self::Type1, Self::Type1OnIommufd];

    /// Returns `true` for the two backends of POWER.
    pub const fn is_of_power(self) -> bool {
        matches!(self, Self::Spapr | Self::SpaprV1)
    }

    /// The name in texts and on command lines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Spapr => "spapr",
            Self::SpaprV1 => "spapr-v1",
            Self::Iommufd => "iommufd",
            Self::Type1 => "type1",
            Self::Type1OnIommufd => "type1-on-iommufd",
            Self::Other(name) => name,
        }
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
