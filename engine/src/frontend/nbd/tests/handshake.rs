//! The handshake: golden transcripts, and every option, well-formed and not.

use super::client::{self, BLOCK_STATUS, FIXED, NO_ZEROES, Reader, command, go, meta, option};
use super::harness::{Driver, export, snapshots};
use crate::frontend::nbd::{CloseReason, ExportInfo, Since, Violation};
use std::collections::BTreeMap;
use trivet_model::SnapshotId;

const ERR_UNSUP: u32 = 0x8000_0001;
const ERR_POLICY: u32 = 0x8000_0002;
const ERR_INVALID: u32 = 0x8000_0003;
const ERR_UNKNOWN: u32 = 0x8000_0006;
const ERR_TOO_BIG: u32 = 0x8000_0009;

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

fn begin(flags: u32) -> Driver {
    let mut driver = Driver::new(export(false));
    driver.say(&flags.to_be_bytes(), &[]);
    driver
}

/// Sends one option after the client flags and returns the reply types and data.
fn ask(driver: &mut Driver, bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let before = driver.sent.len();
    assert_eq!(driver.say(bytes, &[]), bytes.len());
    let asked = u32::from_be_bytes(bytes[8..12].try_into().unwrap());
    let mut reader = Reader(&driver.sent[before..]);
    let mut replies = Vec::new();
    while !reader.0.is_empty() {
        let (option, kind, data) = reader.option_reply();
        assert_eq!(option, asked);
        replies.push((kind, data.to_vec()));
    }
    replies
}

fn kinds(replies: &[(u32, Vec<u8>)]) -> Vec<u32> {
    replies.iter().map(|(kind, _)| *kind).collect()
}

#[test]
fn golden_go_with_block_size_and_disconnect() {
    let mut driver = Driver::new(export(false));
    let client = unhex(
        "00000003
         49484156454f5054 00000008 00000000
         49484156454f5054 00000007 0000000d 00000005 6469736b30 0001 0003
         25609513 0000 0000 1122334455667788 0000000000000200 00000200
         25609513 0000 0002 0000000000000000 0000000000000000 00000000",
    );
    assert_eq!(driver.say(&client, &[]), client.len());
    let server = unhex(
        "4e42444d41474943 49484156454f5054 0003
         0003e889045565a9 00000008 00000001 00000000
         0003e889045565a9 00000007 00000003 0000000c 0000 0000000000200000 09ed
         0003e889045565a9 00000007 00000003 0000000e 0003 00000200 00001000 02000000
         0003e889045565a9 00000007 00000001 00000000
         668e33ef 0001 0002 1122334455667788 0000000c 0000000000000200 00000200",
    );
    assert_eq!(driver.sent, server);
    assert_eq!(driver.connection.is_finished(), Some(CloseReason::Disconnected));
}

#[test]
fn golden_export_name_with_and_without_zeroes() {
    for (flags, padding) in [(1_u32, 124), (3, 0), (0, 124)] {
        let mut driver = begin(flags);
        driver.say(&option(1, b""), &[]);
        let mut server = unhex("4e42444d41474943 49484156454f5054 0003 0000000000200000 096d");
        server.resize(server.len() + padding, 0);
        assert_eq!(driver.sent, server);
        // Transmission has begun, with simple replies.
        driver.say(&unhex("25609513 0000 0003 00000000000000aa 0000000000000000 00000000"), &[]);
        assert_eq!(driver.sent[server.len()..], unhex("67446698 00000000 00000000000000aa"));
    }
}

#[test]
fn golden_read_only_flags() {
    let mut driver = Driver::new(export(true));
    driver.say(&[&3_u32.to_be_bytes()[..], &option(1, b"disk0")].concat(), &[]);
    assert_eq!(driver.sent[26..], [0x01, 0x0f], "flush, FUA, multi-conn, read-only");
}

#[test]
fn an_unknown_export_name_closes_as_there_is_no_error_reply() {
    let mut driver = begin(FIXED);
    driver.say(&option(1, b"other"), &[]);
    assert_eq!(driver.connection.is_finished(), Some(CloseReason::UnknownExport));
    assert_eq!(driver.sent.len(), 18);
}

#[test]
fn info_answers_what_is_asked_and_go_is_the_same() {
    let mut driver = begin(FIXED);
    let info = ask(&mut driver, &go(6, "disk0", &[1, 2, 3, 77, 0]));
    assert_eq!(kinds(&info), [3, 3, 3, 3, 1]);
    assert_eq!(info[1].1, b"\x00\x01disk0");
    assert_eq!(info[2].1, b"\x00\x02a volume");
    assert_eq!(ask(&mut driver, &go(7, "disk0", &[1, 2, 3, 77, 0])), info);
    assert_eq!(kinds(&ask(&mut begin(FIXED), &go(6, "", &[]))), [3, 1]);
}

#[test]
fn go_errors_leave_the_handshake_open() {
    let mut driver = begin(FIXED);
    assert_eq!(kinds(&ask(&mut driver, &go(7, "other", &[]))), [ERR_UNKNOWN]);
    for malformed in
        [&b""[..], b"\0\0\0", b"\0\0\0\x05disk", b"\0\0\0\0", b"\0\0\0\0\0\x02\0\x03", b"\0\0\0\0\0\0\0"]
    {
        assert_eq!(kinds(&ask(&mut driver, &option(7, malformed))), [ERR_INVALID], "{malformed:?}");
    }
    assert_eq!(kinds(&ask(&mut driver, &go(7, &"x".repeat(4097), &[]))), [ERR_TOO_BIG]);
    assert_eq!(kinds(&ask(&mut driver, &go(7, "", &[]))), [3, 1]);
}

#[test]
fn list_names_the_one_export() {
    let mut driver = begin(FIXED);
    let list = ask(&mut driver, &option(3, b""));
    assert_eq!(list, [(2, b"\0\0\0\x05disk0a volume".to_vec()), (1, Vec::new())]);
    assert_eq!(kinds(&ask(&mut driver, &option(3, b"x"))), [ERR_INVALID]);
}

#[test]
fn abort_is_acknowledged_and_ends() {
    let mut driver = begin(FIXED);
    assert_eq!(kinds(&ask(&mut driver, &option(2, b"ignored"))), [1]);
    assert_eq!(driver.connection.is_finished(), Some(CloseReason::Aborted));
}

#[test]
fn tls_is_refused_by_policy_and_unknown_options_as_unsupported() {
    let mut driver = begin(FIXED);
    assert_eq!(kinds(&ask(&mut driver, &option(5, b""))), [ERR_POLICY]);
    assert_eq!(kinds(&ask(&mut driver, &option(5, b"x"))), [ERR_INVALID]);
    for unknown in [0, 4, 11, 12, 0xffff_ffff] {
        assert_eq!(kinds(&ask(&mut driver, &option(unknown, b"anything"))), [ERR_UNSUP]);
    }
    assert_eq!(kinds(&ask(&mut driver, &option(8, b"x"))), [ERR_INVALID]);
    assert_eq!(kinds(&ask(&mut driver, &option(8, b""))), [1]);
}

#[test]
fn metadata_contexts_need_structured_replies() {
    let mut driver = begin(FIXED);
    for kind in [9, 10] {
        assert_eq!(kinds(&ask(&mut driver, &meta(kind, "", &["base:allocation"]))), [ERR_INVALID]);
    }
    ask(&mut driver, &option(8, b""));
    let id_and_name = |id: u8| [&[0, 0, 0, id], &b"base:allocation"[..]].concat();
    let yes = |id| vec![(4, id_and_name(id)), (1, Vec::new())];
    let no = vec![(1, Vec::new())];
    assert_eq!(ask(&mut driver, &meta(9, "disk0", &[])), yes(0));
    assert_eq!(ask(&mut driver, &meta(9, "", &["base:"])), yes(0));
    assert_eq!(ask(&mut driver, &meta(9, "", &["qemu:", "base:allocation"])), yes(0));
    assert_eq!(ask(&mut driver, &meta(9, "", &["qemu:"])), no);
    assert_eq!(ask(&mut driver, &meta(10, "", &["base:allocation", "base:allocation"])), yes(1));
    assert_eq!(ask(&mut driver, &meta(10, "", &["base:"])), no);
    assert_eq!(ask(&mut driver, &meta(10, "", &[])), no);
    for kind in [9, 10] {
        assert_eq!(kinds(&ask(&mut driver, &meta(kind, "other", &[]))), [ERR_UNKNOWN]);
        for malformed in [&b""[..], b"\0\0\0\0", b"\0\0\0\0\xff\xff\xff\xff", b"\0\0\0\0\0\0\0\0x"] {
            assert_eq!(kinds(&ask(&mut driver, &option(kind, malformed))), [ERR_INVALID]);
        }
        let long = meta(kind, "", &[&"x".repeat(4097)]);
        assert_eq!(kinds(&ask(&mut driver, &long)), [ERR_TOO_BIG]);
    }
}

#[test]
fn there_is_a_context_for_each_snapshot() {
    let mut driver = Driver::new(ExportInfo { changed_since: snapshots(), ..export(false) });
    driver.say(&FIXED.to_be_bytes(), &[]);
    ask(&mut driver, &option(8, b""));
    let is = |id: u8, name: &str| (4, [&[0, 0, 0, id], name.as_bytes()].concat());
    let (first, second) = ("qemu:dirty-bitmap:first", "qemu:dirty-bitmap:second");
    let done = || (1, Vec::new());
    let all = vec![is(0, "base:allocation"), is(0, first), is(0, second), done()];
    assert_eq!(ask(&mut driver, &meta(9, "", &[])), all);
    for namespace in ["qemu:", "qemu:dirty-bitmap:"] {
        assert_eq!(ask(&mut driver, &meta(9, "", &[namespace])), all[1..]);
        assert_eq!(ask(&mut driver, &meta(10, "", &[namespace])), [done()], "only names can be selected");
    }
    assert_eq!(ask(&mut driver, &meta(10, "", &[second, second])), [is(3, second), done()]);
    assert_eq!(ask(&mut driver, &meta(10, "", &["qemu:dirty-bitmap:third"])), [done()]);
    let many = |index: u8| Since { name: format!("s{index}"), snapshot: SnapshotId::from_bytes([index; 16]) };
    let mut driver = Driver::new(ExportInfo { changed_since: (0..20).map(many).collect(), ..export(false) });
    driver.say(&FIXED.to_be_bytes(), &[]);
    ask(&mut driver, &option(8, b""));
    let names: Vec<String> = (0..20).map(|index| format!("qemu:dirty-bitmap:s{index}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    assert_eq!(kinds(&ask(&mut driver, &meta(10, "", &names))), [ERR_TOO_BIG]);
    assert_eq!(ask(&mut driver, &meta(10, "", &names[..16])).len(), 17);
}

#[test]
fn selecting_contexts_anew_voids_what_was_selected() {
    let failing = option(10, b"");
    let too_long = option(10, &[0; 40_000]);
    let nothing = meta(10, "", &["qemu:x"]);
    for (last, errno) in [(&[][..], 0), (&failing, 22), (&too_long, 22), (&nothing, 22)] {
        let mut driver = begin(FIXED);
        for bytes in [&option(8, b"")[..], &meta(10, "", &["base:allocation"]), last, &go(7, "", &[])] {
            driver.say(bytes, &[]);
        }
        let before = driver.sent.len();
        driver.say(&command(0, BLOCK_STATUS, 5, 0, 4096), &[]);
        let replies = client::replies(Reader(&driver.sent[before..]), &BTreeMap::new());
        assert_eq!(replies[&5].error, errno);
    }
}

#[test]
fn too_long_options_are_skipped_in_bounded_memory() {
    let mut driver = begin(FIXED | NO_ZEROES);
    let long = vec![0; 8 << 20];
    for kind in [3, 7, 9, 10, 999] {
        assert_eq!(kinds(&ask(&mut driver, &option(kind, &long))), [ERR_TOO_BIG]);
    }
    assert!(driver.buffer_bytes_max <= 128 * 1024);
    assert_eq!(kinds(&ask(&mut driver, &go(7, "", &[]))), [3, 1]);
}

#[test]
fn violations_close() {
    let violation = |flags: u32, bytes: &[u8]| {
        let mut driver = begin(flags);
        driver.say(bytes, &[]);
        match driver.connection.is_finished() {
            Some(CloseReason::Protocol(violation)) => violation,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(violation(4, b""), Violation::ClientFlags(4));
    assert_eq!(
        violation(FIXED, b"IHAVEOPS\0\0\0\x03\0\0\0\0"),
        Violation::OptionMagic(0x4948_4156_454f_5053)
    );
    assert_eq!(violation(0, &option(3, b"")), Violation::OptionBeforeFixedNewstyle(3));
    assert_eq!(violation(FIXED, &option(1, &[b'x'; 40_000])[..16]), Violation::ExportNameTooLong(40_000));
    assert_eq!(violation(FIXED, &option(3, b"").repeat(1025)), Violation::TooManyOptions);
}

#[test]
fn hanging_up_ends_in_every_state() {
    let stream = [&3_u32.to_be_bytes()[..], &option(8, b""), &go(7, "", &[3])].concat();
    for cut in 0..stream.len() {
        let mut driver = Driver::new(export(false));
        assert_eq!(driver.say(&stream[..cut], &[]), cut);
        assert_eq!(driver.hang_up(), CloseReason::HungUp);
    }
}
