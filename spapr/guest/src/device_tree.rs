//! The properties of a guest's device tree that describe its bridges' windows: names, and bytes to copy into the tree.

use crate::bridge::PciHostBridge;
use crate::rtas::{Tokens, halves};

/// The names of the TCE hypercalls in `ibm,hypertas-functions` below `/rtas`. The VMM lists them beside those of its
/// other hypercalls (LoPAR: ch_lpar_option.xml, "hypertas-functions"; qemu: hw/ppc/spapr.c, spapr_dt_rtas).
///
/// The second name stands for H_PUT_TCE_INDIRECT and H_STUFF_TCE. Where KVM answers hypercalls, they must be enabled in
/// KVM, too.
pub const HYPERTAS_FUNCTIONS: [&str; 2] = ["hcall-tce", "hcall-multi-tce"];

/// A property of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Property {
    /// The property's name.
    pub name: &'static str,
    /// The property's value: big-endian cells of 32 bits.
    pub value: Vec<u8>,
}

impl Property {
    fn of(name: &'static str, cells: &[u32]) -> Self {
        Self { name, value: cells.iter().flat_map(|cell| cell.to_be_bytes()).collect() }
    }
}

/// The cells of a bus address.
const ADDRESS_CELLS: u32 = 2;
/// The cells of a size on the bus.
const SIZE_CELLS: u32 = 2;

impl PciHostBridge {
    /// The properties of the bridge's node for windows (LoPAR: app_papr_binding.xml, "ibm,dma-window";
    /// sec_rtas_dma_window.xml, "Extensions to Dynamic DMA Windows"; qemu: hw/ppc/spapr_pci.c, spapr_dt_phb): the
    /// default window, the cells of its address and size, and the calls that create others.
    pub fn properties(&self, tokens: &Tokens) -> Vec<Property> {
        let window = self.default_window();
        let [first_high, first_low] = halves(window.range.first().get());
        // The default window ends below 4 GiB.
        let [size_high, size_low] = halves(window.range.len().map_or(0, |len| len.get()));
        let dma_window = [window.liobn.get(), first_high, first_low, size_high, size_low];
        // The number of extensions; the token of the reset; 1, since a query may have six results.
        let extensions = [2, tokens.reset, 1];
        vec![
            Property::of("ibm,#dma-address-cells", &[ADDRESS_CELLS]),
            Property::of("ibm,#dma-size-cells", &[SIZE_CELLS]),
            Property::of("ibm,dma-window", &dma_window),
            Property::of("ibm,ddw-applicable", &[tokens.query, tokens.create, tokens.remove]),
            Property::of("ibm,ddw-extensions", &extensions),
        ]
    }
}

impl Tokens {
    /// The properties of `/rtas` that name the calls (LoPAR: ch_rtas.xml, "RTAS Tokens for Functions"). A guest that
    /// follows PAPR uses its bridge's properties; a guest that looks a call up by name uses these.
    pub fn properties(&self) -> Vec<Property> {
        vec![
            Property::of("ibm,query-pe-dma-window", &[self.query]),
            Property::of("ibm,create-pe-dma-window", &[self.create]),
            Property::of("ibm,remove-pe-dma-window", &[self.remove]),
            Property::of("ibm,reset-pe-dma-window", &[self.reset]),
        ]
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{Layout, TceTables};

    /// The property's cells.
    fn cells(properties: &[Property], name: &str) -> Vec<u32> {
        let property = properties.iter().find(|property| property.name == name).expect("it is there");
        let cells = property.value.chunks_exact(4).map(|cell| cell.try_into().expect("a cell"));
        cells.map(u32::from_be_bytes).collect()
    }

    #[test]
    fn a_bridge_has_the_properties_of_a_pseries_machine() {
        let bridge = PciHostBridge::new(Layout::pseries(1), Arc::new(TceTables::new())).expect("a proper layout");
        let properties = bridge.properties(&Tokens::default());
        assert_eq!(cells(&properties, "ibm,dma-window"), [0x8000_0100, 0, 0, 0, 0x4000_0000]);
        assert_eq!(cells(&properties, "ibm,#dma-address-cells"), [2]);
        assert_eq!(cells(&properties, "ibm,#dma-size-cells"), [2]);
        assert_eq!(cells(&properties, "ibm,ddw-applicable"), [0x2026, 0x2027, 0x2028]);
        assert_eq!(cells(&properties, "ibm,ddw-extensions"), [2, 0x2029, 1]);
        assert_eq!(properties.len(), 5);
        assert_eq!(properties[2].value[..5], [0x80, 0, 1, 0, 0]);
    }

    #[test]
    fn the_calls_have_tokens_below_rtas() {
        let properties = Tokens::default().properties();
        assert_eq!(cells(&properties, "ibm,create-pe-dma-window"), [0x2027]);
        assert_eq!(properties.len(), 4);
    }
}
