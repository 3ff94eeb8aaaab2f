//! Codes of findings, and their pages: the sections of docs/findings.md.

use std::fmt;

use clap::Args;
use serde::{Serialize, Serializer};

use crate::program::failure::{Failure, Status};
use crate::program::schema::Form;

/// Explain a finding, by the code that `doctor` and `replay` print beside it; without one, list all codes.
#[derive(Debug, Args)]
#[command(after_long_help = AFTER)]
pub(crate) struct Explain {
    /// The code: group-shared, locked-memory, …
    #[arg(value_name = "CODE")]
    pub(crate) code: Option<String>,

    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

const AFTER: &str = "\
Examples:
  Why is it bad that my group is shared, and what can I do?
      dmaspace explain group-shared
  All codes there are:
      dmaspace explain

Exit status: 0, or 2 for a code that does not exist.";

/// The pages.
const PAGES: &str = include_str!("explain/findings.md");

/// Declares the codes, each with the word that people see.
macro_rules! codes {
    ($($name:ident = $word:literal,)*) => {
        /// The code of a finding.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Code {
            $(#[doc = concat!("`", $word, "`")] $name,)*
        }

        impl Code {
            /// All codes.
            pub(crate) const ALL: &[Self] = &[$(Self::$name,)*];

            /// The word that people see.
            pub(crate) const fn word(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)*
                }
            }
        }
    };
}

codes! {
    NoDevice = "no-device",
    NoIommu = "no-iommu",
    IommuOff = "iommu-off",
    NoGroup = "no-group",
    NoiommuMode = "noiommu-mode",
    GroupShared = "group-shared",
    GroupMembers = "group-members",
    AcsOverride = "acs-override",
    FirmwareRegion = "firmware-region",
    FirmwareRegionRelaxable = "firmware-region-relaxable",
    OwnDisk = "own-disk",
    OwnNetwork = "own-network",
    DriverBound = "driver-bound",
    NoDriver = "no-driver",
    NoModule = "no-module",
    ModuleNotLoaded = "module-not-loaded",
    NoNode = "no-node",
    NoPermission = "no-permission",
    InUse = "in-use",
    LockedMemory = "locked-memory",
    MappingLimit = "mapping-limit",
    CgroupLimit = "cgroup-limit",
    HostMemory = "host-memory",
    BarSmall = "bar-small",
    BarMsix = "bar-msix",
    BarLarge = "bar-large",
    Bridge = "bridge",
    NoReset = "no-reset",
    PowerState = "power-state",
    BootDisplay = "boot-display",
    NarrowIommu = "narrow-iommu",
    AboveIommuWidth = "above-iommu-width",
    InterruptRange = "interrupt-range",
    HypertransportHole = "hypertransport-hole",
    ReservedRange = "reserved-range",
    PageAlignment = "page-alignment",
    BarPeerToPeer = "bar-peer-to-peer",
    Unpinnable = "unpinnable",
    Occupied = "occupied",
    NotMapped = "not-mapped",
    Unaligned = "unaligned",
    UnsafeInterrupts = "unsafe-interrupts",
    NoKvm = "no-kvm",
    PassthroughMode = "passthrough-mode",
    NoBackend = "no-backend",
    UnknownError = "unknown-error",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

impl Code {
    /// Its page, without the heading.
    pub(crate) fn page(self) -> Option<&'static str> {
        pages().find(|(word, _)| *word == self.word()).map(|(_, page)| page)
    }

    /// The first sentence of its page.
    pub(crate) fn title(self) -> &'static str {
        let page = self.page().unwrap_or_default();
        page.split("\n\n").next().unwrap_or_default()
    }
}

/// The sections of the pages, by their words.
fn pages() -> impl Iterator<Item = (&'static str, &'static str)> {
    let sections = PAGES.split("\n## ").skip(1);
    sections.filter_map(|section| section.split_once('\n')).map(|(word, page)| (word, page.trim()))
}

/// The page of a code, or the list of all codes.
///
/// # Errors
/// A code that does not exist.
pub(crate) fn run(arguments: &Explain) -> Result<(String, Status), Failure> {
    let Some(wanted) = &arguments.code else {
        let text = if arguments.json { json(Code::ALL.iter().copied())? } else { list() };
        return Ok((text, Status::Good));
    };
    let known = Code::ALL.iter().copied().find(|code| code.word() == wanted.trim_matches(['[', ']']));
    match known.and_then(|code| Some((code, code.page()?))) {
        Some((code, _)) if arguments.json => Ok((json([code].into_iter())?, Status::Good)),
        Some((code, page)) => Ok((format!("{code}\n\n{page}\n"), Status::Good)),
        None => Err(Failure::Input(unknown(wanted))),
    }
}

/// The pages of findings, for a script.
#[derive(Serialize)]
struct Pages {
    findings: Vec<Page>,
}

#[derive(Serialize)]
struct Page {
    code: Code,
    title: String,
    page: &'static str,
}

fn json(codes: impl Iterator<Item = Code>) -> Result<String, Failure> {
    let pages =
        codes.map(|code| Page { code, title: code.title().replace('\n', " "), page: code.page().unwrap_or_default() });
    Form::Explain.line(&Pages { findings: pages.collect() })
}

fn unknown(wanted: &str) -> String {
    let nearest = Code::ALL.iter().min_by_key(|code| strsim::damerau_levenshtein(wanted, code.word()));
    let meant = nearest.map_or_else(String::new, |code| format!("; did you mean {code}?"));
    format!("there is no finding {wanted}{meant} `dmaspace explain` lists all")
}

fn list() -> String {
    let widest = Code::ALL.iter().map(|code| code.word().len()).max().unwrap_or_default();
    let line = |code: &Code| format!("{:<widest$}  {}\n", code.word(), code.title().replace('\n', " "));
    Code::ALL.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_page_and_every_page_a_code() {
        let words: Vec<_> = Code::ALL.iter().map(|code| code.word()).collect();
        let pages: Vec<_> = pages().map(|(word, _)| word).collect();
        assert_eq!(words, pages);
        for code in Code::ALL {
            let page = code.page().expect("a page");
            assert!(page.contains("What to do: "), "{code}");
            assert!(code.title().ends_with('.') || code.title().ends_with(").."), "{code}: {}", code.title());
        }
    }

    #[test]
    fn a_code_that_does_not_exist_is_bad_input_and_names_the_nearest() {
        let asked = Explain { code: Some("group-share".to_owned()), json: false };
        let error = run(&asked).expect_err("it does not exist");
        assert!(error.to_string().contains("did you mean group-shared?"), "{error}");
    }
}
