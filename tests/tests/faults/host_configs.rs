//! The hosts that sequences run on.

use dmaspace::choose::BackendKind;

use dmaspace_tests::faults::HostConfig;

pub(crate) const TYPE1: HostConfig = HostConfig { preset: "vtd", backend: BackendKind::Type1 };
pub(crate) const IOMMUFD: HostConfig = HostConfig { preset: "vtd", backend: BackendKind::Iommufd };
/// A kernel that maps by file, as all memory of these worlds can be.
pub(crate) const WITH_FILES: HostConfig = HostConfig { preset: "vtd@7.2", backend: BackendKind::Iommufd };
/// Two IOMMUs that log what devices write, the third device behind the second.
pub(crate) const LOGGING: HostConfig = HostConfig { preset: "vtd-ssads", backend: BackendKind::Iommufd };
pub(crate) const COMPAT: HostConfig = HostConfig { preset: "vtd", backend: BackendKind::Type1OnIommufd };
pub(crate) const POWERNV: HostConfig = HostConfig { preset: "powernv9", backend: BackendKind::Spapr };
pub(crate) const POWERNV_64K: HostConfig = HostConfig { preset: "powernv9-64k", backend: BackendKind::Spapr };
pub(crate) const PSERIES: HostConfig = HostConfig { preset: "pseries", backend: BackendKind::Spapr };
pub(crate) const POWERNV_V1: HostConfig = HostConfig { preset: "powernv9", backend: BackendKind::SpaprV1 };
pub(crate) const PSERIES_V1: HostConfig = HostConfig { preset: "pseries", backend: BackendKind::SpaprV1 };

pub(crate) const EVERYWHERE: &[HostConfig] =
    &[TYPE1, IOMMUFD, COMPAT, POWERNV, POWERNV_64K, PSERIES, POWERNV_V1, PSERIES_V1];
/// Hosts with room for both of a bridge's windows.
pub(crate) const WITH_SECOND_WINDOWS: &[HostConfig] = &[TYPE1, IOMMUFD, POWERNV, POWERNV_64K, PSERIES];
/// Everywhere, and where page tables are made by hand.
pub(crate) const WITH_PAGE_TABLES: &[HostConfig] =
    &[TYPE1, IOMMUFD, COMPAT, LOGGING, POWERNV, POWERNV_64K, PSERIES, POWERNV_V1, PSERIES_V1];
/// Hosts whose windows are fixed.
pub(crate) const FIXED: &[HostConfig] = &[TYPE1, IOMMUFD, COMPAT];
/// Hosts whose windows are created.
pub(crate) const CREATED: &[HostConfig] = &[POWERNV, POWERNV_64K, PSERIES];
/// Hosts with one window that is there.
pub(crate) const GIVEN: &[HostConfig] = &[POWERNV_V1, PSERIES_V1];
/// Hosts that take several groups into one space.
pub(crate) const SHARING: &[HostConfig] = &[TYPE1, IOMMUFD, COMPAT, LOGGING, POWERNV, POWERNV_64K];
