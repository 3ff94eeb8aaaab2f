//! The code of the README and of the pages in docs/, and each name by which they call a part of the library, with
//! `dmaspace` as the only dependency.
#![allow(dead_code, unreachable_code, unused, clippy::all)]

/// The pages. One may call vm-memory by its own name, as a VMM does that depends on it, too.
mod pages {
    use dmaspace::vm_memory::vm_memory;

    include!(concat!(env!("OUT_DIR"), "/pages.rs"));
}

/// The parts of the library that pages name in words.
mod named {
    use dmaspace::bar::{Bar, Msix};
    use dmaspace::contract::{Attachable, AttachedElsewhere, PciAddressSpace};
    use dmaspace::dirty::DirtySink;
    use dmaspace::facts::SysfsDevice;
    use dmaspace::live_update::{Handover, NamedMemory};
    use dmaspace::recording;
    use dmaspace::registry::Registry;
    use dmaspace::section::TargetMemory;
    use dmaspace::soft::{FaultPlan, Profile, SoftDevice, SoftHost};
    use dmaspace::spapr_guest::{PciHostBridge, TceTables};
    use dmaspace::vm_memory::{GuestAddress, GuestMemoryMmap, RegionBitmaps, sections, targets};
    use dmaspace::{
        Access, Backend, BackendKind, CommitError, Device, Domain, Error, Facts, FrontEnd, Host, HostMemory, Iommufd,
        Iova, IovaRange, LinuxDoor, Listener, MemoryFile, OpenError, OpenRequest, OpenSpace, Opened, PageSize, Pool,
        Report, Section, Space, TranslatedWindow, Update, Window, Windows,
    };
    use dmaspace::{iommufd::Ioas, spapr::Spapr, type1::Type1};
}

/// A guest on a host in software, from its memory to its device.
pub fn a_guest() -> Result<(), Box<dyn std::error::Error>> {
    use dmaspace::soft::{Profile, SoftHost};
    use dmaspace::vm_memory::{GuestAddress, GuestMemoryMmap, sections};
    use dmaspace::{Domain, Facts, FrontEnd, Host};

    let machine = SoftHost::new(Profile::vtd())?;
    let domain = Domain::new(Host::new(machine.clone(), Facts::of_soft(machine.profile())), FrontEnd::pc());
    let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)])?;
    domain.update_to(&sections(&memory)?, &[])?;
    let added = domain.add("0000:00:03.0".parse()?)?;
    assert_eq!(machine.ledger().mapped, 1 << 20);
    domain.remove(added.device)?;
    Ok(())
}

#[test]
fn the_guest_runs() {
    a_guest().expect("it runs");
}
