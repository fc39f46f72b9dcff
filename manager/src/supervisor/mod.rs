//! Starts and watches the processes of this host: replica servers and engines.
//!
//! ```text
//!            wanted                 started or adopted
//!   (none) ────────▶ Starting ─────────────────────────▶ Running
//!                      ▲   pause over                      │ died
//!                      └──────────── Backoff ◀─────────────┘
//!   no longer wanted: Running ──SIGTERM, later SIGKILL──▶ (none);  Starting, Backoff ──▶ (none)
//! ```
//!
//! Processes outlive their supervisor. A new one adopts what runs, by the lock each process holds
//! ([`run_lock`]). What runs is never started twice: the lock decides that too, since a second
//! process cannot take it and ends.

mod backoff;
mod process;
pub mod run_lock;
mod stop;

pub use process::{ProcessSpec, last_error_in_log, open_log};
pub use stop::{known_processes, stop_holders};

use backoff::Backoff;
use process::{End, Running, adopt_or_start};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// Time for a process to end after SIGTERM before it is killed.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(15);
const TICK: Duration = Duration::from_millis(50);

/// Where a process stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// About to be started.
    Starting,
    /// Runs.
    Running,
    /// Died; will be started again.
    Backoff,
    /// Told to end.
    Stopping,
}

/// What is known of a process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProcessState {
    /// Where it stands.
    pub phase: Phase,
    /// While it runs.
    pub pid: Option<u32>,
    /// How often it was started again, or that was tried.
    pub restarts: u32,
    /// Why it died last.
    pub last_failure: Option<String>,
    /// Where its output is.
    pub log: std::path::PathBuf,
}

/// The states of all processes, by name.
pub type ProcessStates = BTreeMap<String, ProcessState>;

/// Tells the supervisor what to run and sees how it goes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Supervisor {
    wanted: mpsc::Sender<Vec<ProcessSpec>>,
    states: watch::Receiver<ProcessStates>,
}

impl Supervisor {
    /// Starts a supervisor on the present tokio runtime; it ends with the last handle, and leaves
    /// its processes running.
    #[must_use]
    pub fn spawn() -> Self {
        let (wanted, wanted_receiver) = mpsc::channel(8);
        let (states_sender, states) = watch::channel(ProcessStates::new());
        tokio::spawn(run(wanted_receiver, states_sender));
        Self { wanted, states }
    }

    /// Says what shall run from now on; what else runs is stopped.
    pub async fn want(&self, specs: Vec<ProcessSpec>) {
        // Fails only when the runtime is being shut down, and then nothing is wanted.
        if self.wanted.send(specs).await.is_err() {
            tracing::debug!("the supervisor has ended");
        }
    }

    /// The present states.
    #[must_use]
    pub fn states(&self) -> ProcessStates {
        self.states.borrow().clone()
    }

    /// Waits until `condition` holds of the states; `false` when it does not in time.
    pub async fn wait_until(&self, patience: Duration, condition: impl Fn(&ProcessStates) -> bool) -> bool {
        let mut states = self.states.clone();
        tokio::time::timeout(patience, states.wait_for(condition)).await.is_ok_and(|seen| seen.is_ok())
    }
}

struct Watched {
    spec: ProcessSpec,
    wanted: bool,
    backoff: Backoff,
    restarts: u32,
    last_failure: Option<String>,
    life: Life,
}

enum Life {
    StartAt(Instant),
    Running {
        pid: u32,
        since: Instant,
    },
    /// `told`: it has been sent SIGTERM, which a process too young to hold its lock has not.
    Stopping {
        pid: u32,
        told: bool,
        kill_at: Instant,
    },
}

struct Ended {
    name: String,
    pid: u32,
    end: End,
}

async fn run(mut wanted: mpsc::Receiver<Vec<ProcessSpec>>, states: watch::Sender<ProcessStates>) {
    let (ended_sender, mut ended) = mpsc::channel::<Ended>(64);
    let mut processes: BTreeMap<String, Watched> = BTreeMap::new();
    loop {
        tokio::select! {
            specs = wanted.recv() => match specs {
                Some(specs) => take_wanted(&mut processes, specs),
                None => return,
            },
            Some(event) = ended.recv() => take_end(&mut processes, event),
            () = tokio::time::sleep(TICK) => {}
        }
        let now = Instant::now();
        for watched in processes.values_mut() {
            watched.advance(now, &ended_sender);
        }
        processes.retain(|_, watched| watched.wanted || watched.pid().is_some());
        let fresh: ProcessStates =
            processes.iter().map(|(name, watched)| (name.clone(), watched.state())).collect();
        states.send_if_modified(|old| {
            let changed = *old != fresh;
            *old = fresh;
            changed
        });
    }
}

fn take_wanted(processes: &mut BTreeMap<String, Watched>, specs: Vec<ProcessSpec>) {
    for watched in processes.values_mut() {
        watched.wanted = false;
    }
    for spec in specs {
        let watched = processes.entry(spec.name.clone()).or_insert_with(|| Watched {
            spec: spec.clone(),
            wanted: true,
            backoff: Backoff::default(),
            restarts: 0,
            last_failure: None,
            life: Life::StartAt(Instant::now()),
        });
        watched.wanted = true;
        watched.spec = spec;
    }
}

fn take_end(processes: &mut BTreeMap<String, Watched>, event: Ended) {
    let Some(watched) = processes.get_mut(&event.name) else { return };
    if watched.pid() != Some(event.pid) {
        return;
    }
    let now = Instant::now();
    if let Life::Running { since, .. } = watched.life {
        let pause = watched.backoff.after_death(now - since);
        let said = if event.end.failed { last_error_in_log(&watched.spec.log) } else { None };
        let how = said.map_or(event.end.how.clone(), |said| format!("{}: {said}", event.end.how));
        tracing::warn!(process = event.name, pid = event.pid, ?pause, "{how}; starting it again");
        watched.last_failure = Some(how);
        watched.restarts += 1;
        watched.life = Life::StartAt(now + pause);
    } else {
        tracing::info!(process = event.name, pid = event.pid, "stopped");
        watched.life = Life::StartAt(now);
    }
}

impl Watched {
    fn pid(&self) -> Option<u32> {
        match self.life {
            Life::StartAt(_) => None,
            Life::Running { pid, .. } | Life::Stopping { pid, .. } => Some(pid),
        }
    }

    fn advance(&mut self, now: Instant, ended: &mpsc::Sender<Ended>) {
        match self.life {
            Life::StartAt(at) if self.wanted && at <= now => self.start(now, ended),
            Life::Running { pid, .. } if !self.wanted => {
                let told = self.signal(Signal::TERM);
                self.life = Life::Stopping { pid, told, kill_at: now + STOP_TIMEOUT };
            }
            Life::Stopping { pid, told: false, kill_at } => {
                let told = self.signal(Signal::TERM);
                self.life = Life::Stopping { pid, told, kill_at };
            }
            Life::Stopping { pid, told: true, kill_at } if kill_at <= now => {
                tracing::warn!(process = self.spec.name, pid, "did not stop; killing it");
                let told = self.signal(Signal::KILL);
                self.life = Life::Stopping { pid, told, kill_at: now + STOP_TIMEOUT };
            }
            Life::StartAt(_) | Life::Running { .. } | Life::Stopping { .. } => {}
        }
    }

    fn start(&mut self, now: Instant, ended: &mpsc::Sender<Ended>) {
        match adopt_or_start(&self.spec) {
            Ok((pid, running)) => {
                tracing::info!(process = self.spec.name, pid, "{}", verb(&running));
                self.life = Life::Running { pid, since: now };
                tokio::spawn(report_end(running, self.spec.name.clone(), pid, ended.clone()));
            }
            Err(error) => {
                let pause = self.backoff.after_death(Duration::ZERO);
                tracing::error!(process = self.spec.name, %error, ?pause, "cannot be started");
                self.last_failure = Some(format!("it cannot be started: {error}"));
                self.restarts += 1;
                self.life = Life::StartAt(now + pause);
            }
        }
    }

    /// Whether it was sent: not to a process that is between its start and its lock.
    fn signal(&self, signal: Signal) -> bool {
        let sent = match run_lock::holder(&self.spec.lock) {
            Ok(Some(holder)) => holder.signal(signal),
            Ok(None) => return false,
            Err(error) => Err(error),
        };
        if let Err(error) = &sent {
            tracing::error!(process = self.spec.name, %error, "cannot be signalled");
        }
        sent.is_ok()
    }

    fn state(&self) -> ProcessState {
        let phase = match self.life {
            Life::StartAt(_) if self.last_failure.is_some() => Phase::Backoff,
            Life::StartAt(_) => Phase::Starting,
            Life::Running { .. } => Phase::Running,
            Life::Stopping { .. } => Phase::Stopping,
        };
        ProcessState {
            phase,
            pid: self.pid(),
            restarts: self.restarts,
            last_failure: self.last_failure.clone(),
            log: self.spec.log.clone(),
        }
    }
}

fn verb(running: &Running) -> &'static str {
    match running {
        Running::Child(_) => "started",
        Running::Adopted(_) => "runs already; adopted",
    }
}

async fn report_end(mut running: Running, name: String, pid: u32, ended: mpsc::Sender<Ended>) {
    let end = running.ended().await;
    // The supervisor is gone: nobody needs to know.
    if ended.send(Ended { name, pid, end }).await.is_err() {
        tracing::debug!("the supervisor has ended");
    }
}
