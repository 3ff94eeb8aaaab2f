//! The end of a run that does not end well.

use std::fmt;
use std::process::ExitCode;

/// The reason for which there is nothing to print.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    /// The input makes no sense.
    #[error("{0}")]
    Input(String),
    /// A host, its kernel above all, said no.
    #[error("{0}")]
    Host(String),
}

impl Failure {
    /// Bad input, with its place and the reason.
    pub(crate) fn input(file: &str, line: usize, what: &impl fmt::Display) -> Self {
        Self::Input(format!("{file}:{line}: {what}"))
    }

    /// A host said no.
    pub(crate) fn host(what: &impl fmt::Display) -> Self {
        Self::Host(what.to_string())
    }
}

/// A run's exit status. The worst of several files' counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Status {
    /// Every required section was provided.
    #[default]
    Good,
    /// One was not.
    Refused,
    /// The input was bad.
    BadInput,
}

impl From<()> for Status {
    fn from((): ()) -> Self {
        Self::Good
    }
}

impl From<&Failure> for Status {
    fn from(failure: &Failure) -> Self {
        match failure {
            Failure::Input(_) => Self::BadInput,
            Failure::Host(_) => Self::Refused,
        }
    }
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        match status {
            Status::Good => Self::SUCCESS,
            Status::Refused => Self::from(1),
            Status::BadInput => Self::from(2),
        }
    }
}
