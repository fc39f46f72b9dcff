//! What a seed's world is like: swarm testing (Groce et al., ISSTA 2012). Each fault is on or off, and
//! how often it strikes is drawn, so that no fault always hides another.

use crate::random::Random;
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A way for the world to go wrong.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Fault {
    /// A connection is reset; a part of what is on its way arrives before.
    BreakLink,
    /// Nothing passes between an engine and a replica for a while, one way or both, and then it does.
    ClogLink,
    /// A host is cut off from everyone, one way or both.
    Partition,
    /// Single bits of frames are turned over.
    CorruptFrame,
    /// A replica server is killed and started again.
    KillReplica,
    /// A replica's host loses power and comes back.
    ReplicaPower,
    /// A replica server stops and goes on, as by SIGSTOP and SIGCONT.
    PauseReplica,
    /// A device becomes slow for a while.
    SlowDisk,
    /// Reads of the device fail now and then.
    ReadError,
    /// A write to the device fails, and the host is restarted.
    WriteError,
    /// A flush of the device fails, and the host is restarted.
    FlushError,
    /// Pools are nearly full of another volume's data; some have no room at all.
    CrowdedPool,
    /// The engine's process is killed and started again.
    KillEngine,
    /// The engine's host vanishes without a word to its peers.
    EnginePower,
    /// An engine stops and goes on.
    PauseEngine,
    /// The volume is closed in good order and opened again.
    CloseEngine,
    /// Another engine opens the volume while one has it.
    Takeover,
    /// Engines that were fenced come back and open the volume again.
    Contention,
    /// The record store does not answer for a while.
    RecordOutage,
    /// Answers of the record store are lost, of swaps that took place too.
    RecordLoss,
    /// Others change the record: its revision moves on.
    RecordTouch,
    /// All hosts lose power at once.
    TotalPower,
    /// Engines' clocks run fast or slow.
    ClockDrift,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 23] = [
        Self::BreakLink,
        Self::ClogLink,
        Self::Partition,
        Self::CorruptFrame,
        Self::KillReplica,
        Self::ReplicaPower,
        Self::PauseReplica,
        Self::SlowDisk,
        Self::ReadError,
        Self::WriteError,
        Self::FlushError,
        Self::CrowdedPool,
        Self::KillEngine,
        Self::EnginePower,
        Self::PauseEngine,
        Self::CloseEngine,
        Self::Takeover,
        Self::Contention,
        Self::RecordOutage,
        Self::RecordLoss,
        Self::RecordTouch,
        Self::TotalPower,
        Self::ClockDrift,
    ];

    /// Whether it strikes at moments; the others are a condition of the whole run.
    pub(crate) const fn strikes(self) -> bool {
        !matches!(
            self,
            Self::CorruptFrame
                | Self::ReadError
                | Self::CrowdedPool
                | Self::Contention
                | Self::RecordLoss
                | Self::ClockDrift
        )
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&dashed(&format!("{self:?}")))
    }
}

/// `LikeThis` as `like-this`.
pub(crate) fn dashed(name: &str) -> String {
    let mut dashed = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !dashed.is_empty() {
            dashed.push('-');
        }
        dashed.push(letter.to_ascii_lowercase());
    }
    dashed
}

/// There is no fault of this name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnknownFault(String);

impl fmt::Display for UnknownFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no fault is called '{}'; there are:", self.0)?;
        Fault::ALL.iter().try_for_each(|fault| write!(f, " {fault}"))
    }
}

impl std::error::Error for UnknownFault {}

impl FromStr for Fault {
    type Err = UnknownFault;

    fn from_str(text: &str) -> Result<Self, UnknownFault> {
        Self::ALL.into_iter().find(|fault| fault.to_string() == text).ok_or(UnknownFault(text.to_owned()))
    }
}

/// How full a pool of one zone (1024 blocks) is of another volume's data.
pub(crate) type Fill = u64;

/// One world.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Profile {
    /// The faults that are on.
    pub faults: BTreeSet<Fault>,
    /// How long they strike, in the world's time.
    pub run_for: Duration,
    pub(crate) members: usize,
    pub(crate) engines: usize,
    pub(crate) blocks: u64,
    /// The blocks that requests go to, in runs from their first.
    pub(crate) hot: Vec<(u64, u64)>,
    /// Requests in flight of each engine's clients.
    pub(crate) depth: usize,
    /// The pause between a client's requests, on average, while it is busy.
    pub(crate) gap: Duration,
    /// One in so many requests is a flush.
    pub(crate) flush_one_in: u64,
    pub(crate) fills: Vec<Fill>,
    /// What the pauses between strikes are measured by: `run_for` as drawn.
    pub(crate) scale: Duration,
}

/// About how many requests a run is to have.
const REQUESTS: u32 = 260;

impl Profile {
    /// What the seed says.
    #[must_use]
    pub fn draw(seed: u64) -> Self {
        let random = &mut Random::stream(seed, 1);
        let chance = random.pick(&[0, 10, 25, 40, 60]);
        let mut faults: BTreeSet<Fault> =
            Fault::ALL.into_iter().filter(|_| random.percent(chance)).collect();
        if random.one_in(4) {
            faults.insert(random.pick(&Fault::ALL));
        }
        let run_for = random.log_between(Duration::from_secs(2), Duration::from_secs(180));
        let members = random.pick(&[3, 3, 3, 3, 2, 1]);
        let (blocks, hot) = match random.below(4) {
            0 => (4, vec![(0, 4)]),
            1 => (24, vec![(0, 24)]),
            2 => (24, vec![(0, 6), (14, 4)]),
            // Over the borders of the map's groups and leaves.
            _ => (520, vec![(0, 5), (12, 8), (250, 12), (508, 12)]),
        };
        let fills = (0..members).map(|_| random.pick(&[0, 900, 985, 1010])).collect();
        let mut profile = Self {
            faults,
            run_for,
            members,
            engines: random.pick(&[1, 2, 2, 3]),
            blocks,
            hot,
            depth: random.pick(&[1, 2, 6, 16]),
            gap: run_for / REQUESTS,
            flush_one_in: random.pick(&[4, 12, 40, 400]),
            fills,
            scale: run_for,
        };
        if blocks > 100 {
            // All of it must fit beside what fills the pool.
            profile.fills.iter_mut().for_each(|fill| *fill = (*fill).min(460));
        }
        profile
    }

    /// Whether a fault is on.
    pub(crate) fn has(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.faults.iter().map(ToString::to_string).collect();
        write!(
            f,
            "--faults {} --run-for {:.3} ({} members, {} engines, {} blocks, depth {})",
            if names.is_empty() { "none".to_owned() } else { names.join(",") },
            self.run_for.as_secs_f64(),
            self.members,
            self.engines,
            self.blocks,
            self.depth
        )
    }
}
