//! Opening from descriptors that another process has handed over, with everything that is mapped in them: the new
//! process's part of a live update. [`dmaspace_core::contract::live_update`] describes the whole of it.
//!
//! Descriptors pass from process to process through exec(2), without close-on-exec, or through a socket
//! (`SCM_RIGHTS`). The old process lends its descriptors
//! ([`Device::descriptor`](crate::Device::descriptor) and its neighbours), and the new one adopts them
//! ([`OwnedHandle::adopt`]): the container, its groups, their devices, and the files behind the guest's memory. In this
//! example both processes are in software, where descriptors have no numbers:
#![cfg_attr(feature = "soft", doc = "```")]
#![cfg_attr(not(feature = "soft"), doc = "```ignore")]
//! use std::num::NonZeroU64;
//!
//! use dmaspace::contract::{Attachable as _, MapRequest};
//! use dmaspace::door::OwnedHandle;
//! use dmaspace::live_update::NamedMemory;
//! use dmaspace::{Access, BackendKind, Facts, Host, HostAddress, HostMemory, Iova, OpenRequest};
//! # use dmaspace_soft::{Profile, SoftHost};
//! # let gib = NonZeroU64::new(1 << 30).ok_or("no memory")?;
//!
//! // The old VMM.
//! let old = SoftHost::new(Profile::vtd())?;
//! let host = Host::new(old.clone(), Facts::of_soft(old.profile()));
//! let opened = host.open(&OpenRequest::device("0000:00:03.0".parse()?).with_backend(BackendKind::Type1))?;
//! let space = opened.space.space().clone();
//! let ram = HostMemory::unbacked(HostAddress::new(0x7f00_0000_0000), gib).ok_or("it wraps")?;
//! space.map(MapRequest::new(Iova::new(0), &ram, Access::READ_WRITE))?;
//!
//! let handover = space.powers().live_update.hand_over(&NamedMemory::new().with("ram", ram))?;
//! let device = &opened.devices[0];
//!
//! // The new VMM has the same descriptors, and the same file mapped elsewhere. Devices never stop working.
//! let new = old.fork();
//! let host = Host::new(new.clone(), Facts::of_soft(new.profile()));
//! let owned = |handle| OwnedHandle::simulated(new.clone(), handle).ok_or("a real host");
//! let group = &opened.space.groups()[0];
//! let groups = vec![(group.name(), owned(group.handle())?)];
//! let inherited = host.inherit(BackendKind::Type1, owned(opened.space.handle().ok_or("no container")?)?, groups)?;
//! let nic = inherited.inherit_device(&inherited.groups()[0].clone(), owned(device.handle())?, device.name());
//! let ram = HostMemory::unbacked(HostAddress::new(0x7e00_0000_0000), gib).ok_or("it wraps")?;
//! let space = inherited.space();
//! // SAFETY: the file of that name is the same one.
//! unsafe { space.powers().live_update.adopt(&handover, &NamedMemory::new().with("ram", ram.clone()))? };
//! assert_eq!(space.lookup(Iova::new(0x1000)).map(|mapping| mapping.memory), Some(ram));
//!
//! // The old VMM ends: it closes its descriptors, and unmaps nothing.
//! let before = old.calls();
//! drop((opened, host));
//! assert_eq!(new.calls().of("VFIO_IOMMU_UNMAP_DMA"), before.of("VFIO_IOMMU_UNMAP_DMA"));
//! # drop((nic, inherited));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::sync::Arc;

use dmaspace_core::Space;
use dmaspace_core::contract::Attachable;
use dmaspace_core::door::OwnedHandle;
use dmaspace_type1::Type1;

use crate::choose::BackendKind;
use crate::device::Device;
use crate::group::VfioGroup;
use crate::open::{Host, OpenError, OpenSpace};

impl Host {
    /// Makes a space of an open container with its open groups, inherited from a process that has handed the space
    /// over. Each group has the name under which it was handed over
    /// ([`Handover::devices`](dmaspace_core::contract::live_update::Handover::devices)), and is reported to this host's
    /// registry. Until the space has adopted the hand-over, nothing in it can be changed, and dropping it closes the
    /// descriptors and does nothing else.
    ///
    /// # Errors
    /// [`OpenError::NoChoice`] for a backend without hand-overs; [`OpenError::NotInherited`] for a group that is in no
    /// container; [`OpenError::Registry`], [`OpenError::Refused`], [`OpenError::Attach`]. The descriptors are closed
    /// then, and the mappings stay.
    pub fn inherit(
        &self,
        backend: BackendKind,
        container: OwnedHandle,
        groups: Vec<(String, OwnedHandle)>,
    ) -> Result<OpenSpace, OpenError> {
        let door = self.door().clone();
        // Every descriptor gets an owner before anything can fail, so that all of them are closed.
        let handle = container.handle();
        let type1 = Type1::new(container);
        let owned: Vec<_> = groups.into_iter().map(|(name, handle)| VfioGroup::new(handle, name, backend)).collect();
        if backend != BackendKind::Type1 {
            return Err(OpenError::NoChoice { backend, why: "cannot hand over a container" });
        }
        let mut members = Vec::new();
        let mut devices: Vec<Arc<dyn Attachable>> = Vec::new();
        for group in owned {
            let member = Arc::new(self.admit(group)?);
            devices.push(member.clone());
            members.push(member);
        }
        let space = Arc::new(Space::inherited(type1, devices)?);
        Ok(self.share_registry(OpenSpace::at(door, backend, space, handle).with_groups(members)))
    }

    /// Checks that an inherited group is in a container, and registers it.
    fn admit(&self, group: VfioGroup) -> Result<VfioGroup, OpenError> {
        let name = group.name();
        if !group.is_in_a_container().map_err(|failure| OpenError::refused(&name, failure))? {
            return Err(OpenError::NotInherited { group: name });
        }
        let known = self.facts().groups.values().find(|known| format!("group {}", known.number) == name);
        let reserved = known.map(|known| self.facts().reserved(known.number, &name)).unwrap_or_default();
        let member = group.with_reserved(reserved);
        match self.registry() {
            Some(registry) => {
                let registered = member.with_registry(registry.clone());
                registered.map_err(|errno| OpenError::Registry { subject: name, errno })
            }
            None => Ok(member),
        }
    }
}

impl OpenSpace {
    /// Takes ownership of an open device of an inherited group. `name` is the device's name in sysfs.
    pub fn inherit_device(&self, group: &Arc<VfioGroup>, device: OwnedHandle, name: &str) -> Device {
        Device::of_group(device, group, name).with_space(self.space().clone())
    }
}
