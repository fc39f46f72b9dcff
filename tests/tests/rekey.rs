//! Volumes whose data is encrypted anew, under another data key, while they are used and whoever is killed.

use trivet_tests::checker::Region;
use trivet_tests::encrypted::{Encrypted, is_in_records};
use trivet_tests::{Checker, NbdClient, Random, Role, patience, process};

const MIB: usize = 1 << 20;
/// What is written once, in the middle of the volume.
const STATIC: std::ops::Range<usize> = 8 * MIB..40 * MIB;

fn write_static(client: &mut NbdClient, fill: u8) -> Vec<u8> {
    let mut data = vec![0; STATIC.len()];
    Random::new(u64::from(fill)).fill(&mut data);
    for (at, piece) in data.chunks(256 << 10).enumerate() {
        client.write((STATIC.start + at * (256 << 10)) as u64, piece).expect("a write");
    }
    client.flush().expect("a flush");
    data
}

fn read_static(client: &mut NbdClient) -> Vec<u8> {
    let pieces = STATIC.step_by(MIB).map(|at| client.read(at as u64, 1 << 20).expect("a read"));
    pieces.collect::<Vec<_>>().concat()
}

#[test]
fn a_volume_under_load_gets_another_data_key_whoever_is_killed() {
    let secret = Encrypted::new();
    let (cluster, key) = (&secret.cluster, secret.file("key"));
    let does = |arguments: &[&str]| drop(cluster.trivet(arguments).succeeded());
    let refuses = |arguments: &[&str], words: &[&str]| drop(cluster.trivet(arguments).failed_saying(words));
    let rekey = ["volume", "rekey", "secret", "--data", "--key-file", &key];
    refuses(&rekey, &["is not attached for writing"]);
    let plain = ["volume", "rekey", "disk0", "--data", "--key-file", &key];
    refuses(&plain, &["is not encrypted"]);
    let _attached = secret.attach("key").succeeded();
    refuses(&["volume", "rekey", "secret", "--data"], &["its present key was not given"]);
    refuses(&["volume", "rekey", "secret", "--key-file", &key], &["no new key was given", "--data"]);
    let wrong = ["volume", "rekey", "secret", "--data", "--key-file", &secret.file("other")];
    refuses(&wrong, &["not the key", "nothing was touched"]);
    secret.fill();
    let data = write_static(&mut secret.client(), 1);
    does(&["snapshot", "create", "secret", "before"]);
    let dry = cluster.trivet(&["volume", "rekey", "secret", "--data", "--dry-run"]).succeeded();
    assert!(dry.stdout.contains("The old data key stays for its snapshot"), "{dry}");
    let first_key = secret.volume()["encryption"]["key"].clone();

    let seed = Random::seed_from_environment();
    eprintln!("TRIVET_TEST_SEED={seed}");
    let region = Region::new(48 * MIB as u64, 4096, 4096, seed);
    let uri = secret.volume()["uri"].as_str().expect("it is attached").to_owned();
    let load = Checker::start(&uri, region, seed);
    load.wait_for_progress(500, patience::SOON);

    // Everybody who has the new key dies before the volume has gone over to it.
    let engine = secret.engine();
    process::pause(std::slice::from_ref(&engine), true);
    refuses(&rekey, &["has not gone over to its new data key yet"]);
    process::kill_hard(&cluster.processes_of(Role::Manager));
    process::kill_hard(&[engine]);
    cluster.up();
    patience::wait_for("the volume to be locked", 3 * patience::SOON, || {
        (secret.volume()["state"] == "locked").then_some(())
    });
    let _unlocked = secret.attach("key").succeeded();
    secret.wait_until_served();
    let shown = secret.volume();
    assert_eq!(shown["encryption"]["key"], first_key, "{shown}");
    let next_key = shown["encryption"]["next_key"].clone();
    assert!(next_key.is_string(), "{shown}");
    does(&rekey);
    assert_eq!(secret.volume()["encryption"]["key"], next_key, "the key that was chosen before");

    // On the way, the engine, and everybody who has a key.
    secret.kill_engine();
    secret.wait_until_served();
    process::kill_hard(&cluster.processes_of(Role::Manager));
    secret.kill_engine();
    cluster.up();
    let _unlocked = secret.attach("key").succeeded();
    secret.wait_until_served();
    secret.wait_until_encrypted_anew(&["before"]);
    load.wait_for_progress(500, 2 * patience::SOON);
    let mut region = load.stop();
    region.verify(&mut secret.client()).expect("a quiet volume can be read");
    assert!(read_static(&mut secret.client()) == data);
    secret.assert_right();
    let text = cluster.trivet(&["volume", "show", "secret"]).succeeded().stdout;
    assert!(text.contains("for snapshot before"), "{text}");

    // What the snapshot shows is under the old key still.
    let _later = write_static(&mut secret.client(), 2);
    refuses(&["volume", "clone", "secret@before", "copy"], &["would need an older data key"]);
    let export = cluster.trivet_json(&["snapshot", "export", "secret", "before"]);
    let mut kept = NbdClient::connect(export["uri"].as_str().expect("a URI")).expect("it is served");
    assert!(read_static(&mut kept) == data);
    drop(kept);
    does(&["snapshot", "unexport", "secret", "before"]);
    does(&["volume", "detach", "secret"]);
    does(&[
        "snapshot",
        "revert",
        "secret",
        "before",
        "--yes",
        "--safety-snapshot",
        "kept",
        "--key-file",
        &key,
    ]);
    let _attached = secret.attach("key").succeeded();
    assert!(read_static(&mut secret.client()) == data);
    // `"until":12,"sealed":"…"`: a key that is destroyed has left `null` in this place.
    let is_kept =
        || ('0'..='9').any(|digit| is_in_records(cluster, format!("{digit},\"sealed\":\"").as_bytes()));
    assert!(is_kept());
    does(&["snapshot", "delete", "secret", "before", "--yes"]);
    secret.wait_until_encrypted_anew(&[]);
    assert!(!is_kept(), "the old key is gone from the records");

    // Another engine, which has the new key alone.
    does(&["volume", "detach", "secret"]);
    let _attached = secret.attach("key").succeeded();
    assert!(read_static(&mut secret.client()) == data);
    secret.assert_right();
    does(&["volume", "clone", "secret", "copy", "--attach", "--key-file", &key]);
    assert!(read_static(&mut cluster.connect_to("copy")) == data);
    does(&rekey);
    secret.wait_until_encrypted_anew(&["kept"]);
    assert!(read_static(&mut cluster.connect_to("copy")) == data);
    assert!(read_static(&mut secret.client()) == data);
    cluster.down();
    trivet_tests::replica::assert_pools_sound(cluster);
}
