//! What an IOMMU and the kernel behind it remember, whichever dialect it is told in: translations, registrations,
//! charges.
//!
//! Nothing here knows a request or a struct, and nothing here decides: the dialects check, in their kernel's order, and
//! then tell the engine what is so now. Everything is kept in runs, so that a table of 2^28 entries that continue each
//! other costs as much as one.

pub(crate) mod account;
pub(crate) mod coverage;
pub(crate) mod registry;
pub(crate) mod table;

pub(crate) use account::Account;
pub(crate) use coverage::Coverage;
pub(crate) use registry::{Registration, Registry};
pub(crate) use table::{Run, Table};
