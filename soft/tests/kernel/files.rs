//! Profiles from files: a written profile can be read back, and a faulty one is refused with a reason.

use dmaspace_soft::{Profile, SoftHost};

fn read(text: &str) -> Result<Profile, String> {
    let profile: Profile = serde_json::from_str(text).map_err(|error| error.to_string())?;
    profile.check().map_err(|bad| bad.to_string())?;
    Ok(profile)
}

fn written(profile: &Profile) -> String {
    serde_json::to_string_pretty(profile).expect("plain data")
}

#[test]
fn every_preset_survives_a_file() {
    for name in Profile::PRESETS {
        let profile = Profile::preset(name).expect("a preset");
        assert_eq!(read(&written(&profile)).as_ref(), Ok(&profile));
    }
}

#[test]
fn addresses_are_written_in_hexadecimal() {
    let text = written(&Profile::vtd());
    for part in
        ["\"kernel\": \"6.12\"", "\"first\": \"0xfee00000\"", "\"reason\": \"msi\"", "\"page_sizes\": \"0x40201000\""]
    {
        assert!(text.contains(part), "{part} in {text}");
    }
    let powernv = written(&Profile::powernv9());
    for part in ["\"ppc64le\"", "\"powernv\"", "\"0x800000000000000\"", "\"spapr\""] {
        assert!(powernv.contains(part), "{part} in {powernv}");
    }
}

#[test]
fn numbers_that_are_not_hexadecimal_are_read() {
    let text = written(&Profile::vtd()).replace("\"0xfee00000\"", "4276092928").replace("\"0x1000\"", "\"4096\"");
    assert_eq!(read(&text), Ok(Profile::vtd()));
}

#[test]
fn a_file_may_name_its_form_and_version() {
    let marked = |mark: &str| read(&written(&Profile::vtd()).replacen('{', &format!("{{{mark},"), 1));
    for known in ["\"version\": 1", "\"schema\": \"dmaspace/host\"", "\"schema\": \"dmaspace/host\", \"version\": 1"] {
        assert_eq!(marked(known), Ok(Profile::vtd()), "{known}");
    }
    for (unknown, part) in [
        ("\"version\": 2", "version 2 of a host file is newer than 1"),
        ("\"version\": 0", "version 0 of a host file does not exist"),
        ("\"schema\": \"dmaspace/plan\"", "of the form `dmaspace/plan`, and a host file of `dmaspace/host`"),
    ] {
        let refusal = marked(unknown).expect_err("it is unknown");
        assert!(refusal.contains(part), "`{part}` in `{refusal}`");
    }
}

/// Asserts that a file with `to` in place of `from` is refused, and that the refusal contains `part`.
fn assert_refused(from: &str, to: &str, part: &str) {
    let vtd = written(&Profile::vtd());
    assert!(vtd.contains(from), "{from}");
    let refusal = read(&vtd.replacen(from, to, 1)).expect_err("it was spoilt");
    assert!(refusal.contains(part), "`{part}` in `{refusal}`");
}

#[test]
fn a_bad_field_is_refused_by_its_name() {
    assert_refused("\"name\"", "\"nome\"", "unknown field `nome`");
    assert_refused("\"type1\"", "\"type2\"", "unknown variant `type2`");
    assert_refused("\"6.12\"", "\"six\"", "`six` is no kernel version such as 6.12");
    assert_refused("\"0xfee00000\"", "\"0xfeg\"", "`0xfeg` is no number such as 0xfee00000");
    assert_refused("\"0xfee00000\"", "-1", "expected a number, or one in quotes");
    assert_refused("\"0xfee00000\"", "\"0xfff00000\"", "fixed.reserved[0]: ends before it begins");
    assert_refused("\"0x1000\"", "\"0x1001\"", "host_page: must be a power of two");
    assert_refused("0000:00:03.0", "00:03.0", "groups[0].devices[0].address: `00:03.0` is no PCI address");
}

#[test]
fn a_host_is_only_made_of_a_sound_profile() {
    let mut profile = Profile::vtd();
    profile.fixed = None;
    let refusal = SoftHost::new(profile).expect_err("type1 needs it");
    assert_eq!(refusal.field, "fixed");
}
