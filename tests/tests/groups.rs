//! Snapshots of several volumes at one moment, and file systems and programs that stand still meanwhile.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use trivet_tests::blockdev::{self, FuseFile, LoopDevice, Mount};
use trivet_tests::command::must;
use trivet_tests::{Cluster, NbdClient, Role, did_not_run, needs_programs, patience, process};

fn does(cluster: &Cluster, arguments: &[&str]) {
    drop(cluster.trivet(arguments).succeeded());
}

/// A cluster with a second volume `journal`, and that volume's URI.
fn with_two_volumes() -> (Cluster, String) {
    let cluster = Cluster::start(3, "16MiB");
    let made = cluster.trivet_json(&["volume", "create", "journal", "--size", "16MiB", "--attach"]);
    let uri = made["uri"].as_str().unwrap_or_else(|| panic!("no URI: {made}")).to_owned();
    (cluster, uri)
}

/// Writes 1, 2, 3, … to the first volume and, each once that is acknowledged, to the second.
fn count(first: &str, second: &str, stop: &AtomicBool) -> u64 {
    let connect = |uri| NbdClient::connect(uri).expect("it is served");
    let (mut first, mut second) = (connect(first), connect(second));
    for number in 1_u64.. {
        let block: Vec<u8> = number.to_le_bytes().into_iter().cycle().take(4096).collect();
        first.write(0, &block).expect("a write");
        second.write(0, &block).expect("a write");
        if stop.load(Ordering::Relaxed) {
            return number;
        }
    }
    unreachable!("it counts for ever")
}

/// The number that a snapshot shows.
fn shown(cluster: &Cluster, volume: &str, snapshot: &str) -> u64 {
    let export = cluster.trivet_json(&["snapshot", "export", volume, snapshot]);
    let uri = export["uri"].as_str().unwrap_or_else(|| panic!("no URI: {export}"));
    let block = NbdClient::connect(uri).expect("it is served").read(0, 4096).expect("a read");
    does(cluster, &["snapshot", "unexport", volume, snapshot]);
    u64::from_le_bytes(block[..8].try_into().expect("eight bytes"))
}

fn names(cluster: &Cluster, volume: &str) -> Vec<String> {
    let listed = cluster.trivet_json(&["snapshot", "list", volume]);
    let names = listed.as_array().expect("a list").iter();
    names.map(|found| found["name"].as_str().expect("a name").to_owned()).collect()
}

#[test]
fn a_snapshot_of_several_volumes_is_of_one_moment() {
    let (cluster, journal) = with_two_volumes();
    let stop = Arc::new(AtomicBool::new(false));
    let (uri, told) = (cluster.uri().to_owned(), Arc::clone(&stop));
    let counting = std::thread::spawn(move || count(&uri, &journal, &told));
    let volumes = ["--volume", "disk0", "--volume", "journal"];
    for round in 0..8 {
        let name = format!("s{round}");
        let create = [&["snapshot", "create", &name][..], &volumes[..]].concat();
        if round == 5 {
            // A member that does not answer holds it up until it is dropped, or it comes to nothing.
            let replicas = cluster.processes_of(Role::Replica);
            process::pause(&replicas[..1], true);
            let taken = cluster.trivet(&create);
            process::pause(&replicas[..1], false);
            assert_eq!(taken.status.success(), names(&cluster, "disk0").contains(&name), "{taken}");
        } else {
            let taken = cluster.trivet_json(&create);
            assert_eq!(taken["snapshots"].as_array().map(Vec::len), Some(volumes.len() / 2), "{taken}");
            assert!(taken["held_microseconds"].as_u64().is_some_and(|held| held > 0), "{taken}");
        }
        assert_eq!(names(&cluster, "disk0"), names(&cluster, "journal"), "of all or of none");
    }
    stop.store(true, Ordering::Relaxed);
    let counted = counting.join().expect("the writer ends well");
    assert!(counted > 100, "only {counted} writes beside it");
    for name in names(&cluster, "disk0") {
        let (first, second) = (shown(&cluster, "disk0", &name), shown(&cluster, "journal", &name));
        assert!(first >= second && first <= second + 1, "{name} shows {first} and {second}");
    }
    let group =
        |volume: &str| cluster.trivet_json(&["snapshot", "show", volume, "s0"])["labels"]["group"].clone();
    assert!(group("disk0").is_string() && group("disk0") == group("journal"));

    let again = cluster.trivet(&[&["snapshot", "create", "s0"][..], &volumes[..]].concat());
    drop(again.failed_saying(&["has a snapshot 's0' already"]));
    does(&cluster, &["volume", "detach", "journal"]);
    let create = [&["snapshot", "create", "t"][..], &volumes[..]].concat();
    drop(cluster.trivet(&create).failed_saying(&["'journal' is not attached for writing"]));
    assert!(!names(&cluster, "disk0").contains(&"t".to_owned()));
    let twice = ["snapshot", "create", "t", "--volume", "disk0", "--volume", "disk0"];
    drop(cluster.trivet(&twice).failed_saying(&["'disk0' is named twice"]));
}

/// A program that stands in for `fsfreeze`, and writes down what it is told. It cannot freeze `/none`, and not
/// thaw `/stuck`; freezing `/slow` takes an hour.
fn put_fsfreeze(folder: &std::path::Path, log: &std::path::Path) {
    std::fs::create_dir_all(folder).expect("a folder");
    let program = folder.join("fsfreeze");
    let refuses = "case \"$*\" in '--freeze /none' | '--unfreeze /stuck') exit 1 ;; '--freeze /slow') exec sleep 3600 ;; esac";
    let script = format!("#!/bin/sh\necho \"$@\" >> '{}'\n{refuses}\n", log.display());
    std::fs::write(&program, script).expect("a file");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("a mode");
}

#[test]
fn what_is_frozen_is_thawed_whatever_happens() {
    let cluster = Cluster::start(3, "16MiB");
    let (folder, log) = (cluster.scratch().join("bin"), cluster.scratch().join("log"));
    put_fsfreeze(&folder, &log);
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").expect("a PATH"));
    let trivet = |arguments: &[&str]| {
        let mut command = trivet_tests::cluster::trivet();
        command.args(arguments).env("TRIVET_DIR", cluster.directory()).env("PATH", &path);
        command
    };
    let said =
        || std::fs::read_to_string(&log).unwrap_or_default().lines().map(str::to_owned).collect::<Vec<_>>();
    let note = |word: &str| format!("echo {word} >> '{}'", log.display());
    let hooks = ["--pre", &note("pre"), "--post", &note("post"), "--freeze", "/a", "--freeze", "/b"];
    let run = |more: &[&str]| trivet(&[&["snapshot", "create", "disk0"][..], more, &hooks[..]].concat());
    let in_order = ["pre", "--freeze /a", "--freeze /b", "--unfreeze /b", "--unfreeze /a", "post"];

    assert!(run(&["one"]).status().expect("it runs").success());
    assert_eq!(said(), in_order);
    std::fs::remove_file(&log).expect("it is there");
    assert!(!run(&["one"]).status().expect("it runs").success(), "the name is taken");
    assert_eq!(said(), in_order);

    std::fs::remove_file(&log).expect("it is there");
    let failing = ["--pre", "false", "--post", &note("post"), "--freeze", "/a"];
    let failed = trivet(&[&["snapshot", "create", "disk0", "two"][..], &failing[..]].concat()).output();
    assert!(!failed.expect("it runs").status.success());
    assert_eq!(said(), ["post"], "nothing was frozen, and nothing is thawed");
    std::fs::remove_file(&log).expect("it is there");
    let refusing = ["snapshot", "create", "disk0", "two", "--freeze", "/a", "--freeze", "/none"];
    let failed = trivet(&refusing).output().expect("it runs");
    let words = String::from_utf8_lossy(&failed.stderr);
    assert!(!failed.status.success() && words.contains("--freeze failed"), "{words}");
    assert_eq!(said(), ["--freeze /a", "--freeze /none", "--unfreeze /a"], "only what was frozen is thawed");
    assert_eq!(names(&cluster, "disk0"), ["one"]);
    // What cannot be thawed is said with the way out, and so is that the snapshot is there.
    let stuck =
        trivet(&["snapshot", "create", "disk0", "two", "--freeze", "/stuck"]).output().expect("it runs");
    let words = String::from_utf8_lossy(&stuck.stderr);
    assert!(!stuck.status.success() && words.contains("fsfreeze --unfreeze PATH"), "{words}");
    assert!(String::from_utf8_lossy(&stuck.stdout).contains("disk0@two is taken"), "{stuck:?}");
    assert_eq!(names(&cluster, "disk0"), ["one", "two"]);

    // Killed while it waits for a snapshot that nobody takes now.
    std::fs::remove_file(&log).expect("it is there");
    let replicas = cluster.processes_of(Role::Replica);
    process::pause(&replicas, true);
    let mut killed = run(&["three"]).spawn().expect("it runs");
    patience::wait_for("both to be frozen", patience::SOON, || (said().len() == 3).then_some(()));
    killed.kill().expect("it is there");
    killed.wait().expect("it ends");
    // The second may have been on its way still: then it is the last to be thawed.
    let sorted = |mut lines: Vec<String>| {
        lines.sort_unstable();
        lines
    };
    let all = sorted(in_order.map(str::to_owned).to_vec());
    patience::wait_for("both to be thawed", patience::SOON, || (sorted(said()) == all).then_some(()));
    process::pause(&replicas, false);

    // Killed while a file system takes long to freeze, which may be frozen by then: nothing else waits for it.
    std::fs::remove_file(&log).expect("it is there");
    let slow = ["--freeze", "/a", "--freeze", "/slow", "--post", &note("post")];
    let mut killed =
        trivet(&[&["snapshot", "create", "disk0", "four"][..], &slow[..]].concat()).spawn().expect("it runs");
    let frozen = ["--freeze /a", "--freeze /slow"];
    patience::wait_for("both to be told", patience::SOON, || (said() == frozen).then_some(()));
    killed.kill().expect("it is there");
    killed.wait().expect("it ends");
    let thawed = [&frozen[..], &["--unfreeze /a", "post", "--unfreeze /slow"]].concat();
    patience::wait_for("both to be thawed", patience::SOON, || (said() == thawed).then_some(()));
    assert!(!names(&cluster, "disk0").contains(&"four".to_owned()));
}

#[test]
fn a_file_system_that_was_frozen_is_whole_in_its_snapshot() {
    needs_programs!("mkfs.ext4", "e2fsck", "dumpe2fs", "debugfs", "fsfreeze", "nbdcopy");
    if let Some(why) = blockdev::obstacle() {
        did_not_run!("{why}");
    }
    let cluster = Cluster::start(3, "64MiB");
    let path = |name: &str| cluster.scratch().join(name).to_str().expect("UTF-8").to_owned();
    let fuse = FuseFile::mount(cluster.uri(), cluster.scratch());
    let device = LoopDevice::attach(fuse.path());
    must("mkfs.ext4", &["-q", "-F", device.path().to_str().expect("UTF-8")]);
    let mounted = Mount::new(device.path(), &cluster.scratch().join("mnt"));
    // So far it is in the kernel's memory only.
    let written = vec![0x5a; 3 << 20];
    std::fs::write(mounted.path().join("file"), &written).expect("a file");
    let frozen = ["snapshot", "create", "disk0", "whole", "--freeze", &path("mnt")];
    does(&cluster, &frozen);
    std::fs::write(mounted.path().join("later"), "it goes on").expect("a file");

    let export = cluster.trivet_json(&["snapshot", "export", "disk0", "whole"]);
    let image = path("image");
    must("nbdcopy", &[export["uri"].as_str().expect("a URI"), &image]);
    must("e2fsck", &["-f", "-n", &image]);
    let header = must("dumpe2fs", &["-h", &image]).stdout;
    assert!(!header.contains("needs_recovery"), "its journal is empty: {header}");
    must("debugfs", &["-R", &format!("dump /file {}", path("found")), &image]);
    assert!(std::fs::read(path("found")).expect("it is in the snapshot") == written);
    mounted.unmount();
}
