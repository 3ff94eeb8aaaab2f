//! Devices that are added to a domain and removed from it, each in one piece.

use std::sync::Arc;

use dmaspace_core::PciAddressSpace;
use dmaspace_core::contract::Attachable;
use dmaspace_listener::{CommitError, EntryRun, Report};

use crate::choose::{Choice, OpenRequest};
use crate::device::Device;
use crate::domain::{Added, Domain, DomainError, State};
use crate::open::{OpenError, OpenSpace, Opened};
use crate::pci::PciAddress;

impl Domain {
    /// Opens a device, attaches it to a space of the domain ([the module](crate::domain) says to which), and puts all
    /// of the guest's memory in force there.
    ///
    /// # Errors
    /// [`DomainError::Open`] or [`DomainError::Memory`] with everything as it was; [`DomainError::NotUndone`].
    pub fn add(&self, address: PciAddress) -> Result<Added, DomainError> {
        self.add_with_entries(address, &[])
    }

    /// Adds a device as [`Domain::add`] does, to a guest whose devices were emulated so far: `entries` are those of its
    /// translated windows. If the domain has a device already, its space has the entries, and these are ignored.
    ///
    /// # Errors
    /// As [`Domain::add`].
    pub fn add_with_entries(&self, address: PciAddress, entries: &[EntryRun]) -> Result<Added, DomainError> {
        self.state.write().add(address, entries)
    }

    /// Opens a device with `open` into `space`, which the domain has, and puts all of the guest's memory in force
    /// there: for devices whose descriptors were opened elsewhere. `open` must not call the domain.
    ///
    /// # Errors
    /// [`DomainError::NoSuchSpace`]; as [`Domain::add`].
    pub fn add_opened<F>(&self, space: &Arc<dyn PciAddressSpace>, open: F) -> Result<Added, DomainError>
    where
        F: FnOnce(&mut OpenSpace) -> Result<Device, OpenError>,
    {
        let mut state = self.state.write();
        let place = state.place_of(space).ok_or(DomainError::NoSuchSpace)?;
        let opened = state.spaces.get_mut(place).map(open).ok_or(DomainError::NoSuchSpace)?;
        let device = opened?;
        let (device, report) = state.settle_added(place, device)?;
        Ok(Added { device, report, choice: None })
    }

    /// Takes over a space with its devices, which the caller opened: of inherited descriptors, in a pool, or of a
    /// backend of another crate. All of the guest's memory is put in force there.
    ///
    /// # Errors
    /// [`DomainError::NoDevice`]; [`DomainError::Memory`]. The space is closed then, unless a [`Device`] keeps it open.
    pub fn add_space(&self, space: OpenSpace) -> Result<Report, DomainError> {
        if has_no_device(&space) {
            return Err(DomainError::NoDevice);
        }
        let mut state = self.state.write();
        let report = state.listener.attach(space.space().clone()).map_err(DomainError::Memory)?;
        state.spaces.push(space);
        Ok(report)
    }

    /// Detaches a device and closes it, and its group with it unless another device of the group is open. The last
    /// device of a space takes the space along: everything is unmapped there, and it is closed.
    ///
    /// # Errors
    /// [`DomainError::NotInDomain`] with the device; [`DomainError::Open`] if the device is still attached;
    /// [`DomainError::Behind`] if it has left and something else failed. [`Domain::sync`] tries both again.
    pub fn remove(&self, device: Device) -> Result<Report, DomainError> {
        let mut state = self.state.write();
        let removed = state.remove(device);
        let closed = state.take_closed();
        drop(state);
        drop(closed);
        removed
    }

    /// Tries again whatever failed before: detaches devices that are [left attached](Domain::left_attached), closes
    /// spaces without a device, and brings all others up to date ([`Listener::sync`](crate::Listener::sync)).
    ///
    /// # Errors
    /// As [`Listener::sync`](crate::Listener::sync).
    pub fn sync(&self) -> Result<Report, CommitError> {
        let mut state = self.state.write();
        state.detach_left();
        let unmapped = state.leave_idle();
        let closed = state.take_closed();
        let synced = state.listener.sync();
        drop(state);
        drop(closed);
        unmapped.and(synced)
    }

    /// The devices and groups that stay attached although adding them failed, or although their last device was
    /// removed, because the kernel refused to detach them: also while a part of a BAR is still mapped. Each reaches
    /// what is mapped. [`Domain::sync`] tries again to detach them.
    pub fn left_attached(&self) -> Vec<Arc<dyn Attachable>> {
        self.state.read().spaces.iter().flat_map(OpenSpace::left_attached).collect()
    }
}

impl State {
    fn add(&mut self, address: PciAddress, entries: &[EntryRun]) -> Result<Added, DomainError> {
        let own = self.place_of_group(address);
        for place in 0..self.spaces.len() {
            if own.is_some_and(|own| own != place) {
                continue;
            }
            let Some(choice) = self.choice_in(place, address) else { continue };
            match self.open_into(place, address) {
                Ok(device) => {
                    let (device, report) = self.settle_added(place, device)?;
                    return Ok(Added { device, report, choice: Some(choice) });
                }
                Err(error) if own.is_none() && self.may_fit_elsewhere(place, &error) => {
                    log::info!("{address} gets a space of its own: {error}");
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.add_to_new_space(address, entries)
    }

    /// The space that has the group of a device.
    fn place_of_group(&self, address: PciAddress) -> Option<usize> {
        let number = self.host.facts().devices.get(&address)?.group?;
        let name = format!("group {number}");
        self.spaces.iter().position(|space| space.groups().iter().any(|group| group.name() == name))
    }

    /// The choice of a space's backend for a device. `None` if the device cannot be in the space.
    fn choice_in(&self, place: usize, address: PciAddress) -> Option<Choice> {
        let backend = self.spaces.get(place)?.backend();
        let choice = self.host.choose(&OpenRequest::device(address).with_backend(backend));
        if choice.chosen.is_some() && self.backend.is_none_or(|wanted| wanted == backend) { Some(choice) } else { None }
    }

    fn open_into(&mut self, place: usize, address: PciAddress) -> Result<Device, OpenError> {
        let Self { host, spaces, .. } = self;
        let Some(space) = spaces.get_mut(place) else {
            debug_assert!(false, "a domain has no space {place}");
            return Err(OpenError::NoBackend(host.choose(&OpenRequest::device(address))));
        };
        space.add(host, address)
    }

    /// Returns whether another space may take a device that the kernel refused to attach here. Not while it may be
    /// attached here all the same.
    fn may_fit_elsewhere(&self, place: usize, error: &OpenError) -> bool {
        let is_clear = self.spaces.get(place).is_some_and(|space| space.left_attached().is_empty());
        is_clear && matches!(error, OpenError::Attach { .. })
    }

    fn add_to_new_space(&mut self, address: PciAddress, entries: &[EntryRun]) -> Result<Added, DomainError> {
        let mut request = OpenRequest::device(address);
        request.backend = self.backend;
        let Opened { mut devices, space, choice } = self.host.open(&request)?;
        let Some(device) = devices.pop() else {
            debug_assert!(false, "{address} was opened and is not there");
            return Err(DomainError::NoDevice);
        };
        match self.listener.attach_with_entries(space.space().clone(), entries) {
            Ok(report) => {
                self.spaces.push(space);
                Ok(Added { device, report, choice: Some(choice) })
            }
            Err(error) => {
                // The reverse of the order in which they were opened.
                drop(device);
                drop(space);
                Err(DomainError::Memory(error))
            }
        }
    }

    /// Puts the guest's memory in force after `device` was attached, or detaches the device again.
    fn settle_added(&mut self, place: usize, device: Device) -> Result<(Device, Report), DomainError> {
        let cause = match self.listener.sync() {
            Ok(report) => return Ok((device, report)),
            Err(cause) => cause,
        };
        let detached = self.spaces.get_mut(place).map(|space| space.remove(device));
        if let Some(Err(undoing)) = detached {
            return Err(DomainError::NotUndone { cause, undoing });
        }
        if let Err(error) = self.listener.sync() {
            log::warn!("the spaces are not up to date after a device was refused: {error}");
        }
        Err(DomainError::Memory(cause))
    }

    fn remove(&mut self, device: Device) -> Result<Report, DomainError> {
        let place = device.space().and_then(|space| self.place_of(space));
        let Some(space) = place.and_then(|place| self.spaces.get_mut(place)) else {
            return Err(DomainError::NotInDomain(Box::new(device)));
        };
        space.remove(device)?;
        self.leave_idle().map_err(DomainError::Behind)?;
        if self.spaces.iter().all(has_no_device) {
            return Ok(Report::default());
        }
        self.listener.sync().map_err(DomainError::Behind)
    }

    /// Has the listener leave the spaces without a device, and returns the first failure. A space that could not be
    /// left stays.
    fn leave_idle(&mut self) -> Result<(), CommitError> {
        let mut left = Ok(());
        for space in self.spaces.iter().filter(|space| has_no_device(space)) {
            let detached = match self.listener.detach(space.space()) {
                Err(CommitError::NotAttached) => Ok(()),
                detached => detached,
            };
            left = left.and(detached);
        }
        left
    }

    /// Takes the spaces out of the domain that have no device and are not served any more, for the caller to close.
    fn take_closed(&mut self) -> Vec<OpenSpace> {
        let served: Vec<_> = self.listener.spaces().cloned().collect();
        let is_served = |space: &OpenSpace| served.iter().any(|known| Arc::ptr_eq(known, space.space()));
        let (staying, closed) = self.spaces.drain(..).partition(is_served);
        self.spaces = staying;
        closed
    }

    fn detach_left(&mut self) {
        for space in &mut self.spaces {
            if let Err(error) = space.detach_left() {
                log::warn!("a device is still attached: {error}");
            }
        }
    }

    fn place_of(&self, space: &Arc<dyn PciAddressSpace>) -> Option<usize> {
        self.spaces.iter().position(|known| Arc::ptr_eq(known.space(), space))
    }
}

fn has_no_device(space: &OpenSpace) -> bool {
    space.space().describe().devices.is_empty()
}
