//! A member is killed, kept away for ten seconds while much is written, and returns.

use super::{fio, line, succeed};
use std::time::Duration;
use trivet_tests::gates::Gates;
use trivet_tests::{Cluster, Setup, patience, process};

const AWAY: Duration = Duration::from_secs(10);
const NAME: &str = "replica-1";

/// Adds the table.
pub(super) fn measure(fill_gib: u64, text: &mut String) -> Result<(), String> {
    let gates = Gates::new();
    let mut setup = Setup::new(3, "20GiB");
    setup.launcher = Some(gates.launcher());
    let cluster = Cluster::start_as(setup);
    eprintln!("writing {fill_gib} GiB");
    let once = ["--rw=write", "--bs=1M", "--iodepth=4", "--end_fsync=1"].map(str::to_owned);
    succeed(&mut fio(cluster.uri(), &[&once[..], &[format!("--size={fill_gib}g")]].concat()))?;

    line(
        text,
        &format!("A volume of 20 GiB, {fill_gib} GiB of it written before; `kill -9` of a replica server,"),
    )?;
    line(text, "which starts again ten seconds later. Meanwhile this much is written, 64 KiB at a time at")?;
    line(text, "random places of what was written before. From the start to three members in sync:\n")?;
    line(text, "| written meanwhile | to write it | from return to in sync |\n|---|---|---|")?;
    for mib in [0, 100, 1024] {
        let (writing, took) = round(&cluster, &gates, fill_gib, mib)?;
        let what = if mib == 0 { "nothing".to_owned() } else { format!("{mib} MiB") };
        line(text, &format!("| {what} | {:.1} s | {:.1} s |", writing.as_secs_f64(), took.as_secs_f64()))?;
    }
    let took = full_copy(&cluster)?;
    line(text, &format!("| a new, empty copy in its place | | {:.1} s |\n", took.as_secs_f64()))
}

fn round(cluster: &Cluster, gates: &Gates, fill_gib: u64, mib: u64) -> Result<(Duration, Duration), String> {
    eprintln!("{mib} MiB while {NAME} is away");
    cluster.wait_until_in_sync();
    gates.close(NAME);
    let gone = patience::now();
    process::kill_hard(&[cluster.replica(1)]);
    if mib > 0 {
        let random = ["--rw=randwrite", "--bs=64k", "--iodepth=16", "--end_fsync=1"].map(str::to_owned);
        let sizes = [format!("--size={fill_gib}g"), format!("--io_size={mib}m")];
        succeed(&mut fio(cluster.uri(), &[&random[..], &sizes].concat()))?;
    }
    let writing = gone.elapsed();
    patience::until(gone + AWAY);
    cluster.wait_until_one_is_left_behind();
    let returned = patience::now();
    gates.open(NAME);
    cluster.wait_until_in_sync();
    Ok((writing, returned.elapsed()))
}

/// The copy is removed and added anew: all of it is copied.
fn full_copy(cluster: &Cluster) -> Result<Duration, String> {
    eprintln!("everything");
    let remove = ["replica", "remove", "disk0", "--from", NAME, "--yes"];
    let _removed = cluster.trivet(&remove).succeeded();
    patience::wait_for("the old copy to be deleted", patience::LONG, || {
        (cluster.trivet_json(&["status"])["deletions_pending"] == 0).then_some(())
    });
    let begin = patience::now();
    let _added = cluster.trivet(&["replica", "add", "disk0", "--to", NAME]).succeeded();
    cluster.wait_until_in_sync();
    Ok(begin.elapsed())
}
