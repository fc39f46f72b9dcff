//! The workloads, what each is compared with, and what it has to reach.

/// What a row counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Metric {
    /// Operations a second, as a ratio to the raw files'; more is better.
    Rate,
    /// Microseconds of processor time, of all processes together; less is better.
    CpuPerOperation,
}

/// Bytes of an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Size {
    FourKib,
    OneMib,
}

/// One row of the table.
#[derive(Debug)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) metric: Metric,
    /// How many raw files at once it is compared with: a write goes to three replicas on one disk.
    pub(crate) raw_files: u32,
    /// 0 where no goal is set.
    pub(crate) to_reach: f64,
    pub(crate) aim: f64,
    rw: &'static str,
    size: Size,
    depth: u32,
    flush_each: bool,
}

/// Options that say what fio does, for one side.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job {
    pub(crate) rw: &'static str,
    pub(crate) size: Size,
    pub(crate) depth: u32,
    /// fio's nbd engine turns `fsync` into a flush and does not know `fdatasync`.
    pub(crate) sync: Option<&'static str>,
}

impl Workload {
    const fn job(&self, sync: &'static str) -> Job {
        let sync = if self.flush_each { Some(sync) } else { None };
        Job { rw: self.rw, size: self.size, depth: self.depth, sync }
    }

    pub(crate) const fn against_raw(&self) -> Job {
        self.job("--fdatasync=1")
    }

    pub(crate) const fn against_volume(&self) -> Job {
        self.job("--fsync=1")
    }
}

const fn rate(name: &'static str, rw: &'static str, size: Size, depth: u32) -> Workload {
    let metric = Metric::Rate;
    Workload { name, metric, raw_files: 1, to_reach: 0.0, aim: 0.0, rw, size, depth, flush_each: false }
}

impl Workload {
    const fn reaching(self, to_reach: f64, aim: f64) -> Self {
        Self { to_reach, aim, ..self }
    }

    const fn against_three_files(self) -> Self {
        Self { raw_files: 3, ..self }
    }
}

/// The table of the project's goals. In this order: what goes through the volume from end to end
/// finds it as it was filled; only then come those that scatter it, and last what that does to reads.
pub(crate) const WORKLOADS: [Workload; 9] = [
    rate("1 MiB read, depth 8", "read", Size::OneMib, 8).reaching(0.6, 0.9),
    rate("1 MiB write, depth 8", "write", Size::OneMib, 8).reaching(0.5, 0.8).against_three_files(),
    rate("4 KiB randread, depth 1", "randread", Size::FourKib, 1).reaching(0.35, 0.5),
    rate("4 KiB randread, depth 32", "randread", Size::FourKib, 32).reaching(0.5, 0.8),
    rate("4 KiB randwrite, depth 32", "randwrite", Size::FourKib, 32)
        .reaching(1.0, 1.5)
        .against_three_files(),
    Workload {
        metric: Metric::CpuPerOperation,
        ..rate("CPU per 4 KiB write, all processes, depth 32", "randwrite", Size::FourKib, 32)
            .reaching(60.0, 40.0)
    },
    rate("4 KiB randwrite, depth 1", "randwrite", Size::FourKib, 1).reaching(0.35, 0.5),
    Workload {
        flush_each: true,
        ..rate("4 KiB randwrite + flush each, depth 1", "randwrite", Size::FourKib, 1).reaching(0.25, 0.4)
    },
    rate("1 MiB read, depth 8, after the random writes", "read", Size::OneMib, 8),
];
