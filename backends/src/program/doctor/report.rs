//! A diagnosis as text and as JSON.

use serde::Serialize;

use super::remark::{Remark, Weight};
use super::{Diagnosis, Machine};
use crate::program::failure::Failure;
use crate::program::machine::Unseen;
use crate::program::schema::Form;
use crate::program::text::wrapped;

/// A diagnosis for a script.
#[derive(Serialize)]
struct Object<'a> {
    device: String,
    host: String,
    /// `true` if the device can be passed through.
    ok: bool,
    findings: &'a [Remark],
    unseen: &'a [Unseen],
}

/// One line of JSON.
pub(super) fn json(machine: &Machine, diagnosis: &Diagnosis) -> Result<String, Failure> {
    let object = Object {
        device: diagnosis.device.to_string(),
        host: machine.name(),
        ok: diagnosis.is_good(),
        findings: &diagnosis.remarks,
        unseen: &diagnosis.unseen,
    };
    Form::Doctor.line(&object)
}

/// Text for people.
pub(super) fn text(machine: &Machine, diagnosis: &Diagnosis) -> String {
    let parts = [
        heading(machine, diagnosis),
        verdict(diagnosis),
        part("", &diagnosis.remarks, Weight::No),
        part("\nIt may fail later, or be slow:\n", &diagnosis.remarks, Weight::Later),
        part("\nNo obstacle:\n", &diagnosis.remarks, Weight::Fine),
        unseen(&diagnosis.unseen),
        footer(diagnosis),
    ];
    parts.concat()
}

fn heading(machine: &Machine, diagnosis: &Diagnosis) -> String {
    let device = diagnosis.device;
    let about = machine.facts.devices.get(&device).map_or_else(String::new, |found| {
        let driver = found.driver.as_ref().map_or_else(|| "no driver".to_owned(), |driver| format!("driver {driver}"));
        let group = found.group.map_or_else(|| "no IOMMU group".to_owned(), |group| format!("IOMMU group {group}"));
        format!(" ({:04x}:{:04x}, {driver}, {group})", found.vendor, found.device)
    });
    format!("{device}{about} on {}, Linux {}\n\n", machine.name(), machine.facts.kernel)
}

fn verdict(diagnosis: &Diagnosis) -> String {
    let count = |weight| diagnosis.remarks.iter().filter(|remark| remark.weight == weight).count();
    match (count(Weight::No), count(Weight::Later)) {
        (0, 0) => "It can be passed through.\n".to_owned(),
        (0, _) => "It can be passed through; see below for what may fail later.\n".to_owned(),
        (1, _) => "It cannot be passed through as it is: one thing stands in the way.\n".to_owned(),
        (several, _) => format!("It cannot be passed through as it is: {several} things stand in the way.\n"),
    }
}

fn part(title: &str, remarks: &[Remark], weight: Weight) -> String {
    let chosen: Vec<_> = remarks.iter().filter(|remark| remark.weight == weight).collect();
    if chosen.is_empty() {
        return String::new();
    }
    let told = (1..).zip(chosen).map(|(number, remark)| one(number, remark));
    title.to_owned() + &told.collect::<String>()
}

const COLUMNS: usize = 100;

fn one(number: usize, remark: &Remark) -> String {
    let said = format!("{} [{}]", remark.said, remark.code);
    let number = if remark.weight == Weight::No { format!("{number:>3}. ") } else { "  -  ".to_owned() };
    let mut text = hanging(&number, &said);
    for command in &remark.commands {
        text += &format!("         {command}\n");
    }
    text
}

/// A text behind a mark of five columns, below which its lines hang.
fn hanging(mark: &str, text: &str) -> String {
    format!("{mark}{}\n", wrapped(text, COLUMNS - mark.len()).join("\n     "))
}

fn unseen(unseen: &[Unseen]) -> String {
    if unseen.is_empty() {
        return String::new();
    }
    let lines = unseen.iter().map(|unseen| hanging("  -  ", &format!("{} (needs {})", unseen.what, unseen.needs)));
    "\nNot seen:\n".to_owned() + &lines.collect::<String>()
}

fn footer(diagnosis: &Diagnosis) -> String {
    match diagnosis.remarks.first() {
        Some(remark) => format!(
            "\nCommands are for root. The words in brackets are explained by: dmaspace explain {}\n",
            remark.code
        ),
        None => String::new(),
    }
}
