//! The judge: hears about every event, result and dead letter, and says what became of each.
//!
//! Tell it all events before the first result; results and dead letters of one partition in
//! the order of their offsets.
//!
//! Invariant: memory follows the number of positions, keys and output partitions, never the
//! size of the records: about five bytes per event and forty per key.
//! Invariant: an event is judged by `millrace-src` and `millrace-id` alone, and the id is
//! computed again from its coordinates (D-I1, D-I2), never believed.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use millrace_core::contract::result::{ID, RELEASE, SRC};
use millrace_core::identity::{EventId, PartitionIdentity, ResultId};
use millrace_core::position::{Partition, Position};

use super::positions::{PositionMap, PositionSet};
use super::report::{Counts, Offence, Offender, PartitionReport, Report};

/// Offenders of each kind that a report names; the rest is only counted.
const OFFENDERS_MAX: u64 = 10;

/// Results of one event that the judge can tell apart by index.
const RESULTS_PER_EVENT_MAX: u32 = 4_096;

/// Which events have to stay in order (D-L1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ordering {
    /// Those of one key within a partition; events without a key are free.
    Key,
    /// All events of a partition.
    Partition,
    /// None.
    None,
}

/// What a settled event without result and dead letter means. The logs alone cannot tell an
/// answer "nothing to say" from a loss; somebody who knows the app has to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unanswered {
    /// The app may filter: count it as filtered and say so.
    Filtered,
    /// The app filters exactly that many: what is above is lost. 0: the app never filters.
    Expected(u64),
}

/// Whether copies beyond the first are an offence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Repeats {
    /// They are: nothing failed, so nothing had to be repeated.
    Forbidden,
    /// They are not, if they lie within the window: at-least-once after a crash (section 18).
    Allowed,
}

/// How to judge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rules {
    /// `delivery.ordering` of the block.
    pub ordering: Ordering,
    /// What silence means.
    pub unanswered: Unanswered,
    /// What copies mean.
    pub repeats: Repeats,
    /// `delivery.window` of the block: no repeat reaches further back (R5).
    pub window: u64,
}

/// A partition of an input topic, as far as it is judged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Source {
    /// Which.
    pub partition: Partition,
    /// First position of the log.
    pub log_start: Position,
    /// Events at and above this are not judged.
    pub log_end: Position,
}

/// What a commit says about a partition: final is everything below the watermark, and these
/// positions above it (D-W1, D-W4).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settled {
    /// The committed position.
    pub watermark: Position,
    /// Terminal positions of the ledger.
    pub above: Vec<Position>,
}

/// Judges the events of some partitions.
#[derive(Debug)]
pub struct Judge {
    rules: Rules,
    sources: Vec<Audited>,
    known: HashMap<Partition, u32>,
    places: HashMap<Partition, u32>,
    /// Last source position of a first delivery, per output partition, source and lane.
    order: HashMap<(u32, u32, u32), Position>,
    /// Highest source position seen, per output partition and source.
    highest: HashMap<(u32, u32), Position>,
    releases: Vec<(String, u64)>,
    offenders: Vec<Offender>,
    offences: HashMap<Offence, u64>,
    results: u64,
    dead_letters: u64,
    unrelated: u64,
    expired: u64,
    repeat_span_max: u64,
}

#[derive(Debug)]
struct Audited {
    source: Source,
    identity: PartitionIdentity,
    events: PositionSet,
    /// Lane number + 1 per position; 0: no lane.
    lanes: PositionMap,
    lane_numbers: HashMap<u64, u32>,
    /// Events whose computed id is replaced (D-I4).
    redriven: HashMap<Position, EventId>,
    answered: PositionSet,
    /// Results seen, by index.
    seen: Vec<PositionSet>,
    dead: PositionSet,
    /// Release number per position; 0 is the first release.
    answerers: PositionMap,
    watermark: Option<Position>,
    above: PositionSet,
    counts: Counts,
}

impl Judge {
    /// A judge of these partitions. `cluster` is the id of the cluster that holds them.
    pub fn new(rules: Rules, cluster: &str, sources: Vec<Source>) -> Self {
        let known = (0..).zip(&sources);
        let known = known.map(|(number, source)| (source.partition.clone(), number));
        Self {
            rules,
            known: known.collect(),
            sources: sources
                .into_iter()
                .map(|source| Audited::new(cluster, source))
                .collect(),
            places: HashMap::new(),
            order: HashMap::new(),
            highest: HashMap::new(),
            releases: Vec::new(),
            offenders: Vec::new(),
            offences: HashMap::new(),
            results: 0,
            dead_letters: 0,
            unrelated: 0,
            expired: 0,
            repeat_span_max: 0,
        }
    }

    /// An event of an input topic. `redrive_of` is its header `millrace-redrive-of`.
    pub fn event(
        &mut self,
        partition: &Partition,
        position: Position,
        key: Option<&[u8]>,
        redrive_of: Option<&[u8]>,
    ) {
        let Some(&number) = self.known.get(partition) else {
            return;
        };
        let ordering = self.rules.ordering;
        let audited = &mut self.sources[number as usize];
        if position >= audited.source.log_end || !audited.events.insert(position) {
            return;
        }
        let lane = match (ordering, key) {
            (Ordering::Key, Some(key)) => audited.lane(key),
            (Ordering::Partition, _) => 1,
            (Ordering::Key, None) | (Ordering::None, _) => 0,
        };
        audited.lanes.set(position, lane);
        if let Some(original) = redrive_of.and_then(EventId::parse) {
            audited.redriven.insert(position, original);
        }
    }

    /// What a commit says. Several commits add up: what one of them settled is settled.
    pub fn settled(&mut self, partition: &Partition, settled: &Settled) {
        let Some(&number) = self.known.get(partition) else {
            return;
        };
        let audited = &mut self.sources[number as usize];
        audited.watermark = audited.watermark.max(Some(settled.watermark));
        for position in &settled.above {
            audited.above.insert(*position);
        }
    }

    /// A record of a result topic.
    pub fn result(
        &mut self,
        place: &Partition,
        at: Position,
        mut header: impl FnMut(&[u8]) -> Option<Vec<u8>>,
    ) {
        let source = header(SRC).and_then(|source| parse_source(&source));
        let Some((number, position)) = source.and_then(|(p, at)| Some((*self.known.get(&p)?, at)))
        else {
            self.unrelated += 1;
            return;
        };
        self.results += 1;
        let record = Record { place, at };
        if !self.exists(number, position, record) {
            return;
        }
        let id = header(ID).unwrap_or_default();
        let Some(index) = self.sources[number as usize].result_index(position, &id) else {
            if position >= self.sources[number as usize].source.log_start {
                let detail = format!("millrace-id {:?}", String::from_utf8_lossy(&id));
                self.offend(Offence::WrongId, number, position, Some(record), detail);
            }
            return;
        };
        let release = header(RELEASE).unwrap_or_default();
        self.one_release(number, position, &release, record);
        let place_number = self.place(place);
        let highest = self
            .highest
            .entry((place_number, number))
            .or_insert(position);
        *highest = (*highest).max(position);
        let highest = *highest;
        let audited = &mut self.sources[number as usize];
        audited.answered.insert(position);
        if audited.seen(index).insert(position) {
            self.in_order(number, position, place_number, record);
        } else {
            self.repeated(number, position, highest, record, "result");
        }
    }

    /// A record of the dead-letter topic.
    pub fn dead_letter(
        &mut self,
        place: &Partition,
        at: Position,
        mut header: impl FnMut(&[u8]) -> Option<Vec<u8>>,
    ) {
        let mut text = |name: &[u8]| String::from_utf8(header(name)?).ok();
        let source = (|| {
            let topic = text(b"millrace-dlq-orig-topic")?;
            let partition = text(b"millrace-dlq-orig-partition")?.parse().ok()?;
            let offset = text(b"millrace-dlq-orig-offset")?.parse().ok()?;
            let number = *self.known.get(&Partition::new(topic, partition))?;
            Some((number, Position::new(offset)))
        })();
        let Some((number, position)) = source else {
            self.unrelated += 1;
            return;
        };
        self.dead_letters += 1;
        let record = Record { place, at };
        if !self.exists(number, position, record) {
            return;
        }
        let id = header(b"millrace-dlq-id").unwrap_or_default();
        let audited = &self.sources[number as usize];
        if position >= audited.source.log_start && audited.id(position).as_str().as_bytes() != id {
            let detail = format!("millrace-dlq-id {:?}", String::from_utf8_lossy(&id));
            self.offend(Offence::WrongId, number, position, Some(record), detail);
            return;
        }
        let release = header(b"millrace-dlq-app-release").unwrap_or_default();
        self.one_release(number, position, &release, record);
        let place_number = self.place(place);
        let highest = self
            .highest
            .entry((place_number, number))
            .or_insert(position);
        *highest = (*highest).max(position);
        let highest = *highest;
        if !self.sources[number as usize].dead.insert(position) {
            self.repeated(number, position, highest, record, "dead letter");
        }
    }

    /// What came of it all.
    pub fn verdict(mut self) -> Report {
        let mut holes = Vec::new();
        for (number, audited) in (0..).zip(&mut self.sources) {
            for position in audited.events.iter() {
                let dead = audited.dead.contains(position);
                let counts = &mut audited.counts;
                counts.events += 1;
                counts.dead_lettered += u64::from(dead);
                if dead {
                    continue;
                }
                if audited.answered.contains(position) {
                    counts.answered += 1;
                } else if audited.watermark.is_some_and(|mark| position < mark)
                    || audited.above.contains(position)
                {
                    holes.push((number, position));
                } else {
                    counts.pending += 1;
                }
            }
        }
        let filtered = match self.rules.unanswered {
            Unanswered::Filtered => holes.len(),
            Unanswered::Expected(expected) => usize::try_from(expected).unwrap_or(usize::MAX),
        };
        // With an expected number nobody can tell which of the holes are the app's: name them all.
        let lost = holes.len().saturating_sub(filtered);
        for (index, (number, position)) in (0_usize..).zip(&holes) {
            let counts = &mut self.sources[*number as usize].counts;
            if index >= lost {
                counts.filtered += 1;
            } else {
                let detail = "settled, but neither result nor dead letter".to_owned();
                self.offend(Offence::Lost, *number, *position, None, detail);
            }
        }
        self.report(holes.len())
    }

    fn report(self, holes: usize) -> Report {
        let mut counts = Counts::default();
        let mut partitions = Vec::new();
        for audited in &self.sources {
            counts.add(&audited.counts);
            partitions.push(PartitionReport {
                partition: audited.source.partition.to_string(),
                watermark: audited.watermark.map(Position::offset),
                counts: audited.counts,
            });
        }
        let wrong = counts.lost
            + counts.out_of_order
            + counts.wrong_id
            + counts.unknown_event
            + counts.two_releases
            + counts.beyond_window;
        let repeated = match self.rules.repeats {
            Repeats::Forbidden => counts.duplicated,
            Repeats::Allowed => 0,
        };
        Report {
            ok: wrong + repeated == 0,
            notes: self.notes(&counts, holes),
            counts,
            results: self.results,
            dead_letters: self.dead_letters,
            unrelated: self.unrelated,
            expired: self.expired,
            repeat_span_max: self.repeat_span_max,
            releases: self.releases,
            partitions,
            offenders: self.offenders,
        }
    }

    fn notes(&self, counts: &Counts, holes: usize) -> Vec<String> {
        let mut notes = Vec::new();
        match self.rules.unanswered {
            Unanswered::Filtered if holes > 0 => notes.push(format!(
                "{holes} settled events have neither result nor dead letter and are counted as \
                 filtered: the logs cannot tell an app that has nothing to say from a loss. If \
                 your app never filters, use --no-filter; if it filters N events, --filtered N."
            )),
            Unanswered::Expected(expected) if (holes as u64) < expected => notes.push(format!(
                "{expected} filtered events were expected, but only {holes} are without result"
            )),
            Unanswered::Filtered | Unanswered::Expected(_) => {}
        }
        if counts.pending > 0 {
            notes.push(format!(
                "{} events are pending: no commit covers them yet, so they will be read (again)",
                counts.pending
            ));
        }
        if self.expired > 0 {
            notes.push(format!(
                "{} results or dead letters answer events that the input topics no longer hold",
                self.expired
            ));
        }
        if self.unrelated > 0 {
            notes.push(format!(
                "{} records of the result and dead-letter topics come from elsewhere",
                self.unrelated
            ));
        }
        notes
    }

    /// Whether the event of a result was there. Events that have left the log are passed.
    fn exists(&mut self, number: u32, position: Position, record: Record<'_>) -> bool {
        let audited = &self.sources[number as usize];
        if position < audited.source.log_start {
            self.expired += 1;
            return true;
        }
        if audited.events.contains(position) {
            return true;
        }
        let detail = "the input topic holds no such event".to_owned();
        self.offend(
            Offence::UnknownEvent,
            number,
            position,
            Some(record),
            detail,
        );
        false
    }

    fn one_release(&mut self, number: u32, position: Position, name: &[u8], record: Record<'_>) {
        let name = String::from_utf8_lossy(name);
        let known = self.releases.iter().position(|(known, _)| *known == name);
        let release = known.unwrap_or_else(|| {
            self.releases.push((name.into_owned(), 0));
            self.releases.len() - 1
        });
        self.releases[release].1 += 1;
        let release = u32::try_from(release).expect("a release needs a record of its own");
        let audited = &mut self.sources[number as usize];
        let first = !audited.answered.contains(position) && !audited.dead.contains(position);
        if first && release > 0 {
            audited.answerers.set(position, release);
        }
        let answerer = audited.answerers.get(position);
        if !first && answerer != release {
            let detail = format!(
                "answered by {:?} and by {:?}",
                self.releases[answerer as usize].0, self.releases[release as usize].0
            );
            self.offend(Offence::TwoReleases, number, position, Some(record), detail);
        }
    }

    fn in_order(&mut self, number: u32, position: Position, place: u32, record: Record<'_>) {
        let lane = self.sources[number as usize].lanes.get(position);
        if lane == 0 {
            return;
        }
        let last = self.order.entry((place, number, lane)).or_insert(position);
        if *last <= position {
            *last = position;
            return;
        }
        let detail = format!("behind the result of position {last} of the same lane");
        self.offend(Offence::OutOfOrder, number, position, Some(record), detail);
    }

    fn repeated(
        &mut self,
        number: u32,
        position: Position,
        highest: Position,
        record: Record<'_>,
        what: &str,
    ) {
        let span = highest.since(position);
        self.repeat_span_max = self.repeat_span_max.max(span);
        let detail = format!("a copy of an earlier {what}, {span} positions back");
        self.offend(Offence::Duplicated, number, position, Some(record), detail);
        if span >= self.rules.window {
            let detail = format!("{span} positions back, the window is {}", self.rules.window);
            self.offend(
                Offence::BeyondWindow,
                number,
                position,
                Some(record),
                detail,
            );
        }
    }

    fn place(&mut self, place: &Partition) -> u32 {
        if let Some(number) = self.places.get(place) {
            return *number;
        }
        let number = u32::try_from(self.places.len()).expect("a cluster has fewer partitions");
        self.places.insert(place.clone(), number);
        number
    }

    fn offend(
        &mut self,
        offence: Offence,
        number: u32,
        position: Position,
        record: Option<Record<'_>>,
        detail: String,
    ) {
        let audited = &mut self.sources[number as usize];
        *audited.counts.of(offence) += 1;
        let count = self.offences.entry(offence).or_default();
        *count += 1;
        if *count <= OFFENDERS_MAX {
            self.offenders.push(Offender {
                offence,
                event: format!("{}/{position}", audited.source.partition),
                record: record.map(|record| format!("{}/{}", record.place, record.at)),
                detail,
            });
        }
    }
}

#[derive(Clone, Copy)]
struct Record<'a> {
    place: &'a Partition,
    at: Position,
}

impl Audited {
    fn new(cluster: &str, source: Source) -> Self {
        let partition = &source.partition;
        Self {
            identity: PartitionIdentity::new(cluster, partition.topic(), partition.number()),
            source,
            events: PositionSet::default(),
            lanes: PositionMap::default(),
            lane_numbers: HashMap::new(),
            redriven: HashMap::new(),
            answered: PositionSet::default(),
            seen: Vec::new(),
            dead: PositionSet::default(),
            answerers: PositionMap::default(),
            watermark: None,
            above: PositionSet::default(),
            counts: Counts::default(),
        }
    }

    fn lane(&mut self, key: &[u8]) -> u32 {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let next = u32::try_from(self.lane_numbers.len() + 1).expect("memory ends before u32");
        *self.lane_numbers.entry(hasher.finish()).or_insert(next)
    }

    fn id(&self, position: Position) -> EventId {
        match self.redriven.get(&position) {
            Some(original) => *original,
            None => self.identity.event_id(position),
        }
    }

    fn seen(&mut self, index: u32) -> &mut PositionSet {
        let index = index as usize;
        if self.seen.len() <= index {
            self.seen.resize_with(index + 1, PositionSet::default);
        }
        &mut self.seen[index]
    }

    /// Which of the event's results has this id.
    fn result_index(&self, position: Position, id: &[u8]) -> Option<u32> {
        let event = self.id(position);
        (0..RESULTS_PER_EVENT_MAX)
            .find(|index| ResultId::of(&event, *index).as_str().as_bytes() == id)
    }
}

/// Reads `topic/partition/offset`.
fn parse_source(source: &[u8]) -> Option<(Partition, Position)> {
    let source = std::str::from_utf8(source).ok()?;
    let (rest, offset) = source.rsplit_once('/')?;
    let (topic, partition) = rest.rsplit_once('/')?;
    let partition = Partition::new(topic, partition.parse().ok()?);
    Some((partition, Position::new(offset.parse().ok()?)))
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
