//! The work of each row.

pub(crate) mod commits;
pub(crate) mod dirty;
pub(crate) mod guest;
pub(crate) mod kernel;
pub(crate) mod scan;
pub(crate) mod space;
