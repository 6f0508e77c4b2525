//! Dead letters as people meet them: where one came from, why it died, and what sending it again
//! looks like (D-D1, D-D6).
//!
//! Invariant: a re-driven event has the key, value and headers of its dead letter, byte by byte;
//! only `millrace-redrive-of` and `millrace-redrive-count` are set anew.

use bytes::Bytes;
use millrace_connectors::Record;
use millrace_core::contract::result::{REDRIVE_COUNT, REDRIVE_OF};
use millrace_core::event::{Event, TimestampKind};
use millrace_core::identity::EventId;
use millrace_core::position::Partition;
use serde::Serialize;

/// What a dead letter says about itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Obituary {
    /// `topic/partition/offset` of the dead letter.
    pub place: String,
    /// `millrace-dlq-reason`.
    pub reason: String,
    /// `millrace-dlq-stage`.
    pub stage: String,
    /// `millrace-dlq-error-code`.
    pub code: String,
    /// `millrace-dlq-error-message`.
    pub message: String,
    /// `millrace-dlq-attempts`.
    pub attempts: u32,
    /// `millrace-dlq-last-attempt-ts`, epoch milliseconds.
    pub last_attempt_ms: i64,
    /// The topic that the event came from.
    pub topic: String,
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// `millrace-dlq-id`.
    pub id: String,
    /// `millrace-dlq-app-release`.
    pub release: String,
    /// How often it was sent again before it died this time.
    pub redrives: u32,
    /// The value was cut; it had this many bytes.
    pub truncated_from: Option<u64>,
}

/// Why a dead letter is not sent again.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// Often enough.
    #[error("sent again {redrives} times already, deadLetter.maxRedrives is {most}")]
    TooOften {
        /// How often.
        redrives: u32,
        /// How often at most.
        most: u32,
    },
    /// The rest of the value is gone.
    #[error("its value was cut from {0} bytes")]
    Truncated(u64),
    /// Nobody can tell whose id it is to keep.
    #[error("its millrace-dlq-id is not an event id")]
    NoId,
}

impl Obituary {
    /// Reads the headers; `None` if this is no dead letter of ours.
    pub fn read(place: &Partition, event: &Event) -> Option<Self> {
        let text = |name: &str| {
            let value = event.header(name.as_bytes())??;
            Some(String::from_utf8_lossy(value).into_owned())
        };
        let or_nothing = |name: &str| text(name).unwrap_or_default();
        Some(Self {
            place: format!("{place}/{}", event.position()),
            reason: text("millrace-dlq-reason")?,
            stage: or_nothing("millrace-dlq-stage"),
            code: or_nothing("millrace-dlq-error-code"),
            message: or_nothing("millrace-dlq-error-message"),
            attempts: or_nothing("millrace-dlq-attempts").parse().unwrap_or(0),
            last_attempt_ms: or_nothing("millrace-dlq-last-attempt-ts")
                .parse()
                .unwrap_or(0),
            topic: text("millrace-dlq-orig-topic")?,
            partition: text("millrace-dlq-orig-partition")?.parse().ok()?,
            offset: text("millrace-dlq-orig-offset")?.parse().ok()?,
            id: or_nothing("millrace-dlq-id"),
            release: or_nothing("millrace-dlq-app-release"),
            redrives: or_nothing("millrace-dlq-redrive-count")
                .parse()
                .unwrap_or(0),
            truncated_from: text("millrace-dlq-truncated-from").and_then(|n| n.parse().ok()),
        })
    }

    /// The record that goes back to the original topic and partition.
    pub fn redrive(&self, event: &Event, most: u32) -> Result<Record, Refusal> {
        if self.redrives >= most {
            return Err(Refusal::TooOften {
                redrives: self.redrives,
                most,
            });
        }
        if let Some(bytes) = self.truncated_from {
            return Err(Refusal::Truncated(bytes));
        }
        if EventId::parse(self.id.as_bytes()).is_none() {
            return Err(Refusal::NoId);
        }
        let kept = event
            .headers()
            .filter(|(name, _)| *name != REDRIVE_OF && *name != REDRIVE_COUNT);
        let mut headers: Vec<(Bytes, Option<Bytes>)> = kept
            .map(|(name, value)| (copy(name), value.map(copy)))
            .collect();
        headers.push((copy(REDRIVE_OF), Some(self.id.clone().into())));
        let count = (self.redrives + 1).to_string();
        headers.push((copy(REDRIVE_COUNT), Some(count.into())));
        let timestamp = event.timestamp();
        Ok(Record {
            topic: self.topic.as_str().into(),
            partition: Some(self.partition),
            timestamp_ms: (timestamp.kind != TimestampKind::None).then_some(timestamp.ms),
            key: event.key().map(copy),
            value: event.value().map(copy),
            headers,
        })
    }
}

fn copy(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use millrace_core::event::{EventsBuilder, Timestamp};
    use millrace_core::position::Position;

    const ID: &str = "stiywp5rs45zgqavk6csdpztk2";

    fn dead_letter(extra: &[(&str, &str)]) -> Event {
        let mut headers: Vec<(&[u8], Option<&[u8]>)> = vec![
            (b"kind", None),
            (b"kind", Some(b"\xff")),
            (b"millrace-dlq-reason", Some(b"permanent")),
            (b"millrace-dlq-orig-topic", Some(b"orders")),
            (b"millrace-dlq-orig-partition", Some(b"3")),
            (b"millrace-dlq-orig-offset", Some(b"1042")),
            (b"millrace-dlq-id", Some(ID.as_bytes())),
        ];
        headers.extend(
            extra
                .iter()
                .map(|(n, v)| (n.as_bytes(), Some(v.as_bytes()))),
        );
        let mut builder = EventsBuilder::default();
        let at = Timestamp {
            ms: 77,
            kind: TimestampKind::Create,
        };
        builder.push(Position::new(5), at, Some(b""), Some(b"\x00\xff"), headers);
        builder.finish().remove(0)
    }

    fn read(event: &Event) -> Obituary {
        Obituary::read(&Partition::new("orders.dlq", 1), event).unwrap()
    }

    #[test]
    fn d_d6_a_redrive_keeps_every_byte_and_names_its_original() {
        let event = dead_letter(&[
            ("millrace-redrive-of", "older"),
            ("millrace-redrive-count", "1"),
            ("millrace-dlq-redrive-count", "1"),
        ]);
        let obituary = read(&event);
        assert_eq!(obituary.place, "orders.dlq/1/5");
        let record = obituary.redrive(&event, 3).unwrap();
        assert_eq!((&*record.topic, record.partition), ("orders", Some(3)));
        assert_eq!(record.timestamp_ms, Some(77));
        assert_eq!(record.key.as_deref(), Some(&b""[..]));
        assert_eq!(record.value.as_deref(), Some(&b"\x00\xff"[..]));
        assert_eq!(record.headers[0], (copy(b"kind"), None));
        assert_eq!(record.headers[1], (copy(b"kind"), Some(copy(b"\xff"))));
        let of = |name: &[u8]| {
            let mut all = record.headers.iter().filter(move |(n, _)| n == name);
            (all.next().and_then(|(_, value)| value.clone()), all.count())
        };
        assert_eq!(of(REDRIVE_OF), (Some(ID.into()), 0));
        assert_eq!(of(REDRIVE_COUNT), (Some("2".into()), 0));
    }

    #[test]
    fn d_d6_a_dead_letter_is_not_sent_again_without_end() {
        let event = dead_letter(&[("millrace-dlq-redrive-count", "3")]);
        let refused = read(&event).redrive(&event, 3).unwrap_err();
        assert_eq!(
            refused,
            Refusal::TooOften {
                redrives: 3,
                most: 3
            }
        );
        assert!(read(&event).redrive(&event, 4).is_ok());
    }

    #[test]
    fn a_cut_value_or_a_missing_id_is_not_sent_again() {
        let event = dead_letter(&[("millrace-dlq-truncated-from", "9")]);
        let refused = read(&event).redrive(&event, 3).unwrap_err();
        assert_eq!(refused, Refusal::Truncated(9));
        let event = dead_letter(&[("millrace-dlq-id", "no id")]);
        assert_eq!(read(&event).redrive(&event, 3).unwrap_err(), Refusal::NoId);
    }

    #[test]
    fn other_records_are_no_dead_letters() {
        let mut builder = EventsBuilder::default();
        let at = Timestamp {
            ms: 0,
            kind: TimestampKind::None,
        };
        builder.push(Position::new(5), at, None, None, []);
        let event = builder.finish().remove(0);
        assert_eq!(Obituary::read(&Partition::new("t", 0), &event), None);
    }
}
