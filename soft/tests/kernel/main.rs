//! Tests of the soft host through its door, request by request.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests arrange with them"
)]

mod chaos;
mod conformance;
mod container;
mod dma;
mod faults;
#[cfg(feature = "serde")]
mod files;
mod iommufd;
mod life;
mod measured;
mod page_tables;
mod setting;
mod spapr;
mod traps;
mod type1;
