//! PCI addresses, in the form that sysfs and lspci use.

use std::fmt;
use std::str::FromStr;

/// The address of a PCI function: domain, bus, device and function, as in `0000:00:03.0`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    // Compared and written in this order.
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

impl PciAddress {
    /// The function `function` (0 to 7) of device `device` (0 to 31), or `None` when one is out of its range.
    pub const fn new(domain: u32, bus: u8, device: u8, function: u8) -> Option<Self> {
        if device < 32 && function < 8 { Some(Self { domain, bus, device, function }) } else { None }
    }
}

/// A text that is no PCI address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no PCI address: expected domain:bus:device.function in hexadecimal, such as 0000:00:03.0 or 00:03.0")]
pub struct BadPciAddress(String);

impl FromStr for PciAddress {
    type Err = BadPciAddress;

    /// Reads `0000:00:03.0`, or `00:03.0` in domain 0.
    fn from_str(text: &str) -> Result<Self, BadPciAddress> {
        parse(text).ok_or_else(|| BadPciAddress(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<PciAddress> {
    let (slot, function) = text.split_once('.')?;
    let (bus, device) = slot.rsplit_once(':')?;
    // Domains have more than four digits behind some host bridges (Intel's VMD begins at 10000).
    let (domain, bus) = bus.split_once(':').unwrap_or(("0", bus));
    PciAddress::new(hexadecimal(domain, 8)?, small(bus)?, small(device)?, small(function)?)
}

/// A number of at most `most` hexadecimal digits, without a sign or a prefix.
fn hexadecimal(digits: &str, most: usize) -> Option<u32> {
    let clean = (1..=most).contains(&digits.len()) && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    if clean { u32::from_str_radix(digits, 16).ok() } else { None }
}

fn small(digits: &str) -> Option<u8> {
    u8::try_from(hexadecimal(digits, 2)?).ok()
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function}")
    }
}

impl fmt::Debug for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> Option<String> {
        text.parse::<PciAddress>().ok().map(|address| address.to_string())
    }

    #[test]
    fn addresses_are_read_with_and_without_a_domain() {
        assert_eq!(written("0000:00:03.0").as_deref(), Some("0000:00:03.0"));
        assert_eq!(written("ff:1f.7").as_deref(), Some("0000:ff:1f.7"));
        assert_eq!(written("10000:E1:00.0").as_deref(), Some("10000:e1:00.0"));
        assert_eq!(written("2:0:3.1").as_deref(), Some("0002:00:03.1"));
    }

    #[test]
    fn a_text_that_is_no_address_is_named_in_the_error() {
        for text in [
            "",
            "3",
            "00:03",
            "03.0",
            "00:20.0",
            "00:03.8",
            "0:0:0:3.0",
            "00:+3.0",
            "00:03.0 ",
            "000:03.0",
            "::.",
            "00:03.0.0",
        ] {
            assert_eq!(written(text), None, "{text:?}");
        }
        let error = "3".parse::<PciAddress>().expect_err("no address");
        assert!(error.to_string().starts_with("\"3\" is no PCI address: expected"));
    }

    #[test]
    fn addresses_sort_as_they_are_written() {
        let sorted =
            ["0000:00:03.1", "0000:01:00.0", "0001:00:00.0"].map(|text| text.parse::<PciAddress>().expect("valid"));
        assert!(sorted.is_sorted());
    }
}
