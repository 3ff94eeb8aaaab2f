//! VFIO devices that have a node of their own (`/dev/vfio/devices/vfio<n>`).
//!
//! A device is *bound* to one iommufd, once, for as long as its descriptor is open; it cannot be unbound. A bound
//! device can be attached to the address spaces and page tables of that iommufd, one at a time.

use std::mem::offset_of;

use dmaspace_abi::device::{self, AttachIommufdPt, BindIommufd, DetachIommufdPt};
use dmaspace_core::contract::{AttachPlace, AttachPoint, Attachable, DeviceId, ObjectId};
use dmaspace_core::door::{Attached, Attachment, Command, Errno, Failure, Handle, OwnedHandle, Request};
use dmaspace_core::retry::Undone;
use dmaspace_core::sync::{Mutex, MutexGuard, Rank};
use dmaspace_core::words::reserved::Reserved;
use zerocopy::IntoBytes;

/// The number of attempts to detach a device.
const ATTEMPTS: usize = 3;

/// A VFIO device with a node of its own. Its lock is [`Rank::Device`] in the order of all locks
/// ([`dmaspace_core::sync`]).
///
/// Before the first attach only binding works (linux: drivers/vfio/vfio_main.c, vfio_device_fops_unl_ioctl). A device
/// whose driver needs KVM at that moment must be added to KVM's VFIO device first (linux:
/// Documentation/virt/kvm/devices/vfio.rst).
#[derive(Debug)]
pub struct Cdev {
    device: OwnedHandle,
    name: String,
    reserved: Vec<Reserved>,
    place: Mutex<Place>,
}

/// The iommufd and the object that a device is attached to.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    /// The iommufd that the device is bound to, and the device's id there.
    bound: Option<(Handle, DeviceId)>,
    /// The object that the device is attached to.
    attached: Option<AttachPlace>,
}

impl Cdev {
    /// Takes over `device`, which errors call `name`. Dropping the result closes it, which detaches and unbinds it.
    pub fn new(device: OwnedHandle, name: impl Into<String>) -> Self {
        Self { device, name: name.into(), reserved: Vec::new(), place: Mutex::new(Rank::Device, Place::default()) }
    }

    /// Takes over `device`, which is bound to `iommufd` already and has the id `id` there: a VMM may keep its bound
    /// descriptors while it is replaced, and the kernel binds a descriptor once. Where the device is attached does not
    /// matter: it is moved to the place where it is attached next.
    ///
    /// # Safety
    /// `device` is bound to `iommufd`, with the id `id`. If it is attached to an address space, that is the one it is
    /// attached to next, or memory there outlives the attachment.
    #[expect(unsafe_code, reason = "UNSAFETY: ids of another iommufd name other address spaces")]
    pub unsafe fn bound(device: OwnedHandle, name: impl Into<String>, iommufd: Handle, id: DeviceId) -> Self {
        let place = Place { bound: Some((iommufd, id)), attached: None };
        Self { device, name: name.into(), reserved: Vec::new(), place: Mutex::new(Rank::Device, place) }
    }

    /// Adds the ranges in which the device cannot reach memory.
    #[must_use]
    pub fn reserving(mut self, reserved: Vec<Reserved>) -> Self {
        self.reserved = reserved;
        self
    }

    /// The device's handle, for its regions and interrupts.
    pub fn device(&self) -> Handle {
        self.device.handle()
    }

    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock()
    }

    /// The device's id in an iommufd. The kernel refuses a device that is bound to another one (`EINVAL`).
    fn id_in(&self, iommufd: Handle, place: &mut Place) -> Result<DeviceId, Failure> {
        match place.bound {
            Some((bound, id)) if bound == iommufd => Ok(id),
            _ => {
                let id = self.bind(iommufd)?;
                place.bound = Some((iommufd, id));
                Ok(id)
            }
        }
    }

    fn bind(&self, iommufd: Handle) -> Result<DeviceId, Failure> {
        let mut bind = BindIommufd { argsz: BindIommufd::SIZE, ..BindIommufd::default() };
        let mut descriptor = [Attachment { offset: offset_of!(BindIommufd, iommufd), what: Attached::Handle(iommufd) }];
        let command = Command::with_bytes(device::DEVICE_BIND_IOMMUFD, bind.as_mut_bytes());
        self.device.call(command.attaching(&mut descriptor))?;
        Ok(DeviceId::new(bind.out_devid))
    }

    fn attach(&self, to: ObjectId) -> Result<(), Failure> {
        let mut attach =
            AttachIommufdPt { argsz: AttachIommufdPt::SIZE, pt_id: to.get(), ..AttachIommufdPt::default() };
        self.device.call(Command::with_bytes(device::DEVICE_ATTACH_IOMMUFD_PT, attach.as_mut_bytes()))
    }

    /// Detaches after an attach call that failed: it may have had its effect all the same, and a page table with a
    /// device cannot be destroyed. The kernel accepts the call for a device that is not attached (linux:
    /// drivers/vfio/iommufd.c, vfio_iommufd_physical_detach_ioas). Returns whether the kernel said once that the
    /// device is detached.
    fn undo_attach(&self) -> bool {
        (0..ATTEMPTS).any(|_| self.detach().is_ok())
    }

    fn detach(&self) -> Result<(), Failure> {
        let mut detach = DetachIommufdPt { argsz: DetachIommufdPt::SIZE, ..DetachIommufdPt::default() };
        self.device.call(Command::with_bytes(device::DEVICE_DETACH_IOMMUFD_PT, detach.as_mut_bytes()))
    }
}

#[expect(unsafe_code, reason = "UNSAFETY: reports the kernel's answers")]
// SAFETY: the kernel's answers are returned as they are. A failed attach is taken back, or its failure says that the
// device may be attached. An address space of an iommufd keeps its mappings whatever devices it has.
unsafe impl Attachable for Cdev {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn reserved(&self) -> Vec<Reserved> {
        self.reserved.clone()
    }

    fn bind_to(&self, iommufd: Handle) -> Result<Option<DeviceId>, Failure> {
        self.id_in(iommufd, &mut self.place()).map(Some)
    }

    /// A device that is attached elsewhere is refused with `EBUSY`, before the kernel is asked: the kernel would move
    /// the device, and the space it was attached to would not know. The kernel refuses a device that is bound to
    /// another iommufd (`EINVAL`).
    fn attach_to(&self, point: AttachPoint<'_>) -> Result<(), Failure> {
        let (iommufd, id) = object_of(point, device::DEVICE_ATTACH_IOMMUFD_PT)?;
        let mut place = self.place();
        if place.attached.is_some() {
            return Err(refusal(device::DEVICE_ATTACH_IOMMUFD_PT, Errno::EBUSY));
        }
        self.id_in(iommufd, &mut place)?;
        let attached = match self.attach(id) {
            Err(failure) if self.undo_attach() => return Err(failure),
            Err(failure) => Err(failure.not_undone()),
            Ok(()) => Ok(()),
        };
        place.attached = Some(point.place());
        attached
    }

    /// Detaches the device from `point` and from nowhere else. `ENODEV`: the device is gone, and its attachment with
    /// it.
    fn detach_from(&self, point: AttachPoint<'_>) -> Result<Undone, Failure> {
        object_of(point, device::DEVICE_DETACH_IOMMUFD_PT)?;
        let mut place = self.place();
        if place.attached != Some(point.place()) {
            return Ok(Undone::WasNotThere);
        }
        let detached = Undone::unless_absent(self.detach(), &[Errno::ENODEV])?;
        // A device that is gone counts as detached only after enough equal answers ([`dmaspace_core::retry`]).
        if matches!(detached, Undone::Done(())) {
            place.attached = None;
        }
        Ok(detached)
    }
}

/// The address space or page table to attach to. A container is none: `EINVAL`, as the kernel answers for an unknown
/// id.
fn object_of(point: AttachPoint<'_>, request: Request) -> Result<(Handle, ObjectId), Failure> {
    match point.place() {
        AttachPlace::Ioas { iommufd, ioas: id } | AttachPlace::PageTable { iommufd, hwpt: id } => Ok((iommufd, id)),
        _ => Err(refusal(request, Errno::EINVAL)),
    }
}

fn refusal(request: Request, errno: Errno) -> Failure {
    Failure::from_errno(request.name, errno)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::IOMMUFD;
    use crate::fixture::names::{ATTACH, BIND, DETACH};
    use dmaspace_core::door::HandleKind;
    use dmaspace_soft::{Reply, ScriptedDoor};
    use std::sync::Arc;
    use zerocopy::FromBytes;

    /// A point for calls that no space makes.
    #[expect(unsafe_code, reason = "UNSAFETY: no device is behind a scripted door")]
    fn at(place: AttachPlace) -> AttachPoint<'static> {
        // SAFETY: no space uses the place.
        unsafe { AttachPoint::beside_spaces(place) }
    }

    const FIRST: AttachPlace = AttachPlace::Ioas { iommufd: IOMMUFD, ioas: ObjectId::new(7) };
    const SECOND: AttachPlace = AttachPlace::Ioas { iommufd: IOMMUFD, ioas: ObjectId::new(8) };

    fn device(script: &[Reply]) -> (Arc<ScriptedDoor>, Cdev) {
        let door = ScriptedDoor::new(script);
        let device = Cdev::new(crate::fixture::device(&door, 2), "0000:01:00.0");
        (door, device)
    }

    #[test]
    fn a_device_is_bound_once_and_attached_to_the_given_address_space() {
        let (door, device) = device(&[]);
        device.attach_to(at(FIRST)).expect("attached");
        device.detach_from(at(FIRST)).expect("detached");
        device.attach_to(at(SECOND)).expect("attached");
        let calls = door.take();
        assert_eq!(calls.iter().map(|call| call.name).collect::<Vec<_>>(), [BIND, ATTACH, DETACH, ATTACH]);
        let bind = BindIommufd { argsz: 24, ..BindIommufd::default() };
        assert_eq!((calls[0].bytes.as_slice(), calls[0].attached.as_slice()), (bind.as_bytes(), &[8][..]));
        let attach = AttachIommufdPt { argsz: 16, flags: 0, pt_id: 8, pasid: 0 };
        assert_eq!((calls[3].bytes.as_slice(), calls[3].attached.len()), (attach.as_bytes(), 0));
    }

    #[test]
    #[expect(unsafe_code, reason = "UNSAFETY: no device is behind a scripted door")]
    fn a_device_that_is_bound_already_is_not_bound_again() {
        let door = ScriptedDoor::new(&[]);
        let node = crate::fixture::device(&door, 2);
        // SAFETY: no kernel is asked.
        let device = unsafe { Cdev::bound(node, "0000:01:00.0", IOMMUFD, DeviceId::new(4)) };
        assert_eq!(device.bind_to(IOMMUFD), Ok(Some(DeviceId::new(4))));
        device.attach_to(at(FIRST)).expect("attached");
        assert_eq!(door.names(), [ATTACH]);
    }

    #[test]
    fn a_device_stays_bound_after_a_failed_attach() {
        let (door, device) = device(&[|_| Ok(0), |_| Err(Errno::EADDRINUSE)]);
        assert_eq!(device.attach_to(at(FIRST)).map_err(|failure| failure.errno()), Err(Some(Errno::EADDRINUSE)));
        device.attach_to(at(SECOND)).expect("attached");
        assert_eq!(door.names(), [BIND, ATTACH, DETACH, ATTACH]);
    }

    #[test]
    fn a_device_whose_failed_attach_cannot_be_taken_back_counts_as_attached() {
        let refused: Reply = |_| Err(Errno::EIO);
        let (door, device) = device(&[|_| Ok(0), refused, refused, refused, refused]);
        let failure = device.attach_to(at(FIRST)).expect_err("the kernel refuses");
        assert_eq!((failure.call(), failure.may_have_effect()), (ATTACH, true));
        assert_eq!(door.names(), [BIND, ATTACH, DETACH, DETACH, DETACH]);
        assert_eq!(device.attach_to(at(SECOND)), Err(refusal(device::DEVICE_ATTACH_IOMMUFD_PT, Errno::EBUSY)));
        assert_eq!(device.detach_from(at(FIRST)), Ok(Undone::Done(())));
        device.attach_to(at(SECOND)).expect("attached");
    }

    #[test]
    fn a_device_is_attached_to_a_page_table_and_known_by_its_id() {
        let (door, device) = device(&[|bytes| {
            BindIommufd::mut_from_bytes(bytes).expect("room for the struct").out_devid = 3;
            Ok(0)
        }]);
        assert_eq!(device.bind_to(IOMMUFD), Ok(Some(DeviceId::new(3))));
        let table = AttachPlace::PageTable { iommufd: IOMMUFD, hwpt: ObjectId::new(9) };
        device.attach_to(at(table)).expect("attached");
        assert_eq!(device.bind_to(IOMMUFD), Ok(Some(DeviceId::new(3))));
        let elsewhere = AttachPlace::Ioas { iommufd: IOMMUFD, ioas: ObjectId::new(9) };
        assert_eq!(device.detach_from(at(elsewhere)), Ok(Undone::WasNotThere));
        device.detach_from(at(table)).expect("detached");
        let calls = door.take();
        assert_eq!(calls.iter().map(|call| call.name).collect::<Vec<_>>(), [BIND, ATTACH, DETACH]);
        let attach = AttachIommufdPt { argsz: 16, flags: 0, pt_id: 9, pasid: 0 };
        assert_eq!(calls[1].bytes, attach.as_bytes());
    }

    #[test]
    fn bind_is_repeated_after_a_failed_bind() {
        let (door, device) = device(&[|_| Err(Errno::EPERM)]);
        assert_eq!(device.attach_to(at(FIRST)).map_err(|failure| failure.errno()), Err(Some(Errno::EPERM)));
        device.attach_to(at(FIRST)).expect("attached");
        assert_eq!(door.names(), [BIND, BIND, ATTACH]);
    }

    #[test]
    fn an_attached_device_is_not_attached_to_another_space() {
        let (door, device) = device(&[]);
        device.attach_to(at(FIRST)).expect("attached");
        door.take();
        assert_eq!(device.attach_to(at(SECOND)), Err(refusal(device::DEVICE_ATTACH_IOMMUFD_PT, Errno::EBUSY)));
        assert_eq!(device.detach_from(at(SECOND)), Ok(Undone::WasNotThere));
        assert_eq!(door.names(), [""; 0]);
        assert_eq!(device.detach_from(at(FIRST)), Ok(Undone::Done(())));
    }

    #[test]
    fn attaching_a_device_node_to_a_container_is_refused() {
        let (door, device) = device(&[]);
        let container = AttachPlace::Container(Handle::new(3, HandleKind::Container));
        assert_eq!(device.attach_to(at(container)), Err(refusal(device::DEVICE_ATTACH_IOMMUFD_PT, Errno::EINVAL)));
        assert_eq!(device.detach_from(at(container)), Err(refusal(device::DEVICE_DETACH_IOMMUFD_PT, Errno::EINVAL)));
        assert_eq!(door.names(), [""; 0]);
    }

    #[test]
    fn a_dropped_device_is_closed() {
        let (door, device) = device(&[]);
        drop(device);
        assert_eq!(door.names(), ["close"]);
    }
}
