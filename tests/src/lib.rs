//! The tests that every backend must pass: scenarios and the contract, written once, for the soft host and for real
//! kernels.

pub mod attack;
pub mod boot;
pub mod conformance;
pub mod device;
pub mod dirty;
pub mod domain;
pub mod edu;
pub mod faults;
pub mod files;
pub mod fixture;
pub mod flat_view;
pub mod interrupts;
pub mod kernel;
pub mod ledger;
pub mod limits;
pub mod live_update;
pub mod logged;
pub mod mock;
pub mod model;
pub mod options;
pub mod owned;
pub mod power;
pub mod process;
pub mod program;
pub mod ram;
pub mod recovery;
pub mod reserved;
pub mod scenarios;
pub mod sharing;
pub mod soft;
pub mod spapr_guest;
pub mod subject;
pub mod suite;
pub mod watched_door;
