//! The needs of cases, and which of them a subject meets.

use std::collections::BTreeMap;

use dmaspace_core::Access;
use dmaspace_core::contract::MappingModel;
use dmaspace_core::contract::eeh::PeState;
use dmaspace_core::error::Kind;

use crate::bench::{Bench, UnderTest, WHOLE};
use crate::hooks::Call;

/// Something that a case needs of a space or of its bench.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Requirement {
    /// The space creates and removes windows.
    WindowControl,
    /// The space takes a second window, and says where.
    SecondWindow,
    /// The space maps memory that is registered before.
    Registration,
    /// The space shares pins with other spaces of the host.
    PinSharing,
    /// The space leaves windows to the kernel.
    KernelTables,
    /// The space recovers isolated devices.
    Eeh,
    /// The space can be handed over while something is mapped.
    LiveUpdate,
    /// The space cannot be handed over, and says why.
    NoLiveUpdate,
    /// The kernel keeps whole mappings.
    KeepsMappings,
    /// The space maps memory of other devices.
    MapsDeviceMemory,
    /// The space refuses memory of other devices.
    RefusesDeviceMemory,
    /// The space maps memory that the process may only read.
    MapsReadOnlyMemory,
    /// The space refuses memory that the process may only read.
    RefusesReadOnlyMemory,
    /// The space refuses addresses without memory, because real devices use it.
    RefusesUnbacked,
    /// The space has a window with a hole above it.
    Hole,
    /// The space has several windows.
    SeveralWindows,
    /// The device can be detached and attached again.
    Reattach,
    /// The windows are larger while no device is attached, and mappings outlive the last device.
    WindowsOfTheDevice,
    /// The bench has a device that moves bytes.
    Dma,
    /// The bench has a second device.
    Spare,
    /// The bench has a second space.
    SecondSpace,
    /// The bench counts leftovers.
    Leftovers,
    /// Map calls can be made to fail.
    FailingMap,
    /// Unmap calls can be made to fail.
    FailingUnmap,
    /// Window creations can be made to fail.
    FailingCreateWindow,
    /// Window removals can be made to fail.
    FailingRemoveWindow,
    /// Registrations can be made to fail.
    FailingRegister,
    /// Attach calls can be made to fail.
    FailingAttach,
    /// Detach calls can be made to fail.
    FailingDetach,
    /// The start of dirty logging can be made to fail.
    FailingStartDirty,
    /// Reading the dirty log can be made to fail.
    FailingFetchDirty,
    /// The invalidation of addresses can be made to fail.
    FailingInvalidate,
}

impl Requirement {
    /// All needs.
    pub const ALL: [Self; 32] = [
        Self::WindowControl,
        Self::SecondWindow,
        Self::Registration,
        Self::PinSharing,
        Self::KernelTables,
        Self::Eeh,
        Self::LiveUpdate,
        Self::NoLiveUpdate,
        Self::KeepsMappings,
        Self::MapsDeviceMemory,
        Self::RefusesDeviceMemory,
        Self::MapsReadOnlyMemory,
        Self::RefusesReadOnlyMemory,
        Self::RefusesUnbacked,
        Self::Hole,
        Self::SeveralWindows,
        Self::Reattach,
        Self::WindowsOfTheDevice,
        Self::Dma,
        Self::Spare,
        Self::SecondSpace,
        Self::Leftovers,
        Self::FailingMap,
        Self::FailingUnmap,
        Self::FailingCreateWindow,
        Self::FailingRemoveWindow,
        Self::FailingRegister,
        Self::FailingAttach,
        Self::FailingDetach,
        Self::FailingStartDirty,
        Self::FailingFetchDirty,
        Self::FailingInvalidate,
    ];

    /// Why a bench does not meet the need. A probe may leave mappings behind: each need gets a bench of its own.
    fn reason_against(self, bench: &mut Bench) -> Option<String> {
        let (met, reason) = match self {
            Self::WindowControl => (bench.window_control().is_some(), "the windows are fixed"),
            Self::SecondWindow => {
                (bench.second_window().is_some(), "the space takes no second window at a known place")
            }
            Self::Registration => (bench.registration().is_some(), "the space maps memory without registration"),
            Self::PinSharing => (bench.pin_sharing().is_some(), "the space shares no pins"),
            Self::KernelTables => (bench.kernel_tables().is_some(), "the space leaves no window to the kernel"),
            Self::Eeh => (works_normally(bench), "the space recovers no device"),
            Self::LiveUpdate => return obstacle_to_live_update(bench),
            Self::NoLiveUpdate => (obstacle_to_live_update(bench).is_some(), "the space can be handed over"),
            Self::KeepsMappings => (keeps_mappings(bench), "the kernel keeps entries of pages, not mappings"),
            Self::MapsDeviceMemory => (maps_device_memory(bench), "the space refuses memory of other devices"),
            Self::RefusesDeviceMemory => (!maps_device_memory(bench), "the space maps memory of other devices"),
            Self::MapsReadOnlyMemory => (maps_read_only(bench), "the space refuses memory that is only readable"),
            Self::RefusesReadOnlyMemory => (!maps_read_only(bench), "the space maps memory that is only readable"),
            Self::RefusesUnbacked => (refuses_unbacked(bench), "no real device uses the space"),
            Self::Hole => (bench.hole().is_some(), "no window has a hole above it"),
            Self::SeveralWindows => (bench.window_list().len() > 1, "the space has one window"),
            Self::Reattach => return obstacle_to_reattaching(bench),
            Self::WindowsOfTheDevice => (
                bench.device_hole().is_some(),
                "windows and mappings do not outlive the device so that it could not return",
            ),
            Self::Dma => (bench.has_dma(), "the bench has no device that moves bytes"),
            Self::Spare => return obstacle_to_a_second_device(bench),
            Self::SecondSpace => (bench.opens_a_second_space(), "the bench has no second space"),
            Self::Leftovers => (bench.counts_leftovers(), "the bench does not count leftovers"),
            _ => {
                return self
                    .call()
                    .filter(|call| !bench.can_fail(*call))
                    .map(|call| format!("no {call:?} call can be made to fail"));
            }
        };
        (!met).then(|| reason.to_owned())
    }

    fn call(self) -> Option<Call> {
        Some(match self {
            Self::FailingMap => Call::Map,
            Self::FailingUnmap => Call::Unmap,
            Self::FailingCreateWindow => Call::CreateWindow,
            Self::FailingRemoveWindow => Call::RemoveWindow,
            Self::FailingRegister => Call::Register,
            Self::FailingAttach => Call::Attach,
            Self::FailingDetach => Call::Detach,
            Self::FailingStartDirty => Call::StartDirty,
            Self::FailingFetchDirty => Call::FetchDirty,
            Self::FailingInvalidate => Call::Invalidate,
            _ => return None,
        })
    }
}

fn keeps_mappings(bench: &Bench) -> bool {
    bench.capabilities().keeps == MappingModel::Mappings
}

fn maps_device_memory(bench: &Bench) -> bool {
    bench.capabilities().maps_device_memory
}

fn maps_read_only(bench: &Bench) -> bool {
    bench.capabilities().maps_host_read_only
}

fn refuses_unbacked(bench: &Bench) -> bool {
    let refused = bench.map_with(bench.at(0), &bench.unbacked(), Access::READ_WRITE, WHOLE);
    refused.is_err_and(|error| error.kind() == Kind::Unbacked)
}

fn works_normally(bench: &Bench) -> bool {
    bench.eeh().is_some_and(|eeh| eeh.state().is_ok_and(|state| state == PeState::Normal))
}

fn obstacle_to_live_update(bench: &Bench) -> Option<String> {
    bench.map(0, &bench.ram(0, 1), WHOLE).expect("the first unit can be mapped");
    let refused = bench.hand_over().err();
    if refused.is_none() {
        bench.take_back().expect("a hand-over can be taken back");
    }
    refused.map(|error| error.to_string())
}

fn obstacle_to_reattaching(bench: &mut Bench) -> Option<String> {
    bench.close_device();
    let device = bench.device();
    let detached = bench.detach(&device).err();
    detached.or_else(|| bench.attach(&device).err()).map(|error| error.to_string())
}

fn obstacle_to_a_second_device(bench: &mut Bench) -> Option<String> {
    if !bench.opens_a_spare() {
        return Some("the bench has no second device".to_owned());
    }
    let spare = bench.spare();
    bench.attach(&spare).err().map(|error| error.to_string())
}

/// The needs that a subject meets.
#[derive(Clone, Debug)]
pub struct Abilities {
    unmet: BTreeMap<Requirement, String>,
}

impl Abilities {
    /// Asks a subject, with a bench for each need.
    ///
    /// # Panics
    /// When a bench cannot be opened, or the first page cannot be mapped.
    pub fn of(subject: &dyn UnderTest) -> Self {
        let mut unmet = BTreeMap::new();
        for need in Requirement::ALL {
            let reason = need.reason_against(&mut subject.open().prepared());
            unmet.extend(reason.map(|reason| (need, reason)));
        }
        Self { unmet }
    }

    /// The reason for which a case with these needs does not apply. `None` if it applies.
    pub fn reason_against(&self, needs: &[Requirement]) -> Option<String> {
        needs.iter().find_map(|need| self.unmet.get(need)).cloned()
    }

    /// The needs that are not met, with the reasons.
    pub fn unmet(&self) -> impl Iterator<Item = (Requirement, &str)> {
        self.unmet.iter().map(|(need, reason)| (*need, reason.as_str()))
    }
}
