//! A remark of the doctor: its weight, its code, one sentence, and the commands to type.

use serde::Serialize;

use crate::program::explain::Code;

/// The weight of a remark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Weight {
    /// It stands in the way.
    No,
    /// It may fail later, or be slow.
    Later,
    /// It is as it should be, or harmless.
    Fine,
}

/// A remark.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Remark {
    pub(crate) weight: Weight,
    pub(crate) code: Code,
    /// A sentence for people.
    pub(crate) said: String,
    /// The commands to type, as root.
    pub(crate) commands: Vec<String>,
}

/// Remarks that are being collected.
#[derive(Debug, Default)]
pub(crate) struct Remarks(Vec<Remark>);

impl Remarks {
    /// Something stands in the way.
    pub(crate) fn no(&mut self, code: Code, said: impl Into<String>, commands: impl IntoIterator<Item = String>) {
        self.add(Weight::No, code, said, commands);
    }

    /// Something may fail later.
    pub(crate) fn later(&mut self, code: Code, said: impl Into<String>, commands: impl IntoIterator<Item = String>) {
        self.add(Weight::Later, code, said, commands);
    }

    /// Something is harmless.
    pub(crate) fn fine(&mut self, code: Code, said: impl Into<String>) {
        self.add(Weight::Fine, code, said, []);
    }

    pub(crate) fn add(
        &mut self,
        weight: Weight,
        code: Code,
        said: impl Into<String>,
        commands: impl IntoIterator<Item = String>,
    ) {
        self.0.push(Remark { weight, code, said: said.into(), commands: commands.into_iter().collect() });
    }

    /// The heaviest first; else in the order in which they were made.
    pub(crate) fn in_order(mut self) -> Vec<Remark> {
        self.0.sort_by_key(|remark| remark.weight);
        self.0
    }
}
