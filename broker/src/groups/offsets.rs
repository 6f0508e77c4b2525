//! What a group has committed, and what open transactions are about to commit for it.

use std::collections::{BTreeMap, HashMap};

use crate::journal::OffsetEntry;

/// A partition of a topic, by name.
pub(crate) type Place = (String, i32);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Committed {
    pub(crate) offset: i64,
    pub(crate) leader_epoch: i32,
    pub(crate) metadata: String,
    /// The order in which commits reached the broker: a transaction that ends late does not
    /// overwrite a commit that came after it.
    order: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Offsets {
    committed: BTreeMap<Place, Committed>,
    /// By producer id.
    pending: HashMap<i64, BTreeMap<Place, Committed>>,
    next_order: u64,
}

impl Offsets {
    pub(crate) fn get(&self, topic: &str, partition: i32) -> Option<&Committed> {
        self.committed.get(&(topic.to_string(), partition))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.committed.is_empty() && self.pending.is_empty()
    }

    pub(crate) fn places(&self) -> impl Iterator<Item = &Place> {
        self.committed.keys()
    }

    /// Whether an open transaction may still change this offset.
    pub(crate) fn is_unstable(&self, topic: &str, partition: i32) -> bool {
        let place = (topic.to_string(), partition);
        self.pending
            .values()
            .any(|offsets| offsets.contains_key(&place))
    }

    pub(crate) fn commit(&mut self, entry: &OffsetEntry) {
        let committed = self.ordered(entry);
        self.committed
            .insert((entry.topic.clone(), entry.partition), committed);
    }

    /// Holds an offset until its transaction ends.
    pub(crate) fn hold(&mut self, producer_id: i64, entry: &OffsetEntry) {
        let committed = self.ordered(entry);
        self.pending
            .entry(producer_id)
            .or_default()
            .insert((entry.topic.clone(), entry.partition), committed);
    }

    fn ordered(&mut self, entry: &OffsetEntry) -> Committed {
        self.next_order += 1;
        Committed {
            offset: entry.offset,
            leader_epoch: entry.leader_epoch,
            metadata: entry.metadata.clone(),
            order: self.next_order,
        }
    }

    /// What a commit of this producer's transaction would write.
    pub(crate) fn held(&self, producer_id: i64) -> Vec<OffsetEntry> {
        let Some(held) = self.pending.get(&producer_id) else {
            return Vec::new();
        };
        held.iter()
            .filter(|(place, committed)| {
                self.committed
                    .get(place)
                    .is_none_or(|known| known.order < committed.order)
            })
            .map(entry)
            .collect()
    }

    pub(crate) fn release(&mut self, producer_id: i64) {
        self.pending.remove(&producer_id);
    }

    pub(crate) fn delete(&mut self, topic: &str, partition: i32) -> bool {
        self.committed
            .remove(&(topic.to_string(), partition))
            .is_some()
    }

    /// Forgets a deleted topic.
    pub(crate) fn delete_topic(&mut self, topic: &str) {
        self.committed.retain(|(name, _), _| name != topic);
        for held in self.pending.values_mut() {
            held.retain(|(name, _), _| name != topic);
        }
        self.pending.retain(|_, held| !held.is_empty());
    }

    pub(crate) fn entries(&self) -> Vec<OffsetEntry> {
        self.committed.iter().map(entry).collect()
    }
}

fn entry((place, committed): (&Place, &Committed)) -> OffsetEntry {
    OffsetEntry {
        topic: place.0.clone(),
        partition: place.1,
        offset: committed.offset,
        leader_epoch: committed.leader_epoch,
        metadata: committed.metadata.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(offset: i64) -> OffsetEntry {
        OffsetEntry {
            topic: "orders".into(),
            partition: 0,
            offset,
            leader_epoch: -1,
            metadata: format!("m{offset}"),
        }
    }

    #[test]
    fn a_held_offset_is_unstable_and_unseen() {
        let mut offsets = Offsets::default();
        offsets.commit(&at(5));
        offsets.hold(1, &at(9));
        assert!(offsets.is_unstable("orders", 0));
        assert_eq!(offsets.get("orders", 0).map(|one| one.offset), Some(5));
        assert_eq!(offsets.held(1), vec![at(9)]);
        offsets.release(1);
        assert!(!offsets.is_unstable("orders", 0));
    }

    #[test]
    fn a_transaction_does_not_overwrite_a_later_commit() {
        let mut offsets = Offsets::default();
        offsets.hold(1, &at(9));
        offsets.commit(&at(20));
        assert_eq!(offsets.held(1), vec![]);
    }
}
