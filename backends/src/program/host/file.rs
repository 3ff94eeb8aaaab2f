//! Host files: the description of a host in JSON (docs/host-file.md), or the text of a group's `reserved_regions`
//! alone.

use std::path::Path;

use dmaspace_soft::Profile;
use dmaspace_soft::profile::ReservedProfile;

use crate::program::failure::Failure;

/// The largest file that describes a host.
const LARGEST: u64 = 16 << 20;

/// The host that a file describes.
///
/// # Errors
/// The fault of the file, with its line.
pub(crate) fn read(path: &str) -> Result<Profile, Failure> {
    let presets = Profile::PRESETS.join(", ");
    let text = content(Path::new(path))
        .map_err(|error| Failure::Input(format!("{path}: expected a host: one of {presets}, or a file: {error}")))?;
    let profile = parse(path, &text)?;
    profile.check().map_err(|error| Failure::Input(format!("{path}: {error}")))?;
    Ok(profile)
}

fn content(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut text = Vec::new();
    std::fs::File::open(path)?.take(LARGEST).read_to_end(&mut text)?;
    Ok(text)
}

/// The description in a text.
///
/// # Errors
/// The fault of the text, with its line.
pub(crate) fn parse(path: &str, text: &[u8]) -> Result<Profile, Failure> {
    if let Some(reserved) = reserved_regions(text) {
        return Ok(with_common_width(path, reserved));
    }
    serde_json::from_slice(text).map_err(|error| {
        let text = error.to_string();
        let what = text.split(" at line ").next().unwrap_or_default();
        let meant = nearest_in(what).map_or_else(String::new, |name| format!("; did you mean `{name}`?"));
        Failure::input(path, error.line(), &format_args!("expected a host's description: {what}{meant}"))
    })
}

/// The ranges of a text that is the kernel's `reserved_regions`, as a user copies it.
fn reserved_regions(text: &[u8]) -> Option<Vec<ReservedProfile>> {
    let text = std::str::from_utf8(text).ok()?;
    if text.trim_start().starts_with("0x") { ReservedProfile::lines(text).ok() } else { None }
}

/// A host of which only the reserved ranges are known. The width has to be assumed, and its name says so.
fn with_common_width(path: &str, reserved: Vec<ReservedProfile>) -> Profile {
    let mut profile = Profile::vtd();
    profile.name = format!("of {path}, with 48 address bits assumed");
    if let Some(fixed) = &mut profile.fixed {
        fixed.reserved = reserved;
    }
    profile
}

/// The known name that an unknown one in serde's error is closest to: "unknown field `nome`, expected one of `name`,
/// `kernel`".
fn nearest_in(error: &str) -> Option<&str> {
    let rest = error.strip_prefix("unknown field ").or_else(|| error.strip_prefix("unknown variant "))?;
    let mut names = rest.split('`').skip(1).step_by(2);
    let unknown = names.next()?;
    let distance = |name: &&str| strsim::damerau_levenshtein(unknown, name);
    names.min_by_key(distance).filter(|name| distance(name) <= name.len().max(unknown.len()) / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        parse("h.json", text.as_bytes()).expect_err("it is spoilt").to_string()
    }

    #[test]
    fn an_unknown_field_is_an_error_that_names_the_nearest() {
        let error = refusal("{\n \"fixed\": {\"last\": 1, \"reserved\": [], \"page_size\": 4096}}");
        assert!(error.starts_with("h.json:2: expected a host's description: unknown field `page_size`"), "{error}");
        assert!(error.ends_with("did you mean `page_sizes`?"), "{error}");
        assert!(refusal("{\"grups\": []}").ends_with("did you mean `groups`?"));
        assert!(!refusal("{\"colour\": 1}").contains("did you mean"));
    }

    #[test]
    fn only_the_aperture_and_the_reserved_ranges_have_to_be_told() {
        let least = "{\"fixed\": {\"last\": \"0x7fffffffff\", \"reserved\": []}}";
        let profile = parse("h.json", least.as_bytes()).expect("enough");
        assert_eq!(profile.check(), Ok(()));
        assert_eq!(profile.groups.len(), 1);
        assert!(refusal("{\"fixed\": {\"last\": 4095}}").contains("missing field `reserved`"));
        assert!(refusal("{\"fixed\": {\"reserved\": []}}").contains("missing field `last`"));
        let power = parse("h.json", b"{\"tce\": {}}").expect("enough");
        assert_eq!(power.tce, Profile::powernv9().tce);
    }

    #[test]
    fn the_kernels_own_text_is_a_host() {
        let text = "0x00000000fee00000 0x00000000feefffff msi\n0x000000fd00000000 0x000000ffffffffff reserved\n";
        let alone = parse("reserved_regions", text.as_bytes()).expect("as it stands");
        let json = serde_json::json!({"fixed": {"last": "0xffffffffffff", "reserved": text}}).to_string();
        let within = parse("h.json", json.as_bytes()).expect("as it stands");
        let reserved = |profile: &Profile| profile.fixed.as_ref().map(|fixed| fixed.reserved.clone());
        assert_eq!(reserved(&alone), reserved(&Profile::amd()));
        assert_eq!(reserved(&within), reserved(&alone));
        assert!(alone.name.contains("assumed"));
    }
}
