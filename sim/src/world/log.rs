//! The input topic: what happened, in order, with gaps.

use std::time::Duration;

use millrace_core::event::{Event, EventsBuilder, Timestamp, TimestampKind};
use millrace_core::identity::{EventId, PartitionIdentity};
use millrace_core::position::{Partition, Position};

use crate::random::Random;
use crate::scenario::{CLUSTER, REQUEST_BYTES_MAX, Scenario, TOPIC};

/// Epoch milliseconds at which every run starts.
pub const EPOCH_MS: i64 = 1_700_000_000_000;

/// How an event behaves at the app and behind it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Nature {
    /// One result.
    Good,
    /// No result.
    Filter,
    /// So many results.
    Many(u8),
    /// Refused for good.
    Permanent,
    /// So many transient failures, then one result.
    Flaky(u32),
    /// Transient failures until somebody repairs the app.
    Hopeless,
    /// The app dies of it, always.
    Poison,
    /// The whole pod dies of it, always.
    Deadly,
    /// So many answers that break the contract, then one result.
    Malformed(u32),
    /// The app asks so often to be left alone, then one result.
    Busy(u32),
    /// So many calls without an answer, then one result.
    Silent(u32),
    /// Above `app.maxRequestBytes`.
    Oversized,
    /// Its result is above the limit of the output topic.
    Unstorable,
}

/// One event of the log.
#[derive(Clone, Debug)]
pub struct Record {
    pub position: Position,
    pub key: Option<Vec<u8>>,
    pub value: Vec<u8>,
    pub nature: Nature,
    pub redriven: bool,
    /// When it is written.
    pub at: Duration,
    pub id: EventId,
}

/// One partition of the input topic.
#[derive(Debug)]
pub struct Log {
    pub partition: Partition,
    pub records: Vec<Record>,
    /// Where an unclean election cut it: what stands there and behind belongs to another history,
    /// under the next leader epoch.
    pub cut: Option<Position>,
}

impl Log {
    /// Writes every partition of a scenario.
    pub fn all(scenario: &Scenario, random: &mut Random) -> Vec<Self> {
        let mut logs: Vec<Self> = (0..scenario.partitions)
            .map(|number| Self {
                partition: Partition::new(TOPIC, i32::try_from(number).expect("few partitions")),
                records: Vec::new(),
                cut: None,
            })
            .collect();
        let mut at: Vec<Duration> = (0..scenario.events)
            .map(|_| {
                let span =
                    u64::try_from(scenario.produced_for.as_micros()).expect("runs are short");
                Duration::from_micros(random.below(span.max(1)))
            })
            .collect();
        at.sort();
        for at in at {
            let chosen = random.index(logs.len());
            let log = &mut logs[chosen];
            let gap = if random.permille(scenario.gaps.0) {
                random.between(1, scenario.gaps.1)
            } else {
                0
            };
            let next = log
                .records
                .last()
                .map_or(Position::START, |last| last.position.next());
            let position = next.plus(gap);
            let nature = nature(scenario, random);
            let length = if nature == Nature::Oversized {
                REQUEST_BYTES_MAX + 1
            } else {
                random.index(40)
            };
            let redriven = random.permille(scenario.natures.redriven);
            let identity = PartitionIdentity::new(CLUSTER, TOPIC, log.partition.number());
            let own = identity.event_id(position);
            let earlier = PartitionIdentity::new(CLUSTER, "elsewhere", log.partition.number());
            log.records.push(Record {
                position,
                key: (!random.permille(scenario.keyless))
                    .then(|| format!("k{}", random.below(scenario.keys)).into_bytes()),
                value: vec![b'x'; length],
                nature,
                redriven,
                at,
                id: if redriven {
                    earlier.event_id(position)
                } else {
                    own
                },
            });
        }
        logs
    }

    /// Epoch of the leader.
    pub fn epoch(&self) -> i32 {
        i32::from(self.cut.is_some())
    }

    /// Whether a position was reached in a history that does not go on there.
    pub fn is_cut_below(&self, position: Position) -> bool {
        self.cut.is_some_and(|cut| cut < position)
    }

    /// Index of the first record at or behind a position.
    pub fn index_from(&self, position: Position) -> usize {
        self.records
            .partition_point(|record| record.position < position)
    }

    /// Index of the record at a position.
    pub fn index_of(&self, position: Position) -> Option<usize> {
        self.records
            .binary_search_by_key(&position, |record| record.position)
            .ok()
    }

    /// End of what is written by `now`.
    pub fn end(&self, now: Duration) -> Position {
        let written = self.records.partition_point(|record| record.at <= now);
        written
            .checked_sub(1)
            .map_or(Position::START, |last| self.records[last].position.next())
    }

    /// The events in a range of indices, as a fetch hands them over.
    pub fn events(&self, range: std::ops::Range<usize>) -> Vec<Event> {
        let mut builder = EventsBuilder::default();
        for record in &self.records[range] {
            let timestamp = Timestamp {
                ms: EPOCH_MS + i64::try_from(record.at.as_millis()).expect("runs are short"),
                kind: TimestampKind::Create,
            };
            let redrive: (&[u8], Option<&[u8]>) =
                (b"millrace-redrive-of", Some(record.id.as_str().as_bytes()));
            let headers = record.redriven.then_some(redrive);
            builder.push(
                record.position,
                timestamp,
                record.key.as_deref(),
                Some(&record.value),
                headers,
            );
        }
        builder.finish()
    }
}

fn nature(scenario: &Scenario, random: &mut Random) -> Nature {
    let n = scenario.natures;
    let times = u32::try_from(random.between(1, 4)).expect("small");
    let many = u8::try_from(random.between(2, 4)).expect("small");
    let mut roll = random.below(1_000);
    for (share, nature) in [
        (n.filter, Nature::Filter),
        (n.many, Nature::Many(many)),
        (n.permanent, Nature::Permanent),
        (n.flaky, Nature::Flaky(times)),
        (n.hopeless, Nature::Hopeless),
        (n.poison, Nature::Poison),
        (n.malformed, Nature::Malformed(times)),
        (n.busy, Nature::Busy(times)),
        (n.silent, Nature::Silent(times)),
        (n.oversized, Nature::Oversized),
        (n.unstorable, Nature::Unstorable),
        (n.deadly, Nature::Deadly),
    ] {
        if roll < share {
            return nature;
        }
        roll -= share;
    }
    Nature::Good
}
