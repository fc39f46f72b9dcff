//! Progress of what takes longer than a moment: a line that lives on a terminal, plain lines
//! elsewhere.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::Duration;
use trivet_model::size::ByteSize;

const REDRAWN_EVERY: Duration = Duration::from_millis(100);
/// How often progress is told where no terminal shows it.
const TOLD_EVERY: Duration = Duration::from_secs(5);

/// A step whose end is not foreseeable.
#[derive(Debug)]
pub(crate) struct Step {
    bar: ProgressBar,
    last: Option<String>,
}

impl Step {
    pub(crate) fn begin(text: &str) -> Self {
        let bar = if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(REDRAWN_EVERY);
            bar.set_message(text.to_owned());
            bar
        } else {
            ProgressBar::hidden()
        };
        Self { bar, last: None }
    }

    /// Whether someone sees it live on a terminal.
    pub(crate) fn is_shown(&self) -> bool {
        !self.bar.is_hidden()
    }

    /// What is being waited for now.
    pub(crate) fn tell(&mut self, text: String) {
        if self.bar.is_hidden() {
            if self.last.as_ref() != Some(&text) {
                eprintln!("{text}");
            }
        } else {
            self.bar.set_message(text.clone());
        }
        self.last = Some(text);
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Work of known length, with its rate and the time left.
#[derive(Debug)]
pub(crate) struct Run {
    bar: ProgressBar,
    total: u64,
    told_at: Duration,
}

impl Run {
    /// A run of so many seconds.
    pub(crate) fn of_seconds(seconds: u64) -> Self {
        Self::begin(seconds, "{bar:30} {pos}/{len} s, {eta} left  {msg}")
    }

    /// So many bytes to go through.
    pub(crate) fn of_bytes(bytes: u64) -> Self {
        Self::begin(bytes, "{bar:30} {binary_bytes}/{binary_total_bytes}, {binary_bytes_per_sec}, {eta} left")
    }

    fn begin(total: u64, template: &str) -> Self {
        let bar = if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new(total);
            match ProgressStyle::with_template(template) {
                Ok(style) => bar.set_style(style),
                Err(error) => unreachable!("the template is fixed: {error}"),
            }
            bar
        } else {
            ProgressBar::hidden()
        };
        Self { bar, total, told_at: Duration::ZERO }
    }

    /// Shows the time passed and the rate so far.
    pub(crate) fn tell_seconds(&mut self, elapsed: Duration, rate: impl FnOnce() -> String) {
        if !self.bar.is_hidden() {
            self.bar.set_position(elapsed.as_secs());
            self.bar.set_message(rate());
        } else if self.is_due(elapsed) {
            eprintln!("{} of {} s: {}", elapsed.as_secs(), self.total, rate());
        }
    }

    /// Shows the bytes done after `elapsed`.
    pub(crate) fn tell_bytes(&mut self, done: u64, elapsed: Duration) {
        if !self.bar.is_hidden() {
            self.bar.set_position(done);
        } else if self.is_due(elapsed) {
            let rate = done / elapsed.as_secs().max(1);
            let left = self.total.saturating_sub(done) / rate.max(1);
            eprintln!("{} of {}, {}/s, {left} s left", ByteSize(done), ByteSize(self.total), ByteSize(rate));
        }
    }

    fn is_due(&mut self, elapsed: Duration) -> bool {
        let due = elapsed >= self.told_at + TOLD_EVERY;
        if due {
            self.told_at = elapsed;
        }
        due
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
