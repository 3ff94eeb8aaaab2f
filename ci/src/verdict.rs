//! The verdict on a run in an emulated host: a pure function of the console's output and of the machine's end.
//!
//! A binary that fails keeps its exit status. Every other failure has a status that no test uses, so that a script can
//! distinguish a kernel that hangs from an assertion that fails.

use std::time::Duration;

use crate::console::{Console, Exit};

/// The taint flags that a run must not raise: a machine check, a bad page, an Oops, a WARN, a soft lockup.
const SERIOUS_TAINT: u64 = (1 << 4) | (1 << 5) | (1 << 7) | (1 << 9) | (1 << 14);

/// The texts that a complaint in the kernel's log starts with.
const COMPLAINTS: &[&str] = &[
    "------------[ cut here ]------------",
    "WARNING: ",
    "BUG: ",
    "kernel BUG at ",
    "Oops: ",
    "UBSAN: ",
    "rcu: INFO: ",
    "INFO: task ",
];

/// The text in the last line of a complaint.
const COMPLAINT_ENDS: &str = "---[ end trace";

/// The number of lines that are shown of a complaint whose last line is missing.
const COMPLAINT_LINES: usize = 50;

/// The reason why the machine is no longer read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Init reached its end, or one of its steps failed.
    Over,
    /// The time limit, which is given here, passed.
    TimeLimit(Duration),
    /// QEMU ended by itself. The text is its last error message.
    Gone(String),
}

/// The verdict on a run.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The binary ran to its end with this exit status, and the kernel did not complain.
    Exited(u8),
    /// The binary ran to its end, and the kernel complained.
    KernelComplained { status: u8, complaint: String },
    /// The kernel panicked, for the given reason.
    KernelPanicked(String),
    /// The binary was still running when the time limit passed.
    Hung(Duration),
    /// The host did not start the binary, for the given reason.
    BootFailed(String),
    /// QEMU ended during the run, for the given reason.
    MachineLost(String),
}

impl Verdict {
    /// The verdict on a run, from the console's output and the reason why the machine is no longer read.
    pub(crate) fn on(console: &Console, stop: Stop) -> Self {
        if let Some(reason) = console.panic() {
            return Self::KernelPanicked(reason.to_owned());
        }
        if let Some(failure) = console.setup_failure() {
            return Self::BootFailed(failure.to_owned());
        }
        match (stop, console.exit()) {
            (Stop::Over, Some(exit)) => Self::on_exit(exit, console.kernel_log()),
            (Stop::TimeLimit(limit), _) if console.has_booted() => Self::Hung(limit),
            (Stop::TimeLimit(limit), _) => Self::BootFailed(format!("still booting after {} s", limit.as_secs())),
            (Stop::Gone(words), _) if console.has_booted() => Self::MachineLost(words),
            (Stop::Gone(words), _) => Self::BootFailed(format!("QEMU ended: {words}")),
            (Stop::Over, None) => Self::MachineLost("the exit mark of init cannot be read".to_owned()),
        }
    }

    fn on_exit(Exit { status, taint: [before, after] }: Exit, kernel_log: &str) -> Self {
        let raised = after & !before & SERIOUS_TAINT;
        match complaint(kernel_log) {
            Some(complaint) => Self::KernelComplained { status, complaint },
            None if raised != 0 => {
                let complaint =
                    format!("the taint flags {raised:#x} were raised, but the log no longer contains the reason");
                Self::KernelComplained { status, complaint }
            }
            None => Self::Exited(status),
        }
    }

    /// The exit status of this program.
    pub(crate) fn status(&self) -> u8 {
        match self {
            Self::Exited(status) => *status,
            Self::KernelComplained { status: 0, .. } => 122,
            Self::KernelComplained { status, .. } => *status,
            Self::KernelPanicked(_) => 121,
            Self::Hung(_) => 124,
            Self::BootFailed(_) | Self::MachineLost(_) => 120,
        }
    }

    /// The verdict as one line of text.
    pub(crate) fn line(&self) -> String {
        match self {
            Self::Exited(status) => format!("exit status {status}"),
            Self::KernelComplained { status, .. } => {
                format!("the kernel complained, see above (exit status {status})")
            }
            Self::KernelPanicked(reason) => format!("the kernel panicked: {reason}"),
            Self::Hung(limit) => {
                format!("hung: still running after {} s (EMULATED_HOST_TIMEOUT)", limit.as_secs())
            }
            Self::BootFailed(why) => format!("did not boot: {why}"),
            Self::MachineLost(why) => format!("QEMU ended during the run: {why}"),
        }
    }
}

/// The first complaint in a kernel's log, with all its lines.
fn complaint(kernel_log: &str) -> Option<String> {
    let mut lines = kernel_log.lines().skip_while(|line| !complains(line));
    let mut complaint = lines.next()?.to_owned();
    for line in lines.take(COMPLAINT_LINES) {
        complaint.push('\n');
        complaint.push_str(line);
        if line.contains(COMPLAINT_ENDS) {
            break;
        }
    }
    Some(complaint)
}

/// Returns `true` if a line of the kernel's log starts a complaint. Only the start of the message counts, after its
/// time stamp, because messages of drivers contain the same words elsewhere.
fn complains(line: &str) -> bool {
    let stamped = match line.strip_prefix('[').and_then(|line| line.split_once("] ")) {
        Some((_, message)) => message,
        None => line,
    };
    let message = stamped.strip_prefix("watchdog: ").unwrap_or(stamped);
    COMPLAINTS.iter().any(|start| message.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(300);

    fn verdict(stream: &str, stop: Stop) -> Verdict {
        let mut console = Console::new(false);
        assert!(console.read(stream.as_bytes(), &mut Vec::new()).is_ok());
        Verdict::on(&console, stop)
    }

    #[test]
    fn a_binary_that_ends_keeps_its_exit_status() {
        let passed = verdict("\x1erun\n\x1eexit 0 0 0\n\x1eend\n", Stop::Over);
        let failed = verdict("\x1erun\n\x1eexit 101 0 0\n\x1eend\n", Stop::Over);
        assert_eq!((passed.status(), failed.status()), (0, 101));
        assert_eq!(failed, Verdict::Exited(101));
    }

    #[test]
    fn a_warning_of_the_kernel_fails_a_run_whose_binary_succeeded() {
        let log = "[1.0] vfio: fine\n[2.0] ------------[ cut here ]------------\n\
                   [2.0] WARNING: CPU: 0 PID: 1 at virt/kvm/vfio.c:103\n\
                   [2.0] ---[ end trace 0 ]---\n[3.0] unrelated\n";
        let complained = verdict(&format!("\x1erun\n\x1eexit 0 0 512\n{log}\x1eend\n"), Stop::Over);
        assert_eq!(complained.status(), 122);
        let complaint = "[2.0] ------------[ cut here ]------------\n\
                         [2.0] WARNING: CPU: 0 PID: 1 at virt/kvm/vfio.c:103\n\
                         [2.0] ---[ end trace 0 ]---";
        assert_eq!(complained, Verdict::KernelComplained { status: 0, complaint: complaint.to_owned() });
    }

    #[test]
    fn a_raised_taint_flag_fails_a_run_without_a_complaint_in_the_log() {
        assert_eq!(verdict("\x1erun\n\x1eexit 0 0 512\n\x1eend\n", Stop::Over).status(), 122);
    }

    #[test]
    fn a_taint_flag_that_was_set_before_the_run_is_ignored() {
        let passed = verdict("\x1erun\n\x1eexit 0 512 512\n\x1eend\n", Stop::Over);
        assert_eq!(passed, Verdict::Exited(0));
    }

    #[test]
    fn a_binary_that_fails_and_makes_the_kernel_complain_keeps_its_exit_status() {
        let failed = verdict("\x1erun\n\x1eexit 101 0 0\n[1.0] BUG: sleeping\n\x1eend\n", Stop::Over);
        assert_eq!(failed.status(), 101);
    }

    #[test]
    fn a_warning_inside_a_message_is_not_a_complaint() {
        assert!(!complains("[    1.0] vfio-pci 0000:01:00.0: WARNING: reset failed"));
        assert!(complains("[   30.1] watchdog: BUG: soft lockup - CPU#0 stuck for 22s!"));
        assert!(complains("[   30.1] BUG: kernel NULL pointer dereference, address: 0"));
    }

    #[test]
    fn a_panic_takes_precedence_over_the_end_of_the_machine() {
        let stream = "\x1erun\n[2.0] Kernel panic - not syncing: Fatal exception\n";
        for stop in [Stop::Gone(String::new()), Stop::TimeLimit(LIMIT)] {
            assert_eq!(verdict(stream, stop).status(), 121);
        }
    }

    #[test]
    fn a_run_that_hangs_and_a_boot_that_hangs_have_different_statuses() {
        assert_eq!(verdict("\x1erun\ntest a ... ", Stop::TimeLimit(LIMIT)).status(), 124);
        assert_eq!(verdict("skiboot\n", Stop::TimeLimit(LIMIT)).status(), 120);
    }

    #[test]
    fn the_verdict_on_a_lost_machine_contains_the_last_message_of_qemu() {
        let early = verdict("", Stop::Gone("Bus 'pcie.9' not found".to_owned()));
        assert_eq!(early.line(), "did not boot: QEMU ended: Bus 'pcie.9' not found");
        let late = verdict("\x1erun\n", Stop::Gone("killed".to_owned()));
        assert_eq!(late, Verdict::MachineLost("killed".to_owned()));
    }
}
