//! Progress on the standard error, for people who wait.
//!
//! Nothing is shown where the standard error is no terminal, nor before a second has passed. A thread shows it, so that
//! the work itself need not know.

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// The time after which people wonder.
const PATIENCE: Duration = Duration::from_secs(1);
/// The time between two pictures.
const PICTURE: Duration = Duration::from_millis(120);

/// Work in progress, until it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    done: Arc<AtomicU64>,
    shown: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Progress {
    /// Work of `total` steps, in words; of zero steps if their number is not known.
    pub(crate) fn of(what: impl Into<String>, total: u64) -> Self {
        if !io::stderr().is_terminal() {
            return Self::default();
        }
        let (what, done) = (what.into(), Arc::new(AtomicU64::new(0)));
        let (end, ended) = mpsc::channel();
        let watched = done.clone();
        let thread = thread::Builder::new().spawn(move || {
            if ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                let bar = bar(what, total);
                while ended.recv_timeout(PICTURE) == Err(RecvTimeoutError::Timeout) {
                    bar.set_position(watched.load(Ordering::Relaxed));
                    bar.tick();
                }
                bar.finish_and_clear();
            }
        });
        // Without a thread there is no progress to see, and the work goes on.
        Self { done, shown: thread.ok().map(|thread| (end, thread)) }
    }

    /// A step is done.
    pub(crate) fn step(&self) {
        self.done.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((end, thread)) = self.shown.take() {
            drop(end);
            // A thread that failed has cleared nothing, which is no reason to fail too.
            let _ = thread.join();
        }
    }
}

fn bar(what: String, total: u64) -> ProgressBar {
    let target = ProgressDrawTarget::stderr();
    let (bar, template) = match total {
        0 => (ProgressBar::with_draw_target(None, target), "{spinner} {msg}, {elapsed}"),
        total => (
            ProgressBar::with_draw_target(Some(total), target),
            "{spinner} {msg}, {elapsed}: {pos} of {len}, {eta} left",
        ),
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner());
    bar.with_style(style).with_message(what).with_elapsed(PATIENCE)
}
