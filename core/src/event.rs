//! An event: one consumed record, as ranges into a buffer that a whole fetch shares.
//!
//! Invariant: key, value and header values are bytes; null differs from empty; header order
//! and duplicates survive (D-F1).
//! Invariant: an event is at most 64 bytes and costs no allocation of its own.

use std::sync::Arc;

use crate::position::Position;

/// What a record's timestamp means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TimestampKind {
    /// The record has none.
    None,
    /// Set by the producer.
    Create,
    /// Set by the broker when it appended the record.
    Append,
}

/// A record's timestamp: epoch milliseconds and their meaning.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timestamp {
    /// Epoch milliseconds; meaningless with [`TimestampKind::None`].
    pub ms: i64,
    /// Who set it.
    pub kind: TimestampKind,
}

/// A range of the shared buffer; `len == NULL` is a null.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Span {
    start: u32,
    len: u32,
}

const NULL: u32 = u32::MAX;

impl Span {
    fn of(self, buffer: &[u8]) -> Option<&[u8]> {
        (self.len != NULL).then(|| &buffer[self.start as usize..(self.start + self.len) as usize])
    }

    fn bytes(self) -> usize {
        if self.len == NULL {
            0
        } else {
            self.len as usize
        }
    }
}

/// One consumed record. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Event {
    buffer: Arc<Vec<u8>>,
    position: Position,
    timestamp_ms: i64,
    key: Span,
    value: Span,
    headers: Span,
    timestamp_kind: TimestampKind,
}

impl Event {
    /// Where it stands in its partition.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Its timestamp.
    pub fn timestamp(&self) -> Timestamp {
        Timestamp {
            ms: self.timestamp_ms,
            kind: self.timestamp_kind,
        }
    }

    /// Its key; `None` is null.
    pub fn key(&self) -> Option<&[u8]> {
        self.key.of(&self.buffer)
    }

    /// Its value; `None` is null (a tombstone).
    pub fn value(&self) -> Option<&[u8]> {
        self.value.of(&self.buffer)
    }

    /// Its headers in order, duplicates included. Names are bytes too.
    pub fn headers(&self) -> Headers<'_> {
        Headers {
            rest: self.headers.of(&self.buffer).unwrap_or_default(),
        }
    }

    /// The last value of the header `name`: the one that counts when there are several.
    pub fn header(&self, name: &[u8]) -> Option<Option<&[u8]>> {
        self.headers()
            .filter(|(n, _)| *n == name)
            .map(|(_, value)| value)
            .last()
    }

    /// Bytes of key, value and headers: what flow control counts (D-C1).
    pub fn bytes(&self) -> usize {
        self.key.bytes() + self.value.bytes() + self.headers.bytes()
    }
}

/// Iterates over the headers of an [`Event`].
#[derive(Clone, Debug)]
pub struct Headers<'a> {
    rest: &'a [u8],
}

impl<'a> Headers<'a> {
    fn span(&mut self) -> Option<Option<&'a [u8]>> {
        let (len, rest) = self.rest.split_first_chunk::<4>()?;
        let len = u32::from_le_bytes(*len);
        if len == NULL {
            self.rest = rest;
            return Some(None);
        }
        let (bytes, rest) = rest.split_at(len as usize);
        self.rest = rest;
        Some(Some(bytes))
    }
}

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a [u8], Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        let name = self.span()??;
        let value = self.span()?;
        Some((name, value))
    }
}

/// Collects the records of one fetch into one buffer.
///
/// ```
/// use millrace_core::event::{EventsBuilder, Timestamp, TimestampKind};
/// use millrace_core::position::Position;
/// let mut events = EventsBuilder::default();
/// let at = Timestamp { ms: 5, kind: TimestampKind::Create };
/// events.push(Position::new(7), at, Some(b"key"), None, [(&b"name"[..], Some(&b"value"[..]))]);
/// let events = events.finish();
/// assert_eq!(events[0].key(), Some(&b"key"[..]));
/// assert_eq!(events[0].value(), None);
/// assert_eq!(events[0].headers().count(), 1);
/// ```
#[derive(Default, Debug)]
pub struct EventsBuilder {
    buffer: Vec<u8>,
    drafts: Vec<Draft>,
}

#[derive(Debug)]
struct Draft {
    position: Position,
    timestamp: Timestamp,
    key: Span,
    value: Span,
    headers: Span,
}

impl EventsBuilder {
    /// Copies one record in. The records of one builder may hold at most 4 GiB together.
    pub fn push<'h>(
        &mut self,
        position: Position,
        timestamp: Timestamp,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: impl IntoIterator<Item = (&'h [u8], Option<&'h [u8]>)>,
    ) {
        let key = self.append(key);
        let value = self.append(value);
        let start = self.end();
        for (name, content) in headers {
            self.append_prefixed(Some(name));
            self.append_prefixed(content);
        }
        let headers = Span {
            start,
            len: self.end() - start,
        };
        self.drafts.push(Draft {
            position,
            timestamp,
            key,
            value,
            headers,
        });
    }

    /// How many records it holds.
    pub fn len(&self) -> usize {
        self.drafts.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.drafts.is_empty()
    }

    /// Bytes collected so far.
    pub fn bytes(&self) -> usize {
        self.buffer.len()
    }

    /// The events, all sharing one buffer.
    pub fn finish(self) -> Vec<Event> {
        let buffer = Arc::new(self.buffer);
        self.drafts
            .into_iter()
            .map(|draft| Event {
                buffer: Arc::clone(&buffer),
                position: draft.position,
                timestamp_ms: draft.timestamp.ms,
                timestamp_kind: draft.timestamp.kind,
                key: draft.key,
                value: draft.value,
                headers: draft.headers,
            })
            .collect()
    }

    fn end(&self) -> u32 {
        u32::try_from(self.buffer.len())
            .expect("a fetch is far below 4 GiB (limits::FETCH_BYTES_MAX)")
    }

    fn append(&mut self, bytes: Option<&[u8]>) -> Span {
        let start = self.end();
        match bytes {
            None => Span { start, len: NULL },
            Some(bytes) => {
                self.buffer.extend_from_slice(bytes);
                Span {
                    start,
                    len: self.end() - start,
                }
            }
        }
    }

    fn append_prefixed(&mut self, bytes: Option<&[u8]>) {
        let len = bytes.map_or(NULL, |b| {
            u32::try_from(b.len()).expect("a header is below 4 GiB")
        });
        self.buffer.extend_from_slice(&len.to_le_bytes());
        self.buffer.extend_from_slice(bytes.unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_at_most_64_bytes() {
        assert!(size_of::<Event>() <= 64);
    }

    #[test]
    fn d_f1_null_differs_from_empty_and_headers_keep_order_and_duplicates() {
        let at = Timestamp {
            ms: 1,
            kind: TimestampKind::Append,
        };
        let headers: [(&[u8], Option<&[u8]>); 4] = [
            (b"a", Some(b"1")),
            (b"a", None),
            (b"", Some(b"")),
            (b"a", Some(b"\xff")),
        ];
        let mut builder = EventsBuilder::default();
        builder.push(Position::new(3), at, Some(b""), None, headers);
        builder.push(Position::new(9), at, None, Some(b"\xff\x00"), []);
        let events = builder.finish();
        assert_eq!(events[0].key(), Some(&b""[..]));
        assert_eq!(events[0].value(), None);
        assert_eq!(events[0].headers().collect::<Vec<_>>(), headers);
        assert_eq!(events[0].header(b"a"), Some(Some(&b"\xff"[..])));
        assert_eq!(events[0].header(b"b"), None);
        assert_eq!(events[1].key(), None);
        assert_eq!(events[1].value(), Some(&b"\xff\x00"[..]));
        assert_eq!(events[1].headers().count(), 0);
    }
}
