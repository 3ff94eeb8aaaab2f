//! One container of the client's: the groups that wait for a driver, or the space behind the driver.

use std::fs;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dmaspace::contract::Attachable;
use dmaspace::door::{Errno, HandleKind};
use dmaspace::group::VfioGroup;
use dmaspace::{BackendKind, LinuxDoor, OpenSpace};
use dmaspace_abi::spapr::EEH_PE_OP;
use dmaspace_abi::vfio::{API_VERSION, CHECK_EXTENSION, Extension, GET_API_VERSION, IommuType, SET_IOMMU};

use crate::answers::{Answer, answer};
use crate::argument::Argument;
use crate::settings::Settings;
use crate::status::Status;
use crate::{door, spapr, type1};

/// A container.
#[derive(Debug)]
pub(crate) struct Container {
    /// The client's descriptor.
    descriptor: RawFd,
    door: Arc<dyn dmaspace::door::Door>,
    status: Status,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    /// Groups of the client's that joined before it chose a driver.
    Waiting(Vec<RawFd>),
    /// The client chose a driver.
    Served(Arc<Served>),
}

/// A container with a driver, which a space serves.
#[derive(Debug)]
struct Served {
    backend: BackendKind,
    dialect: Dialect,
    open: OpenSpace,
    groups: Mutex<Vec<Member>>,
}

/// A group in a container.
#[derive(Debug)]
struct Member {
    /// The client's descriptor.
    descriptor: RawFd,
    group: Arc<VfioGroup>,
}

#[derive(Debug)]
enum Dialect {
    Type1,
    Spapr(spapr::Dialect),
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Container {
    /// The container at the client's `descriptor`, without groups.
    pub(crate) fn new(descriptor: RawFd) -> Self {
        Self {
            descriptor,
            door: Arc::new(LinuxDoor::new()),
            status: Status::kept_in(Settings::of_process().status.as_deref()),
            state: Mutex::new(State::Waiting(Vec::new())),
        }
    }

    /// The answer to a call on the container.
    pub(crate) fn answer(&self, request: u32, argument: Argument<'_>) -> Answer {
        if request == GET_API_VERSION.number {
            return Some(Ok(API_VERSION));
        }
        if request == SET_IOMMU.number {
            return answer(self.choose(IommuType(argument.value())));
        }
        if request == CHECK_EXTENSION.number {
            // Updates of addresses are not answered here. The kernel knows the rest.
            return (argument.value() == Extension::UPDATE_VADDR.0).then_some(Ok(0));
        }
        if request == EEH_PE_OP.number {
            return None;
        }
        let served = self.served()?;
        let answer = served.answer(&self.status, request, argument);
        if matches!(answer, Some(Err(_))) {
            self.status.refused.add(1);
        }
        self.status.write();
        answer
    }

    /// The space. `None` before the client has chosen a driver: the kernel refuses its calls then.
    fn served(&self) -> Option<Arc<Served>> {
        match &*locked(&self.state) {
            State::Waiting(_) => None,
            State::Served(served) => Some(served.clone()),
        }
    }

    /// Lets a group of the client's join, at the latest when the client chooses a driver.
    ///
    /// # Errors
    /// The errno of the kernel.
    pub(crate) fn join(&self, group: RawFd) -> Result<(), Errno> {
        let served = match &mut *locked(&self.state) {
            State::Waiting(groups) => {
                groups.push(group);
                return Ok(());
            }
            State::Served(served) => served.clone(),
        };
        served.attach(&self.door, group)
    }

    /// Lets a group of the client's leave. The container is without a driver again when the last one has left.
    ///
    /// # Errors
    /// The errno of the kernel.
    pub(crate) fn leave(&self, group: RawFd) -> Result<(), Errno> {
        let served = match &mut *locked(&self.state) {
            State::Waiting(groups) => {
                groups.retain(|waiting| *waiting != group);
                return Ok(());
            }
            State::Served(served) => served.clone(),
        };
        if !served.detach(group)? {
            return Ok(());
        }
        let last = std::mem::replace(&mut *locked(&self.state), State::Waiting(Vec::new()));
        self.status.forget_mappings();
        self.status.write();
        drop(last);
        Ok(())
    }

    /// Makes a space of the container and attaches the groups that wait.
    fn choose(&self, driver: IommuType) -> Result<(), Errno> {
        let mut state = locked(&self.state);
        let State::Waiting(groups) = &*state else { return Err(Errno::EINVAL) };
        if groups.is_empty() {
            return Err(Errno::EINVAL);
        }
        let backend = match driver {
            IommuType::TYPE1 | IommuType::TYPE1_V2 => BackendKind::Type1,
            IommuType::SPAPR_TCE_V2 => BackendKind::Spapr,
            _ => return Err(Errno::ENODEV),
        };
        let container = door::handle(&self.door, self.descriptor, HandleKind::Container)?;
        let open = OpenSpace::of(backend, container).map_err(|error| error.as_errno())?;
        let served = Served::new(backend, open);
        for group in groups {
            served.attach(&self.door, *group)?;
        }
        *state = State::Served(Arc::new(served));
        self.status.write();
        Ok(())
    }

    /// Notes that KVM writes entries of this container.
    pub(crate) fn note_kvm_tables(&self) {
        if let Some(served) = self.served() {
            if let Dialect::Spapr(dialect) = &served.dialect {
                dialect.note_kvm_tables();
            }
        }
    }
}

impl Served {
    fn new(backend: BackendKind, open: OpenSpace) -> Self {
        let dialect = match backend {
            BackendKind::Spapr => Dialect::Spapr(spapr::Dialect::default()),
            _ => Dialect::Type1,
        };
        Self { backend, dialect, open, groups: Mutex::new(Vec::new()) }
    }

    fn answer(&self, status: &Status, request: u32, argument: Argument<'_>) -> Answer {
        let space = &**self.open.space();
        match &self.dialect {
            Dialect::Type1 => type1::call(space, status, request, argument),
            Dialect::Spapr(dialect) => dialect.call(space, status, request, argument),
        }
    }

    /// Attaches a group of the client's by a duplicate of its descriptor.
    fn attach(&self, door: &Arc<dyn dmaspace::door::Door>, descriptor: RawFd) -> Result<(), Errno> {
        let handle = door::handle(door, descriptor, HandleKind::Group)?;
        let group = Arc::new(VfioGroup::new(handle, name_of(descriptor), self.backend));
        self.open.attach(group.clone()).map_err(|error| {
            eprintln!("dmaspace-vfio-shim: {error}");
            error.as_errno()
        })?;
        locked(&self.groups).push(Member { descriptor, group });
        Ok(())
    }

    /// Detaches a group of the client's. Returns `true` if it was the last.
    fn detach(&self, descriptor: RawFd) -> Result<bool, Errno> {
        let mut groups = locked(&self.groups);
        let Some(place) = groups.iter().position(|member| member.descriptor == descriptor) else {
            return Err(Errno::EINVAL);
        };
        if let Some(member) = groups.get(place) {
            let group: Arc<dyn Attachable> = member.group.clone();
            self.open.detach(&group).map_err(|error| error.as_errno())?;
        }
        groups.remove(place);
        Ok(groups.is_empty())
    }
}

/// The path of a group's node, which stands for the group in errors.
fn name_of(group: RawFd) -> String {
    match fs::read_link(format!("/proc/self/fd/{group}")) {
        Ok(path) => path.display().to_string(),
        Err(_) => format!("the group at descriptor {group}"),
    }
}
