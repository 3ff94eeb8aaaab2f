//! The machine: one QEMU, started, listened to, and never outliving this process.

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

/// The time that a kernel that panicked has to print its log.
const PANIC_GRACE: Duration = Duration::from_secs(5);

/// The interval at which the run checks that its caller still waits.
const TICK: Duration = Duration::from_secs(1);

/// The command line of every kernel. Warnings are read from its log after the run, so the console is left to
/// the test; an Oops is made a panic, or the test would hang in a kernel that lost a lock. Emulated
/// processors are slow: what takes 20 s may still be fine.
const KERNEL_ARGUMENTS: &str = "panic=-1 oops=panic watchdog_thresh=60 rcupdate.rcu_cpu_stall_timeout=120";

/// A running QEMU. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Machine {
    qemu: Child,
    output: Receiver<Vec<u8>>,
    complaints: File,
}

/// The options that a user may add to a machine.
#[derive(Debug, Default)]
pub(crate) struct Extras {
    pub(crate) qemu_arguments: Vec<String>,
    pub(crate) kernel_arguments: String,
    pub(crate) shows_everything: bool,
}

impl Machine {
    /// Starts `host`.
    pub(crate) fn start(host: &Host, image: &Path, initramfs: &[u8], extras: &Extras) -> Result<Self> {
        let (program, _) = host.architecture.qemu();
        let complaints = tempfile::tempfile()?;
        // setpriv makes the kernel end QEMU when this process ends, in whatever way.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", program]);
        command.args(host.machine).args(["-m", host.memory]).args(PLAIN_MACHINE);
        command.arg("-kernel").arg(image).arg("-append").arg(kernel_arguments(host, extras));
        command.args(&extras.qemu_arguments);
        command.stdin(nameless(initramfs)?).stdout(Stdio::piped()).stderr(complaints.try_clone()?);

        let mut qemu = command.spawn().context("cannot run setpriv, of the package util-linux")?;
        let stdout = qemu.stdout.take().context("QEMU has no output")?;
        Ok(Self { qemu, output: listen(stdout), complaints })
    }

    /// Reads the machine's console until the run is over, or `limit` has passed.
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
                Err(RecvTimeoutError::Timeout) if parent_id() != parent => bail!("nobody waits for this run"),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if console.panic().is_some() {
                deadline = deadline.min(Instant::now() + PANIC_GRACE);
            }
        }
        Ok(Stop::Over)
    }

    fn last_words(&mut self) -> Result<String> {
        let status = self.qemu.wait()?;
        let mut complaints = String::new();
        self.complaints.rewind()?;
        self.complaints.read_to_string(&mut complaints)?;
        let said = complaints.lines().rfind(|line| !line.contains("warning: "));
        Ok(said.map_or_else(|| status.to_string(), str::to_owned))
    }
}

impl Drop for Machine {
    /// Both may fail only because QEMU has ended already.
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// Time passes with the processor's instructions, 8 ns each, and jumps to the next timer when the processor is idle:
/// whatever the guest waits for, a DMA transfer's 100 ms or the seconds of a bus reset, costs nothing, and a busy
/// machine makes no timer late. QEMU can do that with one thread for the processor only.
///
/// The console goes to stdout and the initramfs comes from stdin, by name: a file chardev never reads,
/// and an unlinked file cannot be left behind.
const PLAIN_MACHINE: &[&str] = &[
    "-accel",
    "tcg,thread=single",
    "-icount",
    "shift=3,sleep=off",
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

fn kernel_arguments(host: &Host, extras: &Extras) -> String {
    let loglevel = if extras.shows_everything { 7 } else { 1 };
    let Extras { kernel_arguments, .. } = extras;
    format!("{} {KERNEL_ARGUMENTS} loglevel={loglevel} {kernel_arguments}", host.kernel_arguments)
}

fn nameless(content: &[u8]) -> Result<File> {
    let mut file = tempfile::tempfile()?;
    file.write_all(content)?;
    file.rewind()?;
    Ok(file)
}

/// Reads in a thread of its own, for the watch to be able to give up.
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
