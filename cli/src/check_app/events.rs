//! The events that an app is asked with: the caller's samples, and the odd ones that every
//! stream carries sooner or later.

use bytes::Bytes;

use crate::records::Draft;

/// An event and what makes it odd.
pub(super) struct Odd {
    pub(super) what: &'static str,
    pub(super) draft: Draft,
}

/// Values and keys that a careless app stumbles over (point 2).
pub(super) fn odd(sample: Option<&Draft>) -> Vec<Odd> {
    let plain = sample.cloned().unwrap_or_else(|| Draft {
        key: Some(Bytes::from_static(b"cust-1")),
        value: Some(Bytes::from_static(b"{}")),
        ..Draft::default()
    });
    let with = |what, change: fn(&mut Draft)| {
        let mut draft = plain.clone();
        change(&mut draft);
        Odd { what, draft }
    };
    vec![
        with("a body that is not UTF-8", |d| {
            d.value = Some(Bytes::from_static(b"\xff\xfe{\x00}\x80"));
        }),
        with("an empty body", |d| d.value = Some(Bytes::new())),
        with("a null key", |d| d.key = None),
        with("an empty key", |d| d.key = Some(Bytes::new())),
        with("a key that is not UTF-8", |d| {
            d.key = Some(Bytes::from_static(b"\x00\xff"));
        }),
        with("a tombstone", |d| d.value = None),
    ]
}

/// Values that no app can make sense of (point 3).
pub(super) fn undecodable(sample: Option<&Draft>) -> Vec<Odd> {
    let with = |what, value: &'static [u8]| {
        let mut draft = sample.cloned().unwrap_or_default();
        draft.value = Some(Bytes::from_static(value));
        Odd { what, draft }
    };
    vec![
        with("half a JSON document", b"{\"half\": [1, 2"),
        with("words", b"this is no event of yours"),
        with("deep nesting", &[b'['; 20_000]),
        with("bytes", b"\x80\x81\x82\xff\x00\x01"),
    ]
}
