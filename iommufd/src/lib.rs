//! iommufd
