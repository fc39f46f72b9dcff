//! Encrypted volumes over real processes: who has no key gets nothing, whoever restarts, and no key or
//! passphrase is anywhere that it should not be.

use std::fs;
use std::path::Path;
use trivet_keys::{KeyHolder, Passphrase, Secret, WrappedKey};
use trivet_tests::cluster::trivet;
use trivet_tests::encrypted::{Encrypted, contains, files_below, is_in_records, say_to};
use trivet_tests::{Cluster, NbdClient, Role, patience, process};

const PASSPHRASE: &str = "canary passphrase, correct horse";

#[test]
fn who_has_no_key_gets_nothing_whatever_restarts() {
    let secret = Encrypted::new();
    let cluster = &secret.cluster;
    let _locked = cluster.trivet(&["volume", "attach", "secret"]).failed_saying(&["encrypted", "key"]);
    let wrong = secret.attach("other").failed_saying(&["not the key", "nothing was touched"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert_eq!(secret.volume()["state"], "detached");
    let phrase = ["volume", "attach", "secret", "--passphrase-stdin"];
    let _method = say_to(cluster, &phrase, PASSPHRASE).failed_saying(&["unlocked by a key"]);
    let plain = ["volume", "attach", "disk0", "--key-file", &secret.file("key")];
    let _plain = cluster.trivet(&plain).failed_saying(&["not encrypted"]);

    let _attached = secret.attach("key").succeeded();
    secret.fill();
    secret.assert_right();

    // An engine that died gets its key again by itself.
    secret.kill_engine();
    patience::wait_for("the volume to be served again", 3 * patience::SOON, || {
        (secret.volume()["serving"] == true).then_some(())
    });
    secret.assert_right();

    // A manager that died has no keys: the engine that runs keeps its own, the next one waits.
    process::kill_hard(&cluster.processes_of(Role::Manager));
    cluster.up();
    secret.assert_right();
    secret.kill_engine();
    patience::wait_for("the volume to be locked", 3 * patience::SOON, || {
        (secret.volume()["state"] == "locked").then_some(())
    });
    let shown = secret.volume();
    assert!(shown["trouble"].as_str().is_some_and(|why| why.contains("volume attach secret")), "{shown}");
    cluster.up();
    let _wrong = secret.attach("other").failed_saying(&["not the key"]);
    let _unlocked = secret.attach("key").succeeded();
    secret.assert_right();

    // Reads that are verified; only of what is encrypted.
    let set = |volume, how| cluster.trivet(&["volume", "set", volume, "--verified-reads", how]);
    let _plain = set("disk0", "on").failed_saying(&["not encrypted", "--encrypt"]);
    let create = ["volume", "create", "plain", "--size", "1MiB", "--verified-reads", "on"];
    let _plain = cluster.trivet(&create).failed_saying(&["not encrypted", "--encrypt"]);
    for (how, shown) in [("on", true), ("off", false), ("on", true)] {
        let _set = set("secret", how).succeeded();
        assert_eq!(secret.volume()["verified_reads"], shown);
        secret.assert_right();
    }

    // Another key, while it is served.
    let rekey = ["volume", "rekey", "secret", "--key-file", &secret.file("key"), "--new-passphrase-stdin"];
    let _rekeyed = say_to(cluster, &rekey, PASSPHRASE).succeeded();
    secret.assert_right();
    let _detached = cluster.trivet(&["volume", "detach", "secret"]).succeeded();
    let _old = secret.attach("key").failed_saying(&["unlocked by a passphrase"]);
    let _wrong = say_to(cluster, &phrase, "another passphrase").failed_saying(&["not the passphrase"]);
    let _right = say_to(cluster, &phrase, PASSPHRASE).succeeded();
    secret.assert_right();
}

#[test]
fn no_key_is_where_it_should_not_be_and_deleting_destroys_it() {
    let secret = Encrypted::new();
    let cluster = &secret.cluster;
    let _attached = secret.attach("key").succeeded();
    secret.fill();
    let wrapped = wrapped_key(cluster).expect("the wrapped key is in the records");
    let holder = Secret::new(zeroize::Zeroizing::new(secret.key.clone())).expect("long enough");
    let data_key = holder.unwrap(&wrapped).expect("it is the volume's").expose().to_vec();
    let rekey = ["volume", "rekey", "secret", "--key-file", &secret.file("key"), "--new-passphrase-stdin"];
    let _rekeyed = say_to(cluster, &rekey, PASSPHRASE).succeeded();
    let replaced = wrapped.to_text();
    assert!(!is_in_records(cluster, replaced.as_bytes()), "what the old key opened is gone");
    let _detached = cluster.trivet(&["volume", "detach", "secret"]).succeeded();
    let attach = ["volume", "attach", "secret", "--passphrase-stdin"];
    let _wrong = say_to(cluster, &attach, "another passphrase").failed_saying(&["passphrase"]);
    let _right = say_to(cluster, &attach, PASSPHRASE).succeeded();
    secret.assert_right();
    // Another data key, and in the end that alone.
    let anew = ["volume", "rekey", "secret", "--data", "--passphrase-stdin"];
    let _rekeyed = say_to(cluster, &anew, PASSPHRASE).succeeded();
    secret.wait_until_encrypted_anew(&[]);
    secret.assert_right();
    let wrapped = wrapped_key(cluster).expect("the wrapped key is in the records");
    let holder = Passphrase::new(zeroize::Zeroizing::new(PASSPHRASE.into())).expect("long enough");
    let next_key = holder.unwrap(&wrapped).expect("it is the volume's").expose().to_vec();
    assert_ne!(next_key, data_key);

    let canaries = [
        ("the user's key", secret.key.clone()),
        ("the user's key in hexadecimal", hex(&secret.key).into_bytes()),
        ("the data key", data_key.clone()),
        ("the data key in hexadecimal", hex(&data_key).into_bytes()),
        ("the next data key", next_key.clone()),
        ("the next data key in hexadecimal", hex(&next_key).into_bytes()),
        ("the passphrase", PASSPHRASE.as_bytes().to_vec()),
        ("a block as it was written", secret.data[4096..8192].to_vec()),
    ];
    let files = files_below(cluster.directory());
    assert!(files.iter().any(|path| path.ends_with("pool")) && files.len() > 20, "{files:?}");
    for path in &files {
        let bytes = fs::read(path).unwrap_or_default();
        for (what, canary) in &canaries {
            assert!(!contains(&bytes, canary), "{what} is in {}", path.display());
        }
    }
    let processes = cluster.processes();
    assert!(processes.len() >= 4, "{processes:?}");
    for process in &processes {
        for name in ["cmdline", "environ"] {
            let bytes = fs::read(format!("/proc/{}/{name}", process.pid)).expect("a process of ours");
            for (what, canary) in &canaries {
                assert!(!contains(&bytes, canary), "{what} is in {name} of {process:?}");
            }
        }
    }
    for holder in cluster.processes_of(Role::Manager).iter().chain([&secret.engine()]) {
        let limits = fs::read_to_string(format!("/proc/{}/limits", holder.pid)).expect("a process of ours");
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a limit");
        assert_eq!(core.split_whitespace().nth(4), Some("0"), "{holder:?} leaves no core file");
    }

    let _detached = cluster.trivet(&["volume", "detach", "secret"]).succeeded();
    let kept = wrapped_key(cluster).expect("the wrapped key is in the records").to_text();
    let dry = cluster.trivet(&["volume", "delete", "secret", "--dry-run"]).succeeded();
    assert!(dry.stdout.contains("its key first"), "{dry}");
    assert!(is_in_records(cluster, kept.as_bytes()));
    let _deleted = cluster.trivet(&["volume", "delete", "secret", "--yes"]).succeeded();
    assert!(!is_in_records(cluster, kept.as_bytes()), "the wrapped key is destroyed");
}

#[test]
fn a_clone_reads_on_under_its_parents_key_and_writes_under_its_own() {
    let secret = Encrypted::new();
    let (cluster, key) = (&secret.cluster, secret.file("key"));
    let _attached = secret.attach("key").succeeded();
    secret.fill();
    let clone = |of: &str, name: &str, key: &str| {
        cluster.trivet(&["volume", "clone", of, name, "--attach", "--key-file", key])
    };
    let _wrong = clone("secret", "copy", &secret.file("other")).failed_saying(&["nothing was touched"]);
    let without = ["volume", "clone", "secret", "copy", "--attach"];
    let _without = cluster.trivet(&without).failed_saying(&["is encrypted", "--key-file"]);
    let _nothing = cluster.trivet(&["volume", "show", "copy"]).failed_saying(&["no volume"]);
    let _made = clone("secret", "copy", &key).succeeded();

    let mut expected = secret.data.clone();
    assert!(read(cluster, "copy", expected.len()) == expected, "it begins with what its parent holds");
    expected[8192..16384].fill(0xc1);
    let mut client = cluster.connect_to("copy");
    client.write(8192, &expected[8192..16384]).expect("a write");
    // A part of a block that the parent has.
    expected[20480..20992].fill(0xc2);
    client.write(20480, &expected[20480..20992]).expect("a write");
    client.flush().expect("a flush");
    drop(client);
    assert!(read(cluster, "copy", expected.len()) == expected);
    // Held against another copy, too.
    let _verified = cluster.trivet(&["volume", "set", "copy", "--verified-reads", "on"]).succeeded();
    assert!(read(cluster, "copy", expected.len()) == expected);
    secret.assert_right();

    // A clone of the clone, with everything it was made of gone or flattened.
    let _third = clone("copy", "third", &key).succeeded();
    let _flat = cluster.trivet(&["volume", "flatten", "third"]).succeeded();
    assert!(read(cluster, "third", expected.len()) == expected);
    let _detached = cluster.trivet(&["volume", "detach", "secret"]).succeeded();
    let dry = cluster.trivet(&["volume", "delete", "secret", "--dry-run"]).succeeded();
    assert!(dry.stdout.contains("'copy', 'third' has the same data key"), "{dry}");
    let _deleted = cluster.trivet(&["volume", "delete", "secret", "--yes"]).succeeded();
    for volume in ["copy", "third"] {
        let _detached = cluster.trivet(&["volume", "detach", volume]).succeeded();
        let _locked = cluster.trivet(&["volume", "attach", volume]).failed_saying(&["encrypted"]);
        let _attached = cluster.trivet(&["volume", "attach", volume, "--key-file", &key]).succeeded();
        assert!(read(cluster, volume, expected.len()) == expected, "{volume}");
    }

    // Out as an image, with the key, and back into another encrypted volume.
    let _detached = cluster.trivet(&["volume", "detach", "third"]).succeeded();
    let image = secret.file("third.raw");
    let _locked = cluster.trivet(&["export", "third", &image]).failed_saying(&["key was not given"]);
    let _out = cluster.trivet(&["export", "third", &image, "--key-file", &key]).succeeded();
    assert!(fs::read(&image).expect("an image")[..expected.len()] == expected);
    let create = ["volume", "create", "again", "--size", "64MiB", "--encrypt", "--key-file", &key];
    let _made = cluster.trivet(&create).succeeded();
    let import = ["import", &image, "again", "--yes", "--attach", "--key-file", &key];
    let _in = cluster.trivet(&import).succeeded();
    assert!(read(cluster, "again", expected.len()) == expected);
    cluster.down();
    for pool in cluster.pools() {
        let _sound = cluster.trivet(&["check", &pool.display().to_string()]).succeeded();
    }
}

#[test]
fn a_revert_takes_the_key_and_waits_for_it_where_it_was_lost() {
    let secret = Encrypted::new();
    let (cluster, key, other) = (&secret.cluster, secret.file("key"), secret.file("other"));
    let does = |arguments: &[&str]| drop(cluster.trivet(arguments).succeeded());
    let refuses = |arguments: &[&str], words: &[&str]| drop(cluster.trivet(arguments).failed_saying(words));
    let overwrite = |volume: &str| {
        let mut client = cluster.connect_to(volume);
        client.write(0, &vec![0xd1; secret.data.len()]).expect("a write");
        client.flush().expect("a flush");
    };
    let _attached = secret.attach("key").succeeded();
    secret.fill();
    does(&["snapshot", "create", "secret", "before"]);
    overwrite("secret");
    does(&["volume", "detach", "secret"]);

    let revert = ["snapshot", "revert", "secret", "before", "--yes", "--safety-snapshot", "kept"];
    does(&["snapshot", "revert", "secret", "before", "--dry-run"]);
    refuses(&revert, &["is encrypted, and its key was not given", "--key-file"]);
    let (right, wrong) = (with_key(&revert, &key), with_key(&revert, &other));
    refuses(&wrong, &["not the key"]);
    assert_eq!(secret.volume()["state"], "detached");

    // Everybody who has the key dies before anything can be done.
    let replicas = cluster.processes_of(Role::Replica);
    process::pause(&replicas[1..], true);
    let mut ordered = trivet();
    ordered.args(&right).env("TRIVET_DIR", cluster.directory());
    let mut ordered = ordered.spawn().expect("trivet runs");
    patience::wait_for("the revert to begin", patience::SOON, || {
        secret.volume()["revert"].is_object().then_some(())
    });
    process::pause(&replicas, true);
    let engine = patience::wait_for("its engine", patience::SOON, || {
        cluster.processes_of(Role::Engine).into_iter().find(|engine| engine.names(Path::new("secret")))
    });
    process::kill_hard(&cluster.processes_of(Role::Manager));
    process::kill_hard(&[engine]);
    process::pause(&replicas, false);
    ordered.wait().expect("it ends");
    cluster.up();
    patience::wait_for("the volume to be locked", 3 * patience::SOON, || {
        (secret.volume()["state"] == "locked").then_some(())
    });
    let shown = secret.volume();
    let says = |word: &str| shown["trouble"].as_str().is_some_and(|why| why.contains(word));
    assert!(says("trivet snapshot revert secret before, with its key"), "{shown}");
    let _reverting = secret.attach("key").failed_saying(&["is being reverted to its snapshot 'before'"]);
    refuses(&revert, &["key was not given"]);
    refuses(&wrong, &["not the key"]);
    does(&right);
    assert_eq!(secret.volume()["state"], "detached");
    // The key went when it was done.
    let _locked = cluster.trivet(&["volume", "attach", "secret"]).failed_saying(&["encrypted"]);
    let _attached = secret.attach("key").succeeded();
    secret.assert_right();
    let export = cluster.trivet_json(&["snapshot", "export", "secret", "kept"]);
    let mut kept = NbdClient::connect(export["uri"].as_str().expect("a URI")).expect("it is served");
    let length = u32::try_from(secret.data.len()).expect("small");
    assert!(kept.read(0, length).expect("a read").iter().all(|byte| *byte == 0xd1));

    // Of a clone, to what it has of its parent: that is sealed under the parent's key.
    does(&["volume", "clone", "secret@before", "copy", "--attach", "--key-file", &key]);
    does(&["snapshot", "create", "copy", "begun"]);
    overwrite("copy");
    does(&["volume", "detach", "copy"]);
    does(&["snapshot", "revert", "copy", "begun", "--yes", "--key-file", &key]);
    does(&["volume", "attach", "copy", "--key-file", &key]);
    assert!(read(cluster, "copy", secret.data.len()) == secret.data);
    cluster.down();
    trivet_tests::replica::assert_pools_sound(cluster);
}

fn with_key<'a>(command: &[&'a str], key: &'a str) -> Vec<&'a str> {
    [command, &["--key-file", key]].concat()
}

fn read(cluster: &Cluster, volume: &str, length: usize) -> Vec<u8> {
    cluster.connect_to(volume).read(0, u32::try_from(length).expect("small")).expect("a read")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The wrapped key as it lies in the manager's files.
fn wrapped_key(cluster: &Cluster) -> Option<WrappedKey> {
    let begin = br#"{"version":1,"data_key":"#;
    let files = files_below(&cluster.directory().join("records"));
    files.iter().find_map(|path| {
        let bytes = fs::read(path).ok()?;
        let at = bytes.windows(begin.len()).position(|window| window == begin)?;
        let end = bytes[at..].iter().position(|byte| *byte == b'}')?;
        WrappedKey::parse(str::from_utf8(&bytes[at..=at + end]).ok()?).ok()
    })
}
