//! How much may happen in a world, and the worlds that are checked.

/// Where a world begins.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Start {
    /// Nobody has opened the volume.
    Closed,
    /// An engine serves, with every member in sync.
    Serving,
    /// And write 1 is acknowledged, not flushed, and every member knows it to be committed.
    Written,
    /// And then the last member was dropped.
    Behind,
    /// Write 1 is as above; write 2 reached the last member alone before its engine crashed. The next one
    /// serves, and has dropped that member.
    Diverged,
}

/// How often each thing may happen. Within these bounds, everything that can happen is tried.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Bounds {
    /// What it is for.
    pub name: &'static str,
    /// Where it begins.
    pub start: Start,
    /// Replicas of the volume: 2 or 3.
    pub replicas: usize,
    /// Blocks of the volume: 1 or 2.
    pub blocks: usize,
    /// Writes that clients ask for, up to 3.
    pub writes: u8,
    /// Flushes that clients ask for.
    pub flushes: u8,
    /// Openings, besides the one that it starts with.
    pub openings: u8,
    /// Openings that close in good order.
    pub closes: u8,
    /// Connections that break, or members dropped for being slow.
    pub breaks: u8,
    /// Replicas killed.
    pub kills: u8,
    /// Losses of power, each of one replica.
    pub losses: u8,
    /// Swaps whose answer is lost, or that are done late or never.
    pub outages: u8,
}

const NOTHING: Bounds = Bounds {
    name: "nothing",
    start: Start::Serving,
    replicas: 2,
    blocks: 1,
    writes: 1,
    flushes: 0,
    openings: 0,
    closes: 0,
    breaks: 0,
    kills: 0,
    losses: 0,
    outages: 0,
};

/// Checked by `cargo test`, in half a minute to a minute on two cores.
pub const SMALL: [Bounds; 15] = [
    Bounds {
        name: "takeover",
        start: Start::Closed,
        writes: 2,
        openings: 2,
        closes: 1,
        breaks: 1,
        ..NOTHING
    },
    Bounds { name: "takeover of three", replicas: 3, openings: 2, ..NOTHING },
    Bounds { name: "killed", openings: 1, writes: 2, kills: 1, ..NOTHING },
    Bounds { name: "power", start: Start::Written, openings: 1, losses: 2, ..NOTHING },
    Bounds { name: "power and a break", start: Start::Written, openings: 1, breaks: 1, losses: 1, ..NOTHING },
    Bounds {
        name: "power while reconciling",
        start: Start::Written,
        blocks: 2,
        writes: 2,
        openings: 1,
        breaks: 1,
        losses: 1,
        ..NOTHING
    },
    Bounds { name: "power of three", start: Start::Written, replicas: 3, openings: 1, losses: 1, ..NOTHING },
    Bounds { name: "flush", flushes: 1, openings: 1, losses: 2, ..NOTHING },
    Bounds {
        name: "flush, behind",
        start: Start::Behind,
        writes: 2,
        flushes: 1,
        openings: 1,
        losses: 1,
        ..NOTHING
    },
    Bounds { name: "outage", openings: 1, breaks: 1, outages: 1, ..NOTHING },
    Bounds {
        name: "outage, behind",
        start: Start::Behind,
        writes: 2,
        openings: 1,
        breaks: 1,
        outages: 1,
        ..NOTHING
    },
    Bounds { name: "diverged", start: Start::Diverged, writes: 3, openings: 1, breaks: 1, ..NOTHING },
    Bounds {
        name: "diverged, two blocks",
        start: Start::Diverged,
        blocks: 2,
        writes: 3,
        breaks: 1,
        ..NOTHING
    },
    Bounds { name: "power, behind", start: Start::Behind, writes: 2, openings: 1, losses: 2, ..NOTHING },
    Bounds {
        name: "power, behind, two blocks",
        start: Start::Behind,
        blocks: 2,
        writes: 2,
        breaks: 1,
        losses: 1,
        ..NOTHING
    },
];

/// Checked by `make protocol-model` too.
pub const LARGE: [Bounds; 9] = [
    Bounds {
        name: "large takeover",
        start: Start::Closed,
        writes: 3,
        openings: 2,
        closes: 1,
        breaks: 1,
        ..NOTHING
    },
    Bounds {
        name: "large takeover of three",
        start: Start::Closed,
        replicas: 3,
        openings: 2,
        closes: 1,
        ..NOTHING
    },
    Bounds { name: "large break of three", replicas: 3, openings: 1, breaks: 1, ..NOTHING },
    Bounds {
        name: "large power of three",
        start: Start::Written,
        replicas: 3,
        openings: 1,
        losses: 2,
        ..NOTHING
    },
    Bounds { name: "large flush", writes: 3, flushes: 1, openings: 1, losses: 2, ..NOTHING },
    Bounds {
        name: "large behind of three",
        start: Start::Behind,
        replicas: 3,
        openings: 1,
        breaks: 1,
        ..NOTHING
    },
    Bounds {
        name: "large outage",
        start: Start::Behind,
        writes: 2,
        openings: 2,
        breaks: 1,
        outages: 1,
        ..NOTHING
    },
    Bounds {
        name: "large diverged",
        start: Start::Diverged,
        blocks: 2,
        writes: 3,
        openings: 1,
        breaks: 1,
        ..NOTHING
    },
    Bounds {
        name: "large power, behind",
        start: Start::Behind,
        blocks: 2,
        writes: 2,
        openings: 1,
        breaks: 1,
        losses: 1,
        ..NOTHING
    },
];

/// The world of that name.
#[must_use]
pub fn named(name: &str) -> Option<Bounds> {
    SMALL.into_iter().chain(LARGE).find(|bounds| bounds.name == name)
}
