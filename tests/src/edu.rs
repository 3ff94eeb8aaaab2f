//! QEMU's `edu` device, driven through VFIO's region reads and writes: no pointer into the BAR, hence no `unsafe`.

use std::time::{Duration, Instant};

use dmaspace::device::{Device, Region};
use dmaspace_core::Iova;

use crate::device::TestDevice;

const IDENTIFICATION: u64 = 0x00;
const RAISE: u64 = 0x60;
const ACKNOWLEDGE: u64 = 0x64;
const SOURCE: u64 = 0x80;
const DESTINATION: u64 = 0x88;
const COUNT: u64 = 0x90;
const COMMAND: u64 = 0x98;

const START: u64 = 1;
const FROM_BUFFER: u64 = 2;

/// The value of the identification register: the lowest byte is fixed.
const IDENTITY: u32 = 0x0100_00ed;

/// The address of the buffer in the device's own address space.
const BUFFER: u64 = 0x4_0000;

/// A transfer takes 100 ms of the guest's time.
const PATIENCE: Duration = Duration::from_secs(20);

/// An open `edu`.
pub struct Edu {
    device: Device,
    registers: Region,
    /// QEMU gives it registers in the byte order of the machine type, which is big on POWER whatever the kernel is.
    big_endian: bool,
}

impl Edu {
    /// Brings the device up.
    pub fn new(device: Device) -> Self {
        device.enable().expect("memory and bus mastering can be enabled");
        let registers = device.region(0).expect("the device has a BAR");
        let mut bytes = [0; 4];
        device.read(&registers, IDENTIFICATION, &mut bytes).expect("the BAR can be read");
        let identity = u32::from_le_bytes(bytes);
        let big_endian = identity == IDENTITY.swap_bytes();
        assert!(big_endian || identity == IDENTITY, "{} is no edu: it identifies as {identity:#x}", device.name());
        Self { device, registers, big_endian }
    }

    /// The open device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Returns `true` if the device answers with its identity.
    pub fn is_there(&self) -> bool {
        let mut bytes = [0; 4];
        self.device.read(&self.registers, IDENTIFICATION, &mut bytes).expect("the BAR can be read");
        [IDENTITY, IDENTITY.swap_bytes()].contains(&u32::from_le_bytes(bytes))
    }

    /// Raises an interrupt.
    pub fn raise(&self, value: u32) {
        self.write_word(RAISE, value);
    }

    /// Lowers the interrupt that [`Edu::raise`] raised with the same value.
    pub fn acknowledge(&self, value: u32) {
        self.write_word(ACKNOWLEDGE, value);
    }

    /// Writes a register of 32 bits.
    fn write_word(&self, register: u64, value: u32) {
        let bytes = if self.big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
        self.device.write(&self.registers, register, &bytes).expect("a register can be written");
    }

    fn write(&self, register: u64, value: u64) {
        let bytes = if self.big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
        self.device.write(&self.registers, register, &bytes).expect("a register can be written");
    }

    fn is_busy(&self) -> bool {
        let mut bytes = [0; 8];
        self.device.read(&self.registers, COMMAND, &mut bytes).expect("a register can be read");
        let command = if self.big_endian { u64::from_be_bytes(bytes) } else { u64::from_le_bytes(bytes) };
        command & START != 0
    }

    fn begin(&self, source: u64, destination: u64, len: usize, direction: u64) {
        self.write(SOURCE, source);
        self.write(DESTINATION, destination);
        self.write(COUNT, len as u64);
        self.write(COMMAND, START | direction);
    }

    fn wait(&self) {
        let start = Instant::now();
        while self.is_busy() {
            assert!(start.elapsed() < PATIENCE, "{} does not finish its transfer", self.device.name());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl TestDevice for Edu {
    fn load(&mut self, from: Iova, len: usize) {
        self.begin(from.get(), BUFFER, len, 0);
        self.wait();
    }

    fn begin_store(&mut self, to: Iova, len: usize) {
        self.begin(BUFFER, to.get(), len, FROM_BUFFER);
    }

    fn finish(&mut self) {
        self.wait();
    }

    /// A reset takes the command register.
    fn wake(&mut self) {
        self.device.enable().expect("memory and bus mastering can be enabled");
    }
}
