//! Where sequences are played.

use dmaspace::choose::BackendKind;

use crate::sources::faults::Ground;

pub(crate) const TYPE1: Ground = Ground { preset: "vtd", backend: BackendKind::Type1 };
pub(crate) const IOMMUFD: Ground = Ground { preset: "vtd", backend: BackendKind::Iommufd };
/// A kernel that maps by file, as all memory of these worlds can be.
pub(crate) const WITH_FILES: Ground = Ground { preset: "vtd@7.2", backend: BackendKind::Iommufd };
/// Two IOMMUs that log what devices write, the third device behind the second.
pub(crate) const LOGGING: Ground = Ground { preset: "vtd-ssads", backend: BackendKind::Iommufd };
pub(crate) const COMPAT: Ground = Ground { preset: "vtd", backend: BackendKind::Type1OnIommufd };
pub(crate) const POWERNV: Ground = Ground { preset: "powernv9", backend: BackendKind::Spapr };
pub(crate) const POWERNV_64K: Ground = Ground { preset: "powernv9-64k", backend: BackendKind::Spapr };
pub(crate) const PSERIES: Ground = Ground { preset: "pseries", backend: BackendKind::Spapr };
pub(crate) const POWERNV_V1: Ground = Ground { preset: "powernv9", backend: BackendKind::SpaprV1 };
pub(crate) const PSERIES_V1: Ground = Ground { preset: "pseries", backend: BackendKind::SpaprV1 };

pub(crate) const EVERYWHERE: &[Ground] =
    &[TYPE1, IOMMUFD, COMPAT, POWERNV, POWERNV_64K, PSERIES, POWERNV_V1, PSERIES_V1];
/// Hosts with room for both of a bridge's windows.
pub(crate) const WITH_SECOND_WINDOWS: &[Ground] = &[TYPE1, IOMMUFD, POWERNV, POWERNV_64K, PSERIES];
/// Everywhere, and where page tables are made by hand.
pub(crate) const WITH_PAGE_TABLES: &[Ground] =
    &[TYPE1, IOMMUFD, COMPAT, LOGGING, POWERNV, POWERNV_64K, PSERIES, POWERNV_V1, PSERIES_V1];
/// Hosts whose windows are fixed.
pub(crate) const FIXED: &[Ground] = &[TYPE1, IOMMUFD, COMPAT];
/// Hosts whose windows are created.
pub(crate) const CREATED: &[Ground] = &[POWERNV, POWERNV_64K, PSERIES];
/// Hosts with one window that is there.
pub(crate) const GIVEN: &[Ground] = &[POWERNV_V1, PSERIES_V1];
/// Hosts that take several groups into one space.
pub(crate) const SHARING: &[Ground] = &[TYPE1, IOMMUFD, COMPAT, LOGGING, POWERNV, POWERNV_64K];
