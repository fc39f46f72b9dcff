//! Data keys come out by the right key and by no other; what is stored is bounded and shows no secret.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use trivet_keys::{
    Identity, KeyHolder, KeyWrapper, Passphrase, Secret, Source, SourceError, UnwrapError, WrappedKey,
    new_data_key, read_secret, read_text,
};
use zeroize::Zeroizing;

const IDENTITY: &[u8] = b"AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX";

fn secret(byte: u8) -> Secret {
    Secret::new(Zeroizing::new(vec![byte; 32])).unwrap()
}

fn passphrase(text: &str) -> Passphrase {
    Passphrase::new(Zeroizing::new(text.as_bytes().to_vec())).unwrap()
}

#[test]
fn a_data_key_comes_out_by_its_holder_only() {
    let key = new_data_key().unwrap();
    let identity = Identity::parse(IDENTITY).unwrap();
    let other: &[u8] = b"AGE-SECRET-KEY-184JMZMVQH3E6U0PSL869004Y3U2NYV7R30EU99CSEDNPH02YUVFSZW44VU";
    let other = Identity::parse(other).unwrap();
    let cases: [(&dyn KeyWrapper, &dyn KeyHolder, &dyn KeyHolder); 3] = [
        (&secret(1), &secret(1), &secret(2)),
        (&passphrase("long enough"), &passphrase("long enough"), &passphrase("long enougH")),
        (&identity.recipient(), &identity, &other),
    ];
    for (at, (wrapper, holder, wrong)) in cases.iter().enumerate() {
        let wrapped = wrapper.wrap(&key).unwrap();
        assert_eq!(wrapped.data_key(), key.id());
        let stored = WrappedKey::parse(&wrapped.to_text()).unwrap();
        assert_eq!(stored, wrapped);
        assert_eq!(holder.unwrap(&stored).unwrap().expose(), key.expose());
        assert!(matches!(wrong.unwrap(&stored), Err(UnwrapError::Wrong(_))), "case {at}");
        let strange = cases[(at + 1) % cases.len()].1.unwrap(&stored);
        assert!(matches!(strange, Err(UnwrapError::Method { .. })), "case {at}");
        assert_ne!(wrapper.wrap(&key).unwrap(), wrapped, "each wrapping is another one");
        // Nothing of what is stored can be changed unnoticed.
        for field in ["\"data_key\":\"", "\"sealed\":\""] {
            let text = changed(&wrapped.to_text(), field);
            assert!(holder.unwrap(&WrappedKey::parse(&text).unwrap()).is_err(), "{text}");
        }
    }
}

/// The text with the first digit after `field` replaced by another.
fn changed(text: &str, field: &str) -> String {
    let at = text.find(field).unwrap() + field.len();
    let digit = if text.as_bytes()[at] == b'0' { "1" } else { "0" };
    format!("{}{digit}{}", &text[..at], &text[at + 1..])
}

#[test]
fn weak_secrets_are_refused() {
    assert!(Secret::new(Zeroizing::new(vec![1; 31])).is_none());
    assert!(Passphrase::new(Zeroizing::new(b"7 bytes".to_vec())).is_none());
}

#[test]
fn the_layout_is_fixed() {
    let text = concat!(
        r#"{"version":1,"data_key":"01010101-0101-0101-0101-010101010101","method":"passphrase","#,
        r#""salt":"0202020202020202020202020202020202020202020202020202020202020202","#,
        r#""memory_kib":65536,"passes":3,"lanes":4,"sealed":"030303030303030303030303030303030303030303030303"#,
        r#"030303030303030303030303030303030303030303030303"}"#
    );
    assert_eq!(WrappedKey::parse(text).unwrap().to_text(), text);
    for (from, to) in [
        ("65536", "2097152"),
        ("65536", "16"),
        ("\"passes\":3", "\"passes\":1000"),
        ("\"lanes\":4", "\"lanes\":0"),
        ("\"version\":1", "\"version\":2"),
        ("0202", "02"),
        ("0303", "0g03"),
        ("passphrase", "vault"),
    ] {
        assert!(WrappedKey::parse(&text.replacen(from, to, 1)).is_err(), "{from} as {to}");
    }
    assert!(WrappedKey::parse(&format!("{text}{}", " ".repeat(1024))).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_texts_never_panic(text in ".{0,200}") {
        prop_assert!(WrappedKey::parse(&text).is_err());
    }
}

#[test]
fn keys_are_read_whole_and_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    std::fs::write(&path, "correct horse\n").unwrap();
    let file = Source::File(path.clone());
    assert_eq!(read_secret(&file).unwrap().as_slice(), b"correct horse\n");
    assert_eq!(read_text(&file).unwrap().as_slice(), b"correct horse");
    std::fs::write(&path, vec![7; (64 << 10) + 1]).unwrap();
    assert!(matches!(read_secret(&file), Err(SourceError::TooLong(_))));
    let missing = Source::Environment("TRIVET_NO_SUCH_VARIABLE".to_owned());
    assert!(matches!(read_secret(&missing), Err(SourceError::NotSet(_))));
    let nowhere = read_secret(&Source::File(folder.path().join("nowhere"))).unwrap_err().to_string();
    assert!(nowhere.contains("nowhere"), "{nowhere}");
}
