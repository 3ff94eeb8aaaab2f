//! The page tables of one address space that log the writes of devices (linux: drivers/iommu/iommufd/hw_pagetable.c).
//!
//! The page tables that the kernel makes for devices attached to an address space never log. A page table that logs
//! must be allocated by request, and devices are attached to it. The IOMMUs of one host can differ, so an address space
//! may need several; the kernel refuses a device that does not fit one with `EINVAL`, and then the next is tried.
//!
//! Invariants: a page table exists while a device is attached to it; while logging is on, all of them log.
//!
//! If no IOMMU can log, the only cost is one GET_HW_INFO per device; kernels without the request are asked once.

use dmaspace_abi::iommufd::{self, HwInfo};
use dmaspace_core::contract::{AttachPlace, AttachPoint, Attachable, DeviceId};
use dmaspace_core::door::{Command, Errno, Failure};
use dmaspace_core::retry::Undone;
use dmaspace_core::sync::{Rank, RwLock, RwLockReadGuard, RwLockWriteGuard};
use zerocopy::IntoBytes;

use crate::object::{Iommufd, Object};

/// The page tables of one address space. Their lock is [`Rank::Backend`] in the order of all locks
/// ([`dmaspace_core::sync`]).
#[derive(Debug)]
pub(crate) struct PageTables {
    state: RwLock<State>,
}

/// The page tables, and the facts known about the kernel.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) tables: Vec<PageTable>,
    /// The number of devices that are attached to the address space itself: their writes are not logged.
    elsewhere: usize,
    /// `true` if page tables must log.
    pub(crate) logging: bool,
    /// `true` once the kernel has refused the requests as unknown.
    unknown: bool,
}

/// A page table that can log, and the number of devices attached to it.
#[derive(Debug)]
pub(crate) struct PageTable {
    pub(crate) object: Object,
    devices: usize,
}

impl Default for PageTables {
    fn default() -> Self {
        Self { state: RwLock::new(Rank::Backend, State::default()) }
    }
}

impl PageTables {
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read()
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write()
    }

    /// Attaches a device to a page table that logs its writes, else to the address space.
    ///
    /// # Errors
    /// The kernel's failure. No page table was left for the device, unless it [may be attached
    /// there](Failure::may_have_effect): it is counted then, and can be detached.
    pub(crate) fn attach(&self, ioas: &Object, device: &dyn Attachable, point: AttachPoint<'_>) -> Result<(), Failure> {
        let id = device.bind_to(ioas.iommufd().handle())?;
        let mut state = self.write();
        let logged = match id {
            Some(id) if state.can_log(ioas.iommufd(), id)? => state.attach_to_table(ioas, device, point, id)?,
            _ => false,
        };
        if logged {
            return Ok(());
        }
        let attached = device.attach_to(point);
        if may_be_attached(&attached) {
            state.elsewhere += 1;
        }
        attached
    }

    /// Detaches a device from its page table or the address space. The last device of a page table takes it and its log
    /// with it.
    ///
    /// # Errors
    /// The kernel's failure; the device is still attached then.
    pub(crate) fn detach(&self, device: &dyn Attachable, point: AttachPoint<'_>) -> Result<Undone, Failure> {
        let mut state = self.write();
        for table in &mut state.tables {
            if let Undone::Done(()) = device.detach_from(point.moved_to(table.place()))? {
                debug_assert!(table.devices > 0, "a page table without devices is destroyed");
                table.devices = table.devices.saturating_sub(1);
                state.tables.retain(|table| table.devices > 0);
                return Ok(Undone::Done(()));
            }
        }
        let detached = device.detach_from(point)?;
        if let Undone::Done(()) = detached {
            debug_assert!(state.elsewhere > 0, "a device that may be attached is counted");
            state.elsewhere = state.elsewhere.saturating_sub(1);
        }
        Ok(detached)
    }
}

impl State {
    /// Returns whether there are devices, and the writes of all of them are logged.
    pub(crate) fn logs_all(&self) -> bool {
        self.elsewhere == 0 && !self.tables.is_empty()
    }

    /// Returns whether the IOMMU in front of a device can log.
    fn can_log(&mut self, iommufd: &Iommufd, device: DeviceId) -> Result<bool, Failure> {
        if self.unknown {
            return Ok(false);
        }
        let mut info = HwInfo { size: HwInfo::SIZE, dev_id: device.get(), ..HwInfo::default() };
        let asked = iommufd.call(Command::with_bytes(iommufd::GET_HW_INFO, info.as_mut_bytes()));
        let answered = self.known(asked, &[Errno::EOPNOTSUPP])?.is_some();
        Ok(answered && info.out_capabilities & iommufd::CAP_DIRTY_TRACKING != 0)
    }

    /// Attaches a device to a page table that it fits: an existing one, else a new one. Returns whether there is one.
    fn attach_to_table(
        &mut self,
        ioas: &Object,
        device: &dyn Attachable,
        point: AttachPoint<'_>,
        id: DeviceId,
    ) -> Result<bool, Failure> {
        for table in &mut self.tables {
            if table.attach(device, point)? {
                return Ok(true);
            }
        }
        let made = Object::new_page_table(ioas, id);
        let Some(object) = self.known(made, &[Errno::EOPNOTSUPP, Errno::EINVAL])? else { return Ok(false) };
        let mut table = PageTable { object, devices: 0 };
        if self.logging {
            // Logging must start before a device can write through the page table.
            table.set_logging(true)?;
        }
        let attached = table.attach(device, point);
        if table.devices > 0 {
            self.tables.push(table);
        }
        attached
    }

    /// The answer; `None` for an errno of `cannot`, and for a request that the kernel does not know, which is
    /// remembered.
    fn known<T>(&mut self, answer: Result<T, Failure>, cannot: &[Errno]) -> Result<Option<T>, Failure> {
        match answer.as_ref().err().and_then(Failure::errno) {
            Some(Errno::ENOTTY) => {
                self.unknown = true;
                Ok(None)
            }
            Some(errno) if cannot.contains(&errno) => Ok(None),
            _ => answer.map(Some),
        }
    }
}

impl PageTable {
    fn place(&self) -> AttachPlace {
        AttachPlace::PageTable { iommufd: self.object.iommufd().handle(), hwpt: self.object.id() }
    }

    /// Attaches a device and counts it if it may be attached. Returns `false` if the device needs another page table
    /// (`EINVAL`).
    fn attach(&mut self, device: &dyn Attachable, point: AttachPoint<'_>) -> Result<bool, Failure> {
        let attached = device.attach_to(point.moved_to(self.place()));
        if may_be_attached(&attached) {
            self.devices += 1;
        }
        match attached {
            Err(failure) if failure.errno() == Some(Errno::EINVAL) && !failure.may_have_effect() => Ok(false),
            attached => attached.map(|()| true),
        }
    }
}

/// Returns whether a device may be attached after this answer of [`Attachable::attach_to`].
fn may_be_attached(attached: &Result<(), Failure>) -> bool {
    attached.as_ref().err().is_none_or(Failure::may_have_effect)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dmaspace_abi::device::AttachIommufdPt;
    use dmaspace_abi::iommufd::{Destroy, HwptAlloc};
    use dmaspace_core::Backend;

    use zerocopy::FromBytes;

    use super::*;
    use crate::fixture::names::{ATTACH, BIND, DESTROY, DETACH, HW_INFO, HWPT_ALLOC, SET};
    use crate::fixture::point;
    use crate::fixture::{done, ioas, logs, ninth, tenth};
    use crate::{Cdev, Ioas};
    use dmaspace_abi::device;
    use dmaspace_core::backend::DirtyCalls;
    use dmaspace_soft::{RecordedCall, Reply, ScriptedDoor};

    fn cdev(door: &Arc<ScriptedDoor>, id: u64) -> Cdev {
        Cdev::new(crate::fixture::device(door, id), format!("0000:00:{id:02x}.0"))
    }

    /// An address space with a device on page table 9.
    fn logging(script: &[Reply]) -> (Arc<ScriptedDoor>, Ioas, Cdev) {
        let script: Vec<Reply> = [done as Reply, logs, ninth, done].iter().chain(script).copied().collect();
        let (door, ioas) = ioas(&script);
        let device = cdev(&door, 2);
        ioas.attach(&device, point(&ioas)).expect("attached");
        assert_eq!(door.names(), [BIND, HW_INFO, HWPT_ALLOC, ATTACH]);
        (door, ioas, device)
    }

    fn attached_to(call: &RecordedCall) -> u32 {
        assert_eq!(call.name, ATTACH);
        AttachIommufdPt::read_from_bytes(&call.bytes).expect("the struct").pt_id
    }

    fn errno(result: Result<(), Failure>) -> Option<Errno> {
        result.expect_err("refused").errno()
    }

    #[test]
    fn a_device_behind_a_logging_iommu_has_a_page_table_until_it_is_detached() {
        let (door, ioas) = ioas(&[
            |bytes| {
                device::BindIommufd::mut_from_bytes(bytes).expect("room for the struct").out_devid = 3;
                Ok(0)
            },
            logs,
            ninth,
        ]);
        let device = cdev(&door, 2);
        ioas.attach(&device, point(&ioas)).expect("attached");
        let calls = door.take();
        assert_eq!(HwInfo::read_from_bytes(&calls[1].bytes).expect("the struct").dev_id, 3);
        let alloc = HwptAlloc { size: 48, flags: 2, dev_id: 3, pt_id: 7, ..HwptAlloc::default() };
        assert_eq!(HwptAlloc::read_from_bytes(&calls[2].bytes), Ok(alloc));
        assert_eq!(attached_to(&calls[3]), 9);
        assert!(ioas.page().is_some());
        assert_eq!(ioas.detach(&device, point(&ioas)), Ok(Undone::Done(())));
        let calls = door.take();
        assert_eq!(calls.iter().map(|call| call.name).collect::<Vec<_>>(), [DETACH, DESTROY]);
        assert_eq!(Destroy::read_from_bytes(&calls[1].bytes), Ok(Destroy { size: 8, id: 9 }));
        assert_eq!(ioas.page(), None);
    }

    #[test]
    fn a_device_behind_an_iommu_without_logging_is_attached_to_the_address_space() {
        let (door, ioas) = ioas(&[]);
        let device = cdev(&door, 2);
        ioas.attach(&device, point(&ioas)).expect("attached");
        let calls = door.take();
        assert_eq!(calls.iter().map(|call| call.name).collect::<Vec<_>>(), [BIND, HW_INFO, ATTACH]);
        assert_eq!(attached_to(&calls[2]), 7);
        assert_eq!(ioas.page(), None);
        assert_eq!(ioas.detach(&device, point(&ioas)), Ok(Undone::Done(())));
        assert_eq!(door.names(), [DETACH]);
    }

    #[test]
    fn hw_info_is_not_repeated_on_a_kernel_without_it() {
        let (door, ioas) = ioas(&[done, |_| Err(Errno::ENOTTY)]);
        let (first, second) = (cdev(&door, 2), cdev(&door, 3));
        ioas.attach(&first, point(&ioas)).expect("attached");
        ioas.attach(&second, point(&ioas)).expect("attached");
        assert_eq!(door.names(), [BIND, HW_INFO, ATTACH, BIND, ATTACH]);
    }

    #[test]
    fn an_unsupported_page_table_is_done_without_and_other_refusals_fail_the_attach() {
        for (answer, means_cannot) in [
            ((|_| Err(Errno::EOPNOTSUPP)) as Reply, true),
            (|_| Err(Errno::EINVAL), true),
            (|_| Err(Errno::ENOTTY), true),
            (|_| Err(Errno::ENOMEM), false),
            (|_| Err(Errno::EADDRINUSE), false),
        ] {
            let (door, ioas) = ioas(&[done, logs, answer]);
            let device = cdev(&door, 2);
            assert_eq!(ioas.attach(&device, point(&ioas)).is_ok(), means_cannot);
            let rest: &[&str] = if means_cannot { &[ATTACH] } else { &[] };
            assert_eq!(door.names(), [&[BIND, HW_INFO, HWPT_ALLOC], rest].concat());
            assert_eq!(ioas.page(), None);
        }
    }

    #[test]
    fn devices_share_a_page_table_that_is_destroyed_with_the_last() {
        let (door, ioas, first) = logging(&[done, logs]);
        let second = cdev(&door, 3);
        ioas.attach(&second, point(&ioas)).expect("attached");
        assert_eq!(door.names(), [BIND, HW_INFO, ATTACH]);
        assert_eq!(ioas.detach(&first, point(&ioas)), Ok(Undone::Done(())));
        assert_eq!(door.names(), [DETACH]);
        assert_eq!(ioas.detach(&second, point(&ioas)), Ok(Undone::Done(())));
        assert_eq!(door.names(), [DETACH, DESTROY]);
    }

    #[test]
    fn a_device_refused_by_every_page_table_has_its_own() {
        let (door, ioas, first) = logging(&[done, logs, |_| Err(Errno::EINVAL), done, tenth]);
        let second = cdev(&door, 3);
        ioas.attach(&second, point(&ioas)).expect("attached");
        let calls = door.take();
        let names: Vec<_> = calls.iter().map(|call| call.name).collect();
        assert_eq!(names, [BIND, HW_INFO, ATTACH, DETACH, HWPT_ALLOC, ATTACH]);
        assert_eq!((attached_to(&calls[2]), attached_to(&calls[5])), (9, 10));
        assert_eq!(ioas.detach(&first, point(&ioas)), Ok(Undone::Done(())));
        assert_eq!(ioas.detach(&second, point(&ioas)), Ok(Undone::Done(())));
        assert_eq!(door.names(), [DETACH, DESTROY, DETACH, DESTROY]);
    }

    #[test]
    fn a_device_refused_by_its_own_page_table_is_attached_to_the_address_space() {
        let (door, ioas) = ioas(&[done, logs, ninth, |_| Err(Errno::EINVAL)]);
        ioas.attach(&cdev(&door, 2), point(&ioas)).expect("attached");
        assert_eq!(door.names(), [BIND, HW_INFO, HWPT_ALLOC, ATTACH, DETACH, DESTROY, ATTACH, "close"]);
        assert_eq!(ioas.page(), None);
    }

    #[test]
    fn a_new_page_table_is_destroyed_after_a_failed_attach() {
        let (door, ioas) = ioas(&[done, logs, ninth, |_| Err(Errno::EADDRINUSE)]);
        let device = cdev(&door, 2);
        assert_eq!(errno(ioas.attach(&device, point(&ioas))), Some(Errno::EADDRINUSE));
        assert_eq!(door.names(), [BIND, HW_INFO, HWPT_ALLOC, ATTACH, DETACH, DESTROY]);
        assert_eq!(ioas.page(), None);
    }

    #[test]
    fn a_page_table_stays_while_a_device_may_be_attached_to_it_after_a_failed_attach() {
        let refused: Reply = |_| Err(Errno::EINVAL);
        let (door, ioas) = ioas(&[done, logs, ninth, refused, refused, refused, refused]);
        let device = cdev(&door, 2);
        let failure = ioas.attach(&device, point(&ioas)).expect_err("the kernel refuses");
        assert!(failure.may_have_effect());
        assert_eq!(door.names(), [BIND, HW_INFO, HWPT_ALLOC, ATTACH, DETACH, DETACH, DETACH]);
        assert_eq!(ioas.detach(&device, point(&ioas)), Ok(Undone::Done(())));
        assert_eq!(door.names(), [DETACH, DESTROY]);
    }

    #[test]
    fn a_page_table_made_while_logging_logs_before_its_device_is_attached() {
        let (door, ioas) = ioas(&[done, logs, ninth]);
        ioas.start().expect("nothing to begin with");
        ioas.attach(&cdev(&door, 2), point(&ioas)).expect("attached");
        assert_eq!(door.names(), [BIND, HW_INFO, HWPT_ALLOC, SET, ATTACH, "close"]);
    }

    #[test]
    fn detaching_a_device_that_is_not_attached_reports_was_not_there() {
        let (door, ioas, _first) = logging(&[]);
        assert_eq!(ioas.detach(&cdev(&door, 3), point(&ioas)), Ok(Undone::WasNotThere));
        assert_eq!(door.names(), ["close"]);
        assert!(ioas.page().is_some());
    }

    #[test]
    fn one_device_without_logging_ends_dirty_tracking_of_the_address_space() {
        let (door, ioas, _first) = logging(&[]);
        let second = cdev(&door, 3);
        ioas.attach(&second, point(&ioas)).expect("attached");
        assert_eq!(door.names(), [BIND, HW_INFO, ATTACH]);
        assert_eq!(ioas.page(), None);
        assert_eq!(ioas.detach(&second, point(&ioas)), Ok(Undone::Done(())));
        assert!(ioas.page().is_some());
    }

    #[test]
    fn page_tables_are_destroyed_before_their_address_space() {
        let (door, ioas, device) = logging(&[]);
        drop(device);
        drop(ioas);
        let calls = door.take();
        let ids: Vec<_> = calls.iter().filter_map(|call| Destroy::read_from_bytes(&call.bytes).ok()).collect();
        assert_eq!(ids, [Destroy { size: 8, id: 9 }, Destroy { size: 8, id: 7 }]);
    }
}
