//! The metadata string of a committed offset: token and ledger (E1, E2).
//!
//! `mr1;k=L;e=23;at=812;pr=r11-9f3c1a2b;le=7;t=5f2c90ab;g=41;m=c01d77e3;d=Fg;a=0:2:t6xq1s;c=…`
//!
//! Invariant: decoding is strict: every accepted string without unknown keys is what encoding
//! writes. A damaged string never reads as another token (R9).
//! Invariant: a string has at most `COMMIT_METADATA_BYTES_MAX` bytes, whatever it holds.

use std::fmt::{Display, Write as _};
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::lanes::LaneHash;
use crate::limits::{
    COMMIT_METADATA_BYTES_MAX, LEDGER_ATTEMPTS_MAX, LEDGER_PARKED_MAX, WINDOW_POSITIONS_MAX,
};
use crate::position::Position;
use crate::token::{ReleaseId, Token};

/// What stands beside a committed offset.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Metadata {
    /// Who may answer live (`k`, `e`, `at`, `pr`).
    pub token: Token,
    /// Leader epoch of the record before the offset (`le`).
    pub leader_epoch: Option<i32>,
    /// First four bytes of SHA-256(cluster id `/` topic id) (`t`).
    pub topic: Option<u32>,
    /// The writer's generation; 0 for the controller (`g`).
    pub generation: i32,
    /// Hash of the writer's member id; `None` for the controller (`m`).
    pub member: Option<u32>,
    /// What is known above the offset.
    pub ledger: LedgerImage,
}

/// The part of a ledger that outlives its owner (D-W4).
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct LedgerImage {
    /// Bit i, least significant first: offset + i is terminal (`d`).
    pub terminal: Vec<u8>,
    /// The oldest attempted events, by rising delta; the first 16 are stored (`a`).
    pub attempts: Vec<Attempted>,
    /// Pod-crash state (`u`, D-B7).
    pub crash: Option<CrashState>,
    /// Parked lanes; the first 32 are stored (`l`, D-L5).
    pub parked: Vec<Parked>,
}

/// A lane whose events are dead-lettered without being answered (D-L5).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Parked {
    /// Which.
    pub lane: LaneHash,
    /// Unix seconds at which it was parked; `deadLetter.parkTtl` counts from there.
    pub since_s: u32,
}

/// The attempts of one event.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Attempted {
    /// Its position above the offset.
    pub delta: u64,
    /// How often it was tried.
    pub attempts: u32,
    /// Unix seconds of the first attempt, never negative.
    pub first_attempt_s: i64,
}

/// Whether the last owner left in order (D-B7).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct CrashState {
    /// It did.
    pub clean: bool,
    /// Owners in a row that did not.
    pub count: u32,
    /// Length of the suspect range, from the offset on.
    pub range: u64,
    /// The event that is alone at the app.
    pub named: Option<Named>,
}

/// An event that may be what kills the pod (D-B7).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Named {
    /// Its position above the offset.
    pub delta: u64,
    /// Unclean ends in a row, before this owner, at which it was the named one.
    pub times: u32,
}

/// What to do with keys of a newer version (D-W7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UnknownKeys {
    /// At-least-once: read past them.
    Ignore,
    /// Exactly-once: the ledger is safety state, so refuse.
    Refuse,
}

/// Why a string is no metadata (R9: no dispatch on its partition).
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// Longer than any that is written.
    #[error("commit metadata of {length} bytes is above the limit of {COMMIT_METADATA_BYTES_MAX}")]
    TooLong {
        /// Its bytes.
        length: usize,
    },
    /// Another format or version.
    #[error("commit metadata does not start with {expected:?}")]
    Version {
        /// What it should start with.
        expected: &'static str,
    },
    /// Missing checksum, or a damaged string.
    #[error("the checksum of the commit metadata does not match")]
    Checksum,
    /// A field that is missing, out of order or not in its canonical form.
    #[error("the commit metadata's field `{field}` is wrong")]
    Field {
        /// The key.
        field: &'static str,
    },
    /// A key of a newer version.
    #[error("the commit metadata has the unknown key `{key}`")]
    UnknownKey {
        /// The key.
        key: String,
    },
}

const KEYS: &[&str] = &[
    "k", "e", "at", "pr", "le", "t", "g", "m", "d", "a", "u", "l", "c",
];

impl Metadata {
    /// What somebody outside of the group writes, as the controller does: a token, and nothing
    /// known above the offset.
    pub fn of_outsider(token: Token, topic: Option<u32>) -> Self {
        Self {
            token,
            leader_epoch: None,
            topic,
            generation: 0,
            member: None,
            ledger: LedgerImage::default(),
        }
    }

    /// The string to commit.
    ///
    /// # Panics
    /// If the ledger reaches beyond the largest window or is not in order: our mistake.
    pub fn encode(&self) -> String {
        let mut text = String::with_capacity(256 + self.ledger.terminal.len() * 4 / 3);
        put(&mut text, format_args!("mr1"));
        put_token(&mut text, &self.token);
        put(
            &mut text,
            format_args!(";le={};t=", self.leader_epoch.unwrap_or(-1)),
        );
        if let Some(topic) = self.topic {
            put(&mut text, format_args!("{topic:08x}"));
        }
        put(&mut text, format_args!(";g={};m=", self.generation));
        match self.member {
            Some(member) => put(&mut text, format_args!("{member:08x}")),
            None => text.push('-'),
        }
        self.ledger.encode(&mut text);
        seal(&mut text);
        assert!(
            text.len() <= COMMIT_METADATA_BYTES_MAX,
            "{} bytes of metadata",
            text.len()
        );
        text
    }

    /// Reads a string.
    pub fn decode(text: &str, unknown_keys: UnknownKeys) -> Result<Self, Error> {
        let mut fields = Fields::open(text, "mr1;", KEYS)?;
        let token = fields.token()?;
        let leader_epoch = match fields.required("le")? {
            "-1" => None,
            epoch => Some(
                decimal(epoch)
                    .filter(|e: &i32| *e >= 0)
                    .ok_or(wrong("le"))?,
            ),
        };
        let topic = match fields.required("t")? {
            "" => None,
            hash => Some(hexadecimal(hash).ok_or(wrong("t"))?),
        };
        let generation = decimal(fields.required("g")?).ok_or(wrong("g"))?;
        let member = match fields.required("m")? {
            "-" => None,
            hash => Some(hexadecimal(hash).ok_or(wrong("m"))?),
        };
        let ledger = LedgerImage {
            terminal: fields.optional("d", terminal)?.unwrap_or_default(),
            attempts: fields.optional("a", attempts)?.unwrap_or_default(),
            crash: fields.optional("u", crash)?,
            parked: fields.optional("l", parked)?.unwrap_or_default(),
        };
        fields.end(unknown_keys)?;
        Ok(Self {
            token,
            leader_epoch,
            topic,
            generation,
            member,
            ledger,
        })
    }
}

impl LedgerImage {
    /// Whether offset + `delta` is terminal.
    pub fn is_terminal(&self, delta: u64) -> bool {
        usize::try_from(delta / 8)
            .ok()
            .and_then(|byte| self.terminal.get(byte))
            .is_some_and(|bits| bits >> (delta % 8) & 1 == 1)
    }

    /// Marks offset + `delta` as terminal.
    ///
    /// # Panics
    /// Beyond the largest window (R5).
    pub fn set_terminal(&mut self, delta: u64) {
        assert!(
            delta < WINDOW_POSITIONS_MAX,
            "{delta} is beyond the largest window"
        );
        let byte = usize::try_from(delta / 8).expect("the window is small");
        if self.terminal.len() <= byte {
            self.terminal.resize(byte + 1, 0);
        }
        self.terminal[byte] |= 1 << (delta % 8);
    }

    /// Whether nothing is known above the offset.
    pub fn is_empty(&self) -> bool {
        self.terminal.iter().all(|bits| *bits == 0)
            && self.attempts.is_empty()
            && self.crash.is_none()
            && self.parked.is_empty()
    }

    fn encode(&self, text: &mut String) {
        let used = self
            .terminal
            .iter()
            .rposition(|bits| *bits != 0)
            .map_or(0, |last| last + 1);
        if used > 0 {
            assert!(
                used <= bitmap_bytes_max(),
                "{used} bytes of terminal positions"
            );
            text.push_str(";d=");
            URL_SAFE_NO_PAD.encode_string(&self.terminal[..used], text);
        }
        let mut after = None;
        for attempted in self.attempts.iter().take(LEDGER_ATTEMPTS_MAX) {
            assert!(
                after < Some(attempted.delta) && attempted.delta < WINDOW_POSITIONS_MAX,
                "{attempted:?}"
            );
            text.push_str(if after.is_none() { ";a=" } else { "," });
            after = Some(attempted.delta);
            put(
                text,
                format_args!("{}:{}:", attempted.delta, attempted.attempts),
            );
            put_base36(text, attempted.first_attempt_s.max(0).unsigned_abs());
        }
        if let Some(crash) = self.crash {
            put(
                text,
                format_args!(
                    ";u={}:{}:{}",
                    u8::from(crash.clean),
                    crash.count,
                    crash.range
                ),
            );
            if let Some(named) = crash.named {
                put(text, format_args!(":{}:{}", named.delta, named.times));
            }
        }
        if !self.parked.is_empty() {
            let parked = self.parked.iter().take(LEDGER_PARKED_MAX);
            let bytes: Vec<u8> = parked
                .flat_map(|parked| {
                    let mut bytes = [0; PARKED_BYTES];
                    bytes[..8].copy_from_slice(&parked.lane.0.to_be_bytes());
                    bytes[8..].copy_from_slice(&parked.since_s.to_be_bytes());
                    bytes
                })
                .collect();
            text.push_str(";l=");
            URL_SAFE_NO_PAD.encode_string(bytes, text);
        }
    }
}

/// Bytes of the bitmap of the largest window.
fn bitmap_bytes_max() -> usize {
    usize::try_from(WINDOW_POSITIONS_MAX.div_ceil(8)).expect("the window is small")
}

fn terminal(text: &str) -> Option<Vec<u8>> {
    let bits = canonical_base64(text)?;
    (bits.last().is_some_and(|last| *last != 0) && bits.len() <= bitmap_bytes_max()).then_some(bits)
}

fn attempts(text: &str) -> Option<Vec<Attempted>> {
    let mut attempts: Vec<Attempted> = Vec::new();
    for part in text.split(',') {
        let [delta, count, first] = split(part, ':')?;
        let attempted = Attempted {
            delta: decimal(delta).filter(|d| *d < WINDOW_POSITIONS_MAX)?,
            attempts: decimal(count)?,
            first_attempt_s: base36(first)?,
        };
        if attempts
            .last()
            .is_some_and(|last| last.delta >= attempted.delta)
        {
            return None;
        }
        attempts.push(attempted);
    }
    (attempts.len() <= LEDGER_ATTEMPTS_MAX).then_some(attempts)
}

fn crash(text: &str) -> Option<CrashState> {
    let (state, named) = match split::<5>(text, ':') {
        Some([clean, count, range, delta, times]) => {
            let named = Named {
                delta: decimal(delta).filter(|delta| *delta < WINDOW_POSITIONS_MAX)?,
                times: decimal(times)?,
            };
            ([clean, count, range], Some(named))
        }
        None => (split(text, ':')?, None),
    };
    let [clean, count, range] = state;
    let clean = match clean {
        "0" => false,
        "1" => true,
        _ => return None,
    };
    Some(CrashState {
        clean,
        count: decimal(count)?,
        range: decimal(range)?,
        named,
    })
}

/// A hash and a time.
const PARKED_BYTES: usize = 12;

fn parked(text: &str) -> Option<Vec<Parked>> {
    let bytes = canonical_base64(text)?;
    let (lanes, rest) = bytes.as_chunks::<PARKED_BYTES>();
    let fits = !lanes.is_empty() && rest.is_empty() && lanes.len() <= LEDGER_PARKED_MAX;
    let lanes = lanes
        .iter()
        .map(|[a, b, c, d, e, f, g, h, since @ ..]| Parked {
            lane: LaneHash(u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h])),
            since_s: u32::from_be_bytes(*since),
        });
    fits.then(|| lanes.collect())
}

/// Base64 in the only form that we write: no padding, no stray bits.
fn canonical_base64(text: &str) -> Option<Vec<u8>> {
    // The engine of our choice refuses padding and non-zero trailing bits.
    URL_SAFE_NO_PAD.decode(text).ok()
}

fn split<const N: usize>(text: &str, by: char) -> Option<[&str; N]> {
    let mut parts = text.split(by);
    let mut all = [""; N];
    for part in &mut all {
        *part = parts.next()?;
    }
    parts.next().is_none().then_some(all)
}

/// Appends formatted text.
pub(super) fn put(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments)
        .expect("writing to a String never fails");
}

/// Appends `;k=…;e=…;at=…;pr=…`.
fn put_token(text: &mut String, token: &Token) {
    let (kind, at, peer) = parts_of(token);
    put(
        text,
        format_args!(";k={kind};e={};at={at};pr={}", token.epoch(), name_of(peer)),
    );
}

/// The letter, position and counterpart of a token.
pub(super) fn parts_of(token: &Token) -> (char, Position, Option<&ReleaseId>) {
    match token {
        Token::Shadow { at, peer, .. } => ('S', *at, peer.as_ref()),
        Token::Live { from, peer, .. } => ('L', *from, peer.as_ref()),
        Token::Sealed { at, to, .. } => ('X', *at, to.as_ref()),
    }
}

/// A release's name; `-` is nobody.
pub(super) fn name_of(release: Option<&ReleaseId>) -> &str {
    release.map_or("-", ReleaseId::as_str)
}

/// A token from the texts of its fields, or the field that is wrong.
pub(super) fn token_of(kind: &str, epoch: &str, at: &str, peer: &str) -> Result<Token, Error> {
    let epoch = decimal(epoch).ok_or(wrong("e"))?;
    let at = Position::new(decimal(at).filter(|at: &i64| *at >= 0).ok_or(wrong("at"))?);
    let peer = match peer {
        "-" => None,
        name => Some(ReleaseId::new(name).map_err(|_| wrong("pr"))?),
    };
    match kind {
        "S" => Ok(Token::Shadow { epoch, at, peer }),
        "L" => Ok(Token::Live {
            epoch,
            from: at,
            peer,
        }),
        "X" => Ok(Token::Sealed {
            epoch,
            at,
            to: peer,
        }),
        _ => Err(wrong("k")),
    }
}

/// Appends the checksum of everything so far.
pub(super) fn seal(text: &mut String) {
    let checksum = crc32c::crc32c(text.as_bytes());
    put(text, format_args!(";c={checksum:08x}"));
}

/// The error of a field.
pub(super) fn wrong(field: &'static str) -> Error {
    Error::Field { field }
}

/// A number in the only form that we write: no sign but `-`, no leading zeros.
pub(super) fn decimal<T: FromStr + Display>(text: &str) -> Option<T> {
    let number: T = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

/// Eight lower-case hexadecimal digits.
fn hexadecimal(text: &str) -> Option<u32> {
    let digit = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    if text.len() != 8 || !text.bytes().all(digit) {
        return None;
    }
    u32::from_str_radix(text, 16).ok()
}

fn put_base36(text: &mut String, number: u64) {
    let digits = number.checked_ilog(36).unwrap_or(0);
    for place in (0..=digits).rev() {
        let digit = u32::try_from(number / 36_u64.pow(place) % 36).expect("a digit is below 36");
        text.push(char::from_digit(digit, 36).expect("a digit is below 36"));
    }
}

fn base36(text: &str) -> Option<i64> {
    let number = i64::from_str_radix(text, 36).ok().filter(|n| *n >= 0)?;
    let mut canonical = String::new();
    put_base36(&mut canonical, number.unsigned_abs());
    (canonical == text).then_some(number)
}

/// Walks the `key=value` fields of a string whose checksum is right.
pub(super) struct Fields<'a> {
    rest: std::str::Split<'a, char>,
    next: Option<&'a str>,
    known: &'static [&'static str],
    unknown: Vec<&'a str>,
}

impl<'a> Fields<'a> {
    /// Checks length, version and checksum. Keys that are not `known` belong to a newer version.
    pub(super) fn open(
        text: &'a str,
        version: &'static str,
        known: &'static [&'static str],
    ) -> Result<Self, Error> {
        if text.len() > COMMIT_METADATA_BYTES_MAX {
            return Err(Error::TooLong { length: text.len() });
        }
        let Some(after_version) = text.strip_prefix(version) else {
            return Err(Error::Version { expected: version });
        };
        let (fields, checksum) = after_version.rsplit_once(";c=").ok_or(Error::Checksum)?;
        let covered = &text[..version.len() + fields.len()];
        if hexadecimal(checksum) != Some(crc32c::crc32c(covered.as_bytes())) {
            return Err(Error::Checksum);
        }
        let mut rest = fields.split(';');
        let next = rest.next();
        Ok(Self {
            rest,
            next,
            known,
            unknown: Vec::new(),
        })
    }

    /// The value of the next field, which must be `key`.
    pub(super) fn required(&mut self, key: &'static str) -> Result<&'a str, Error> {
        let value = self.value_of(key).ok_or(wrong(key))?;
        self.next = self.rest.next();
        Ok(value)
    }

    /// The parsed value of the next known field if it is `key`.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&'a str) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        self.pass_unknown()?;
        self.value_of(key)
            .map(|value| {
                self.next = self.rest.next();
                parse(value).ok_or(wrong(key))
            })
            .transpose()
    }

    /// Nothing may follow but what a newer version knows.
    pub(super) fn end(mut self, unknown_keys: UnknownKeys) -> Result<(), Error> {
        self.pass_unknown()?;
        if self.next.is_some() {
            return Err(wrong("after the last one"));
        }
        match (unknown_keys, self.unknown.first()) {
            (UnknownKeys::Refuse, Some(key)) => Err(Error::UnknownKey {
                key: (*key).to_owned(),
            }),
            (UnknownKeys::Refuse, None) | (UnknownKeys::Ignore, _) => Ok(()),
        }
    }

    fn pass_unknown(&mut self) -> Result<(), Error> {
        while let Some(field) = self.next {
            let key = field.split_once('=').map_or("", |(key, _)| key);
            if self.known.contains(&key) {
                break;
            }
            let named = !key.is_empty() && key.bytes().all(|c| c.is_ascii_lowercase());
            let readable = field.bytes().all(|c| c.is_ascii_graphic());
            if !named || !readable || self.unknown.contains(&key) {
                return Err(wrong("of a newer version"));
            }
            self.unknown.push(key);
            self.next = self.rest.next();
        }
        Ok(())
    }

    fn value_of(&self, key: &str) -> Option<&'a str> {
        self.next?.strip_prefix(key)?.strip_prefix('=')
    }

    fn token(&mut self) -> Result<Token, Error> {
        let kind = self.required("k")?;
        let epoch = self.required("e")?;
        let at = self.required("at")?;
        let peer = self.required("pr")?;
        token_of(kind, epoch, at, peer)
    }
}

#[cfg(test)]
mod tests;
