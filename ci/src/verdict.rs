//! The verdict on a run in an emulated host: a pure function of the console and of the machine's end.
//!
//! A binary's own failure keeps its status. Everything else gets a status no test uses, so that a
//! script can tell a hanging kernel from a failing assertion.

use std::time::Duration;

use crate::console::{Console, Exit};

/// The taint flags a run may not raise: a machine check, a bad page, an Oops, a WARN, a soft lockup.
const SERIOUS_TAINT: u64 = (1 << 4) | (1 << 5) | (1 << 7) | (1 << 9) | (1 << 14);

/// The beginnings of a complaint of the kernel's.
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

/// The end of a complaint, and the number of lines shown of one without an end.
const COMPLAINT_ENDS: &str = "---[ end trace";
const COMPLAINT_LINES: usize = 50;

/// Why nothing more came from the machine.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Init had said all it has to say.
    Over,
    /// The time limit passed.
    TimeLimit(Duration),
    /// QEMU ended by itself; its last words.
    Gone(String),
}

/// The verdict on a run.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The binary ran to its end, and the kernel had nothing to complain about.
    Exited(u8),
    /// The binary ran to its end, and the kernel complained.
    KernelComplained { status: u8, complaint: String },
    /// The kernel gave up.
    KernelPanicked(String),
    /// The binary was still running when the time was up.
    Hung(Duration),
    /// The host never got as far as starting the binary.
    BootFailed(String),
    /// QEMU went away in the middle of the run.
    MachineLost(String),
}

impl Verdict {
    /// Judges a run.
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
            (Stop::TimeLimit(limit), _) => Self::BootFailed(format!("still at it after {} s", limit.as_secs())),
            (Stop::Gone(words), _) if console.has_booted() => Self::MachineLost(words),
            (Stop::Gone(words), _) => Self::BootFailed(format!("QEMU ended: {words}")),
            (Stop::Over, None) => Self::MachineLost("init's account of the run is garbled".to_owned()),
        }
    }

    fn on_exit(Exit { status, taint: [before, after] }: Exit, kernel_log: &str) -> Self {
        let raised = after & !before & SERIOUS_TAINT;
        match complaint(kernel_log) {
            Some(complaint) => Self::KernelComplained { status, complaint },
            None if raised != 0 => {
                let complaint = format!("taint flags {raised:#x} were raised; the log no longer says why");
                Self::KernelComplained { status, complaint }
            }
            None => Self::Exited(status),
        }
    }

    /// The exit status for the caller of the run.
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

    /// One line that says it all.
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

/// The first complaint in a kernel's log, with what belongs to it.
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

/// Only the start of a message counts, after its time stamp: drivers quote such words too.
fn complains(line: &str) -> bool {
    let message = match line.strip_prefix('[').and_then(|line| line.split_once("] ")) {
        Some((_, message)) => message,
        None => line,
    };
    let message = message.strip_prefix("watchdog: ").unwrap_or(message);
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
    fn a_binary_keeps_its_status() {
        let passed = verdict("\x1erun\n\x1eexit 0 0 0\n\x1eend\n", Stop::Over);
        let failed = verdict("\x1erun\n\x1eexit 101 0 0\n\x1eend\n", Stop::Over);
        assert_eq!((passed.status(), failed.status()), (0, 101));
        assert_eq!(failed, Verdict::Exited(101));
    }

    #[test]
    fn a_warning_of_the_kernel_fails_a_run_that_passed() {
        let log = "[1.0] vfio: fine\n[2.0] ------------[ cut here ]------------\n\
                   [2.0] WARNING: CPU: 0 PID: 1 at virt/kvm/vfio.c:103\n\
                   [2.0] ---[ end trace 0 ]---\n[3.0] unrelated\n";
        let verdict = verdict(&format!("\x1erun\n\x1eexit 0 0 512\n{log}\x1eend\n"), Stop::Over);
        assert_eq!(verdict.status(), 122);
        assert!(matches!(verdict, Verdict::KernelComplained { complaint, .. }
            if complaint.contains("kvm/vfio.c:103") && !complaint.contains("unrelated") && !complaint.contains("fine")));
    }

    #[test]
    fn a_taint_flag_is_enough_when_the_log_has_run_over() {
        assert_eq!(verdict("\x1erun\n\x1eexit 0 0 512\n\x1eend\n", Stop::Over).status(), 122);
    }

    #[test]
    fn what_tainted_the_kernel_before_the_run_is_not_its_fault() {
        let verdict = verdict("\x1erun\n\x1eexit 0 512 512\n\x1eend\n", Stop::Over);
        assert_eq!(verdict, Verdict::Exited(0));
    }

    #[test]
    fn a_test_that_fails_and_makes_the_kernel_complain_keeps_its_status() {
        let verdict = verdict("\x1erun\n\x1eexit 101 0 0\n[1.0] BUG: sleeping\n\x1eend\n", Stop::Over);
        assert_eq!(verdict.status(), 101);
    }

    #[test]
    fn a_word_of_warning_inside_a_message_is_no_complaint() {
        assert!(!complains("[    1.0] vfio-pci 0000:01:00.0: WARNING: reset failed"));
        assert!(complains("[   30.1] watchdog: BUG: soft lockup - CPU#0 stuck for 22s!"));
        assert!(complains("[   30.1] BUG: kernel NULL pointer dereference, address: 0"));
    }

    #[test]
    fn a_panic_outranks_how_the_machine_stopped() {
        let stream = "\x1erun\n[2.0] Kernel panic - not syncing: Fatal exception\n";
        for stop in [Stop::Gone(String::new()), Stop::TimeLimit(LIMIT)] {
            assert_eq!(verdict(stream, stop).status(), 121);
        }
    }

    #[test]
    fn a_hang_is_told_from_a_boot_that_never_ended() {
        assert_eq!(verdict("\x1erun\ntest a ... ", Stop::TimeLimit(LIMIT)).status(), 124);
        assert_eq!(verdict("skiboot\n", Stop::TimeLimit(LIMIT)).status(), 120);
    }

    #[test]
    fn a_machine_that_goes_away_is_told_by_its_last_words() {
        let early = verdict("", Stop::Gone("Bus 'pcie.9' not found".to_owned()));
        assert_eq!(early.line(), "did not boot: QEMU ended: Bus 'pcie.9' not found");
        let late = verdict("\x1erun\n", Stop::Gone("killed".to_owned()));
        assert_eq!(late, Verdict::MachineLost("killed".to_owned()));
    }
}
