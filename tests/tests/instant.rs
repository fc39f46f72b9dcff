//! A volume that is imported while it is used: from a slow source, under load, with kill -9 in the middle.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use trivet_tests::nbd::Request;
use trivet_tests::{Cluster, NbdClient, Random, Role, needs_programs, patience, process};

const MIB: u64 = 1 << 20;
const BLOCK: usize = 4096;

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are text")
}

/// An NBD server of a file that takes its time; zero for none. (nbdkit 1.32 aborts when a client is killed.)
struct SlowSource {
    server: Child,
    socket: std::path::PathBuf,
}

impl SlowSource {
    fn start(image: &Path, bytes_per_second: u64) -> Self {
        let socket = image.with_extension("sock");
        if socket.exists() {
            fs::remove_file(&socket).expect("its last server has gone");
        }
        let group = format!("throttle-group,id=slow,x-bps-read={bytes_per_second}");
        let file = format!("file.driver=raw,file.file.driver=file,file.file.filename={}", text(image));
        let node = format!("driver=throttle,throttle-group=slow,{file}");
        let mut server = Command::new("qemu-nbd");
        server.args(["--object", &group, "--image-opts", &node, "--read-only", "--persistent", "--shared=8"]);
        server.arg(format!("--socket={}", text(&socket))).stderr(Stdio::null());
        let server = server.spawn().expect("qemu-nbd starts");
        patience::wait_for("qemu-nbd to listen", patience::SOON, || socket.exists().then_some(()));
        Self { server, socket }
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", text(&self.socket))
    }

    fn kill(&mut self) {
        self.server.kill().expect("it runs");
        self.server.wait().expect("it ends");
    }
}

impl Drop for SlowSource {
    fn drop(&mut self) {
        // It may have been killed already.
        drop(self.server.kill());
        drop(self.server.wait());
    }
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
            let (offset, length) = self.range(if self.random.below(3) == 0 { 600 } else { 9 });
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

fn image(cluster: &Cluster, mebibytes: u64) -> std::path::PathBuf {
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

#[test]
fn right_data_at_every_moment_from_a_slow_source_with_kills_in_the_middle() {
    needs_programs!("qemu-nbd");
    let cluster = Cluster::start(3, "4MiB");
    let image = image(&cluster, 96);
    let source = SlowSource::start(&image, 4 << 20);
    let began = patience::now();
    drop(cluster.trivet(&["import", &source.uri(), "moved", "--instant"]).succeeded());
    let mut client = connect(&cluster);
    let mut oracle = Oracle::new(&image, 11);
    // The target is a second on a machine that does nothing else; a busy one must not fail for that.
    oracle.use_volume(&mut client, 2);
    let usable = patience::now() - began;
    eprintln!("made, attached, read and written after {} ms", usable.as_millis());
    assert!(usable < Duration::from_secs(10), "{usable:?}");
    assert!(
        imported_bytes(&cluster).is_some_and(|bytes| bytes < 96 * MIB),
        "it is used while it is imported"
    );
    drop(cluster.trivet(&["snapshot", "create", "moved", "early"]).failed_saying(&["still being imported"]));
    for _ in 0..3 {
        oracle.use_volume(&mut client, 60);
        drop(client);
        process::kill_hard(&cluster.processes_of(Role::Engine));
        client = connect(&cluster);
        oracle.use_volume(&mut client, 60);
    }
    process::kill_hard(&cluster.processes());
    drop(client);
    assert_eq!(cluster.up(), cluster.uri());
    client = connect(&cluster);
    oracle.use_volume(&mut client, 60);
    wait_until_imported(&cluster);
    oracle.use_volume(&mut client, 200);
    oracle.check_all(&mut client);
    drop(client);
    // From here the source is not needed any more.
    drop(source);
    drop(cluster.trivet(&["volume", "detach", "moved"]).succeeded());
    drop(cluster.trivet(&["volume", "attach", "moved", "--read-only"]).succeeded());
    oracle.check_all(&mut connect(&cluster));
}

#[test]
fn a_source_that_is_away_delays_and_is_named() {
    needs_programs!("qemu-nbd");
    let cluster = Cluster::start(2, "4MiB");
    let image = image(&cluster, 24);
    let mut source = SlowSource::start(&image, 1 << 20);
    drop(cluster.trivet(&["import", &source.uri(), "moved", "--instant", "--size", "32MiB"]).succeeded());
    let oracle = Oracle::new(&image, 1);
    source.kill();
    patience::wait_for("the trouble to be shown", patience::SOON, || {
        shown(&cluster)["trouble"].as_str().filter(|trouble| trouble.contains("not imported yet")).map(drop)
    });
    drop(cluster.trivet(&["volume", "attach", "moved", "--read-only"]).failed_saying(&["moved"]));
    // A read of what is not there waits, and is answered rightly when the source is back.
    let mut client = connect(&cluster);
    let handle = client.submit(&Request::Read { offset: 23 * MIB, length: 4096 }).expect("it is sent");
    let early = client.next_reply(Duration::from_millis(500));
    assert!(early.is_err(), "nothing is made up: {early:?}");
    let back = SlowSource::start(&image, 0);
    assert_eq!(back.uri(), source.uri());
    let reply = client.next_reply(patience::SOON).expect("it comes");
    assert_eq!((reply.handle, reply.error), (handle, 0));
    let at = usize::try_from(23 * MIB).expect("it fits");
    assert!(reply.data == oracle.held[at..at + 4096]);
    wait_until_imported(&cluster);
    oracle.check_all(&mut client);
    let beyond = client.read(24 * MIB, 1 << 20).expect("a read");
    assert!(beyond.iter().all(|byte| *byte == 0), "behind the source there are zeros");

    for (arguments, words) in [
        (&["import", text(&image), "x", "--instant"][..], &["NBD"][..]),
        (&["import", &back.uri(), "x", "--instant", "--size", "8MiB"], &["--size"]),
        (&["import", &back.uri(), "moved", "--instant"], &["moved"]),
        (&["import", "nbd://127.0.0.1:1/x", "x", "--instant"], &["cannot connect"]),
    ] {
        drop(cluster.trivet(arguments).failed_saying(words));
    }
}
