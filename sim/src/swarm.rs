//! What a seed's world is like: swarm testing (Groce et al., ISSTA 2012). Each fault is on or off, and
//! how often it strikes is drawn, so that no fault always hides another.

use crate::random::Random;
use crate::{cloning, importing};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;
use trivet_replica::store::ZONE_BLOCKS;

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
    /// Others change the record: its revision moves on, and members move to other addresses.
    RecordTouch,
    /// All hosts lose power at once.
    TotalPower,
    /// Engines' clocks run fast or slow.
    ClockDrift,
    /// The volume is grown, which changes replicas and record.
    Grow,
    /// A scrub of the whole volume begins.
    Scrub,
    /// After its device has failed, a replica server is started again without restarting the host: the
    /// device still shows what it will never write.
    RestartOnFailedDisk,
    /// An engine and one replica's host are cut off from everybody else, the record store too, while
    /// another engine opens the volume.
    Isolation,
    /// A snapshot is taken, or one is deleted.
    Snapshot,
    /// Somebody begins to look at a snapshot beside the volume, stops or ends.
    Reader,
    /// The volume is a clone of a clone: its copies are flattened, and what it was made of is deleted.
    Cloned,
    /// The volume is reverted to a snapshot.
    Revert,
    /// The volume takes part in a snapshot over several.
    Group,
    /// Reads of the device return another place's blocks now and then. No seed draws this and what
    /// follows: each has its own test, in worlds that leave enough to mend it from.
    MisdirectedRead,
    /// Bits of data change on disks: each block's on one member.
    RottenData,
    /// A bit of journal or superblock changes on a disk while its server is away. A pool that does not
    /// open any more is made anew, empty.
    RottenMetadata,
    /// A host's disk is exchanged for an older copy of itself, or an empty one.
    OlderDisk,
    /// The volume is write-through or limited, or becomes so.
    Settings,
    /// A copy of an encrypted volume gives back older versions of blocks; its reads are verified. Nothing
    /// goes wrong besides: one copy that lies is borne while all are in sync.
    OldVersions,
    /// The volume is imported while it is used, from a source that goes away at times.
    Imported,
    /// An encrypted volume goes over to another data key.
    Rekey,
    /// The device of a server that was killed is slow when it comes back, for a while.
    SlowReturn,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 41] = [
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
        Self::Grow,
        Self::RestartOnFailedDisk,
        // Last, so that the others keep their random numbers.
        Self::Scrub,
        Self::Isolation,
        Self::Snapshot,
        Self::MisdirectedRead,
        Self::RottenData,
        Self::RottenMetadata,
        Self::OlderDisk,
        Self::Reader,
        Self::Cloned,
        Self::Settings,
        Self::Revert,
        Self::Group,
        Self::OldVersions,
        Self::Imported,
        Self::Rekey,
        Self::SlowReturn,
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
                | Self::RestartOnFailedDisk
                | Self::MisdirectedRead
                | Self::OldVersions
                | Self::SlowReturn
        )
    }

    /// Whether it is drawn with the others.
    pub(crate) const fn is_drawn(self) -> bool {
        let apart = matches!(
            self,
            Self::Scrub
                | Self::RestartOnFailedDisk
                | Self::Isolation
                | Self::Snapshot
                | Self::Reader
                | Self::Cloned
                | Self::Settings
                | Self::Revert
                | Self::Group
                | Self::OldVersions
                | Self::Imported
                | Self::Rekey
                | Self::SlowReturn
        );
        let own_test =
            matches!(self, Self::MisdirectedRead | Self::RottenData | Self::RottenMetadata | Self::OlderDisk);
        !apart && !own_test
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
    /// Journal blocks that the pools have written before.
    pub(crate) worn: u64,
    /// What the pauses between strikes are measured by: `run_for` as drawn.
    pub(crate) scale: Duration,
    /// How often the source of an import takes long.
    pub(crate) slow_fetch_one_in: u64,
    /// The volume is encrypted.
    pub(crate) encrypted: bool,
}

/// Faults that belong together: what one leaves behind is what the next needs.
const THEMES: [&[Fault]; 3] = [
    &[Fault::ReplicaPower, Fault::TotalPower, Fault::CrowdedPool, Fault::KillReplica, Fault::SlowDisk],
    &[
        Fault::Takeover,
        Fault::Contention,
        Fault::Partition,
        Fault::ClogLink,
        Fault::PauseEngine,
        Fault::PauseReplica,
        Fault::KillEngine,
        Fault::RecordLoss,
    ],
    &[
        Fault::BreakLink,
        Fault::ClogLink,
        Fault::CorruptFrame,
        Fault::KillReplica,
        Fault::SlowDisk,
        Fault::PauseReplica,
        Fault::ReadError,
    ],
];

/// Half of the time any of them, each as likely as the others; else a theme and little besides.
fn draw_faults(random: &mut Random) -> BTreeSet<Fault> {
    let theme = THEMES.get(random.index(THEMES.len() * 2)).copied().unwrap_or_default();
    let others = if theme.is_empty() { random.pick(&[0, 10, 25, 40, 60]) } else { 4 };
    let on =
        |fault: &Fault| fault.is_drawn() && random.percent(if theme.contains(fault) { 70 } else { others });
    Fault::ALL.into_iter().filter(on).collect()
}

/// What an engine may do that does not know yet that it has been passed over; what a member that is brought
/// back may lack while its device is slow, and what it may lose again; what small pools write over. Drawn
/// apart from the others, and quick to run.
const ISOLATED: &[Fault] = &[Fault::Isolation, Fault::Contention, Fault::RecordLoss];
const RETURNING: &[Fault] = &[Fault::KillReplica, Fault::SlowDisk, Fault::BreakLink];
const LOSING: &[Fault] = &[Fault::KillReplica, Fault::ReplicaPower, Fault::BreakLink];
const REUSING: &[Fault] = &[Fault::ReplicaPower, Fault::TotalPower, Fault::CrowdedPool];
/// What a member may lack while it becomes part of the volume again, and nothing beside that would take up the run.
const PROMOTING: [Fault; 2] = [Fault::KillReplica, Fault::SlowReturn];

/// What may be beside a copy that tells of the past.
const TELLING: &[Fault] = &[Fault::Cloned, Fault::Settings, Fault::Snapshot];

const fn is_encrypted(seed: u64) -> bool {
    seed % 2 == 1
}

/// What an import may lose while it goes on record, from a source that is slow.
const IMPORTING: &[Fault] = &[Fault::TotalPower, Fault::KillEngine, Fault::BreakLink];
/// While faults strike, one in so many answers of an import's source takes long.
const SLOW_FETCH_ONE_IN: u64 = 3;

/// One world in so many has the faults of `PROMOTING` alone, and is short and dense.
const ALONE_ONE_IN: u64 = 6;

/// What is done with volumes while faults strike; and in six worlds of ten, others of them, which belong together.
/// Whether it is such a world.
fn draw_beside(seed: u64, faults: &mut BTreeSet<Fault>) -> bool {
    if Random::stream(seed, 5).one_in(3) {
        faults.insert(Fault::Scrub);
    }
    let snapshots = Random::stream(seed, 13).one_in(2);
    let mut apart = Random::stream(seed, 11);
    let theme = [ISOLATED, RETURNING, RETURNING, LOSING, RETURNING, REUSING].get(apart.index(10));
    if let Some(theme) = theme {
        *faults = theme.iter().copied().filter(|_| apart.percent(80)).collect();
    }
    if snapshots {
        faults.insert(Fault::Snapshot);
        if Random::stream(seed, 14).one_in(4) {
            faults.insert(Fault::Reader);
        }
        if Random::stream(seed, 20).one_in(4) {
            faults.insert(Fault::Revert);
        }
        if Random::stream(seed, 21).one_in(4) {
            faults.insert(Fault::Group);
        }
    }
    if Random::stream(seed, 16).one_in(3) {
        faults.insert(Fault::Cloned);
    }
    if Random::stream(seed, 17).one_in(3) {
        faults.insert(Fault::Settings);
    }
    if is_encrypted(seed) && Random::stream(seed, 25).one_in(6) {
        faults.insert(Fault::Rekey);
    }
    if is_encrypted(seed) && Random::stream(seed, 22).one_in(16) {
        faults.retain(|fault| TELLING.contains(fault));
        faults.insert(Fault::OldVersions);
    }
    if (faults.contains(&Fault::WriteError) || faults.contains(&Fault::FlushError))
        && Random::stream(seed, 9).one_in(2)
    {
        faults.insert(Fault::RestartOnFailedDisk);
    }
    theme.is_some()
}

/// About how many requests a run is to have.
const REQUESTS: u32 = 260;

impl Profile {
    /// What the seed says.
    #[must_use]
    pub fn draw(seed: u64) -> Self {
        let random = &mut Random::stream(seed, 1);
        let mut faults = draw_faults(random);
        // What follows is drawn apart, so that other seeds stay what they were.
        let is_alone = Random::stream(seed, 26).one_in(ALONE_ONE_IN);
        let is_themed = if is_alone {
            faults = PROMOTING.into();
            true
        } else {
            draw_beside(seed, &mut faults)
        };
        // Short runs are dense: much is unflushed then, and freed space is soon wanted again.
        let (least, most) = match (random.one_in(3), is_alone) {
            (_, true) => (3, 15),
            (true, false) => (1, 22),
            (false, false) => (8, 176),
        };
        let run_for = random.log_between(Duration::from_secs(least), Duration::from_secs(most));
        let members = random.pick(&[3, 3, 3, 3, 2, 1]);
        let (blocks, hot) = match random.below(4) {
            0 => (4, vec![(0, 4)]),
            1 => (24, vec![(0, 24)]),
            2 => (24, vec![(0, 6), (14, 4)]),
            // Over the borders of the map's groups and leaves.
            _ => (520, vec![(0, 5), (12, 8), (250, 12), (508, 12)]),
        };
        // An import moves on by chunks of 64 blocks, and a clone begins with what its parent has.
        let is_apart = is_themed || faults.contains(&Fault::OldVersions);
        let may_import = blocks > 64 && !faults.contains(&Fault::Cloned) && !is_apart;
        let mut import = Random::stream(seed, 18);
        let mut slow_fetch_one_in = SLOW_FETCH_ONE_IN;
        if may_import && import.percent(70) {
            if import.one_in(2) {
                faults = IMPORTING.iter().copied().filter(|_| import.percent(80)).collect();
                slow_fetch_one_in = 1;
            }
            faults.insert(Fault::Imported);
        }
        let cloned = if faults.contains(&Fault::Cloned) { cloning::BLOCKS_TAKEN } else { 0 };
        let room = ZONE_BLOCKS - blocks - cloned;
        let fills = (0..members).map(|_| room - random.pick(&[6, 14, 14, 100])).collect();
        let isolated = faults.contains(&Fault::Isolation);
        // In worlds drawn apart some go on while others are not answered.
        let depths: &[usize] = match (is_alone, is_themed) {
            (true, _) => &[16],
            (false, true) => &[6, 16],
            (false, false) => &[1, 2, 6, 16],
        };
        Self {
            faults,
            run_for,
            members,
            engines: random.pick(&[1, 2, 2, 3]).max(if isolated { 2 } else { 1 }),
            blocks,
            hot,
            depth: random.pick(depths),
            gap: run_for / REQUESTS,
            flush_one_in: random.pick(&[4, 12, 40, 400]),
            fills,
            worn: random.pick(&[0, 0, 900, 1000]),
            scale: run_for,
            slow_fetch_one_in,
            // Nothing that happens depends on it, so it takes no part in the drawing.
            encrypted: is_encrypted(seed),
        }
    }

    /// Whether the volume begins with data in a block.
    pub(crate) fn begins_with_data(&self, block: u64) -> bool {
        let used = || self.hot.iter().any(|(first, count)| (*first..first + count).contains(&block));
        let cloned = self.has(Fault::Cloned) && cloning::begins_with_data(block);
        let imported = self.has(Fault::Imported) && importing::begins_with_data(block);
        (cloned || imported) && used()
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
            "--faults {} --run-for {:.3} ({} members, {} engines, {} blocks, depth {}{})",
            if names.is_empty() { "none".to_owned() } else { names.join(",") },
            self.run_for.as_secs_f64(),
            self.members,
            self.engines,
            self.blocks,
            self.depth,
            if self.encrypted { ", encrypted" } else { "" }
        )
    }
}
