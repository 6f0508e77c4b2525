//! Says from the topics alone what became of every event. It shares no code with `millrace
//! audit`, so that each checks the other.
//!
//! Invariant: every event is in exactly one of answered, dead-lettered and unanswered.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sha2::{Digest, Sha256};

use crate::records::Record;

/// Most results of one event that the judge knows the ids of.
const RESULTS_MAX: u32 = 16;

/// What has to stay in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ordering {
    /// The events of one key.
    Key,
    /// The events of one partition.
    Partition,
    /// Nothing.
    None,
}

/// What the topics hold.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// Id of the cluster, which goes into event ids.
    pub cluster: String,
    /// Name of the input topic.
    pub topic: String,
    /// Its records.
    pub events: Vec<Record>,
    /// The records of the result topic.
    pub results: Vec<Record>,
    /// The records of the dead-letter topic.
    pub dead_letters: Vec<Record>,
}

/// What became of the events.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Verdict {
    /// Events of the input topic.
    pub events: usize,
    /// Events with results and without dead letter.
    pub answered: usize,
    /// Events with a dead letter.
    pub dead_lettered: usize,
    /// Events with neither, as `partition/offset`.
    pub unanswered: Vec<String>,
    /// Results and dead letters beyond the first, all with the id of the first.
    pub repeats: usize,
    /// How many positions the furthest repeat lies behind what its log had already.
    pub furthest_repeat: i64,
    /// First results that stand behind one of a later event of their lane.
    pub out_of_order: Vec<String>,
    /// Records that no event explains: unknown event, wrong id.
    pub unexplained: Vec<String>,
}

type Place = (i32, i64);

/// Judges.
pub fn judge(evidence: &Evidence, ordering: Ordering) -> Verdict {
    let mut verdict = Verdict {
        events: evidence.events.len(),
        ..Verdict::default()
    };
    let events: HashMap<Place, &Record> = evidence
        .events
        .iter()
        .map(|event| ((event.partition, event.offset), event))
        .collect();
    let mut answered = BTreeSet::new();
    let mut lanes = Lanes::new(ordering);
    let mut seen: BTreeMap<(Place, u32), ()> = BTreeMap::new();
    for record in &evidence.results {
        let about = format!("result {}/{}", record.partition, record.offset);
        let Some((place, event)) = source(evidence, &events, record.header("millrace-src")) else {
            verdict.unexplained.push(format!("{about} names no event"));
            continue;
        };
        let event_id = event_id(evidence, record, place);
        let named = record.header("millrace-id").unwrap_or_default();
        let index = (0..RESULTS_MAX).find(|index| result_id(&event_id, *index) == named);
        let Some(index) = index else {
            verdict
                .unexplained
                .push(format!("{about} has the wrong id {named}"));
            continue;
        };
        answered.insert(place);
        let first = seen.insert((place, index), ()).is_none();
        let behind = lanes.append(record, event, index, first);
        if first {
            if behind.in_lane {
                verdict
                    .out_of_order
                    .push(format!("{about}, event {}/{}", place.0, place.1));
            }
        } else {
            verdict.repeats += 1;
            verdict.furthest_repeat = verdict.furthest_repeat.max(behind.positions);
        }
    }
    let mut dead = BTreeSet::new();
    for record in &evidence.dead_letters {
        let about = format!("dead letter {}/{}", record.partition, record.offset);
        let origin = ["topic", "partition", "offset"].map(|part| {
            record
                .header(&format!("millrace-dlq-orig-{part}"))
                .unwrap_or_default()
        });
        let Some((place, _)) = source(evidence, &events, Some(origin.join("/"))) else {
            verdict.unexplained.push(format!("{about} names no event"));
            continue;
        };
        if record.header("millrace-dlq-id") != Some(event_id(evidence, record, place)) {
            verdict
                .unexplained
                .push(format!("{about} has the wrong id"));
        }
        verdict.repeats += usize::from(!dead.insert(place));
    }
    for place in events.keys() {
        match (dead.contains(place), answered.contains(place)) {
            (true, _) => verdict.dead_lettered += 1,
            (false, true) => verdict.answered += 1,
            (false, false) => verdict.unanswered.push(format!("{}/{}", place.0, place.1)),
        }
    }
    verdict.unanswered.sort();
    verdict
}

/// How far behind a record stands.
struct Behind {
    in_lane: bool,
    positions: i64,
}

/// A lane's name: log partition, source partition, key.
type Lane = (i32, i32, Option<Vec<u8>>);

/// What each log has had so far of each lane.
struct Lanes {
    ordering: Ordering,
    /// Highest event and result index, per log partition and lane.
    last: HashMap<Lane, (i64, u32)>,
    /// Highest event, per log partition and source partition.
    highest: HashMap<(i32, i32), i64>,
}

impl Lanes {
    fn new(ordering: Ordering) -> Self {
        Self {
            ordering,
            last: HashMap::new(),
            highest: HashMap::new(),
        }
    }

    fn append(&mut self, record: &Record, event: &Record, index: u32, first: bool) -> Behind {
        let highest = self
            .highest
            .entry((record.partition, event.partition))
            .or_insert(-1);
        *highest = event.offset.max(*highest);
        let positions = *highest - event.offset;
        // Events without a key are no lane of their own under ordering by key.
        let ordered = match self.ordering {
            Ordering::Key => event.key.is_some(),
            Ordering::Partition => true,
            Ordering::None => false,
        };
        if !ordered || !first {
            return Behind {
                in_lane: false,
                positions,
            };
        }
        let key = if self.ordering == Ordering::Key {
            event.key.clone()
        } else {
            None
        };
        let last = self
            .last
            .entry((record.partition, event.partition, key))
            .or_insert((-1, 0));
        let in_lane = (event.offset, index) < *last;
        *last = (*last).max((event.offset, index));
        Behind { in_lane, positions }
    }
}

/// The event that `topic/partition/offset` names.
fn source<'a>(
    evidence: &Evidence,
    events: &HashMap<Place, &'a Record>,
    named: Option<String>,
) -> Option<(Place, &'a Record)> {
    let named = named?;
    let (rest, offset) = named.rsplit_once('/')?;
    let (topic, partition) = rest.rsplit_once('/')?;
    let place = (partition.parse().ok()?, offset.parse().ok()?);
    let event = events.get(&place)?;
    (topic == evidence.topic).then_some((place, *event))
}

/// D-I4: a replayed dead letter keeps the id that it names; D-I1 otherwise.
fn event_id(evidence: &Evidence, record: &Record, place: Place) -> String {
    if let Some(of) = record.header("millrace-redrive-of") {
        return of;
    }
    let mut bytes = Vec::new();
    for text in [evidence.cluster.as_str(), evidence.topic.as_str(), ""] {
        push_text(&mut bytes, text);
    }
    bytes.extend(place.0.to_be_bytes());
    bytes.extend(place.1.to_be_bytes());
    short_hash(&bytes)
}

/// D-I2.
fn result_id(event_id: &str, index: u32) -> String {
    let mut bytes = Vec::new();
    push_text(&mut bytes, event_id);
    bytes.extend(index.to_be_bytes());
    short_hash(&bytes)
}

fn push_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend(u32::try_from(text.len()).expect("short").to_be_bytes());
    bytes.extend(text.as_bytes());
}

/// The first 26 characters of the base32 of the SHA-256.
fn short_hash(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let bit = |n: usize| hash[n / 8] >> (7 - n % 8) & 1;
    let character = |n: usize| {
        let value = (0..5).fold(0, |value, i| value << 1 | bit(5 * n + i));
        char::from(b"abcdefghijklmnopqrstuvwxyz234567"[usize::from(value)])
    };
    (0..26).map(character).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(partition: i32, offset: i64, key: &str, headers: &[(&str, &str)]) -> Record {
        let header =
            |(name, value): &(&str, &str)| ((*name).to_owned(), Some(value.as_bytes().to_vec()));
        Record {
            partition,
            offset,
            timestamp_ms: 0,
            key: Some(key.into()),
            value: None,
            headers: headers.iter().map(header).collect(),
        }
    }

    fn evidence() -> Evidence {
        Evidence {
            cluster: "demo".into(),
            topic: "orders".into(),
            events: (0..4).map(|offset| record(0, offset, "a", &[])).collect(),
            results: Vec::new(),
            dead_letters: Vec::new(),
        }
    }

    /// Appends the result of an event.
    fn answer(evidence: &mut Evidence, offset: i64) {
        let id = result_id(&event_id(evidence, &evidence.events[0], (0, offset)), 0);
        let at = i64::try_from(evidence.results.len()).unwrap();
        let src = format!("orders/0/{offset}");
        let result = record(0, at, "a", &[("millrace-id", &id), ("millrace-src", &src)]);
        evidence.results.push(result);
    }

    #[test]
    fn d_i1_and_d_i2_ids_are_those_of_the_published_vectors() {
        let evidence = evidence();
        let id = event_id(&evidence, &evidence.events[0], (3, 1042));
        assert_eq!(id, "stiywp5rs45zgqavk6csdpztk2");
        assert_eq!(result_id(&id, 0), "g6vippms42csuyygmgjdrwr62u");
    }

    #[test]
    fn losses_repeats_disorder_and_strangers_are_noticed() {
        let mut evidence = evidence();
        for offset in [0, 2, 1, 2] {
            answer(&mut evidence, offset);
        }
        evidence.results.push(record(
            0,
            9,
            "a",
            &[("millrace-id", "x"), ("millrace-src", "orders/0/0")],
        ));
        evidence.results.push(record(0, 10, "a", &[]));
        let verdict = judge(&evidence, Ordering::Key);
        assert_eq!((verdict.events, verdict.answered), (4, 3));
        assert_eq!(verdict.unanswered, ["0/3"]);
        assert_eq!(verdict.repeats, 1);
        assert_eq!(verdict.out_of_order, ["result 0/2, event 0/1"]);
        assert_eq!(verdict.unexplained.len(), 2);
        assert!(judge(&evidence, Ordering::None).out_of_order.is_empty());
    }

    #[test]
    fn a_repeat_is_measured_from_the_furthest_event_before_it() {
        let mut evidence = evidence();
        for offset in [0, 1, 2, 3, 1] {
            answer(&mut evidence, offset);
        }
        let verdict = judge(&evidence, Ordering::Key);
        assert_eq!((verdict.repeats, verdict.furthest_repeat), (1, 2));
        assert!(verdict.out_of_order.is_empty() && verdict.unanswered.is_empty());
    }
}
