//! Real clients against the state machine, on a unix socket, over a volume in memory.
//!
//! The shell is the least that works: a thread a connection, blocking reads, completions in reverse
//! order. A client that is not installed is skipped, with a message.

use super::harness::{RamVolume, export};
use crate::frontend::nbd::{CloseReason, Connection, ExportInfo};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::thread;

const SIZE: u64 = 64 << 20;

struct Server {
    folder: tempfile::TempDir,
    volume: Arc<Mutex<RamVolume>>,
}

impl Server {
    fn start(export: ExportInfo) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
        let volume = Arc::new(Mutex::new(RamVolume::new(usize::try_from(export.size_bytes).unwrap())));
        let server = Self { folder, volume: Arc::clone(&volume) };
        // Ends with the process: each test has few connections and closes them.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (export, volume) = (export.clone(), Arc::clone(&volume));
                thread::spawn(move || serve(stream.unwrap(), export, &volume));
            }
        });
        server
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.path("socket").display())
    }

    fn named_uri(&self) -> String {
        format!("nbd+unix:///disk0?socket={}", self.path("socket").display())
    }
}

fn serve(mut stream: UnixStream, export: ExportInfo, volume: &Mutex<RamVolume>) -> CloseReason {
    let mut connection = Connection::new(export);
    let mut chunk = vec![0; 1 << 20];
    loop {
        let mut asked: Vec<_> = std::iter::from_fn(|| connection.next_request()).collect();
        let idle = asked.is_empty();
        while let Some((tag, request)) = asked.pop() {
            let reply = volume.lock().unwrap().execute(request);
            connection.complete(tag, reply);
        }
        let mut out = Vec::new();
        connection.take_output(&mut out);
        // A client that has gone shows in the next read.
        let sent = out.iter().try_for_each(|segment| stream.write_all(segment));
        if !idle || !out.is_empty() && sent.is_ok() {
            continue;
        }
        if let Some(reason) = connection.is_finished() {
            return reason;
        }
        let mut buffer = connection.buffer();
        let room = (buffer.capacity() - buffer.len()).min(chunk.len());
        let count = stream.read(&mut chunk[..room]).unwrap_or(0);
        buffer.extend_from_slice(&chunk[..count]);
        connection.received(buffer);
    }
}

fn installed(tool: &str) -> bool {
    let found =
        ["/usr/bin", "/usr/local/bin", "/bin"].iter().any(|folder| Path::new(folder).join(tool).exists());
    if !found {
        eprintln!("SKIPPED: {tool} is not installed");
    }
    found
}

/// Runs a client to its end, at most a minute.
fn run(tool: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    // Debian's libnbd needs Debian's Python.
    command.env("PATH", "/usr/bin:/usr/local/bin:/bin");
    command.arg("60").arg(tool).args(arguments);
    command.output().unwrap()
}

fn succeed(tool: &str, arguments: &[&str]) -> String {
    let output = run(tool, arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{tool} {arguments:?}: {}\n{}\n{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout) + &text(&output.stderr)
}

fn server() -> Server {
    Server::start(ExportInfo { size_bytes: SIZE, ..export(false) })
}

/// Something that is neither all data nor all holes.
fn image(server: &Server) -> (PathBuf, Vec<u8>) {
    let mut data = vec![0; usize::try_from(SIZE).unwrap()];
    let mut state = 1_u64;
    for (i, block) in data.chunks_mut(4096).enumerate() {
        if i % 5 < 2 || i % 1024 < 300 {
            for word in block.chunks_mut(8) {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                word.copy_from_slice(&state.to_le_bytes());
            }
        }
    }
    let path = server.path("image");
    std::fs::write(&path, &data).unwrap();
    (path, data)
}

#[test]
fn nbdinfo_sees_the_export() {
    if !installed("nbdinfo") {
        return;
    }
    let server = server();
    server
        .volume
        .lock()
        .unwrap()
        .execute(crate::request::IoRequest::Write {
            offset: 1 << 20,
            segments: vec![vec![1; 65536].into()],
            force_unit_access: false,
        })
        .unwrap();
    let info = succeed("nbdinfo", &[&server.named_uri()]);
    for expected in [
        "newstyle-fixed without TLS, using structured packets",
        "export=\"disk0\"",
        "description: a volume",
        "export-size: 67108864 (64M)",
        "base:allocation",
        "can_multi_conn: true",
        "can_fast_zero: true",
        "can_trim: true",
        "can_fua: true",
        "can_df: true",
        "can_cache: false",
        "is_read_only: false",
        "block_size_minimum: 512",
        "block_size_preferred: 4096",
        "block_size_maximum: 33554432",
    ] {
        assert!(info.contains(expected), "{expected:?} is not in\n{info}");
    }
    assert!(succeed("nbdinfo", &["--list", &server.uri()]).contains("export=\"disk0\""));
    assert_eq!(succeed("nbdinfo", &["--size", &server.uri()]).trim(), SIZE.to_string());
    let map = succeed("nbdinfo", &["--map", &server.uri()]);
    let lines: Vec<Vec<&str>> = map.lines().map(|line| line.split_whitespace().collect()).collect();
    let expected = [
        ["0", "1048576", "3", "hole,zero"],
        ["1048576", "65536", "0", "data"],
        ["1114112", "65994752", "3", "hole,zero"],
    ];
    assert_eq!(lines, expected);
    assert!(!run("nbdinfo", &[&server.uri().replace("///", "///other")]).status.success());
}

#[test]
fn nbdinfo_sees_a_read_only_export() {
    if !installed("nbdinfo") {
        return;
    }
    let server = Server::start(ExportInfo { size_bytes: SIZE, ..export(true) });
    assert!(succeed("nbdinfo", &[&server.uri()]).contains("is_read_only: true"));
}

#[test]
fn nbdcopy_brings_an_image_in_and_out() {
    if !installed("nbdcopy") {
        return;
    }
    let server = server();
    let (path, data) = image(&server);
    let (path, back) = (path.to_str().unwrap(), server.path("back"));
    succeed("nbdcopy", &["--flush", path, &server.uri()]);
    assert!(server.volume.lock().unwrap().contents() == data);
    assert!(server.volume.lock().unwrap().journal.iter().any(|entry| entry == "flush"));
    succeed("nbdcopy", &["--connections=4", "--requests=64", &server.uri(), back.to_str().unwrap()]);
    assert!(std::fs::read(&back).unwrap() == data);
    // Zeros over data, by write-zeroes.
    std::fs::write(server.path("zeros"), vec![0; data.len()]).unwrap();
    succeed("nbdcopy", &[server.path("zeros").to_str().unwrap(), &server.uri()]);
    assert!(server.volume.lock().unwrap().contents().iter().all(|byte| *byte == 0));
}

#[test]
fn qemu_converts_and_compares() {
    if !installed("qemu-img") {
        return;
    }
    let server = server();
    let (path, data) = image(&server);
    let path = path.to_str().unwrap();
    let uri = server.uri();
    succeed("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", path, &uri]);
    assert!(server.volume.lock().unwrap().contents() == data);
    succeed("qemu-img", &["compare", "-f", "raw", "-F", "raw", path, &uri]);
    assert!(succeed("qemu-img", &["map", "-f", "raw", "--output=json", &uri]).contains("\"data\": false"));
}

#[test]
fn qemu_io_writes_patterns() {
    if !installed("qemu-io") {
        return;
    }
    let server = server();
    let script = [
        "write -P 17 0 1M",
        "write -P 34 512 1536",
        "write -f -P 51 3M 20M",
        "write -z 4M 64k",
        "write -z -u 5M 64k",
        "discard 6M 128k",
        "flush",
        "aio_write -P 68 8M 512k",
        "aio_write -P 69 9M 512k",
        "aio_flush",
        "read -P 17 0 512",
        "read -P 34 512 1536",
        "read -P 17 2k 1046528",
        "read -P 51 3M 1M",
        "read -P 0 4M 64k",
        "read -P 0 5M 64k",
        "read -P 68 8M 512k",
        "read -P 51 10M 13M",
        "read -P 0 23M 41M",
    ];
    let uri = server.uri();
    let mut arguments = vec!["-f", "raw"];
    script.iter().for_each(|line| arguments.extend(["-c", line]));
    arguments.push(&uri);
    let said = succeed("qemu-io", &arguments);
    assert!(!said.contains("failed"), "{said}");
}

#[test]
fn nbdsh_finds_errors_where_they_belong() {
    if !installed("nbdsh") {
        return;
    }
    let server = server();
    let script = r#"
import errno
h.set_strict_mode(0)
def fails(code, what):
    try:
        what()
    except nbd.Error as e:
        assert e.errnum == code, e
    else:
        assert False, "it did not fail"
size = h.get_size()
fails(errno.EINVAL, lambda: h.pread(512, size))
fails(errno.ENOSPC, lambda: h.pwrite(bytes(512), size))
fails(errno.EINVAL, lambda: h.pread(511, 0))
fails(errno.EINVAL, lambda: h.pwrite(bytes(100), 0))
fails(errno.EINVAL, lambda: h.cache(512, 0))
fails(errno.ENOTSUP, lambda: h.zero(512, 0, nbd.CMD_FLAG_FAST_ZERO))
fails(errno.EINVAL, lambda: h.trim(512, size))
h.zero(4096, 0, nbd.CMD_FLAG_FAST_ZERO)
h.zero(4096, 0, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
h.pwrite(b"x" * 33554432, 512, nbd.CMD_FLAG_FUA)
assert h.pread(33554432, 512) == b"x" * 33554432
assert h.pread(33554432, 512, nbd.CMD_FLAG_DF) == b"x" * 33554432
h.trim(8192, 4096, nbd.CMD_FLAG_FUA)
assert h.pread(8192, 4096) == bytes(8192)
h.flush()
h.shutdown()
"#;
    succeed("nbdsh", &["-u", &server.uri(), "-c", script]);
}

#[test]
fn nbdsh_gets_by_without_structured_replies() {
    if !installed("nbdsh") {
        return;
    }
    let server = server();
    let script = r#"
h.set_request_structured_replies(False)
h.set_handshake_flags(0)
h.connect_unix("SOCKET")
assert h.get_protocol() == "newstyle"
assert not h.get_structured_replies_negotiated()
h.pwrite(b"y" * 5242880, 1024)
assert h.pread(5242880, 1024) == b"y" * 5242880
assert h.pread(4096, 16777216) == bytes(4096)
h.flush()
h.shutdown()
"#;
    let script = script.replace("SOCKET", server.path("socket").to_str().unwrap());
    succeed("nbdsh", &["-c", &script]);
}

#[test]
fn fio_verifies_what_it_wrote() {
    if !installed("fio") {
        return;
    }
    let server = server();
    for (rw, bs) in [("randwrite", "bs=4k"), ("randrw", "bsrange=512-256k"), ("write", "bs=1m")] {
        let (uri, rw, bs) = (format!("--uri={}", server.uri()), format!("--rw={rw}"), format!("--{bs}"));
        succeed(
            "fio",
            &[
                "--name=verify",
                "--ioengine=nbd",
                &uri,
                &rw,
                &bs,
                "--size=64m",
                "--iodepth=32",
                "--verify=crc32c",
                "--verify_state_save=0",
                "--verify_fatal=1",
                "--randseed=7",
            ],
        );
    }
    let written =
        server.volume.lock().unwrap().journal.iter().filter(|entry| entry.starts_with("write")).count();
    assert!(written > 16_000, "{written}");
}
