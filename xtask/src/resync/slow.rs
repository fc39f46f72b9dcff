//! A member's link becomes slow, and later as fast as before.

use super::{fio, line};
use std::fs;
use std::process::Stdio;
use std::time::Duration;
use trivet_tests::proxy::Proxies;
use trivet_tests::{Cluster, Setup, patience};

/// One way; a round trip takes twice as long, and a write is one round trip.
const DELAY: Duration = Duration::from_millis(100);
/// When the delay begins and ends, and the load, in seconds.
const BEGIN: u64 = 15;
const END: u64 = 65;
const OVER: u64 = 95;

/// Adds the table.
pub(super) fn measure(text: &mut String) -> Result<(), String> {
    let proxies = Proxies::prepare(3, 1);
    let mut setup = Setup::new(3, "2GiB");
    setup.launcher = Some(proxies.launcher());
    let cluster = Cluster::start_as(setup);
    let (proxies, _launcher) = proxies.take();
    let log = cluster.scratch().join("fio");
    let load =
        ["--rw=randwrite", "--bs=4k", "--size=1g", "--time_based=1", "--rate_iops=2000", "--iodepth=8"];
    let mut options: Vec<String> = load.map(str::to_owned).to_vec();
    options.extend([format!("--runtime={OVER}"), format!("--write_lat_log={}", log.display())]);
    let mut fio = fio(cluster.uri(), &options)
        .stdout(Stdio::null())
        .spawn()
        .map_err(|e| format!("cannot start fio (make deps installs it): {e}"))?;
    let began = patience::now();
    eprintln!("a slow member: {OVER} s");
    patience::until(began + Duration::from_secs(BEGIN));
    proxies[0].delay(DELAY);
    patience::until(began + Duration::from_secs(END));
    let left_behind = cluster.member_states().iter().any(|state| state != "in-sync");
    proxies[0].delay(Duration::ZERO);
    let ended = patience::now();
    cluster.wait_until_in_sync();
    let back = ended.elapsed();
    let status = fio.wait().map_err(|e| format!("fio: {e}"))?;
    let path = log.with_file_name("fio_clat.1.log");
    let entries = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    report(&percentiles(&entries), status.success(), left_behind, back, text)
}

/// Of each second the 99th percentile, in milliseconds; a second without an answer has none.
pub(super) fn percentiles(log: &str) -> Vec<Option<f64>> {
    let mut seconds: Vec<Vec<f64>> = Vec::new();
    for entry in log.lines() {
        // Milliseconds since the start, nanoseconds, direction, size, offset.
        let mut fields = entry.split(',').map(|field| field.trim().parse::<f64>().unwrap_or_default());
        let (Some(at), Some(took)) = (fields.next(), fields.next()) else { continue };
        let second = Duration::from_secs_f64(at / 1e3).as_secs();
        let second = usize::try_from(second).unwrap_or_default();
        seconds.resize_with(seconds.len().max(second + 1), Vec::new);
        seconds[second].push(took / 1e6);
    }
    let percentile = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values.get(values.len() * 99 / 100).copied()
    };
    seconds.into_iter().map(percentile).collect()
}

fn report(
    percentiles: &[Option<f64>],
    without_error: bool,
    left_behind: bool,
    back: Duration,
    text: &mut String,
) -> Result<(), String> {
    let index = |second: u64| usize::try_from(second).map_err(|e| e.to_string());
    let part = |from: u64, to: u64| -> Result<&[Option<f64>], String> {
        percentiles.get(index(from)?..index(to)?).ok_or_else(|| "fio's log is too short".to_owned())
    };
    let mut healthy: Vec<f64> = part(3, BEGIN)?.iter().flatten().copied().collect();
    healthy.sort_by(f64::total_cmp);
    let healthy = *healthy.get(healthy.len() / 2).ok_or("fio has logged nothing")?;
    let slow = part(BEGIN, END)?;
    let bad = |p99: &Option<f64>| p99.is_none_or(|p99| p99 > 2.0 * healthy);
    let worst = slow.iter().flatten().copied().fold(0.0, f64::max);
    // The last second out of bounds for which most of the ten from it on are: single ones happen on
    // a healthy volume too.
    let settled = (0..slow.len()).find(|&from| {
        let next = &slow[from..slow.len().min(from + 10)];
        !bad(&next[0]) && next.iter().filter(|p99| bad(p99)).count() <= next.len() / 5
    });
    let settled = settled.map_or("never".to_owned(), |seconds| format!("{seconds} s"));
    line(text, "Writes of 4 KiB at random, 2000 a second, while every answer of one of three members takes")?;
    line(text, &format!("{} ms longer for {} s:\n", 2 * DELAY.as_millis(), END - BEGIN))?;
    line(text, "| | |\n|---|---|")?;
    line(text, &format!("| p99 of writes, healthy (median of seconds) | {healthy:.2} ms |"))?;
    line(text, &format!("| the worst second's p99 after the delay began | {worst:.1} ms |"))?;
    line(text, &format!("| p99 within twice the healthy one again | {settled} after the delay began |"))?;
    let state = if left_behind { "left behind" } else { "**still in sync**" };
    line(text, &format!("| the slow member, {} s after the delay began | {state} |", END - BEGIN))?;
    line(text, &format!("| in sync again after the delay had ended | {:.1} s |", back.as_secs_f64()))?;
    line(text, &format!("| errors | {} |", if without_error { "none" } else { "**fio failed**" }))
}
