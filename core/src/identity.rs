//! Event and result ids (D-I1, D-I2).
//!
//! Invariant: an id depends only on where its event stands, so it is equal on redelivery and in
//! every release (D-I3).

use std::fmt;

use sha2::{Digest, Sha256};

use crate::position::Position;

/// Characters of an id.
pub const ID_LENGTH: usize = 26;

const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// An event id: 26 lower-case base32 characters.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct EventId([u8; ID_LENGTH]);

impl EventId {
    /// As text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("base32 is ASCII")
    }

    /// An id read from a header such as `millrace-redrive-of` (D-I4); `None` if it is none.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let id: [u8; ID_LENGTH] = text.try_into().ok()?;
        let base32 = |c: &u8| matches!(c, b'a'..=b'z' | b'2'..=b'7');
        id.iter().all(base32).then_some(Self(id))
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The id of one result of an event.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ResultId([u8; ID_LENGTH]);

impl ResultId {
    /// The id of the result `index` of `event` (D-I2).
    pub fn of(event: &EventId, index: u32) -> Self {
        let mut hash = Sha256::new();
        update_text(&mut hash, event.as_str());
        hash.update(index.to_be_bytes());
        Self(base32(hash))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("base32 is ASCII")
    }
}

impl fmt::Display for ResultId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Makes the ids of the events of one partition; remembers the part of the hash that they share.
#[derive(Clone, Debug)]
pub struct PartitionIdentity {
    prefix: Sha256,
}

impl PartitionIdentity {
    /// For one partition of a topic on a cluster. The topic id is always absent (D-I1).
    pub fn new(cluster_id: &str, topic: &str, partition: i32) -> Self {
        let mut prefix = Sha256::new();
        update_text(&mut prefix, cluster_id);
        update_text(&mut prefix, topic);
        update_text(&mut prefix, "");
        prefix.update(partition.to_be_bytes());
        Self { prefix }
    }

    /// The id of the event at `position`.
    pub fn event_id(&self, position: Position) -> EventId {
        let mut hash = self.prefix.clone();
        hash.update(position.offset().to_be_bytes());
        EventId(base32(hash))
    }
}

fn update_text(hash: &mut Sha256, text: &str) {
    let length = u32::try_from(text.len()).expect("names are far below 4 GiB");
    hash.update(length.to_be_bytes());
    hash.update(text.as_bytes());
}

/// The first 130 bits, five per character.
fn base32(hash: Sha256) -> [u8; ID_LENGTH] {
    let hash = hash.finalize();
    let mut text = [0; ID_LENGTH];
    let (mut bits, mut left) = (0_u32, 0_u32);
    let mut bytes = hash.iter();
    for character in &mut text {
        if left < 5 {
            let byte = bytes.next().expect("130 bits are 17 of 32 bytes");
            bits = (bits << 8) | u32::from(*byte);
            left += 8;
        }
        left -= 5;
        *character = ALPHABET[(bits >> left) as usize & 31];
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d_i1_and_d_i2_the_published_vectors_hold() {
        let orders = PartitionIdentity::new("demo", "orders", 3);
        let event = orders.event_id(Position::new(1042));
        assert_eq!(event.as_str(), "stiywp5rs45zgqavk6csdpztk2");
        assert_eq!(
            ResultId::of(&event, 0).as_str(),
            "g6vippms42csuyygmgjdrwr62u"
        );
        for (offset, id) in [
            (1043, "cp3xig2odhwtzlgahrgdkux7nn"),
            (1044, "q4i5bljimg44cvpdx5qg7icu2e"),
            (1045, "5omehuwsz3uzkbz7cdab5a4xvr"),
        ] {
            assert_eq!(orders.event_id(Position::new(offset)).as_str(), id);
        }
    }

    #[test]
    fn d_i1_every_part_of_the_place_counts() {
        let id = |cluster, topic, partition, offset| {
            PartitionIdentity::new(cluster, topic, partition).event_id(Position::new(offset))
        };
        let base = id("demo", "orders", 3, 1042);
        for other in [
            id("demoo", "rders", 3, 1042),
            id("demo2", "orders", 3, 1042),
            id("demo", "orders2", 3, 1042),
            id("demo", "orders", 4, 1042),
            id("demo", "orders", 3, 1043),
        ] {
            assert_ne!(base, other);
        }
        assert_ne!(ResultId::of(&base, 0), ResultId::of(&base, 1));
    }

    #[test]
    fn d_i4_only_well_formed_ids_are_ids() {
        let check = |text: &[u8], expect: bool| {
            assert_eq!(EventId::parse(text).is_some(), expect, "{text:?}")
        };
        check(b"stiywp5rs45zgqavk6csdpztk2", true);
        check(b"stiywp5rs45zgqavk6csdpztk", false);
        check(b"stiywp5rs45zgqavk6csdpztk22", false);
        check(b"STIYWP5RS45ZGQAVK6CSDPZTK2", false);
        check(b"stiywp5rs45zgqavk6csdpztk1", false);
        check(b"stiywp5rs45zgqavk6csdpzt\xff2", false);
        check(b"", false);
        let id = EventId::parse(b"stiywp5rs45zgqavk6csdpztk2").unwrap();
        assert_eq!(id.to_string(), "stiywp5rs45zgqavk6csdpztk2");
    }
}
