//! Stages on the soft host: the same opening code, the same backends, another door.

use std::sync::Arc;

use dmaspace::choose::{BackendKind, Wish};
use dmaspace::facts::Facts;
use dmaspace::open::Host;
use dmaspace_core::Iova;
use dmaspace_soft::{Profile, SoftDevice, SoftHost};

use crate::device::TestDevice;
use crate::ram::SPOT;
use crate::stage::Stage;

/// A soft host's device with a buffer, as `edu` has one.
struct BufferedDevice {
    device: SoftDevice,
    buffer: [u8; SPOT],
    /// A write under way: one that takes its time reaches memory when it begins and when it ends.
    under_way: Option<(Iova, usize)>,
}

impl TestDevice for BufferedDevice {
    fn load(&mut self, from: Iova, len: usize) {
        // A device is not told why its read failed: it has what it got.
        let _ = self.device.dma_read(from, &mut self.buffer[..len]);
    }

    fn begin_store(&mut self, to: Iova, len: usize) {
        let _ = self.device.dma_write(to, &self.buffer[..len]);
        self.under_way = Some((to, len));
    }

    fn finish(&mut self) {
        if let Some((to, len)) = self.under_way.take() {
            let _ = self.device.dma_write(to, &self.buffer[..len]);
        }
    }
}

/// A soft host of that preset.
pub fn host(preset: &str) -> Arc<SoftHost> {
    SoftHost::new(Profile::preset(preset).expect("a preset of the soft host")).expect("presets make sense")
}

/// The backends of that preset.
pub fn backends_of(preset: &str) -> &'static [BackendKind] {
    match preset {
        "vtd" | "vtd-64k" => &[BackendKind::Type1, BackendKind::Iommufd],
        _ => &[BackendKind::Spapr],
    }
}

/// A stage on `soft` with its first device.
pub fn stage(soft: &Arc<SoftHost>, backend: BackendKind) -> Stage {
    let host = Host::new(soft.clone(), Facts::of_soft(soft.profile()));
    let address = soft.profile().groups[0].devices[0].address.clone();
    let wish = Wish::device(address.parse().expect("a PCI address")).on(backend);
    let opened = host.open(&wish).expect("the soft host opens its device");
    let device = soft.device(&address).expect("it is there");
    let device = Box::new(BufferedDevice { device, buffer: [0; SPOT], under_way: None });
    Stage::new(opened.space.space().clone(), device).keeping(opened)
}
