//! Bad input of every kind: a clear error, an exit code, a server that stays alive, and nothing
//! lost.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use trivet_model::{Epoch, Generation, Stamp};
use trivet_tests::blockdev::{LoopDevice, Mount, obstacle};
use trivet_tests::cluster::trivet;
use trivet_tests::command::{self, Outcome, must};
use trivet_tests::nbd::{self, Request};
use trivet_tests::replica::{self, ReplicaServer};
use trivet_tests::{Cluster, NbdClient, Random, Scratch, Setup, did_not_run, needs_programs, patience};
use trivet_wire::{BlockData, Encoder, Frame, Hello, Message, PROTOCOL_VERSION, Progress};

fn outcome_of(arguments: &[&str]) -> Outcome {
    command::run(trivet().args(arguments), patience::SOON)
}

#[test]
fn impossible_sizes_are_refused_and_leave_nothing_behind() {
    for size in ["0", "65TiB", "ten", "-1", "", "1Q"] {
        let scratch = Scratch::new();
        let directory = scratch.join("c");
        let path = directory.to_str().expect("UTF-8");
        let _refused = outcome_of(&["up", "--dir", path, &format!("--size={size}")]).failed_saying(&["size"]);
        assert!(
            !directory.join("replica-1").exists(),
            "size '{size}' should be refused before anything is made"
        );
    }
    let cluster = Cluster::start(3, "64MiB");
    for size in ["0", "65TiB"] {
        let _refused =
            cluster.trivet(&["volume", "create", "other", "--size", size]).failed_saying(&["size"]);
    }
    let _refused = cluster.trivet(&["volume", "resize", "disk0", "--size", "1MiB"]).failed_saying(&["disk0"]);
    assert_eq!(cluster.connect().size(), 64 << 20, "the volume is as it was");
}

#[test]
fn wrong_names_and_directories_are_named_in_the_error() {
    let scratch = Scratch::new();
    let missing = scratch.join("missing");
    let (missing, empty) = (missing.to_str().expect("UTF-8"), scratch.path().to_str().expect("UTF-8"));
    let _refused = outcome_of(&["status", "--dir", missing]).failed_saying(&[missing]);
    let _refused = outcome_of(&["status", "--dir", empty]).failed_saying(&[empty]);
    let _refused = outcome_of(&["check", missing]).failed_saying(&[missing]);
    let _refused = outcome_of(&["check", empty]).failed_saying(&[empty]);
    let file = scratch.join("file");
    fs::write(&file, "not a folder").expect("a file can be written");
    let file_name = file.to_str().expect("UTF-8");
    let _refused = outcome_of(&["up", "--dir", file_name]).failed_saying(&[file_name]);
    assert_eq!(fs::read(&file).expect("it is there"), b"not a folder");

    let occupied = scratch.join("occupied");
    fs::create_dir(&occupied).expect("a folder can be made");
    fs::write(occupied.join("letters.txt"), "dear").expect("a file can be written");
    let occupied_name = occupied.to_str().expect("UTF-8");
    let _refused = outcome_of(&["up", "--dir", occupied_name]).failed_saying(&[occupied_name]);
    assert_eq!(fs::read_dir(&occupied).expect("it is there").count(), 1, "another's folder is left alone");

    let cluster = Cluster::start(3, "64MiB");
    let _refused = cluster.trivet(&["volume", "show", "nobody"]).failed_saying(&["nobody"]);
    let _refused = cluster.trivet(&["volume", "delete", "--yes", "nobody"]).failed_saying(&["nobody"]);
    let _refused =
        cluster.trivet(&["volume", "create", "No/Name", "--size", "1GiB"]).failed_saying(&["No/Name"]);
    let _refused = cluster.trivet(&["volume", "create", "disk0", "--size", "1GiB"]).failed_saying(&["disk0"]);
}

#[test]
fn an_occupied_port_is_named() {
    let cluster = Cluster::start(3, "64MiB");
    cluster.down();
    let holder = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = holder.local_addr().expect("a listener has an address").to_string();
    let mut server = trivet();
    server.arg("replica").arg("--dir").arg(&cluster.pools()[0]).args(["--listen", &address]);
    let _refused = command::run(&mut server, patience::SOON).failed_saying(&[&address]);
}

#[test]
fn a_pool_is_served_by_one_server_at_a_time() {
    let cluster = Cluster::start(3, "64MiB");
    let pool = &cluster.pools()[0];
    let mut server = trivet();
    server.arg("replica").arg("--dir").arg(pool).args(["--listen", &replica::free_address().to_string()]);
    let _refused = command::run(&mut server, patience::SOON).failed_saying(&[pool.to_str().expect("UTF-8")]);
    cluster.connect().write(0, &[1; 4096]).expect("the first server goes on");
}

/// Writes a superblock of a later format into both places, checksum and all.
fn make_foreign(pool: &Path) {
    let file = OpenOptions::new().read(true).write(true).open(pool.join("pool")).expect("the pool is there");
    for copy in 0..2 {
        let mut block = [0; 4096];
        file.read_exact_at(&mut block, copy * 4096).expect("a block can be read");
        assert_eq!(&block[..8], b"TRVTPOOL", "docs/disk-format.md");
        block[8..12].copy_from_slice(&99_u32.to_le_bytes());
        let crc = crc32fast::hash(&block[..4092]);
        block[4092..].copy_from_slice(&crc.to_le_bytes());
        file.write_all_at(&block, copy * 4096).expect("a block can be written");
    }
}

#[test]
fn a_pool_of_another_version_is_refused_by_number_and_left_alone() {
    let cluster = Cluster::start(3, "64MiB");
    cluster.down();
    let pool = &cluster.pools()[0];
    make_foreign(pool);
    let before = must("sha256sum", &[pool.join("pool")]).stdout;
    let pool_name = pool.to_str().expect("UTF-8");
    let _refused = outcome_of(&["check", pool_name]).failed_saying(&["version 99"]);
    let listen = replica::free_address().to_string();
    let _refused =
        outcome_of(&["replica", "--dir", pool_name, "--listen", &listen]).failed_saying(&["version 99"]);
    let _refused =
        cluster.trivet(&["up", "--replicas", "3", "--size", "64MiB"]).failed_saying(&["version 99"]);
    assert_eq!(must("sha256sum", &[pool.join("pool")]).stdout, before, "a foreign pool is left alone");
}

/// What the fuzzers have found worth keeping; below `fuzz/corpus`, a folder a target.
fn corpus(wanted: impl Fn(&str) -> bool) -> Vec<Vec<u8>> {
    let root = Path::new("../fuzz/corpus");
    let folders = fs::read_dir(root).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path());
    let wanted =
        folders.filter(|folder| folder.file_name().is_some_and(|name| wanted(&name.to_string_lossy())));
    let files = wanted.flat_map(|folder| fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok));
    let mut files: Vec<PathBuf> = files.map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    files.sort();
    assert!(files.len() >= 20, "only {} cases below {}: is the corpus there?", files.len(), root.display());
    files.iter().map(|path| fs::read(path).expect("a corpus file can be read")).collect()
}

/// Random bytes, some behind a `prefix` that a server takes seriously.
fn garbage(random: &mut Random, prefix: &[u8]) -> Vec<u8> {
    let length = usize::try_from(1 + random.below(8192)).expect("small");
    let mut bytes = vec![0; length];
    random.fill(&mut bytes);
    let kept = usize::try_from(random.below(prefix.len() as u64 + 1)).expect("small");
    [&prefix[..kept], &bytes].concat()
}

/// Sends bytes and reads until the server has had enough. It may close the connection or wait for
/// more; closing our side ends the latter.
fn throw_at(mut stream: impl Read + Write, end_of_input: impl FnOnce(), bytes: &[u8]) {
    if stream.write_all(bytes).is_ok() {
        end_of_input();
        let mut answer = Vec::new();
        // The answer is of no interest and a reset connection is a fair one.
        drop(stream.read_to_end(&mut answer));
    }
}

/// The handshake up to the transmission phase, for garbage to follow.
fn nbd_prelude() -> Vec<u8> {
    let option = |number: u32, data: &[u8]| {
        let length = u32::try_from(data.len()).expect("short").to_be_bytes();
        [b"IHAVEOPT", &number.to_be_bytes()[..], &length, data].concat()
    };
    let go = [&5_u32.to_be_bytes()[..], b"disk0", &[0, 0]].concat();
    [&3_u32.to_be_bytes()[..], &option(8, &[]), &option(7, &go)].concat()
}

fn nbd_request(kind: u16, offset: u64, length: u32) -> Vec<u8> {
    let magic = 0x2560_9513_u32.to_be_bytes();
    [&magic[..], &[0, 0], &kind.to_be_bytes(), &[9; 8], &offset.to_be_bytes(), &length.to_be_bytes()].concat()
}

#[test]
fn f26_a_hostile_nbd_client_harms_nobody_but_itself() {
    let seed = Random::seed_from_environment();
    eprintln!("TRIVET_TEST_SEED={seed}");
    let mut random = Random::new(seed);
    let cluster = Cluster::start(3, "64MiB");
    let mut honest = cluster.connect();
    honest.write(0, &[0x42; 8192]).expect("a write");
    let before = cluster.processes();
    let (_, socket) = cluster.uri().split_once("socket=").expect("a unix URI");

    let prelude = nbd_prelude();
    let mut attacks: Vec<Vec<u8>> = (0..300).map(|_| garbage(&mut random, &prelude)).collect();
    attacks.extend(corpus(|target| target.contains("nbd")));
    let hostile =
        [(0, u64::MAX, 4096), (0, 64 << 20, 512), (0, 0, u32::MAX), (0, 1, 7), (3, 5, 5), (99, 0, 0)];
    attacks.extend(
        hostile.map(|(kind, offset, length)| [&prelude[..], &nbd_request(kind, offset, length)].concat()),
    );
    attacks.push([&prelude[..], &nbd_request(1, 0, u32::MAX), &[7; 4096]].concat());
    attacks.push([&[0, 0, 0, 3], &b"IHAVEOPT"[..], &[0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff]].concat());
    for attack in attacks {
        let stream = UnixStream::connect(socket).expect("the server listens");
        stream.set_read_timeout(Some(patience::SOON)).expect("a timeout can be set");
        let end = stream.try_clone().expect("a handle");
        throw_at(stream, || drop(end.shutdown(std::net::Shutdown::Write)), &attack);
        if !attack.starts_with(&prelude) {
            continue;
        }
        // Only what got past the handshake can have written, and by luck.
        honest.write(0, &[0x42; 8192]).expect("the server goes on");
    }
    assert_eq!(honest.read(0, 8192).expect("the server goes on"), [0x42; 8192]);
    assert_eq!(cluster.processes(), before, "no process died of it");
}

#[test]
fn requests_beyond_the_volume_are_refused_one_by_one() {
    let cluster = Cluster::start(3, "64MiB");
    let mut client = cluster.connect();
    let end = client.size();
    let beyond = [
        Request::Read { offset: end, length: 512 },
        Request::Read { offset: end - 512, length: 1024 },
        Request::Write { offset: end - 512, data: vec![1; 1024], force_unit_access: false },
        Request::Trim { offset: u64::MAX - 511, length: 512 },
        Request::WriteZeroes { offset: end, length: 512 },
    ];
    for request in &beyond {
        let error = client.call(request).expect_err("beyond the end");
        assert!(matches!(error.raw_os_error(), Some(22 | 28)), "{request:?}: {error}");
    }
    assert_eq!(client.read(end - 512, 512).expect("the connection goes on"), [0; 512]);
}

/// Well-formed frames that no server may obey: I/O on a volume that was never opened.
fn replica_prelude() -> Vec<u8> {
    let hello = Hello { version_min: PROTOCOL_VERSION, version_max: PROTOCOL_VERSION };
    let data = BlockData::checksummed(vec![vec![0; 4096].into()]);
    let (stamp, progress) = (Stamp::from_u64(u64::MAX), Progress::default());
    let messages = [
        Message::Hello(hello),
        Message::PoolStatus,
        Message::Write { start: 0, stamp, progress, force_unit_access: true, data },
        Message::Close { progress },
    ];
    let mut encoder = Encoder::new();
    for message in messages {
        encoder.push(&Frame { request: 1, generation: Generation::MAX, epoch: Epoch(1), message });
    }
    encoder.take().concat()
}

#[test]
fn f26_hostile_bytes_at_a_replica_harm_nobody() {
    let seed = Random::seed_from_environment();
    eprintln!("TRIVET_TEST_SEED={seed}");
    let mut random = Random::new(seed);
    let cluster = Cluster::start(3, "64MiB");
    cluster.connect().write(0, &[0x42; 1 << 20]).expect("a write");
    cluster.down();
    {
        let mut server = ReplicaServer::start(&cluster.pools()[0]);
        let mut honest = server.connect();
        let before = honest.report().expect("a report");
        let prelude = replica_prelude();
        let mut attacks: Vec<Vec<u8>> = (0..300).map(|_| garbage(&mut random, &prelude)).collect();
        attacks.push(prelude);
        attacks.extend(corpus(|target| !target.contains("nbd")));
        for attack in attacks {
            let stream = TcpStream::connect(server.address()).expect("the server listens");
            stream.set_read_timeout(Some(patience::SOON)).expect("a timeout can be set");
            let end = stream.try_clone().expect("a handle");
            throw_at(stream, || drop(end.shutdown(std::net::Shutdown::Write)), &attack);
        }
        assert!(server.is_running(), "the server died of it");
        let after = honest.report().expect("the honest connection goes on");
        // A corpus may rightly make volumes of its own; it must not touch this one.
        assert!(before.volumes.iter().all(|volume| after.volumes.contains(volume)), "{before:?}\n{after:?}");
    }
    cluster.up();
    assert_eq!(cluster.connect().read(0, 1 << 20).expect("a read"), [0x42; 1 << 20]);
}

/// Writes numbered pieces until the disk is full; answers how many were acknowledged.
fn fill(client: &mut NbdClient, piece: impl Fn(u64) -> Vec<u8>) -> u64 {
    let mut acknowledged = 0;
    loop {
        let data = piece(acknowledged);
        let offset = acknowledged * data.len() as u64;
        assert!(offset < client.size(), "the disk should be full before the volume is");
        match client.write(offset, &data) {
            Ok(()) => acknowledged += 1,
            Err(error) => {
                let number = error.raw_os_error().and_then(|number| u32::try_from(number).ok());
                assert_eq!(number, Some(nbd::ENOSPC), "a full disk should say so: {error}");
                return acknowledged;
            }
        }
    }
}

#[test]
fn f09_a_full_disk_is_an_error_that_passes() {
    needs_programs!("mkfs.ext4");
    if let Some(why) = obstacle() {
        did_not_run!("{why}");
    }
    const PIECE: u32 = 1 << 20;
    let piece = |number: u64| {
        let mut bytes = vec![0; usize::try_from(PIECE).expect("small")];
        Random::new(number).fill(&mut bytes);
        bytes
    };
    let disk = Scratch::new();
    let image = disk.join("image");
    File::create(&image).and_then(|file| file.set_len(1 << 30)).expect("an image can be made");
    let device = LoopDevice::attach(&image);
    must("mkfs.ext4", &["-q", "-F", device.path().to_str().expect("UTF-8")]);
    let mount = Mount::new(device.path(), &disk.join("mnt"));
    let cluster = Cluster::start_in(Scratch::new(), mount.path().join("c"), Setup::new(2, "8GiB"));
    let mut client = cluster.connect();

    let count = fill(&mut client, piece);
    assert!(count > 64, "only {count} MiB fitted on a disk of 1 GiB");
    let same = |client: &mut NbdClient, numbers: &mut dyn Iterator<Item = u64>| {
        for number in numbers {
            let found = client.read(number * u64::from(PIECE), PIECE).expect("a full disk can be read");
            assert!(found == piece(number), "piece {number} has changed");
        }
    };
    same(&mut client, &mut (0..count));
    for number in 0..count / 2 {
        client
            .call(&Request::Trim { offset: number * u64::from(PIECE), length: PIECE })
            .expect("a full disk can be trimmed");
    }
    client.flush().expect("a full disk can be flushed");
    patience::wait_for("room after the trim", patience::SOON, || client.write(0, &piece(0)).ok());
    for number in 1..count / 4 {
        client.write(number * u64::from(PIECE), &piece(number)).expect("there is room again");
    }
    drop(client);
    cluster.down();
    cluster.up();
    same(&mut cluster.connect(), &mut (0..count / 4).chain(count / 2..count));
    cluster.down();
    replica::assert_members_identical(&cluster);
    drop(cluster);
}

#[test]
fn help_and_version_are_there_and_unknown_words_are_not() {
    let help = outcome_of(&["--help"]).succeeded();
    for word in ["up", "down", "status", "volume", "check", "bench"] {
        assert!(help.stdout.contains(word), "{word}: {help}");
    }
    let _version =
        command::run(Command::new(trivet_tests::cluster::binary()).arg("--version"), patience::SOON)
            .succeeded();
    let _refused = outcome_of(&["uppp"]).failed_saying(&["uppp"]);
    let _refused = outcome_of(&["volume", "list", "-o", "yaml"]).failed_saying(&["yaml"]);
}
