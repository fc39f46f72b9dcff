//! Programs that know nothing of Trivet use a volume as a disk and find no fault: fio, libnbd,
//! QEMU, fsx, ext4 and xfs.

use std::fs;
use std::path::Path;
use std::process::Command;
use trivet_tests::blockdev::{self, FuseFile, LoopDevice, Mount};
use trivet_tests::command::{self, must, run};
use trivet_tests::nbd::Request;
use trivet_tests::{Cluster, Random, did_not_run, needs_programs, patience};

/// Runs fio with the nbd engine and fails on any error that it counts, verification included.
fn fio(cluster: &Cluster, options: &[&str]) {
    let uri = format!("--uri={}", cluster.uri());
    let mut fio = Command::new("fio");
    fio.args(["--name=verify", "--ioengine=nbd", "--iodepth=32", "--output-format=json", &uri]).args(options);
    fio.current_dir(cluster.scratch().path());
    let outcome = run(&mut fio, patience::LONG).succeeded();
    let json = outcome.stdout.find('{').map(|at| &outcome.stdout[at..]).unwrap_or_default();
    let report: serde_json::Value = serde_json::from_str(json).unwrap_or_else(|e| panic!("{e}: {outcome}"));
    let job = &report["jobs"][0];
    assert_eq!(job["error"], 0, "{outcome}");
    assert_eq!(job["total_err"].as_u64().unwrap_or(0), 0, "{outcome}");
    assert!(job["read"]["total_ios"].as_u64() > Some(0), "it should have read something back: {outcome}");
    assert!(!outcome.stderr.contains("verify:"), "{outcome}");
}

#[test]
fn fio_verifies_random_4k_blocks() {
    needs_programs!("fio");
    let cluster = Cluster::start(3, "256MiB");
    fio(&cluster, &["--rw=randwrite", "--bs=4k", "--size=192M", "--verify=crc32c", "--verify_fatal=1"]);
}

#[test]
fn fio_verifies_mixed_sizes_down_to_a_sector() {
    needs_programs!("fio");
    let cluster = Cluster::start(3, "256MiB");
    let sizes = ["--bsrange=512-64k", "--bs_unaligned=0", "--blockalign=512"];
    let job = ["--rw=randwrite", "--size=128M", "--io_size=96M", "--verify=crc32c", "--verify_fatal=1"];
    fio(&cluster, &[&job[..], &sizes, &["--serialize_overlap=1", "--verify_backlog=512"]].concat());
}

#[test]
fn fio_verifies_writes_among_trims() {
    needs_programs!("fio");
    let cluster = Cluster::start(3, "256MiB");
    let job = ["--rw=randtrimwrite", "--bs=4k", "--size=64M", "--verify=crc32c", "--verify_fatal=1"];
    fio(&cluster, &[&job[..], &["--serialize_overlap=1"]].concat());
}

#[test]
fn fio_verifies_while_flushing() {
    needs_programs!("fio");
    let cluster = Cluster::start(3, "256MiB");
    let job =
        ["--rw=randwrite", "--bs=4k", "--size=32M", "--fsync=16", "--verify=crc32c", "--verify_fatal=1"];
    fio(&cluster, &job);
}

/// An image as they come: data, zeros and holes by turns.
fn make_image(path: &Path, bytes: u64) {
    let mut random = Random::new(42);
    let file = fs::File::create(path).expect("an image can be made");
    file.set_len(bytes).expect("an image can be made");
    let mut piece = vec![0; 1 << 20];
    for at in (0..bytes).step_by(piece.len()) {
        match random.below(4) {
            0 => continue,
            1 => piece.fill(0),
            _ => random.fill(&mut piece),
        }
        std::os::unix::fs::FileExt::write_all_at(&file, &piece, at).expect("an image can be made");
    }
}

#[test]
fn images_are_copied_in_and_out_unchanged() {
    needs_programs!("nbdcopy", "qemu-img");
    let size = 1 << 30;
    let cluster = Cluster::start(3, "1GiB");
    let image = cluster.scratch().join("image");
    make_image(&image, size);
    let (image, uri) = (image.to_str().expect("UTF-8"), cluster.uri());
    let compare = || must("qemu-img", &["compare", "-f", "raw", "-F", "raw", image, uri]);

    must("nbdcopy", &[image, uri]);
    compare();
    must("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", image, uri]);
    compare();
    let copy = cluster.scratch().join("copy");
    let copy = copy.to_str().expect("UTF-8");
    must("nbdcopy", &[uri, copy]);
    must("cmp", &[image, copy]);
}

/// A script that writes patterns with every kind of request, in sizes that touch parts of blocks,
/// and reads them back.
const QEMU_IO: &[&str] = &[
    "write -P 0x11 0 1M",
    "write -P 0x22 512 512",
    "write -P 0x33 4k 4k",
    "write -P 0x44 7680 9k",
    "flush",
    "read -P 0x11 0 512",
    "read -P 0x22 512 512",
    "read -P 0x11 1k 3k",
    "read -P 0x33 4k 3584",
    "read -P 0x44 7680 9k",
    "write -z 64k 64k",
    "write -z -u 256k 64k",
    "write -f -P 0x55 300k 8k",
    "read -P 0 64k 64k",
    "read -P 0 256k 44k",
    "read -P 0x55 300k 8k",
    "discard 512k 256k",
    "read -P 0 512k 256k",
    "aio_write -P 0x66 2M 256k",
    "aio_write -P 0x77 2560k 256k",
    "aio_flush",
    "read -P 0x66 2M 256k",
    "read -P 0x77 2560k 256k",
    "write -P 0x88 8M 32M",
    "read -P 0x88 8M 32M",
];

#[test]
fn qemu_io_reads_the_patterns_it_wrote() {
    needs_programs!("qemu-io");
    let cluster = Cluster::start(3, "64MiB");
    let commands: Vec<&str> = QEMU_IO.iter().flat_map(|&line| ["-c", line]).collect();
    let arguments = [&["-d", "unmap", "-f", "raw"][..], &commands, &[cluster.uri()]].concat();
    let outcome = must("qemu-io", &arguments);
    assert!(!outcome.stdout.contains("verification failed"), "{outcome}");
    assert!(!outcome.stdout.to_lowercase().contains("failed"), "{outcome}");
}

#[test]
fn nbdinfo_sees_a_disk_with_a_cache_and_its_holes() {
    needs_programs!("nbdinfo");
    let cluster = Cluster::start(3, "64MiB");
    let mut client = cluster.connect();
    client.write(1 << 20, &vec![7; 1 << 20]).expect("a write");
    client.write(8 << 20, &vec![7; 64 << 10]).expect("a write");
    client.call(&Request::Trim { offset: (1 << 20) + (256 << 10), length: 256 << 10 }).expect("a trim");

    let info = must("nbdinfo", &["--json", cluster.uri()]);
    let info: serde_json::Value = serde_json::from_str(&info.stdout).expect("nbdinfo prints JSON");
    let export = &info["exports"][0];
    assert_eq!(export["export-size"], 64 << 20, "{info}");
    assert_eq!(export["is_read_only"], false, "{info}");
    for offered in ["can_flush", "can_fua", "can_trim", "can_zero", "can_multi_conn", "can_df"] {
        assert!(export[offered].is_boolean(), "{offered}: {info}");
    }
    for needed in ["can_flush", "can_fua", "can_trim", "can_zero", "can_multi_conn"] {
        assert_eq!(export[needed], true, "{needed}: {info}");
    }
    let map = must("nbdinfo", &["--map", "--json", cluster.uri()]);
    let map: Vec<serde_json::Value> = serde_json::from_str(&map.stdout).expect("nbdinfo prints JSON");
    let mut data: Vec<(u64, u64)> = Vec::new();
    for extent in &map {
        let field = |name: &str| extent[name].as_u64().expect("a number");
        match data.last_mut() {
            _ if field("type") != 0 => {}
            Some((start, length)) if *start + *length == field("offset") => *length += field("length"),
            _ => data.push((field("offset"), field("length"))),
        }
    }
    let kib = |n: u64| n << 10;
    assert_eq!(data, [(kib(1024), kib(256)), (kib(1536), kib(512)), (kib(8192), kib(64))], "{map:?}");
}

#[test]
fn every_connection_sees_what_another_has_been_told_is_written() {
    let cluster = Cluster::start(3, "64MiB");
    let mut writer = cluster.connect();
    let mut readers = [cluster.connect(), cluster.connect(), cluster.connect()];
    assert!(writer.flags().multi_conn() && writer.flags().flush() && !writer.flags().read_only());
    for round in 1..=200_u8 {
        let offset = u64::from(round % 16) * 4096;
        writer.write(offset, &[round; 4096]).expect("a write");
        for reader in &mut readers {
            assert!(reader.read(offset, 4096).expect("a read").iter().all(|&byte| byte == round));
        }
    }
    needs_programs!("nbdcopy", "qemu-img");
    let image = cluster.scratch().join("image");
    make_image(&image, 64 << 20);
    let image = image.to_str().expect("UTF-8");
    must("nbdcopy", &["--connections=8", "--requests=64", image, cluster.uri()]);
    must("qemu-img", &["compare", "-f", "raw", "-F", "raw", image, cluster.uri()]);
}

/// fsx's own defaults suit files; this is for a disk, whose size never changes.
const FSX_BLOCK_MODE: &str = "blockmode = true\n[opsize]\nmin = 512\nmax = 65536\nalign = 512\n[weights]\n\
    truncate = 0\ninvalidate = 1\nmapread = 5\nmapwrite = 5\nread = 10\nwrite = 10\nfsync = 1\n\
    fdatasync = 1\npunch_hole = 5\nsendfile = 1\nposix_fadvise = 1\n";

/// A hole punched through nbdfuse arrives as a trim, whose partial blocks were once left as they are.
const FSX_PARTIAL_TRIM: u64 = 4_566_782_273_476_616_760;

#[test]
fn fsx_finds_no_fault_in_a_block_device() {
    needs_programs!("fsx");
    if let Some(why) = blockdev::obstacle() {
        did_not_run!("{why}");
    }
    let cluster = Cluster::start(3, "4MiB");
    let fuse = FuseFile::mount(cluster.uri(), cluster.scratch());
    let device = LoopDevice::attach(fuse.path());
    let config = cluster.scratch().join("fsx.toml");
    fs::write(&config, FSX_BLOCK_MODE).expect("a file can be written");
    for seed in [FSX_PARTIAL_TRIM, Random::seed_from_environment()] {
        eprintln!("TRIVET_TEST_SEED={seed}");
        must("blkdiscard", &["--zeroout".as_ref(), device.path().as_os_str()]);
        let mut fsx = Command::new("fsx");
        fsx.args(["-q", "-N", "3000", "-S", &seed.to_string(), "-f"]).arg(&config);
        fsx.arg("-P").arg(cluster.scratch().path()).arg(device.path());
        let _passed = run(&mut fsx, patience::LONG).succeeded();
    }
}

/// Makes a file system, fills it, takes it down, checks it, and compares what it holds.
fn file_system_survives(make: &[&str], check: &[&str]) {
    let cluster = Cluster::start(3, "1GiB");
    let fuse = FuseFile::mount(cluster.uri(), cluster.scratch());
    let device = LoopDevice::attach(fuse.path());
    let device_name = device.path().to_str().expect("UTF-8");
    let (folder, tree) = (cluster.scratch().join("mnt"), cluster.scratch().join("tree"));
    make_tree(&tree);
    must(make[0], &[&make[1..], &[device_name]].concat());
    let tree_name = tree.to_str().expect("UTF-8");

    let mounted = Mount::new(device.path(), &folder);
    for copy in 0..4 {
        let target = mounted.path().join(format!("copy-{copy}"));
        must("cp", &["-a", tree_name, target.to_str().expect("UTF-8")]);
    }
    fs::remove_dir_all(mounted.path().join("copy-1")).expect("a tree can be removed");
    must("fstrim", &[mounted.path()]);
    mounted.unmount();
    must(check[0], &[&check[1..], &[device_name]].concat());

    // Everything down and up again: what the file system holds is on the members, in no cache.
    drop(device);
    drop(fuse);
    cluster.down();
    cluster.up();
    let fuse = FuseFile::mount(cluster.uri(), cluster.scratch());
    let device = LoopDevice::attach(fuse.path());
    let mounted = Mount::new(device.path(), &folder);
    for copy in [0, 2, 3] {
        let target = mounted.path().join(format!("copy-{copy}"));
        must("diff", &["-r", tree_name, target.to_str().expect("UTF-8")]);
    }
    mounted.unmount();
    must(check[0], &[&check[1..], &[device.path().to_str().expect("UTF-8")]].concat());
}

/// Many small files and a few large ones, about 48 MiB.
fn make_tree(tree: &Path) {
    let mut random = Random::new(7);
    for folder in 0..16 {
        let folder_path = tree.join(format!("d{folder}"));
        fs::create_dir_all(&folder_path).expect("a folder can be made");
        for file in 0..64 {
            let length = if file == 0 { 2 << 20 } else { random.below(32 << 10) };
            let mut bytes = vec![0; usize::try_from(length).expect("small")];
            random.fill(&mut bytes);
            fs::write(folder_path.join(format!("f{file}")), bytes).expect("a file can be written");
        }
    }
}

#[test]
fn ext4_is_clean_after_use() {
    needs_programs!("mkfs.ext4", "e2fsck", "fstrim");
    if let Some(why) = blockdev::obstacle() {
        did_not_run!("{why}");
    }
    file_system_survives(&["mkfs.ext4", "-q", "-F"], &["e2fsck", "-f", "-n"]);
}

#[test]
fn xfs_is_clean_after_use() {
    needs_programs!("mkfs.xfs", "xfs_repair", "fstrim");
    if let Some(why) = blockdev::obstacle() {
        did_not_run!("{why}");
    }
    file_system_survives(&["mkfs.xfs", "-q", "-f"], &["xfs_repair", "-n"]);
}

#[test]
fn the_built_in_load_generator_agrees_to_measure_a_volume() {
    let cluster = Cluster::start(3, "256MiB");
    let load = [
        "bench",
        "--uri",
        cluster.uri(),
        "--rw",
        "randwrite",
        "--bs",
        "4k",
        "--iodepth",
        "8",
        "--runtime",
        "2",
        "--yes",
    ];
    let outcome =
        command::run(Command::new(trivet_tests::cluster::binary()).args(load), patience::SOON).succeeded();
    assert!(outcome.stdout.contains("IOPS"), "{outcome}");
}
