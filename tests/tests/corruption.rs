//! One flipped byte in each kind of structure of a pool: what is read is right, or the read fails
//! with a clear error; never is anything wrong returned. `trivet check` names the damage.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use trivet_tests::cluster::trivet;
use trivet_tests::command::{self, Outcome};
use trivet_tests::nbd::Request;
use trivet_tests::pool::{BLOCK, blocks, flip, pool_file};
use trivet_tests::{Cluster, Random, patience, process};

const DATA_BYTES: u32 = 16 << 20;

/// A stopped cluster whose volume begins with known data, and that data.
fn prepared() -> (Cluster, Vec<u8>) {
    let cluster = Cluster::start(3, "256MiB");
    let mut data = vec![0; usize::try_from(DATA_BYTES).expect("small")];
    Random::new(11).fill(&mut data);
    let mut client = cluster.connect();
    for (index, piece) in data.chunks(64 << 10).enumerate() {
        client.write((index as u64) * (64 << 10), piece).expect("a write");
    }
    client.flush().expect("a flush");
    // What a flush made stable, a later journal block says.
    client.write(128 << 20, &[1; 4096]).expect("a write");
    client.flush().expect("a flush");
    drop(client);
    (cluster, data)
}

fn check(pool: &Path) -> Outcome {
    command::run(trivet().arg("check").arg(pool), patience::LONG)
}

/// `trivet check` fails and says one of `words`.
fn check_names(pool: &Path, words: &[&str]) {
    let outcome = check(pool);
    assert!(outcome.status.code().is_some_and(|code| code != 0 && code != 101), "{outcome}");
    let said = format!("{}{}", outcome.stdout, outcome.stderr).to_lowercase();
    assert!(words.iter().any(|word| said.contains(word)), "it should name one of {words:?}: {outcome}");
    assert!(!said.contains("panicked"), "{outcome}");
}

/// Brings the damaged cluster up and reads: what comes must be right. A cluster that does not come
/// up, or a read that fails, must say why. Answers whether all data was read.
fn reads_are_right_or_fail_clearly(cluster: &Cluster, data: &[u8]) -> bool {
    let up = cluster.trivet(&["up", "--replicas", "3", "--size", "256MiB"]);
    if !up.status.success() {
        let up = up.failed_saying(&["replica"]);
        assert!(up.stderr.trim().len() > 20, "an error should explain itself: {up}");
        return false;
    }
    let mut client = cluster.connect();
    let mut complete = true;
    for (index, piece) in data.chunks(256 << 10).enumerate() {
        let length = u32::try_from(piece.len()).expect("small");
        match client.read((index as u64) * (256 << 10), length) {
            Ok(found) => assert!(found == piece, "wrong data returned at piece {index}"),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(5), "a failed read is an I/O error: {error}");
                complete = false;
            }
        }
    }
    complete
}

#[test]
fn a_sound_pool_passes_the_check() {
    let (cluster, data) = prepared();
    cluster.down();
    for pool in cluster.pools() {
        let _sound = check(&pool).succeeded();
    }
    assert!(reads_are_right_or_fail_clearly(&cluster, &data));
}

#[test]
fn f10_a_flipped_byte_of_data_is_served_from_a_peer() {
    let (cluster, data) = prepared();
    cluster.down();
    let wanted = &data[40 * 4096..41 * 4096];
    for pool in &cluster.pools()[..2] {
        let copies = blocks(&pool_file(pool), |block| block == wanted);
        assert!(!copies.is_empty(), "the data should lie in {}", pool.display());
        copies.iter().for_each(|offset| flip(&pool_file(pool), offset + 1234));
        check_names(pool, &["checksum"]);
    }
    assert!(reads_are_right_or_fail_clearly(&cluster, &data), "one good member is enough");
}

#[test]
fn f10_data_damaged_on_every_member_is_an_error() {
    let (cluster, data) = prepared();
    cluster.down();
    let wanted = &data[7 * 4096..8 * 4096];
    for pool in cluster.pools() {
        let copies = blocks(&pool_file(&pool), |block| block == wanted);
        copies.iter().for_each(|offset| flip(&pool_file(&pool), offset + 9));
    }
    assert!(!reads_are_right_or_fail_clearly(&cluster, &data), "no member has the right data");
    // The blocks around it can still be read.
    let found = cluster.connect().read(0, 7 * 4096).expect("a read");
    assert!(found == data[..7 * 4096]);
}

#[test]
fn f14_disjoint_damage_on_every_member_is_repaired_by_the_others() {
    let (cluster, data) = prepared();
    cluster.down();
    let damaged: Vec<usize> = (0..9).map(|number| 10 * number).collect();
    for (pool, of_pool) in cluster.pools().iter().zip(damaged.chunks(3)) {
        for block in of_pool {
            let wanted = &data[block * 4096..(block + 1) * 4096];
            let copies = blocks(&pool_file(pool), |block| block == wanted);
            assert!(!copies.is_empty(), "the data should lie in {}", pool.display());
            copies.iter().for_each(|offset| flip(&pool_file(pool), offset + 99));
        }
        check_names(pool, &["checksum"]);
    }
    // Reads that are in flight together are spread over the members, so that each meets its damage; a
    // repair follows the answer, and may not be over when the cluster goes down.
    patience::wait_for("each member to be repaired from the others", patience::LONG, || {
        cluster.up();
        let mut client = cluster.connect();
        for block in &damaged {
            let offset = *block as u64 * BLOCK;
            for _ in 0..64 {
                client.submit(&Request::Read { offset, length: 4096 }).expect("a request can be sent");
            }
            for _ in 0..64 {
                let reply = client.next_reply(patience::SOON).expect("a reply");
                assert!(reply.error == 0 && reply.data == data[block * 4096..(block + 1) * 4096]);
            }
        }
        drop(client);
        cluster.down();
        cluster.pools().iter().all(|pool| check(pool).status.success()).then_some(())
    });
    assert!(reads_are_right_or_fail_clearly(&cluster, &data));
}

#[test]
fn f11_either_superblock_suffices_and_the_check_names_the_other() {
    for copy in 0..2 {
        let (cluster, data) = prepared();
        cluster.down();
        let pool = &cluster.pools()[1];
        flip(&pool_file(pool), copy * BLOCK + 40);
        check_names(pool, &["superblock"]);
        assert!(reads_are_right_or_fail_clearly(&cluster, &data), "copy {copy}");
    }
}

#[test]
fn f11_a_pool_with_no_superblock_left_is_refused_by_name() {
    let (cluster, data) = prepared();
    cluster.down();
    let pool = &cluster.pools()[1];
    flip(&pool_file(pool), 40);
    flip(&pool_file(pool), BLOCK + 40);
    check_names(pool, &["superblock"]);
    // The other members have all of it; whether they serve is the volume's membership, which
    // knows this one as in sync and may wait for it instead.
    refuses_to_serve_it(pool, &["superblock"]);
    drop(data);
}

/// A replica server on a pool that it must not serve.
fn refuses_to_serve_it(pool: &Path, words: &[&str]) {
    let mut server = trivet();
    server.arg("replica").arg("--dir").arg(pool).args(["--listen", "127.0.0.1:0"]);
    let _refused = command::run(&mut server, patience::SOON).failed_saying(words);
}

/// Kills the cluster, so that the journal has to be replayed, and answers the journal's blocks in
/// the order in which they were written.
fn journal_of(cluster: &Cluster, pool: &Path) -> Vec<u64> {
    process::kill_hard(&cluster.processes());
    let path = pool_file(pool);
    let mut found = blocks(&path, |block| block.starts_with(b"TRVJ"));
    let file = File::open(&path).expect("the pool is there");
    found.sort_by_key(|&offset| {
        let mut sequence = [0; 8];
        file.read_exact_at(&mut sequence, offset + 28).expect("a block can be read");
        u64::from_le_bytes(sequence)
    });
    assert!(found.len() > 4, "a journal of {} blocks is too short to damage", found.len());
    found
}

#[test]
fn f11_a_flipped_byte_in_the_stable_journal_fails_the_replica_and_cuts_nothing_away() {
    let (cluster, data) = prepared();
    let pool = cluster.pools().remove(0);
    let journal = journal_of(&cluster, &pool);
    flip(&pool_file(&pool), journal[journal.len() / 2] + 100);
    check_names(&pool, &["journal"]);
    refuses_to_serve_it(&pool, &["journal"]);
    drop(data);
}

#[test]
fn f11_a_flipped_byte_anywhere_in_the_journal_never_shows_as_wrong_data() {
    let mut random = Random::new(5);
    for _ in 0..3 {
        let (cluster, data) = prepared();
        let pool = cluster.pools().remove(2);
        let journal = journal_of(&cluster, &pool);
        flip(&pool_file(&pool), random.choose(&journal) + random.below(BLOCK));
        reads_are_right_or_fail_clearly(&cluster, &data);
    }
}

/// The files of a pool's map: RocksDB's, wherever below the pool's directory they lie.
fn map_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the pool is there").filter_map(Result::ok) {
        let path = entry.path();
        if path.is_dir() {
            map_files(&path, found);
            continue;
        }
        let name = entry.file_name().to_string_lossy().into_owned();
        let of_the_map = path.extension().is_some_and(|e| e == "sst")
            || ["MANIFEST-", "CURRENT"].iter().any(|prefix| name.starts_with(prefix));
        if of_the_map && fs::metadata(&path).is_ok_and(|found| found.len() > 0) {
            found.push(path);
        }
    }
}

/// Flips bytes spread over a file of the map, one at a time. The check must name each, or else the
/// byte must not matter: then the whole pool still reads right.
fn damage_all_over(cluster: &Cluster, pool: &Path, file: &Path, data: &[u8]) {
    const FLIPS: u64 = 24;
    let sound = fs::read(file).expect("a file of the map");
    let mut random = Random::new(sound.len() as u64);
    let mut named = 0;
    for step in 0..FLIPS {
        let length = sound.len() as u64;
        let at = (length * step / FLIPS + random.below((length / FLIPS).max(1))).min(length - 1);
        flip(file, at);
        if check(pool).status.success() {
            eprintln!("{} byte {at}: unnoticed, so the data must be right", file.display());
            assert!(reads_are_right_or_fail_clearly(cluster, data), "unnoticed, and yet not readable");
            cluster.down();
            return;
        }
        check_names(pool, &["map", "rocksdb", "corruption", "checkpoint"]);
        named += 1;
        fs::write(file, &sound).expect("a file can be put back");
    }
    eprintln!("{}: {named} of {FLIPS} flips named", file.display());
    let _sound_again = check(pool).succeeded();
    flip(file, sound.len() as u64 / 2);
    reads_are_right_or_fail_clearly(cluster, data);
}

#[test]
fn f11_a_flipped_byte_in_the_map_fails_the_replica_or_changes_nothing() {
    for kind in [".sst", "MANIFEST-", "CURRENT"] {
        let (cluster, data) = prepared();
        cluster.down();
        let pool = cluster.pools().remove(0);
        let mut files = Vec::new();
        map_files(&pool, &mut files);
        let file = files.iter().find(|file| file.to_string_lossy().contains(kind));
        let file =
            file.unwrap_or_else(|| panic!("a pool's map should have a {kind} file, not only {files:?}"));
        damage_all_over(&cluster, &pool, file, &data);
    }
}
