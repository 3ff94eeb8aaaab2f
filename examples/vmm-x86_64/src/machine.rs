//! The machine: KVM's part of it, the devices, and the loop that runs the processor.

use std::io::{self, Stdout};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use dmaspace::kvm::KvmVfio;
use dmaspace::{Domain, Facts, FrontEnd, Host, LinuxDoor};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::arguments::Arguments;
use crate::assigned::Assigned;
use crate::layout::{
    CONFIG_ADDRESS, CONFIG_DATA, KVM_PAGES, MODULE, MODULE_IRQ, MODULE_STATUS, POWER, SERIAL, SERIAL_IRQ, SERIAL_LAST,
};
use crate::memory::{Ram, Slots};
use crate::pci::Bus;
use crate::{Result, acpi, boot, processor};

/// The last port of PCI's configuration mechanism #1.
const CONFIG_LAST: u16 = CONFIG_DATA + 3;

/// A machine with a guest.
pub(crate) struct Machine {
    vcpu: VcpuFd,
    devices: Devices,
    ram: Arc<Mutex<Ram>>,
    domain: Arc<Domain>,
}

/// Everything that the guest reaches by ports and by addresses outside of RAM.
struct Devices {
    serial: Serial<Line, NoEvents, Stdout>,
    bus: Bus,
    module: Arc<Module>,
}

/// The memory module that can be plugged.
struct Module {
    size: u64,
    is_plugged: AtomicBool,
    line: Line,
}

/// An input of the I/O APIC.
struct Line(EventFd);

impl Line {
    fn new(vm: &VmFd, input: u32) -> Result<Self> {
        let eventfd = EventFd::new(EFD_NONBLOCK)?;
        vm.register_irqfd(&eventfd, input)?;
        Ok(Self(eventfd))
    }
}

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

impl Machine {
    /// Makes the machine of a command line, with its kernel loaded.
    pub(crate) fn new(arguments: &Arguments) -> Result<Self> {
        let kvm = Kvm::new()?;
        let vm = Arc::new(kvm.create_vm()?);
        vm.set_tss_address(usize::try_from(KVM_PAGES)?)?;
        vm.create_irq_chip()?;
        vm.create_pit2(kvm_bindings::kvm_pit_config::default())?;

        let domain = Arc::new(domain(&vm, arguments)?);
        let slots = Arc::new(Slots::new(vm.clone()));
        let reachable = if arguments.unmapped { None } else { Some(domain.clone()) };
        let ram = Ram::new(arguments.memory, slots.clone(), reachable)?;
        let device = assign(arguments, &domain, &vm, slots)?;

        let entry = boot::load(arguments, ram.memory())?;
        acpi::write(ram.memory(), arguments.module)?;
        let vcpu = vm.create_vcpu(0)?;
        processor::prepare(&kvm, &vcpu, ram.memory(), entry)?;

        let serial = Serial::new(Line::new(&vm, SERIAL_IRQ)?, io::stdout());
        let line = Line::new(&vm, MODULE_IRQ)?;
        let module = Arc::new(Module { size: arguments.module, is_plugged: AtomicBool::new(false), line });
        let devices = Devices { serial, bus: Bus::new(device), module };
        Ok(Self { vcpu, devices, ram: Arc::new(Mutex::new(ram)), domain })
    }

    /// Runs the guest until it switches its machine off or resets it.
    pub(crate) fn run(mut self) -> Result<()> {
        let (ram, module) = (self.ram.clone(), self.devices.module.clone());
        thread::spawn(move || obey_standard_input(&ram, &module));
        while !self.step()? {}
        if let Some(device) = self.devices.bus.take_device() {
            device.remove(&self.domain)?;
        }
        Ok(())
    }

    /// Runs the processor until it needs the VMM. Returns `true` when the guest has ended.
    fn step(&mut self) -> Result<bool> {
        match self.vcpu.run() {
            Ok(VcpuExit::IoOut(POWER, _) | VcpuExit::Shutdown) => return Ok(true),
            Ok(VcpuExit::IoOut(port, from)) => self.devices.write_port(port, from)?,
            Ok(VcpuExit::IoIn(port, into)) => self.devices.read_port(port, into)?,
            Ok(VcpuExit::MmioRead(at, into)) => self.devices.read(at, into)?,
            Ok(VcpuExit::MmioWrite(at, from)) => self.devices.write(at, from)?,
            Ok(exit) => return Err(format!("the processor stopped: {exit:?}").into()),
            Err(error) if io::Error::from(error).kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
        Ok(false)
    }
}

// docs: domain
/// The address space of the guest's devices.
fn domain(vm: &VmFd, arguments: &Arguments) -> Result<Domain> {
    let door = Arc::new(LinuxDoor::new());
    let facts = Facts::of_this_host(&*door)?;
    let kvm = KvmVfio::new(door.clone(), vm)?;
    let host = Host::new(door, facts).with_registry(Arc::new(kvm));
    let domain = Domain::new(host, FrontEnd::pc());
    Ok(match arguments.backend {
        Some(backend) => domain.with_backend(backend),
        None => domain,
    })
}
// docs: end

// docs: assign
/// Opens the device, with all of the guest's RAM in its reach: all of it is pinned now, or this fails.
fn assign(arguments: &Arguments, domain: &Domain, vm: &Arc<VmFd>, slots: Arc<Slots>) -> Result<Option<Assigned>> {
    let Some(address) = arguments.device else { return Ok(None) };
    let added = domain.add(address)?;
    if let Some(choice) = &added.choice {
        eprintln!("vmm-x86_64: {choice}");
    }
    Ok(Some(Assigned::new(added.device, vm.clone(), slots)?))
}
// docs: end

impl Devices {
    fn read_port(&mut self, port: u16, into: &mut [u8]) -> Result<()> {
        // Nothing answers at other ports: the bus floats.
        into.fill(0xff);
        match (port, &mut *into) {
            (SERIAL..=SERIAL_LAST, [byte]) => *byte = self.serial.read(offset(port, SERIAL)),
            (MODULE_STATUS, [byte]) => *byte = self.module.is_plugged.load(Ordering::Acquire).into(),
            (CONFIG_ADDRESS..=CONFIG_LAST, into) => self.bus.read(port, into)?,
            _ => {}
        }
        Ok(())
    }

    fn write_port(&mut self, port: u16, from: &[u8]) -> Result<()> {
        match (port, from) {
            (SERIAL..=SERIAL_LAST, [byte]) => self.serial.write(offset(port, SERIAL), *byte)?,
            (CONFIG_ADDRESS..=CONFIG_LAST, from) => self.bus.write(port, from)?,
            _ => {}
        }
        Ok(())
    }

    fn read(&mut self, at: u64, into: &mut [u8]) -> Result<()> {
        into.fill(0xff);
        if let Some(device) = self.bus.device() {
            device.read(at, into)?;
        }
        Ok(())
    }

    fn write(&mut self, at: u64, from: &[u8]) -> Result<()> {
        if let Some(device) = self.bus.device() {
            device.write(at, from)?;
        }
        Ok(())
    }
}

/// The number of a port among those of its device, of which there are eight.
fn offset(port: u16, first: u16) -> u8 {
    u8::try_from(port.saturating_sub(first)).unwrap_or(u8::MAX)
}

/// Plugs the memory module when a line of the standard input says so.
fn obey_standard_input(ram: &Mutex<Ram>, module: &Module) {
    for line in io::stdin().lines() {
        match line.as_deref() {
            Ok("plug") => match plug(ram, module) {
                Ok(()) => eprintln!("vmm-x86_64: plugged {} MiB at {MODULE:#x}", module.size >> 20),
                Err(error) => eprintln!("vmm-x86_64: not plugged: {error}"),
            },
            Ok(line) => eprintln!("vmm-x86_64: unknown command {line:?}: plug"),
            Err(_) => return,
        }
    }
}

/// Adds the module to the RAM, and then notifies the guest's kernel.
fn plug(ram: &Mutex<Ram>, module: &Module) -> Result<()> {
    if module.size == 0 {
        return Err("there is no module; see --module".into());
    }
    ram.lock().unwrap_or_else(PoisonError::into_inner).plug(MODULE, module.size)?;
    module.is_plugged.store(true, Ordering::Release);
    module.line.trigger()?;
    Ok(())
}
