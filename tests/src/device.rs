//! A device under test: it reads bus memory into a buffer of its own and writes the buffer back. Only bytes that it
//! moves count as proof that something is mapped, or is not.

use dmaspace_core::Iova;

/// A device with a buffer.
pub trait TestDevice {
    /// Reads `len` bytes at `from` into the buffer. The buffer's content after a read that the host refused is unknown.
    fn load(&mut self, from: Iova, len: usize);

    /// Writes the first `len` bytes of the buffer to `to`. A write that the host refuses goes nowhere.
    fn store(&mut self, to: Iova, len: usize) {
        self.begin_store(to, len);
        self.finish();
    }

    /// Begins such a write, which ends with [`TestDevice::finish`].
    fn begin_store(&mut self, to: Iova, len: usize);

    /// Waits for the end of the write under way.
    fn finish(&mut self);

    /// Readies the device again after its bus was reset.
    fn wake(&mut self) {}
}
