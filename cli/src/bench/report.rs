//! What the bench found, for people and for programs.

use super::cpu::Participant;
use super::workload::Kind;
use crate::output::table;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::time::Duration;

/// Latencies up to a minute, three digits exact.
const LATENCY_NS_MAX: u64 = 60_000_000_000;

/// Figures of one kind of request.
#[derive(Debug)]
pub(crate) struct Figures {
    latencies_ns: Histogram<u64>,
    bytes: u64,
}

impl Figures {
    pub(crate) fn new() -> Self {
        match Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3) {
            Ok(latencies_ns) => Self { latencies_ns, bytes: 0 },
            Err(error) => unreachable!("the bounds are fixed: {error}"),
        }
    }

    pub(crate) fn record(&mut self, latency: Duration, bytes: u64) {
        let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.latencies_ns.saturating_record(nanoseconds.max(1));
        self.bytes += bytes;
    }

    pub(crate) fn count(&self) -> u64 {
        self.latencies_ns.len()
    }
}

/// One kind's line.
#[derive(Serialize, Debug)]
pub(crate) struct KindReport {
    pub(crate) kind: &'static str,
    pub(crate) requests: u64,
    pub(crate) iops: f64,
    pub(crate) megabytes_per_second: f64,
    pub(crate) latency_us_mean: f64,
    pub(crate) latency_us_p50: f64,
    pub(crate) latency_us_p99: f64,
    pub(crate) latency_us_p999: f64,
    pub(crate) latency_us_max: f64,
}

/// One process's line.
#[derive(Serialize, Debug)]
pub(crate) struct ProcessReport {
    pub(crate) process: String,
    pub(crate) pid: u32,
    pub(crate) cpu_seconds: f64,
    /// Of processor time for each read and write.
    pub(crate) cpu_us_per_io: f64,
}

/// Everything.
#[derive(Serialize, Debug)]
pub(crate) struct Report {
    pub(crate) target: String,
    pub(crate) pattern: &'static str,
    pub(crate) block_bytes: u32,
    pub(crate) depth: u32,
    pub(crate) flush_every: u64,
    pub(crate) seconds: f64,
    pub(crate) kinds: Vec<KindReport>,
    pub(crate) cpu_us_per_io: f64,
    pub(crate) processes: Vec<ProcessReport>,
}

/// `name` of a kind in reports.
pub(crate) fn kind_report(kind: Kind, figures: &Figures, elapsed: Duration) -> KindReport {
    let seconds = elapsed.as_secs_f64();
    let us = |nanoseconds: f64| nanoseconds / 1000.0;
    let at = |quantile| us(exact(figures.latencies_ns.value_at_quantile(quantile)));
    KindReport {
        kind: match kind {
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::Flush => "flush",
        },
        requests: figures.count(),
        iops: exact(figures.count()) / seconds,
        megabytes_per_second: exact(figures.bytes) / 1e6 / seconds,
        latency_us_mean: us(figures.latencies_ns.mean()),
        latency_us_p50: at(0.5),
        latency_us_p99: at(0.99),
        latency_us_p999: at(0.999),
        latency_us_max: us(exact(figures.latencies_ns.max())),
    }
}

/// Processor time spent between two looks.
pub(crate) fn process_reports(
    participants: &[Participant],
    before: &[Option<Duration>],
    after: &[Option<Duration>],
    requests: u64,
) -> Vec<ProcessReport> {
    let spent =
        before.iter().zip(after).map(|(before, after)| Some(after.as_ref()?.saturating_sub((*before)?)));
    participants
        .iter()
        .zip(spent)
        .filter_map(|(participant, spent)| {
            let cpu_seconds = spent?.as_secs_f64();
            let cpu_us_per_io = cpu_seconds * 1e6 / exact(requests.max(1));
            Some(ProcessReport {
                process: participant.name.clone(),
                pid: participant.pid,
                cpu_seconds,
                cpu_us_per_io,
            })
        })
        .collect()
}

#[allow(clippy::cast_precision_loss, reason = "figures for people; 2^53 is beyond them")]
pub(crate) fn exact(number: u64) -> f64 {
    number as f64
}

impl Report {
    pub(crate) fn as_text(&self) -> String {
        let flush = if self.flush_every > 0 {
            format!(", flush after every {}", self.flush_every)
        } else {
            String::new()
        };
        let size = trivet_model::size::ByteSize(u64::from(self.block_bytes));
        let mut text = format!(
            "{} of {size}, depth {}{flush}, {:.1} s on {}\n\n",
            self.pattern, self.depth, self.seconds, self.target
        );
        let rows = self.kinds.iter().map(|kind| {
            let us = |value: f64| format!("{value:.0}");
            vec![
                kind.kind.to_owned(),
                format!("{:.0}", kind.iops),
                format!("{:.1}", kind.megabytes_per_second),
                us(kind.latency_us_p50),
                us(kind.latency_us_p99),
                us(kind.latency_us_p999),
                us(kind.latency_us_max),
            ]
        });
        let headers = ["", ">IOPS", ">MB/s", ">p50 us", ">p99 us", ">p99.9 us", ">max us"];
        text += &table(&headers, rows.collect());
        text += "\n\n";
        let mut rows: Vec<Vec<String>> = self
            .processes
            .iter()
            .map(|process| {
                vec![
                    process.process.clone(),
                    process.pid.to_string(),
                    format!("{:.2}", process.cpu_seconds),
                    format!("{:.1}", process.cpu_us_per_io),
                ]
            })
            .collect();
        rows.push(vec!["all".into(), String::new(), String::new(), format!("{:.1}", self.cpu_us_per_io)]);
        text += &table(&["PROCESS", ">PID", ">CPU s", ">CPU us/IO"], rows);
        text
    }
}
