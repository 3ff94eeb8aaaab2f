//! Tokens of virtual functions.
//!
//! A physical function that VFIO drives, and its virtual functions, can be used by different processes. They must share
//! a token, as proof that they trust each other (linux: drivers/vfio/pci/vfio_pci_core.c, vfio_pci_validate_vf_token).

use std::fmt;
use std::str::FromStr;

use dmaspace_abi::device::{DEVICE_FEATURE, FEATURE_SET, FEATURE_VF_TOKEN, FeatureHead, FeatureToken};
use dmaspace_core::door::{Command, Kernel};
use zerocopy::IntoBytes;

use crate::device::{Action, Device, DeviceError};

/// The token of a physical function and its virtual functions: a UUID. Its debug output hides it, because it is a
/// secret.
///
/// Exhaustive: sixteen bytes, in the order of the UUID's text.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct VfToken(pub [u8; 16]);

/// The lengths of the groups of digits in a UUID.
const GROUPS: [usize; 5] = [8, 4, 4, 4, 12];

impl VfToken {
    /// The name of a device with the token behind it, as the kernel wants it where a device is opened through its
    /// group: `0000:01:00.1 vf_token=bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3` (linux:
    /// drivers/vfio/pci/vfio_pci_core.c, vfio_pci_core_match).
    pub fn behind(&self, name: &str) -> String {
        format!("{name} vf_token={self}")
    }
}

/// The text of the UUID, for the name of a device.
impl fmt::Display for VfToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = self.0.iter();
        for (n, digits) in GROUPS.iter().enumerate() {
            if n > 0 {
                f.write_str("-")?;
            }
            for byte in bytes.by_ref().take(digits / 2) {
                write!(f, "{byte:02x}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for VfToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VfToken(..)")
    }
}

/// A text that is no UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the token is no UUID: expected 32 hexadecimal digits as in bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3")]
pub struct BadVfToken;

impl FromStr for VfToken {
    type Err = BadVfToken;

    fn from_str(text: &str) -> Result<Self, BadVfToken> {
        let groups: Vec<_> = text.split('-').collect();
        if !groups.iter().map(|group| group.len()).eq(GROUPS) {
            return Err(BadVfToken);
        }
        let digits = groups.concat();
        let mut token = [0; 16];
        for (byte, pair) in token.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
            *byte = byte_of(pair).ok_or(BadVfToken)?;
        }
        Ok(Self(token))
    }
}

/// The byte of two hexadecimal digits.
fn byte_of(pair: &[u8]) -> Option<u8> {
    let [high, low] = pair else { return None };
    u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()
}

fn digit(ascii: u8) -> Option<u32> {
    char::from(ascii).to_digit(16)
}

impl Device {
    /// Sets the token of a physical function, which users of its virtual functions must know from now on (linux:
    /// drivers/vfio/pci/vfio_pci_core.c, vfio_pci_core_feature_token).
    ///
    /// # Errors
    /// The kernel's answer: `ENOTTY` for a device that is no physical function.
    pub fn set_vf_token(&self, token: &VfToken) -> Result<(), DeviceError> {
        let head = FeatureHead { argsz: FeatureToken::SIZE, flags: FEATURE_SET | FEATURE_VF_TOKEN };
        let mut feature = FeatureToken { head, uuid: token.0 };
        let set = self.door.call(self.handle, Command::with_bytes(DEVICE_FEATURE, feature.as_mut_bytes()));
        set.map_err(|failure| self.error(Action::SetToken, failure))
    }
}

/// The device's part of a name that may have options behind it.
pub(super) fn without_options(name: &str) -> &str {
    name.split(' ').next().unwrap_or(name)
}
