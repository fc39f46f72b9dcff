//! The command line without a cluster: help, completions, and errors with cause, next step and
//! exit code.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::path::Path;
use std::process::{Command, Output};

fn trivet(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_trivet"))
        .args(arguments)
        .env_remove("TRIVET_DIR")
        .env_remove("TRIVET_LOG")
        .env("COLUMNS", "100")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Fails with this code and says all of these.
fn refused(arguments: &[&str], code: i32, words: &[&str]) {
    let output = trivet(arguments);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    for word in words {
        assert!(said.contains(word), "{arguments:?} should say '{word}':\n{said}");
    }
}

/// Every help text, in one file, so that a change of any is seen in review. To accept a change:
/// `TRIVET_BLESS=1 cargo test --release -p trivet-cli --test command_line`.
#[test]
fn help_texts_are_as_reviewed() {
    let commands: [&[&str]; 35] = [
        &[],
        &["up"],
        &["down"],
        &["status"],
        &["volume"],
        &["volume", "create"],
        &["volume", "clone"],
        &["volume", "flatten"],
        &["volume", "seal"],
        &["volume", "list"],
        &["volume", "show"],
        &["volume", "delete"],
        &["volume", "attach"],
        &["volume", "detach"],
        &["volume", "rekey"],
        &["volume", "resize"],
        &["volume", "scrub"],
        &["volume", "salvage"],
        &["bench"],
        &["check"],
        &["manager"],
        &["snapshot"],
        &["snapshot", "create"],
        &["snapshot", "list"],
        &["snapshot", "show"],
        &["snapshot", "label"],
        &["snapshot", "export"],
        &["snapshot", "diff"],
        &["snapshot", "revert"],
        &["snapshot", "delete"],
        &["replica"],
        &["replica", "add"],
        &["replica", "remove"],
        &["replica", "replace"],
        &["engine"],
    ];
    let mut all = String::new();
    for command in commands {
        let output = trivet(&[command, &["--help"]].concat());
        assert!(output.status.success());
        all += &format!("$ trivet {} --help\n{}\n", command.join(" "), text(&output.stdout));
    }
    let path = Path::new("tests/help.txt");
    if std::env::var_os("TRIVET_BLESS").is_some() {
        std::fs::write(path, &all).unwrap();
    }
    let reviewed = std::fs::read_to_string(path).unwrap();
    for (line, (now, then)) in all.lines().zip(reviewed.lines()).enumerate() {
        assert_eq!(now, then, "line {} of {} differs; see this test's comment", line + 1, path.display());
    }
    assert_eq!(all.lines().count(), reviewed.lines().count());
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let output = trivet(&["completion", shell]);
        assert!(output.status.success());
        let script = text(&output.stdout);
        for word in ["resize", "iodepth", "salvage", "replace", "replace-after"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    refused(&["completion", "cmd.exe"], 2, &["cmd.exe", "bash"]);
}

#[test]
fn senseless_command_lines_are_usage_errors() {
    refused(&[], 2, &["Usage: trivet"]);
    refused(&["uppp"], 2, &["uppp", "up"]);
    refused(&["volume", "list", "-o", "yaml"], 2, &["yaml", "table", "json"]);
    refused(&["up", "--replicas", "0"], 2, &["--replicas", "1..=16"]);
    for size in ["0", "65TiB", "ten", "5000"] {
        refused(&["volume", "create", "x", &format!("--size={size}")], 2, &["--size", size]);
    }
    refused(&["volume", "create", "No/Name", "--size", "1G"], 2, &["No/Name", "next:"]);
    refused(&["replica"], 2, &["--dir", "--listen"]);
    refused(&["replica", "--dir", "/x"], 2, &["--listen"]);
    refused(&["replica", "add"], 2, &["<VOLUME>"]);
    refused(&["replica", "add", "x", "--to", "server-1"], 2, &["replica-1, replica-2"]);
    refused(&["replica", "remove", "x"], 2, &["--from"]);
    refused(&["replica", "replace", "x", "--to", "replica-1"], 2, &["--from"]);
    refused(&["volume", "salvage", "x"], 2, &["--from"]);
    refused(&["volume", "scrub", "x", "--every", "7"], 2, &["--every", "such as 7d"]);
    refused(&["volume", "scrub", "x", "--rate", "1k"], 2, &["--rate", "at least 64 KiB"]);
    refused(&["volume", "scrub", "x", "--stop", "--never"], 2, &["--stop", "--never"]);
    refused(&["bench"], 2, &["--uri"]);
    refused(&["bench", "--uri", "http://x/"], 2, &["nbd+unix:///NAME?socket=/path"]);
    refused(&["bench", "--uri", "nbd://x/", "--bs", "100"], 2, &["512 bytes to 32 MiB"]);
}

#[test]
fn wrong_folders_are_named_and_left_alone() {
    let temp = tempfile::tempdir().unwrap();
    let missing = temp.path().join("missing");
    let missing = missing.to_str().unwrap();
    refused(&["status", "--dir", missing], 3, &[missing, "trivet up --dir"]);
    refused(&["check", missing], 3, &[missing, "next:"]);
    assert!(!Path::new(missing).exists());

    let occupied = temp.path().to_str().unwrap();
    std::fs::write(temp.path().join("letters.txt"), "dear").unwrap();
    refused(&["status", "--dir", occupied], 3, &[occupied, "--dir or TRIVET_DIR"]);
    refused(&["up", "--dir", occupied], 4, &[occupied, "empty or new folder"]);
    refused(&["down", "--dir", occupied], 3, &[occupied]);
    refused(&["check", occupied], 3, &[occupied]);
    let file = temp.path().join("letters.txt");
    refused(&["up", "--dir", file.to_str().unwrap()], 2, &["letters.txt is not a folder"]);
    assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 1, "nothing was left there");
}

#[test]
fn a_cluster_of_another_version_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    std::fs::write(temp.path().join("trivet-cluster"), "trivet cluster 9\n").unwrap();
    let dir = temp.path().to_str().unwrap();
    refused(&["up", "--dir", dir], 7, &["'trivet cluster 9'", "'trivet cluster 1'"]);
    assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 1);
}

#[test]
fn nobody_at_the_other_end_is_said() {
    let temp = tempfile::tempdir().unwrap();
    std::fs::write(temp.path().join("trivet-cluster"), "trivet cluster 1\n").unwrap();
    let dir = temp.path().to_str().unwrap();
    for arguments in [&["status"][..], &["volume", "list"], &["volume", "detach", "disk0"]] {
        refused(&[arguments, &["--dir", dir]].concat(), 5, &["manager", dir, "trivet up --dir"]);
    }
    refused(
        &["bench", "--uri", "nbd+unix:///disk0?socket=/nonexistent/x"],
        1,
        &["disk0", "nobody listens at /nonexistent/x", "trivet volume list"],
    );
}

#[test]
fn addresses_that_cannot_be_listened_on_are_named() {
    let temp = tempfile::tempdir().unwrap();
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = holder.local_addr().unwrap().to_string();
    let dir = temp.path().join("pool");
    refused(&["replica", "--dir", dir.to_str().unwrap(), "--listen", &address], 4, &[&address, "next:"]);
    let cluster = temp.path().join("c");
    let cluster = cluster.to_str().unwrap();
    refused(&["manager", "--dir", cluster, "--listen", &address], 4, &[&address, "next:"]);
    refused(&["manager", "--dir", cluster, "--listen", "0.0.0.0:1"], 2, &["loopback"]);
}
