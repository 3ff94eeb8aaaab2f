//! What every backend is held to: scenarios and the contract, written once, played on the soft host and on real kernels.

pub mod boot;
pub mod conformance;
pub mod contract;
pub mod device;
pub mod dirty;
pub mod edu;
pub mod files;
pub mod flat_view;
pub mod kernel;
pub mod ledger;
pub mod limits;
pub mod live;
pub mod logged;
pub mod mock;
pub mod model;
pub mod options;
pub mod plays;
pub mod power;
pub mod ram;
pub mod recovery;
pub mod reserved;
pub mod scenarios;
pub mod sharing;
pub mod soft;
pub mod spapr_guest;
pub mod stage;
