//! The state of an IOMMU and of the kernel behind it, for every dialect: translations, registrations, charges.
//!
//! No module here knows a request or a struct, and none decides: the dialects check, in their kernel's order, and then
//! change the engine's state. Everything is kept in runs, so that a table of 2^28 adjacent entries costs as much as
//! one.

pub(crate) mod account;
pub(crate) mod coverage;
pub(crate) mod registry;
pub(crate) mod table;

pub(crate) use account::Account;
pub(crate) use coverage::Coverage;
pub(crate) use registry::{Registration, Registry};
pub(crate) use table::{Run, Table};
