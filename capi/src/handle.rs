//! The boxes behind opaque handles.

use std::sync::Mutex;

use dmaspace::facts::Facts;
use dmaspace::listener::Report;
use dmaspace::sync::past_poison;
use dmaspace::{Device, Domain, Host, IovaRange, OpenSpace, Section, SystemRange};

use crate::failure::Failed;

/// A value behind an opaque handle. The mark tells the handles of one kind from those of another and from freed ones.
#[repr(C)]
#[derive(Debug)]
pub struct Handle<T> {
    mark: u64,
    pub(crate) value: T,
}

/// A kind of handle.
pub trait Kind {
    /// The mark of its handles.
    const MARK: u64;
    /// The name of its handles in the header.
    const NAME: &'static str;
}

impl<T: Kind> Handle<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { mark: T::MARK, value }
    }

    /// Checks that it is a handle of this kind.
    pub(crate) fn check(&self) -> Result<&T, Failed> {
        if self.mark == T::MARK { Ok(&self.value) } else { Err(Failed::argument(format!("no {} is there", T::NAME))) }
    }

    /// Marks it as freed.
    pub(crate) fn spoil(&mut self) {
        self.mark = 0;
    }
}

/// `struct dms_host`.
#[derive(Debug)]
pub struct HostHandle(pub(crate) Host);

/// `struct dms_domain`.
#[derive(Debug)]
pub struct DomainHandle {
    pub(crate) domain: Domain,
    pub(crate) host: HostHandle,
    /// The report of the last commit.
    pub(crate) report: Mutex<Report>,
}

impl DomainHandle {
    /// Keeps the report of a commit, and returns the number of its pending sections.
    pub(crate) fn keep(&self, report: Report) -> u64 {
        let pending = report.pending().count() as u64;
        *past_poison(self.report.lock()) = report;
        pending
    }
}

/// `struct dms_device`.
#[derive(Debug)]
pub struct DeviceHandle(pub(crate) Device);

/// `struct dms_space`.
#[derive(Debug)]
pub struct SpaceHandle {
    pub(crate) space: Mutex<OpenSpace>,
    pub(crate) host: Host,
}

/// `struct dms_update`.
#[derive(Debug, Default)]
pub struct UpdateHandle(pub(crate) Mutex<Changes>);

/// The changes of an update. Ranges that are removed are resolved when it is committed.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) added: Vec<Section>,
    pub(crate) added_targets: Vec<dmaspace::section::TargetMemory>,
    pub(crate) removed: Vec<IovaRange>,
    pub(crate) removed_targets: Vec<SystemRange>,
}

macro_rules! kinds {
    ($($handle:ty, $name:literal, $mark:literal;)*) => {
        $(impl Kind for $handle {
            const MARK: u64 = $mark;
            const NAME: &'static str = $name;
        })*
    };
}

kinds! {
    HostHandle, "dms_host", 0x646d_735f_686f_7374;
    DomainHandle, "dms_domain", 0x646d_735f_646f_6d61;
    DeviceHandle, "dms_device", 0x646d_735f_6465_7669;
    SpaceHandle, "dms_space", 0x646d_735f_7370_6163;
    UpdateHandle, "dms_update", 0x646d_735f_7570_6461;
}

impl HostHandle {
    /// The host of this name: no name for this host, or `soft:` and a preset for one in software.
    pub(crate) fn open(name: Option<&str>) -> Result<Self, Failed> {
        match name {
            None => Ok(Self(Host::this()?)),
            Some(name) => match name.strip_prefix("soft:") {
                Some(preset) => soft(preset),
                None => Err(Failed::argument(format!("{name:?} is no host: expected NULL or \"soft:\" and a preset"))),
            },
        }
    }

    /// Reads the facts of the host again, if it is a real one.
    pub(crate) fn facts_now(&self) -> Result<Facts, Failed> {
        if self.0.door().is_real() {
            return Facts::of_this_host(&**self.0.door()).map_err(|error| dmaspace::OpenError::from(error).into());
        }
        Ok(self.0.facts().clone())
    }
}

#[cfg(feature = "soft")]
fn soft(preset: &str) -> Result<HostHandle, Failed> {
    use dmaspace::soft::{Profile, SoftHost};

    let profile = Profile::preset(preset)
        .ok_or_else(|| Failed::argument(format!("{preset:?} is no preset of hosts in software")))?;
    let machine = SoftHost::new(profile).map_err(|error| Failed::argument(error.to_string()))?;
    let facts = Facts::of_soft(machine.profile());
    Ok(HostHandle(Host::new(machine, facts)))
}

#[cfg(not(feature = "soft"))]
fn soft(_preset: &str) -> Result<HostHandle, Failed> {
    Err(Failed::new(dmaspace::door::Errno::EOPNOTSUPP, "this libdmaspace was built without hosts in software"))
}
