//! A volume that is imported while it is used: from a slow source, under load, with kill -9 in the middle.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use trivet_tests::command::must;
use trivet_tests::nbd::Request;
use trivet_tests::{Cluster, NbdClient, Random, Role, SlowSource, needs_programs, patience, process};

const MIB: u64 = 1 << 20;
const BLOCK: usize = 4096;

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are text")
}

/// What the volume must hold: the source, and what was written since.
struct Oracle {
    held: Vec<u8>,
    random: Random,
}

impl Oracle {
    fn new(image: &Path, seed: u64) -> Self {
        Self { held: fs::read(image).expect("the source is there"), random: Random::new(seed) }
    }

    fn range(&mut self, sectors_max: u64) -> (u64, usize) {
        let sectors = self.held.len() as u64 / 512;
        let count = 1 + self.random.below(sectors_max);
        let first = self.random.below(sectors - count);
        (first * 512, usize::try_from(count * 512).expect("it fits"))
    }

    /// Reads, writes, trims and zeroes at random, each seen to be as it should.
    fn use_volume(&mut self, client: &mut NbdClient, requests: u32) {
        for _ in 0..requests {
            let sectors_max = if self.random.below(3) == 0 { 600 } else { 9 };
            let (offset, length) = self.range(sectors_max);
            let at = usize::try_from(offset).expect("it fits");
            let bytes = u32::try_from(length).expect("it fits");
            match self.random.below(8) {
                0..4 => {
                    let found = client.read(offset, bytes).expect("a read");
                    assert!(found == self.held[at..at + length], "wrong data in {length} bytes at {offset}");
                }
                4..6 => {
                    let mut data = vec![0; length];
                    self.random.fill(&mut data);
                    client.write(offset, &data).expect("a write");
                    self.held[at..at + length].copy_from_slice(&data);
                }
                6 => {
                    drop(client.call(&Request::Trim { offset, length: bytes }).expect("a trim"));
                    self.held[at..at + length].fill(0);
                }
                _ => {
                    drop(client.call(&Request::WriteZeroes { offset, length: bytes }).expect("zeroing"));
                    self.held[at..at + length].fill(0);
                }
            }
        }
    }

    fn check_all(&self, client: &mut NbdClient) {
        for (index, wanted) in self.held.chunks(1 << 20).enumerate() {
            let length = u32::try_from(wanted.len()).expect("it fits");
            let found = client.read(index as u64 * MIB, length).expect("a read");
            assert!(found == wanted, "wrong data in MiB {index}");
        }
    }
}

/// An image of data, zeros within it, and holes.
fn image(cluster: &Cluster, mebibytes: u64) -> PathBuf {
    let path = cluster.scratch().join("source.raw");
    let file = File::create(&path).expect("an image can be made");
    file.set_len(mebibytes * MIB).expect("an image can be made");
    let mut random = Random::new(mebibytes);
    let mut piece = vec![0; 1 << 20];
    for at in (0..mebibytes).filter(|at| at % 3 != 2) {
        random.fill(&mut piece);
        piece[BLOCK..8 * BLOCK].fill(0);
        file.write_all_at(&piece, at * MIB).expect("an image can be made");
    }
    path
}

fn shown(cluster: &Cluster) -> serde_json::Value {
    cluster.trivet_json(&["volume", "show", "moved"])
}

fn connect(cluster: &Cluster) -> NbdClient {
    let uri = shown(cluster)["uri"].as_str().expect("it is attached").to_owned();
    patience::wait_for("the volume to be served", patience::SOON, || NbdClient::connect(&uri).ok())
}

fn imported_bytes(cluster: &Cluster) -> Option<u64> {
    shown(cluster)["import"]["imported_bytes"].as_u64()
}

fn wait_until_imported(cluster: &Cluster) {
    patience::wait_for("all to be imported", 3 * patience::SOON, || {
        shown(cluster)["import"].is_null().then_some(())
    });
}

fn wait_for_trouble(cluster: &Cluster, words: &str) {
    patience::wait_for("the trouble to be shown", patience::SOON, || {
        shown(cluster)["trouble"].as_str().filter(|trouble| trouble.contains(words)).map(drop)
    });
}

#[test]
fn right_data_at_every_moment_from_a_slow_source_with_kills_in_the_middle() {
    needs_programs!("qemu-nbd", "qemu-img");
    let cluster = Cluster::start(3, "4MiB");
    let image = image(&cluster, 96);
    let source = SlowSource::start(&image, 2 << 20);
    let began = patience::now();
    drop(cluster.trivet(&["import", &source.uri(), "moved", "--instant"]).succeeded());
    let mut client = connect(&cluster);
    let mut oracle = Oracle::new(&image, 11);
    oracle.use_volume(&mut client, 2);
    // The target is a second on a machine that does nothing else.
    eprintln!("made, attached, read and written after {} ms", (patience::now() - began).as_millis());
    let view = shown(&cluster);
    assert_eq!(view["state"], "hydrating", "{view}");
    assert!(view["import"]["imported_bytes"].as_u64().is_some_and(|bytes| bytes < 96 * MIB), "{view}");
    for refused in [
        &["snapshot", "create", "moved", "early"][..],
        &["volume", "clone", "moved", "copy"],
        &["import", text(&image), "moved", "--yes"],
    ] {
        drop(cluster.trivet(refused).failed_saying(&["still being imported", "volume show"]));
    }
    let again = cluster.trivet(&["import", &source.uri(), "moved", "--instant"]).succeeded();
    assert!(again.stdout.contains("can be used"), "the same command goes on: {again}");
    // Few: what is asked for is imported by that.
    for victim in [Role::Engine, Role::Replica, Role::Engine] {
        oracle.use_volume(&mut client, 12);
        let victims = cluster.processes_of(victim);
        if victim == Role::Engine {
            drop(client);
            process::kill_hard(&victims);
            client = connect(&cluster);
        } else {
            // One copy of three: the volume goes on, and brings it back.
            process::kill_hard(&victims[..1]);
        }
        oracle.use_volume(&mut client, 12);
    }
    assert!(imported_bytes(&cluster).is_some(), "it is still imported when all of it is killed");
    process::kill_hard(&cluster.processes());
    drop(client);
    drop(source);
    let source = SlowSource::start(&image, 16 << 20);
    assert_eq!(cluster.up(), cluster.uri());
    client = connect(&cluster);
    oracle.use_volume(&mut client, 60);
    wait_until_imported(&cluster);
    oracle.use_volume(&mut client, 200);
    oracle.check_all(&mut client);
    drop(client);
    cluster.wait_until_in_sync();
    // From here the source is not needed any more.
    drop(source);
    drop(cluster.trivet(&["volume", "detach", "moved"]).succeeded());
    drop(cluster.trivet(&["volume", "attach", "moved", "--read-only"]).succeeded());
    fs::write(&image, &oracle.held).expect("what it must be can be kept");
    let uri = shown(&cluster)["uri"].as_str().expect("it is attached").to_owned();
    must("qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&image), &uri]);
}

#[test]
fn a_source_that_is_away_or_another_delays_and_is_named() {
    needs_programs!("qemu-nbd");
    let cluster = Cluster::start(2, "4MiB");
    let image = image(&cluster, 24);
    let source = SlowSource::start(&image, 1 << 20);
    let uri = source.uri();
    let import = ["import", &uri, "moved", "--instant", "--size", "32MiB"];
    let would = cluster.trivet(&[&import[..], &["--dry-run"]].concat()).succeeded();
    assert!(would.stdout.contains("would make volume 'moved' of 32 MiB"), "{would}");
    drop(cluster.trivet(&import).succeeded());
    let oracle = Oracle::new(&image, 1);
    drop(source);
    wait_for_trouble(&cluster, "not imported yet");
    // It grows as ever.
    drop(cluster.trivet(&["volume", "resize", "moved", "--size", "40MiB"]).succeeded());
    drop(cluster.trivet(&["volume", "attach", "moved", "--read-only"]).failed_saying(&["moved"]));
    // A read of what is not there waits, and is answered rightly when the source is back.
    let mut client = connect(&cluster);
    let handle = client.submit(&Request::Read { offset: 23 * MIB, length: 4096 }).expect("it is sent");
    let early = client.next_reply(Duration::from_millis(500));
    assert!(early.is_err(), "nothing is made up: {early:?}");
    // Not by another disk of the same size under the same name, nor by a part of it.
    let other = image.with_file_name("other.raw");
    fs::rename(&image, &other).expect("it can be moved");
    for (bytes, words) in [(24 * MIB, "begins or ends otherwise"), (23 * MIB, "had 25165824")] {
        File::create(&image).expect("it can be made").set_len(bytes).expect("it can be made");
        let _wrong = SlowSource::start(&image, 0);
        wait_for_trouble(&cluster, words);
    }
    // What is written whole needs no source.
    let mut written = Oracle::new(&other, 2);
    let whole = 20 * MIB..22 * MIB;
    let at = usize::try_from(whole.start).expect("it fits")..usize::try_from(whole.end).expect("it fits");
    written.random.fill(&mut written.held[at.clone()]);
    client.write(whole.start, &written.held[at]).expect("a write");
    // The source is back, elsewhere.
    let elsewhere = image.with_file_name("elsewhere.raw");
    fs::rename(&other, &elsewhere).expect("it can be moved");
    let wrong = SlowSource::start(&image, 0);
    drop(cluster.trivet(&["import", &wrong.uri(), "moved", "--instant"]).failed_saying(&["another source"]));
    drop(wrong);
    let back = SlowSource::start(&elsewhere, 0);
    drop(cluster.trivet(&["import", &back.uri(), "moved", "--instant"]).succeeded());
    let reply = client.next_reply(patience::SOON).expect("it comes");
    assert_eq!((reply.handle, reply.error), (handle, 0));
    let at = usize::try_from(23 * MIB).expect("it fits");
    assert!(reply.data == oracle.held[at..at + 4096]);
    wait_until_imported(&cluster);
    written.check_all(&mut client);
    let beyond = client.read(24 * MIB, 1 << 20).expect("a read");
    assert!(beyond.iter().all(|byte| *byte == 0), "behind the source there are zeros");
    drop(client);

    for (arguments, words) in [
        (&["import", "https://127.0.0.1:1/x", "x", "--instant"][..], &["download it"][..]),
        (&["import", &back.uri(), "x", "--instant", "--size", "8MiB"], &["--size"]),
        (&["import", &back.uri(), "disk0", "--instant"], &["disk0"]),
        (&["import", &back.uri(), "moved", "--instant", "--dry-run"], &["opened before"]),
        (&["import", "nbd://127.0.0.1:1/x", "x", "--instant"], &["cannot read from"]),
    ] {
        drop(cluster.trivet(arguments).failed_saying(words));
    }
}

#[test]
fn an_image_is_served_by_its_import_which_goes_on_when_it_is_run_again() {
    needs_programs!("qemu-nbd", "qemu-img");
    let cluster = Cluster::start(2, "4MiB");
    let raw = image(&cluster, 600);
    let image = raw.with_extension("qcow2");
    must("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", text(&raw), text(&image)]);
    let import = ["import", text(&image), "moved", "--instant"];
    let start = || {
        let mut serving = Command::new(trivet_tests::cluster::binary());
        serving.args(import).env("TRIVET_DIR", cluster.directory());
        serving.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("trivet starts")
    };
    let mut serving = start();
    // Before its engine is up, which is when copying begins.
    patience::wait_for("the volume to be attached", patience::SOON, || {
        let volumes = cluster.trivet_json(&["volume", "list"]);
        let moved = volumes.as_array()?.iter().find(|volume| volume["name"] == "moved")?.clone();
        (moved["attached"] == true).then_some(())
    });
    serving.kill().expect("it can be killed");
    serving.wait().expect("it ends");
    let mut client = connect(&cluster);
    let mut oracle = Oracle::new(&raw, 5);
    let bytes = imported_bytes(&cluster).expect("it is not all imported");
    eprintln!("killed when {} MiB of 600 were imported", bytes / MIB);
    wait_for_trouble(&cluster, "not imported yet");
    // Another image under the same name, with the same ends, is not taken for it.
    let kept = image.with_extension("kept");
    fs::rename(&image, &kept).expect("it can be renamed");
    fs::copy(&kept, &image).expect("it can be copied");
    drop(
        cluster
            .trivet(&import)
            .failed_saying(&["is not what it was when that began", "trivet volume delete"]),
    );
    fs::rename(&kept, &image).expect("it can be renamed");
    // It is served on, whatever becomes of the manager.
    let mut serving = start();
    patience::wait_for("the source to be back", patience::SOON, || {
        let view = shown(&cluster);
        (view["import"].is_null() || view["trouble"] == "").then_some(())
    });
    process::kill_hard(&cluster.processes_of(Role::Manager));
    cluster.up();
    wait_until_imported(&cluster);
    assert!(serving.wait().expect("it ends").success());
    oracle.use_volume(&mut client, 100);
    oracle.check_all(&mut client);
    // One that QEMU cannot read makes no volume.
    fs::write(&image, "QFI\u{fb} and so on").expect("it can be written");
    let broken = ["import", text(&image), "broken", "--instant", "--format", "qcow2"];
    drop(cluster.trivet(&broken).failed_saying(&["qcow2"]));
    drop(cluster.trivet(&["volume", "show", "broken"]).failed_saying(&["broken"]));
}

#[test]
fn a_new_encrypted_volume_is_imported_at_once_and_sealed() {
    needs_programs!("qemu-nbd", "qemu-img");
    let cluster = Cluster::start(2, "4MiB");
    let image = image(&cluster, 12);
    let source = SlowSource::start(&image, 0);
    let key = cluster.scratch().join("key");
    fs::write(&key, [9; 32]).expect("a key file");
    let made = ["volume", "create", "moved", "--size", "12MiB", "--encrypt", "--key-file", text(&key)];
    drop(cluster.trivet(&made).succeeded());
    let import = ["import", &source.uri(), "moved", "--instant", "--wait", "--key-file", text(&key)];
    let wrong = cluster.scratch().join("wrong");
    fs::write(&wrong, [8; 32]).expect("a key file");
    let wrong = [&import[..6], &[text(&wrong)]].concat();
    drop(cluster.trivet(&wrong).failed_saying(&["nothing was touched"]));
    drop(cluster.trivet(&import[..5]).failed_saying(&["its key was not given"]));
    drop(cluster.trivet(&[&import[..4], &["--dry-run"]].concat()).failed_saying(&["its key was not given"]));
    assert!(shown(&cluster)["import"].is_null(), "nothing has begun");
    let imported = cluster.trivet(&import).succeeded();
    assert!(imported.stdout.contains("is in moved"), "{imported}");
    let view = shown(&cluster);
    assert!(view["import"].is_null() && view["state"] == "open", "{view}");
    let uri = view["uri"].as_str().expect("it is attached");
    must("qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&image), uri]);
    drop(cluster.trivet(&import).failed_saying(&["opened before"]));
    let mark = &fs::read(&image).expect("it is there")[9 * BLOCK..9 * BLOCK + 64];
    cluster.down();
    for pool in cluster.pools() {
        let bytes = fs::read(pool.join("pool")).expect("a pool's file");
        assert!(!bytes.windows(mark.len()).any(|found| found == mark), "nothing lies there in the clear");
    }
}
