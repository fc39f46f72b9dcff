//! Images come in and go out byte for byte, in every format, as QEMU reads them; what is broken, truncated
//! or hostile is refused, and nothing of it is left.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use trivet_tests::command::{must, run};
use trivet_tests::nbd::Request;
use trivet_tests::web::{Manners, WebServer};
use trivet_tests::{Cluster, NbdClient, Random, Role, SlowSource, needs_programs, patience, process};

const MIB: u64 = 1 << 20;

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are text")
}

/// A raw image of data, zeros and holes by turns; so many MiB and bytes.
fn raw_image(path: &Path, mebibytes: u64, bytes: u64) {
    let mut random = Random::new(mebibytes);
    let file = File::create(path).expect("an image can be made");
    file.set_len(mebibytes * MIB + bytes).expect("an image can be made");
    let mut piece = vec![0; 1 << 18];
    for at in 0..mebibytes {
        match at % 4 {
            0 => random.fill(&mut piece),
            1 => piece.fill(0),
            _ => continue,
        }
        file.write_all_at(&piece, at * MIB + 4096 * (at % 16)).expect("an image can be made");
    }
    let mut tail = vec![0; usize::try_from(bytes).expect("it fits")];
    random.fill(&mut tail);
    file.write_all_at(&tail, mebibytes * MIB).expect("an image can be made");
}

/// Makes an image in a format of QEMU's out of a raw one.
fn convert(raw: &Path, to: &str, options: &[&str], name: &str) -> PathBuf {
    let image = raw.with_file_name(name);
    must("qemu-img", &[&["convert", "-f", "raw", "-O", to], options, &[text(raw), text(&image)]].concat());
    image
}

/// The URI of a volume that is attached, or now is.
fn served(cluster: &Cluster, volume: &str) -> String {
    let shown = cluster.trivet_json(&["volume", "show", volume]);
    let shown =
        if shown["attached"] == true { shown } else { cluster.trivet_json(&["volume", "attach", volume]) };
    shown["uri"].as_str().unwrap_or_else(|| panic!("no uri: {shown}")).to_owned()
}

/// A volume holds what QEMU reads in this image.
fn assert_same(cluster: &Cluster, volume: &str, image: &Path, format: &str) {
    let uri = served(cluster, volume);
    must("qemu-img", &["compare", "-f", format, "-F", "raw", text(image), &uri]);
}

/// Bytes of a volume that hold data.
fn data_bytes(cluster: &Cluster, volume: &str) -> u64 {
    let mut client = NbdClient::connect(&served(cluster, volume)).expect("it is attached");
    let (mut at, mut data) = (0, 0);
    while at < client.size() {
        let length = u32::try_from(client.size() - at).expect("images here are small");
        let told = client.call(&Request::BlockStatus { offset: at, length }).expect("it is told");
        for extent in told.extents {
            at += u64::from(extent.length);
            data += if extent.hole { 0 } else { u64::from(extent.length) };
        }
    }
    data
}

fn volumes(cluster: &Cluster) -> Vec<String> {
    let listed = cluster.trivet_json(&["volume", "list"]);
    let names = listed.as_array().expect("a list").iter().map(|volume| volume["name"].as_str());
    names.map(|name| name.expect("text").to_owned()).collect()
}

/// A cluster, and the folder for images.
fn cluster() -> (Cluster, PathBuf) {
    let cluster = Cluster::start(2, "4MiB");
    let folder = cluster.scratch().join("images");
    fs::create_dir(&folder).expect("a folder can be made");
    (cluster, folder)
}

#[test]
fn every_format_comes_in_as_qemu_reads_it() {
    needs_programs!("qemu-img", "qemu-nbd");
    let (cluster, folder) = cluster();
    let raw = folder.join("disk.raw");
    raw_image(&raw, 32, 0);
    let made: [(&str, &str, &[&str], &str); 8] = [
        ("qcow2", "qcow2", &[], "disk.qcow2"),
        ("qcow2", "qcow2", &["-c"], "packed.qcow2"),
        ("qcow2", "qcow2", &["-o", "compat=0.10,cluster_size=4k"], "old.qcow2"),
        ("vmdk", "vmdk", &[], "disk.vmdk"),
        ("vmdk", "vmdk", &["-o", "subformat=streamOptimized"], "stream.vmdk"),
        ("vpc", "vpc", &["-o", "force_size=on"], "dynamic.vhd"),
        ("vpc", "vpc", &["-o", "subformat=fixed,force_size=on"], "fixed.vhd"),
        ("vhdx", "vhdx", &[], "disk.vhdx"),
    ];
    for (at, (driver, to, options, name)) in made.into_iter().enumerate() {
        let image = convert(&raw, to, options, name);
        let volume = format!("v{at}");
        let verify: &[&str] = if at == 0 { &["--verify"] } else { &[] };
        let imported = cluster.trivet(&[&["import", text(&image), &volume], verify].concat()).succeeded();
        assert!(imported.stdout.contains("imported"), "{imported}");
        let shown = cluster.trivet_json(&["volume", "show", &volume]);
        assert_eq!(shown["attached"], false, "it is left as it was found: {shown}");
        assert_same(&cluster, &volume, &image, driver);
        // Eight times 256 KiB, and blocks beside it; zeros are holes.
        let data = data_bytes(&cluster, &volume);
        assert!((2 * MIB..3 * MIB).contains(&data), "{name}: {data} bytes hold data");
    }
}

#[test]
fn raw_images_of_any_size_come_in_and_existing_volumes_are_overwritten_only_when_meant() {
    needs_programs!("qemu-img");
    let (cluster, folder) = cluster();
    let odd = folder.join("odd.raw");
    raw_image(&odd, 10, 1234);
    let sum = must("sha256sum", &[text(&odd)]).stdout[..64].to_owned();
    let checksum = format!("sha256:{sum}");
    drop(
        cluster
            .trivet(&["import", text(&odd), "odd", "--checksum", &checksum, "--verify", "--attach"])
            .succeeded(),
    );
    let mut client = NbdClient::connect(&served(&cluster, "odd")).expect("it is attached");
    assert_eq!(client.size(), 10 * MIB + 4096, "whole blocks");
    let tail = client.read(10 * MIB, 4096).expect("a read");
    let mut wanted =
        fs::read(&odd).expect("it is there").split_off(usize::try_from(10 * MIB).expect("it fits"));
    wanted.resize(4096, 0);
    assert!(tail == wanted, "the last block is the image's end and zeros");

    // Onto what is there: zeros must be written where the image has holes.
    client.write(0, &vec![0xee; 10 << 20]).expect("a write");
    drop(client);
    drop(cluster.trivet(&["import", text(&odd), "odd"]).failed_saying(&["overwrites", "--yes"]));
    let would = cluster.trivet(&["import", text(&odd), "odd", "--dry-run"]).succeeded();
    assert!(would.stdout.contains("would import"), "{would}");
    drop(cluster.trivet(&["import", text(&odd), "odd", "--yes", "--verify"]).succeeded());
    let whole = folder.join("whole.raw");
    fs::copy(&odd, &whole).expect("a copy");
    File::options()
        .write(true)
        .open(&whole)
        .and_then(|file| file.set_len(10 * MIB + 4096))
        .expect("it grows");
    assert_same(&cluster, "odd", &whole, "raw");

    let in_use = NbdClient::connect(&served(&cluster, "odd")).expect("it is attached");
    drop(cluster.trivet(&["import", text(&odd), "odd", "--yes"]).failed_saying(&["in use"]));
    drop(in_use);
    drop(cluster.trivet(&["import", text(&odd), "disk0", "--yes"]).failed_saying(&["disk0", "resize"]));
    drop(cluster.trivet(&["import", text(&odd), "new", "--size", "1MiB"]).failed_saying(&["--size"]));
    let wrong = format!("sha256:{}", "0".repeat(64));
    drop(
        cluster
            .trivet(&["import", text(&odd), "new", "--checksum", &wrong])
            .failed_saying(&["checksum", &sum]),
    );
    drop(cluster.trivet(&["import", text(&odd), "new", "--size", "20MiB", "--dry-run"]).succeeded());
    assert_eq!(volumes(&cluster), ["disk0", "odd"]);
    drop(cluster.trivet(&["import", text(&odd), "new", "--size", "20MiB", "--copies", "1"]).succeeded());
    assert_eq!(cluster.trivet_json(&["volume", "show", "new"])["size_bytes"], 20 * MIB);
}

#[test]
fn volumes_and_snapshots_go_out_byte_for_byte() {
    needs_programs!("qemu-img", "qemu-nbd");
    let (cluster, folder) = cluster();
    let raw = folder.join("disk.raw");
    raw_image(&raw, 32, 0);
    drop(cluster.trivet(&["import", text(&raw), "web1", "--attach"]).succeeded());
    drop(cluster.trivet(&["snapshot", "create", "web1", "before"]).succeeded());
    let mut client = NbdClient::connect(&served(&cluster, "web1")).expect("it is attached");
    client.write(3 * MIB, &[0x77; 4096]).expect("a write");
    drop(client);
    // Attached, then detached; each format.
    for (name, format) in [("live.raw", "raw"), ("live.qcow2", "qcow2")] {
        let image = folder.join(name);
        drop(cluster.trivet(&["export", "web1", text(&image)]).succeeded());
        assert_same(&cluster, "web1", &image, format);
        let sparse =
            fs::metadata(&image).map(|metadata| std::os::unix::fs::MetadataExt::blocks(&metadata) * 512);
        assert!(sparse.expect("it is there") < 8 * MIB, "holes stay holes in {name}");
    }
    let beside = folder.join("beside.raw");
    drop(cluster.trivet(&["export", "web1@before", text(&beside)]).succeeded());
    must("cmp", &[text(&raw), text(&beside)]);
    drop(cluster.trivet(&["export", "web1@nothing", "x.raw"]).failed_saying(&["no snapshot 'nothing'"]));
    drop(cluster.trivet(&["volume", "detach", "web1"]).succeeded());
    let before = folder.join("before.qcow2");
    drop(cluster.trivet(&["export", "web1@before", text(&before)]).succeeded());
    must("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", text(&raw), text(&before)]);
    assert_eq!(cluster.trivet_json(&["volume", "show", "web1"])["attached"], false);

    // To standard output, where nothing but the image may come.
    let piped = folder.join("piped.raw");
    let mut export = Command::new(trivet_tests::cluster::binary());
    export.args(["export", "web1@before", "-"]).env("TRIVET_DIR", cluster.directory());
    export.stdout(File::create(&piped).expect("a file can be made")).stderr(Stdio::null());
    assert!(export.status().expect("trivet runs").success());
    must("cmp", &[text(&raw), text(&piped)]);

    drop(cluster.trivet(&["export", "web1", text(&before)]).failed_saying(&["already", "--force"]));
    drop(
        cluster
            .trivet(&["export", "web1", text(&folder.join("x.vmdk"))])
            .failed_saying(&["vmdk", "qemu-img convert"]),
    );
    drop(cluster.trivet(&["export", "web1", "/nowhere/x.raw"]).failed_saying(&["/nowhere"]));
    drop(cluster.trivet(&["export", "web1", text(&before), "--force"]).succeeded());
    assert_same(&cluster, "web1", &before, "qcow2");
    let left: Vec<_> = fs::read_dir(&folder).expect("it is there").filter_map(Result::ok).collect();
    assert!(left.iter().all(|entry| !entry.file_name().to_string_lossy().ends_with(".partial")), "{left:?}");
}

/// Changes bytes of a copy of an image.
fn damaged(image: &Path, name: &str, at: u64, bytes: &[u8]) -> PathBuf {
    let copy = image.with_file_name(name);
    fs::copy(image, &copy).expect("a copy");
    let file = OpenOptions::new().write(true).open(&copy).expect("it is there");
    file.write_all_at(bytes, at).expect("it can be changed");
    copy
}

/// A copy of an image that ends early.
fn truncated(image: &Path, name: &str, percent: u64) -> PathBuf {
    let copy = image.with_file_name(name);
    fs::copy(image, &copy).expect("a copy");
    let file = OpenOptions::new().write(true).open(&copy).expect("it is there");
    let length = file.metadata().expect("it has a length").len();
    file.set_len(length * percent / 100).expect("it can be cut");
    copy
}

#[test]
fn broken_truncated_and_hostile_images_are_refused_and_nothing_is_left() {
    needs_programs!("qemu-img", "qemu-nbd");
    let (cluster, folder) = cluster();
    let raw = folder.join("disk.raw");
    raw_image(&raw, 16, 0);
    let secret = folder.join("secret.raw");
    fs::write(&secret, vec![b's'; 1 << 20]).expect("a file can be made");
    let qcow2 = convert(&raw, "qcow2", &[], "good.qcow2");
    let vmdk = convert(&raw, "vmdk", &[], "good.vmdk");
    let stream = convert(&raw, "vmdk", &["-o", "subformat=streamOptimized"], "stream.vmdk");
    let fixed = convert(&raw, "vpc", &["-o", "subformat=fixed,force_size=on"], "fixed.vhd");
    let dynamic = convert(&raw, "vpc", &["-o", "force_size=on"], "dynamic.vhd");
    let vhdx = convert(&raw, "vhdx", &[], "good.vhdx");
    let create = |name: &str, arguments: &[&str]| {
        let image = folder.join(name);
        must("qemu-img", &[&["create", "-q", "-f", "qcow2"], arguments, &[text(&image), "16M"]].concat());
        image
    };
    let data_file = format!("data_file={}", text(&folder.join("elsewhere")));
    let encryption = ["--object", "secret,id=s,data=x", "-o", "encrypt.format=luks,encrypt.key-secret=s"];
    let descriptor = folder.join("text.vmdk");
    let flat = format!(
        "# Disk DescriptorFile\nversion=1\ncreateType=\"monolithicFlat\"\nRW 2048 FLAT \"{}\" 0\n",
        text(&secret)
    );
    fs::write(&descriptor, flat).expect("a file can be made");
    let named = |name: &str, from: &Path| {
        let image = folder.join(name);
        fs::copy(from, &image).expect("a copy");
        image
    };
    let footer = fs::metadata(&fixed).expect("it is there").len() - 512;
    let hostile: Vec<(PathBuf, &[&str])> = vec![
        (create("backed.qcow2", &["-b", "/etc/passwd", "-F", "raw"]), &["another image", "/etc/passwd"]),
        (create("spread.qcow2", &["-o", &data_file]), &["another file", "elsewhere"]),
        (create("locked.qcow2", &encryption), &["encrypted"]),
        // The size in a qcow2's header, and the table of where its clusters are.
        (damaged(&qcow2, "huge.qcow2", 24, &(1_u64 << 50).to_be_bytes()), &["cannot import"]),
        (damaged(&qcow2, "endless.qcow2", 24, &u64::MAX.to_be_bytes()), &["cannot import"]),
        (damaged(&qcow2, "lost.qcow2", 40, &(1_u64 << 40).to_be_bytes()), &["cannot import"]),
        (damaged(&qcow2, "version.qcow2", 4, &77_u32.to_be_bytes()), &["77"]),
        (damaged(&qcow2, "noise.qcow2", 8, &[0xa5; 96]), &["cannot import"]),
        (truncated(&qcow2, "short.qcow2", 60), &["cannot import"]),
        (truncated(&vmdk, "short.vmdk", 60), &["cannot import"]),
        (truncated(&stream, "short-stream.vmdk", 60), &["cannot import"]),
        (truncated(&dynamic, "short.vhd", 60), &["cannot import"]),
        (truncated(&fixed, "short-fixed.vhd", 60), &["no vhd image"]),
        (truncated(&vhdx, "short.vhdx", 60), &["cannot import"]),
        (truncated(&qcow2, "nothing.qcow2", 0), &["empty"]),
        (damaged(&fixed, "differs.vhd", footer + 60, &4_u32.to_be_bytes()), &["differencing"]),
        (descriptor, &["description"]),
        (named("guest.raw", &qcow2), &["looks like qcow2", "--format"]),
        (named("guest.vmdk", &qcow2), &["looks like qcow2", "--format"]),
        (named("raw.qcow2", &raw), &["no qcow2 image"]),
        (PathBuf::from("/dev/null"), &["neither a file nor a block device"]),
        (folder.clone(), &["neither a file nor a block device"]),
        (folder.join("missing.qcow2"), &["No such file"]),
    ];
    for (image, words) in &hostile {
        drop(cluster.trivet(&["import", text(image), "bad"]).failed_saying(words));
        assert_eq!(volumes(&cluster), ["disk0"], "{} left a volume", image.display());
    }
    drop(
        cluster
            .trivet(&["import", text(&qcow2), "bad", "--size", "8MiB"])
            .failed_saying(&["at most 8388608"]),
    );
    for (source, words) in [
        ("nbds://localhost/x", "TLS"),
        ("ftp://localhost/x", "'ftp' is not known"),
        ("nbd://127.0.0.1:1/x", "cannot connect"),
        ("http://127.0.0.1:1/x", "cannot download"),
    ] {
        drop(cluster.trivet(&["import", source, "bad"]).failed_saying(&[words]));
    }
    // What is said to be raw is taken as it is, whatever it looks like.
    drop(cluster.trivet(&["import", text(&qcow2), "bytes", "--format", "raw", "--attach"]).succeeded());
    let first = NbdClient::connect(&served(&cluster, "bytes")).and_then(|mut client| client.read(0, 512));
    assert_eq!(first.expect("a read")[..4], *b"QFI\xfb");
}

/// What the jail lets a program do: run by hand, since a well-behaved QEMU tries nothing.
#[test]
fn in_the_jail_there_is_the_image_and_nothing_else() {
    needs_programs!("cat", "python3");
    let scratch = trivet_tests::Scratch::new();
    let (image, other) = (scratch.join("image"), scratch.join("other"));
    fs::write(&image, "the image").expect("a file can be made");
    fs::write(&other, "a secret").expect("a file can be made");
    let jailed = |options: &[&str], program: &[&str]| {
        let mut command = trivet_tests::cluster::trivet();
        command
            .args(["confine", "--", text(&image), "1073741824", "5", &std::process::id().to_string()])
            .args(options)
            .arg("--")
            .args(program);
        run(&mut command, patience::SOON)
    };
    let read = jailed(&[], &["/usr/bin/cat", "/proc/self/fd/10"]).succeeded();
    assert_eq!(read.stdout, "the image");
    for path in [text(&other), "/etc/passwd", "/etc/shadow", "/proc/1/environ", "/root", "/var/tmp"] {
        drop(jailed(&[], &["/usr/bin/cat", path]).failed_saying(&["denied"]));
    }
    let python = |code: &str| jailed(&[], &["/usr/bin/python3", "-Sc", code]);
    drop(python("print('it runs')").succeeded());
    for (code, words) in [
        ("import socket; socket.socket(socket.AF_INET)", "not permitted"),
        ("import socket; socket.socket(socket.AF_UNIX)", "not permitted"),
        ("import os; os.kill(os.getppid(), 0)", "not permitted"),
        ("import os; os.kill(1, 9)", "not permitted"),
        ("open('/proc/self/fd/10', 'w')", "denied"),
        ("open('/var/tmp/left-by-a-jail', 'w')", "denied"),
        ("x = bytearray(2 << 30)", "MemoryError"),
    ] {
        drop(python(code).failed_saying(&[words]));
    }
    let endless = python("while True: pass");
    assert!(!endless.status.success(), "time is bounded: {endless}");
    assert_eq!(fs::read(&image).expect("it is there"), b"the image");
    // Writable where that is meant, and no longer than that.
    let write = "import os; os.write(os.open('/proc/self/fd/10', os.O_WRONLY), b'a new')";
    drop(jailed(&["--writable"], &["/usr/bin/python3", "-Sc", write]).succeeded());
    assert_eq!(fs::read(&image).expect("it is there"), b"a newmage"[..9].to_vec());
    drop(jailed(&["--no-jail"], &["/usr/bin/cat"]).failed_saying(&["cannot make a jail"]));
}

/// Waits until an import has made this much of its volume stable.
fn wait_until_copied(cluster: &Cluster, volume: &str, bytes: u64) {
    let record = cluster.directory().join(format!("imports/{volume}.import.json"));
    patience::wait_for("the import to get on", patience::SOON, || {
        let record: serde_json::Value = serde_json::from_slice(&fs::read(&record).ok()?).ok()?;
        (record["copied"].as_u64()? >= bytes).then_some(())
    });
}

#[test]
fn an_import_goes_on_where_it_was_killed_and_notices_another_source() {
    needs_programs!("qemu-img", "qemu-nbd");
    let (cluster, folder) = cluster();
    let raw = folder.join("disk.raw");
    raw_image(&raw, 600, 0);
    let slow = SlowSource::start(&raw, 4 << 20);
    let uri = slow.uri();
    let start = || {
        let mut import = Command::new(trivet_tests::cluster::binary());
        import.args(["import", &uri, "big"]).env("TRIVET_DIR", cluster.directory());
        import.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("trivet starts")
    };
    let mut import = start();
    wait_until_copied(&cluster, "big", 1);
    drop(cluster.trivet(&["import", &uri, "big"]).failed_saying(&["another import"]));
    import.kill().expect("it runs");
    import.wait().expect("it ends");
    // The volume's engine may be killed as well: the import waits for the next one.
    let mut import = start();
    let record = cluster.directory().join("imports/big.import.json");
    let copied =
        fs::read(&record).ok().and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok());
    let copied = copied.and_then(|record| record["copied"].as_u64()).expect("it was noted");
    wait_until_copied(&cluster, "big", copied + 1);
    process::kill_hard(&cluster.processes_of(Role::Engine));
    wait_until_copied(&cluster, "big", copied + 20 * MIB);
    import.kill().expect("it runs");
    import.wait().expect("it ends");
    drop(slow);
    drop(cluster.trivet(&["import", text(&raw), "big"]).failed_saying(&["it was from", "--restart"]));
    let quick = SlowSource::start(&raw, 0);
    assert_eq!(quick.uri(), uri);
    let resumed = cluster.trivet(&["import", &uri, "big"]).succeeded();
    assert!(resumed.stderr.contains("going on"), "{resumed}");
    assert_same(&cluster, "big", &raw, "raw");
    assert!(!record.exists(), "what is done is forgotten");
}

#[test]
fn a_file_that_changed_is_not_gone_on_with() {
    needs_programs!("qemu-img");
    let (cluster, folder) = cluster();
    let raw = folder.join("disk.raw");
    raw_image(&raw, 16, 0);
    // An import that was killed right after it began, by what it leaves.
    drop(cluster.trivet(&["import", text(&raw), "disk1"]).succeeded());
    let shown = cluster.trivet_json(&["volume", "show", "disk1"]);
    let metadata = fs::metadata(&raw).expect("it is there");
    use std::os::unix::fs::MetadataExt;
    let record = serde_json::json!({
        "version": 1, "source": text(&raw), "format": "raw", "volume": shown["id"], "created": true,
        "attached": false, "copied": 4 * MIB,
        "fingerprint": { "kind": "file", "device": metadata.dev(), "inode": metadata.ino(), "size": metadata.len(),
            "modified": metadata.mtime(), "modified_ns": metadata.mtime_nsec() },
    });
    let path = cluster.directory().join("imports/disk1.import.json");
    fs::write(&path, record.to_string()).expect("it can be written");
    let would = cluster.trivet(&["import", text(&raw), "disk1", "--dry-run"]).succeeded();
    assert!(would.stdout.contains("would go on at 4 MiB"), "{would}");
    let file = OpenOptions::new().write(true).open(&raw).expect("it is there");
    file.write_all_at(b"changed", 8 * MIB).expect("it can be changed");
    drop(cluster.trivet(&["import", text(&raw), "disk1"]).failed_saying(&["changed", "--restart"]));
    drop(cluster.trivet(&["import", text(&raw), "disk1", "--restart", "--yes"]).succeeded());
    assert_same(&cluster, "disk1", &raw, "raw");
    fs::write(&path, "{").expect("it can be written");
    drop(cluster.trivet(&["import", text(&raw), "disk1"]).failed_saying(&["damaged", "--restart"]));
}

#[test]
fn a_url_is_downloaded_with_breaks_and_lies_are_found_out() {
    needs_programs!("qemu-img", "qemu-nbd");
    let (cluster, folder) = cluster();
    let raw = folder.join("disk.raw");
    raw_image(&raw, 24, 0);
    let image = convert(&raw, "qcow2", &[], "disk.qcow2");
    let bytes = fs::read(&image).expect("it is there");
    let length = bytes.len() as u64;
    let web = WebServer::start(bytes.clone());
    let url = web.url("disk.qcow2");
    let checksum = format!("sha256:{}", &must("sha256sum", &[text(&image)]).stdout[..64]);

    // It breaks off again and again: each time it goes on from there.
    web.behave(Manners { breaks_off_after: length / 3 + 1, ..Manners::default() });
    drop(cluster.trivet(&["import", &url, "web", "--checksum", &checksum]).succeeded());
    assert_same(&cluster, "web", &image, "qcow2");
    assert!(web.sent() <= length + (1 << 20), "{} bytes were sent of {length}", web.sent());
    assert!(
        fs::read_dir(cluster.directory().join("imports")).expect("it is there").count() <= 1,
        "only the lock"
    );

    // A server without ranges, in one piece.
    web.behave(Manners { whole_only: true, ..Manners::default() });
    drop(cluster.trivet(&["import", &url, "whole"]).succeeded());
    assert_same(&cluster, "whole", &image, "qcow2");

    // Interrupted in the middle, and the file changed meanwhile.
    web.behave(Manners { breaks_off_after: 1 << 20, whole_only: true, ..Manners::default() });
    drop(
        cluster.trivet(&["import", &url, "bad"]).failed_saying(&["broke off", "run the same command again"]),
    );
    let mut other = bytes.clone();
    let at = other.len() - 1;
    other[at] ^= 1;
    web.replace(other);
    web.behave(Manners::default());
    drop(
        cluster
            .trivet(&["import", &url, "bad"])
            .failed_saying(&["not the one", "run the same command again"]),
    );
    drop(cluster.trivet(&["import", &url, "bad", "--checksum", &checksum]).failed_saying(&["checksum"]));

    for (manners, words) in [
        (Manners { status: 404, ..Manners::default() }, &["404"][..]),
        (Manners { announces_more: 5, whole_only: true, ..Manners::default() }, &["broke off"]),
    ] {
        web.behave(manners);
        drop(cluster.trivet(&["import", &url, "bad"]).failed_saying(words));
        drop(cluster.trivet(&["import", &url, "bad", "--restart", "--dry-run"]).failed_saying(words));
    }
    // The first piece is right; then it sends another part than was asked for.
    web.behave(Manners { breaks_off_after: 1 << 20, other_range: true, ..Manners::default() });
    drop(cluster.trivet(&["import", &url, "lies"]).failed_saying(&["another part"]));
    assert_eq!(volumes(&cluster), ["disk0", "web", "whole"]);
    assert!(web.requests() > 8);
}

#[test]
fn a_discarded_range_of_a_volume_is_a_hole_in_its_image() {
    let (cluster, folder) = cluster();
    let mut client = cluster.connect();
    client.write(0, &vec![0x11; 4 << 20]).expect("a write");
    drop(client.call(&Request::Trim { offset: 1 << 20, length: 2 << 20 }).expect("a trim"));
    drop(client);
    let image = folder.join("disk0.raw");
    drop(cluster.trivet(&["export", "disk0", text(&image)]).succeeded());
    let held = fs::read(&image).expect("it is there");
    let wanted = [vec![0x11; 1 << 20], vec![0; 2 << 20], vec![0x11; 1 << 20]].concat();
    assert!(held == wanted, "the image is what the volume reads as");
    let blocks = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&image).expect("it is there"));
    assert!(blocks * 512 < 3 << 20, "{blocks} sectors");
}
