//! The settings, which are read from the environment once.

use std::env;
use std::path::PathBuf;
use std::sync::OnceLock;

/// The settings of this process.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    /// The file with the present counts.
    pub(crate) status: Option<PathBuf>,
    /// Maps of at least so many bytes are not made.
    pub(crate) swallow: Option<u64>,
    /// KVM is said to lack in-kernel TCE tables for VFIO.
    pub(crate) hides_kvm_tables: bool,
}

impl Settings {
    /// The settings in the environment of this process.
    pub(crate) fn of_process() -> &'static Self {
        static SETTINGS: OnceLock<Settings> = OnceLock::new();
        SETTINGS.get_or_init(|| Self {
            status: env::var_os("DMASPACE_SHIM_STATUS").map(PathBuf::from),
            swallow: env::var("DMASPACE_SHIM_SWALLOW").ok().and_then(|text| text.parse().ok()),
            hides_kvm_tables: env::var("DMASPACE_SHIM_KVM_TABLES").is_ok_and(|text| text == "no"),
        })
    }

    /// Returns `true` if a map of `len` bytes is not made.
    pub(crate) fn swallows(&self, len: u64) -> bool {
        self.swallow.is_some_and(|least| len >= least)
    }
}
