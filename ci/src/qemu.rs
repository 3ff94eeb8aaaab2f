//! The machine: one QEMU process, which is started and read, and which ends with this process at the latest.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write};
use std::os::unix::process::parent_id;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::console::Console;
use crate::host::Host;
use crate::verdict::Stop;

/// The time in which a kernel that panicked may print its log.
const PANIC_GRACE: Duration = Duration::from_secs(5);

/// The interval at which a run checks that its parent process still exists.
const TICK: Duration = Duration::from_secs(1);

/// The arguments of every kernel. An Oops becomes a panic, since a test would hang in a kernel that lost a lock. The
/// watchdogs wait longer than by default, since emulated processors are slow: a task of 20 s is not a lockup.
const KERNEL_ARGUMENTS: &str = "panic=-1 oops=panic watchdog_thresh=60 rcupdate.rcu_cpu_stall_timeout=120";

/// A running QEMU process, which is killed when this value is dropped.
#[derive(Debug)]
pub(crate) struct Machine {
    qemu: Child,
    output: Receiver<Vec<u8>>,
    /// QEMU's standard error.
    complaints: File,
}

/// The arguments that a user may add to a machine.
#[derive(Debug, Default)]
pub(crate) struct Extras {
    pub(crate) qemu_arguments: Vec<String>,
    pub(crate) kernel_arguments: String,
    pub(crate) has_real_time: bool,
    pub(crate) shows_everything: bool,
}

impl Machine {
    /// Starts the machine of `host` with a kernel and an initramfs.
    pub(crate) fn start(host: &Host, image: &Path, initramfs: &[u8], extras: &Extras) -> Result<Self> {
        let (program, _) = host.architecture.qemu();
        let complaints = tempfile::tempfile()?;
        // With setpriv, the kernel kills QEMU when this process ends, even if this process is killed.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", program]);
        let clock = if extras.has_real_time { REAL_TIME } else { COUNTED_TIME };
        command.args(host.machine).args(["-m", host.memory]).args(clock).args(PLAIN_MACHINE);
        command.arg("-kernel").arg(image).arg("-append").arg(kernel_arguments(host, extras));
        command.args(&extras.qemu_arguments);
        command.stdin(unlinked(initramfs)?).stdout(Stdio::piped()).stderr(complaints.try_clone()?);

        let mut qemu = command.spawn().context("cannot run setpriv (package util-linux)")?;
        let stdout = qemu.stdout.take().context("the standard output of QEMU is not a pipe")?;
        Ok(Self { qemu, output: listen(stdout), complaints })
    }

    /// Reads the machine's console until the run is over, QEMU ends, or the time `limit` passes.
    pub(crate) fn watch(mut self, limit: Duration, console: &mut Console, out: &mut dyn Write) -> Result<Stop> {
        let parent = parent_id();
        let mut deadline = Instant::now() + limit;
        while !console.is_over() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Stop::TimeLimit(limit));
            }
            match self.output.recv_timeout(left.min(TICK)) {
                Ok(bytes) => console.read(&bytes, out)?,
                Err(RecvTimeoutError::Disconnected) => return self.last_words().map(Stop::Gone),
                Err(RecvTimeoutError::Timeout) if parent_id() != parent => {
                    bail!("the parent process has ended: the run is stopped")
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if console.panic().is_some() {
                deadline = deadline.min(Instant::now() + PANIC_GRACE);
            }
        }
        Ok(Stop::Over)
    }

    /// The last line of QEMU's standard error that is not a warning, or else QEMU's exit status.
    fn last_words(&mut self) -> Result<String> {
        let status = self.qemu.wait()?;
        let mut complaints = String::new();
        self.complaints.rewind()?;
        self.complaints.read_to_string(&mut complaints)?;
        let last = complaints.lines().rfind(|line| !line.contains("warning: "));
        Ok(last.map_or_else(|| status.to_string(), str::to_owned))
    }
}

impl Drop for Machine {
    /// Kills QEMU. Errors are ignored: both calls fail only if QEMU has already ended.
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// The time in the host advances by 8 ns with each instruction, and jumps to the next timer when the processor is idle.
/// The host's waits (100 ms for a DMA transfer, seconds for a bus reset) therefore cost nothing, and a busy machine
/// makes no timer late. QEMU supports this only with one thread for the processor.
const COUNTED_TIME: &[&str] = &["-accel", "tcg,thread=single", "-icount", "shift=3,sleep=off"];

/// The time in the host is this machine's.
const REAL_TIME: &[&str] = &["-accel", "tcg,thread=multi"];

/// QEMU's arguments for every machine.
///
/// The console is a file chardev on `/dev/stdout`, since such a chardev never reads. The initramfs is an unlinked file
/// on `/dev/stdin`, so that no file is left behind.
const PLAIN_MACHINE: &[&str] = &[
    "-smp",
    "1",
    "-display",
    "none",
    "-monitor",
    "none",
    "-chardev",
    "file,id=console,path=/dev/stdout",
    "-serial",
    "chardev:console",
    "-initrd",
    "/dev/stdin",
    "-no-reboot",
];

/// The kernel's command line. At log level 1 only the test writes to the console; warnings are read from the log after
/// the run.
fn kernel_arguments(host: &Host, extras: &Extras) -> String {
    let loglevel = if extras.shows_everything { 7 } else { 1 };
    let Extras { kernel_arguments, .. } = extras;
    format!("{} {KERNEL_ARGUMENTS} loglevel={loglevel} {kernel_arguments}", host.kernel_arguments)
}

/// An unlinked file with this content, to be read from its start.
fn unlinked(content: &[u8]) -> Result<File> {
    let mut file = tempfile::tempfile()?;
    file.write_all(content)?;
    file.rewind()?;
    Ok(file)
}

/// Reads QEMU's output in a separate thread, so that [`Machine::watch`] can stop waiting for it.
fn listen(mut stdout: impl std::io::Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = sync_channel(16);
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = stdout.read(&mut buffer) {
            let read = buffer.get(..length).unwrap_or_default().to_vec();
            if sender.send(read).is_err() {
                return;
            }
        }
    });
    receiver
}
