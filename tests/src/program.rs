//! The program `dmaspace` inside an emulated host: its answers are the kernel's and the library's.

use std::process::{Command, Output};
use std::sync::Arc;

use dmaspace::choose::{BackendKind, OpenRequest};
use dmaspace::open::Host;
use dmaspace::pci::PciAddress;
use libtest_mimic::Failed;
use serde_json::Value;

/// The place of the program in an emulated host.
const PROGRAM: &str = "/dmaspace";

/// A trial of the program: its name, and its body with the host's first device, if the host has one.
pub type ProgramTrial = (&'static str, fn(Option<PciAddress>) -> Result<(), Failed>);

/// All trials of the program.
pub const ALL: &[ProgramTrial] = &[
    ("probe_has_the_windows_of_the_kernel", |device| device.map_or(Ok(()), probe_has_the_windows_of_the_kernel)),
    ("probe_has_the_reserved_ranges", probe_has_the_reserved_ranges),
    ("doctor_finds_the_device_fit", doctor_finds_the_device_fit),
    ("plan_reads_the_probed_host", plan_reads_the_probed_host),
];

fn run(arguments: &[&str]) -> Result<Output, Failed> {
    Command::new(PROGRAM)
        .args(arguments)
        .output()
        .map_err(|error| Failed::from(format!("{PROGRAM}: {error}; ci/runner puts it there")))
}

/// The standard output of a run with this exit status.
fn output_of(arguments: &[&str], status: i32) -> Result<String, Failed> {
    let output = run(arguments)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.code() == Some(status) && output.stderr.is_empty() {
        return Ok(text);
    }
    Err(format!("{arguments:?}: {}: {text}{}", output.status, String::from_utf8_lossy(&output.stderr)).into())
}

fn probed() -> Result<Value, Failed> {
    let text = output_of(&["probe", "--json"], 0)?;
    serde_json::from_str(&text).map_err(|error| format!("{error}: {text}").into())
}

fn number(value: &Value) -> u64 {
    let text = value.as_str().unwrap_or_else(|| panic!("no number: {value}"));
    u64::from_str_radix(text.trim_start_matches("0x"), 16).expect("hexadecimal")
}

/// The aperture and the page sizes are those of a space that the library opens, or the windows that it can create.
fn probe_has_the_windows_of_the_kernel(device: PciAddress) -> Result<(), Failed> {
    let file = probed()?;
    if file["tce"].is_object() {
        return probe_has_the_windows_of_power(&file["tce"], device);
    }
    let opened = Host::this()?.open(&OpenRequest::device(device).with_backend(BackendKind::Type1))?;
    let windows = opened.space.space().windows().windows;
    let last = windows.iter().next_back().expect("it has windows");
    assert_eq!(number(&file["fixed"]["last"]), last.range.last().get(), "{file}");
    assert_eq!(number(&file["fixed"]["page_sizes"]), last.page_sizes.mask(), "{file}");
    let tables = output_of_free(opened, &["probe"])?;
    for window in windows.iter() {
        let row = format!("{:#x}", window.range.first().get());
        assert!(tables.lines().any(|line| line.split_whitespace().next() == Some(&row)), "{row} in {tables}");
    }
    Ok(())
}

/// The output of the program after a space is closed.
fn output_of_free(opened: dmaspace::Opened, arguments: &[&str]) -> Result<String, Failed> {
    drop(opened);
    output_of(arguments, 0)
}

fn probe_has_the_windows_of_power(tce: &Value, device: PciAddress) -> Result<(), Failed> {
    let host = Host::this()?;
    let opened = host.open(&OpenRequest::device(device).with_backend(BackendKind::Spapr))?;
    let offer = opened.space.space().powers().window_control.and_then(|control| control.offer()).expect("an offer");
    assert_eq!(number(&tce["page_sizes"]), offer.page_sizes.mask(), "{tce}");
    assert_eq!(number(&tce["starts"][0]), offer.places.first().expect("a place").first.get(), "{tce}");
    drop(opened);
    let opened = host.open(&OpenRequest::device(device).with_backend(BackendKind::SpaprV1))?;
    let window = *opened.space.space().windows().windows.iter().next().expect("it has one");
    assert_eq!(u128::from(number(&tce["default_window"])), window.range.bytes(), "{tce}");
    Ok(())
}

/// Every reserved range of sysfs is in the host file, for all groups or for its own.
fn probe_has_the_reserved_ranges(_: Option<PciAddress>) -> Result<(), Failed> {
    let file = probed()?;
    let host = Host::this()?;
    for group in host.facts().groups.values() {
        let own = file["groups"].as_array().into_iter().flatten().find(|told| told["number"] == group.number);
        let Some(own) = own else { continue };
        let common = file["fixed"]["reserved"].as_array().into_iter().flatten();
        let told: Vec<_> = common.chain(own["reserved"].as_array().into_iter().flatten()).collect();
        for region in &group.reserved {
            let is_told = told.iter().any(|told| {
                number(&told["first"]) == region.range.first().get()
                    && number(&told["last"]) == region.range.last().get()
                    && told["reason"] == region.kind.as_str()
            });
            assert!(is_told, "{region:?} of group {} in {file}", group.number);
        }
    }
    Ok(())
}

/// The device can be passed through; while another program has it, it cannot; and one that is absent cannot.
fn doctor_finds_the_device_fit(device: Option<PciAddress>) -> Result<(), Failed> {
    let absent = output_of(&["doctor", "fffe:01:00.0"], 1)?;
    assert!(absent.contains("[no-device]"), "{absent}");
    let Some(device) = device else { return no_iommu() };
    let name = device.to_string();
    let fit = output_of(&["doctor", &name, "--memory", "64M"], 0)?;
    assert!(fit.contains("It can be passed through"), "{fit}");
    // iommufd's nodes can be open twice.
    if Arc::new(Host::this()?).facts().nodes.iommufd {
        return Ok(());
    }
    let opened = Host::this()?.open(&OpenRequest::device(device))?;
    let busy = output_of(&["doctor", &name], 1)?;
    assert!(busy.contains("[in-use]"), "{busy}");
    drop(opened);
    Ok(())
}

/// A host without an IOMMU: the doctor says so of any device.
fn no_iommu() -> Result<(), Failed> {
    let host = Host::this()?;
    let endpoint = host.facts().devices.values().find(|device| !device.is_bridge());
    let Some(device) = endpoint else { return Ok(()) };
    let text = output_of(&["doctor", &device.address.to_string()], 1)?;
    assert!(text.contains("[no-iommu]") || text.contains("[no-group]"), "{text}");
    Ok(())
}

/// The host file of this host is one that `--host` takes, and a small guest fits there.
fn plan_reads_the_probed_host(device: Option<PciAddress>) -> Result<(), Failed> {
    const FILE: &str = "/tmp/probed.json";
    output_of(&["probe", "-o", FILE], 0)?;
    let again: Value = serde_json::from_str(&output_of(&["probe", "--host", FILE, "--json"], 0)?)?;
    let written: Value = serde_json::from_str(&std::fs::read_to_string(FILE)?)?;
    assert_eq!(again, written);
    if device.is_none() {
        return Ok(());
    }
    let machine = if cfg!(target_arch = "powerpc64") { "pseries" } else { "q35" };
    let plan = output_of(&["plan", "--machine", machine, "--memory", "256M", "--host", FILE, "--json"], 0)?;
    let plan: Value = serde_json::from_str(&plan)?;
    assert_eq!(plan["ok"], true, "{plan}");
    Ok(())
}
