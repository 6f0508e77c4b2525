//! The `Results` frame: written in one pass, checked once, then read without copying.
//!
//! Body after the kind: `seq u64, stamp u8, generation i32, events u32, bytes of events u32`,
//! the events, then the table of topic-partitions (behind the events, so that the writer never
//! moves what it wrote). An event: `table index u32, position i64, lane u64, fate u8,
//! records u32, bytes of records u32`, the records. A record: `destination u8` (a named topic
//! follows as text), `partition i32` (-1: none), `timestamp i64` (the smallest: none), key,
//! value, `headers u32` and that many pairs of byte strings.
//!
//! Invariant: writing and reading cost no allocation per event.
//! Invariant: [`Results::decode`] checks every bound, so iteration cannot fail.

use bytes::{Buf, Bytes};

use super::wire::{Reader, put_bytes, put_count, put_partition, put_text, stamp_byte};
use super::{Destination, Error, FateCode, KIND_RESULTS, Malformed};
use crate::limits::FRAME_BYTES_MAX;
use crate::position::{Partition, Position};
use crate::token::Stamp;

/// Room for a few events, so that a frame of one event stays cheap.
const FIRST_BYTES: usize = 4 << 10;
/// Bytes before the body: the length and the kind.
const FRAME_HEAD: usize = 5;
/// Where the number of events stands in a frame: behind seq, stamp and generation.
const EVENTS_AT: usize = FRAME_HEAD + 8 + 1 + 4;
const EVENTS_BYTES_AT: usize = EVENTS_AT + 4;
const HEAD_BYTES: usize = EVENTS_BYTES_AT + 4;
/// From the start of an event to its number of records.
const RECORDS_AT: usize = 4 + 8 + 8 + 1;
/// From the start of an event to its records.
const EVENT_HEAD: usize = RECORDS_AT + 4 + 4;
const NO_PARTITION: i32 = -1;
pub(super) const NO_TIMESTAMP: i64 = i64::MIN;

/// Writes one `Results` frame.
///
/// ```
/// use millrace_core::contract::publish::{Destination, FateCode, Request, ResultsFrame, next_frame};
/// use millrace_core::position::{Partition, Position};
/// use millrace_core::token::Stamp;
/// let mut frame = ResultsFrame::new(1, Stamp::Live, 41);
/// frame.event(&Partition::new("orders", 3), Position::new(1042), 7, FateCode::Emitted);
/// frame.record(Destination::Output, None, Some(5), Some(b"key"), Some(b"value"));
/// frame.header(b"name", None);
/// let mut stream = bytes::BytesMut::from(&frame.finish()[..]);
/// let Request::Results(results) = Request::decode(next_frame(&mut stream, 1 << 20)?.unwrap())? else { panic!() };
/// let event = results.events().next().unwrap();
/// assert_eq!(event.records().next().unwrap().value, Some(&b"value"[..]));
/// # Ok::<_, millrace_core::contract::publish::Error>(())
/// ```
#[derive(Debug)]
pub struct ResultsFrame {
    bytes: Vec<u8>,
    table: Vec<Partition>,
    table_bytes: usize,
    last: usize,
    events: u32,
    event_at: usize,
    headers_at: usize,
    overflowed: bool,
}

impl ResultsFrame {
    /// An empty frame.
    pub fn new(seq: u64, stamp: Stamp, generation: i32) -> Self {
        let mut bytes = Vec::with_capacity(FIRST_BYTES);
        bytes.extend_from_slice(&[0; 4]);
        bytes.push(KIND_RESULTS);
        bytes.extend_from_slice(&seq.to_le_bytes());
        bytes.push(stamp_byte(stamp));
        bytes.extend_from_slice(&generation.to_le_bytes());
        bytes.extend_from_slice(&[0; 8]);
        debug_assert_eq!(bytes.len(), HEAD_BYTES);
        Self {
            bytes,
            table: Vec::new(),
            table_bytes: 4,
            last: 0,
            events: 0,
            event_at: 0,
            headers_at: 0,
            overflowed: false,
        }
    }

    /// Starts the next event and gives its index in the frame, the name that `Stored` uses.
    pub fn event(
        &mut self,
        partition: &Partition,
        position: Position,
        lane: u64,
        fate: FateCode,
    ) -> u32 {
        let table_index = self.index_of(partition);
        self.event_at = self.bytes.len();
        self.headers_at = 0;
        let mut head = [0; EVENT_HEAD];
        head[..4].copy_from_slice(&table_index.to_le_bytes());
        head[4..12].copy_from_slice(&position.offset().to_le_bytes());
        head[12..20].copy_from_slice(&lane.to_le_bytes());
        head[20] = match fate {
            FateCode::Emitted => 0,
            FateCode::Filtered => 1,
            FateCode::DeadLettered => 2,
            FateCode::FailedInShadow => 3,
        };
        self.bytes.extend_from_slice(&head);
        self.events += 1;
        self.events - 1
    }

    /// Adds a record to the last event.
    ///
    /// # Panics
    /// Without an event.
    pub fn record(
        &mut self,
        destination: Destination<'_>,
        partition: Option<i32>,
        timestamp_ms: Option<i64>,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
    ) {
        assert!(self.event_at > 0, "a record needs an event");
        let topic = if let Destination::Topic(topic) = destination {
            topic.len()
        } else {
            0
        };
        let length = topic + key.map_or(0, <[u8]>::len) + value.map_or(0, <[u8]>::len);
        if !self.has_room(length + 64) {
            return;
        }
        match destination {
            Destination::Output => self.bytes.push(0),
            Destination::DeadLetter => self.bytes.push(1),
            Destination::Verification => self.bytes.push(2),
            Destination::Topic(topic) => {
                self.bytes.push(3);
                put_text(&mut self.bytes, topic);
            }
        }
        let partition = partition.filter(|p| *p >= 0).unwrap_or(NO_PARTITION);
        self.bytes.extend_from_slice(&partition.to_le_bytes());
        self.bytes
            .extend_from_slice(&timestamp_ms.unwrap_or(NO_TIMESTAMP).to_le_bytes());
        put_bytes(&mut self.bytes, key);
        put_bytes(&mut self.bytes, value);
        self.headers_at = self.bytes.len();
        put_count(&mut self.bytes, 0);
        add(&mut self.bytes, self.event_at + RECORDS_AT, 1);
        self.close_event();
    }

    /// Adds a header to the last record.
    ///
    /// # Panics
    /// Without a record.
    pub fn header(&mut self, name: &[u8], value: Option<&[u8]>) {
        if !self.header_name(name, value.map_or(0, <[u8]>::len)) {
            return;
        }
        put_bytes(&mut self.bytes, value);
        self.close_event();
    }

    /// Adds a header whose value is the concatenation of `parts`.
    pub(crate) fn header_of(&mut self, name: &[u8], parts: &[&[u8]]) {
        let length = parts.iter().map(|part| part.len()).sum();
        if !self.header_name(name, length) {
            return;
        }
        put_count(&mut self.bytes, length);
        for part in parts {
            self.bytes.extend_from_slice(part);
        }
        self.close_event();
    }

    fn header_name(&mut self, name: &[u8], value_length: usize) -> bool {
        if !self.has_room(name.len() + value_length + 8) {
            return false;
        }
        assert!(self.headers_at > 0, "a header needs a record");
        put_bytes(&mut self.bytes, Some(name));
        add(&mut self.bytes, self.headers_at, 1);
        true
    }

    /// Whether the last event did not fit: results can be far larger than the answer they come
    /// from, because each inherits its event's key and headers. Nothing more is written then;
    /// take the event back with [`Self::discard_event`].
    pub fn overflowed(&self) -> bool {
        self.overflowed
    }

    /// Takes the last event back with all its records; its index is used again.
    ///
    /// # Panics
    /// Without an event, or twice for one event.
    pub fn discard_event(&mut self) {
        assert!(self.event_at > 0, "there is no event to take back");
        self.bytes.truncate(self.event_at);
        self.events -= 1;
        self.event_at = 0;
        self.headers_at = 0;
        self.overflowed = false;
    }

    /// Bytes that the finished frame will have; what credit counts.
    pub fn len(&self) -> usize {
        self.bytes.len() + self.table_bytes
    }

    /// Whether it holds no event.
    pub fn is_empty(&self) -> bool {
        self.events == 0
    }

    /// Events so far.
    pub fn events(&self) -> u32 {
        self.events
    }

    /// The complete frame, its length included.
    ///
    /// # Panics
    /// If the last event overflowed and was not taken back.
    pub fn finish(mut self) -> Bytes {
        assert!(
            !self.overflowed,
            "an event that does not fit must be taken back"
        );
        let events_bytes = length(self.bytes.len() - HEAD_BYTES);
        set(&mut self.bytes, EVENTS_AT, self.events);
        set(&mut self.bytes, EVENTS_BYTES_AT, events_bytes);
        put_count(&mut self.bytes, self.table.len());
        for partition in &self.table {
            put_partition(&mut self.bytes, partition);
        }
        let rest = length(self.bytes.len() - 4);
        set(&mut self.bytes, 0, rest);
        Bytes::from(self.bytes)
    }

    fn has_room(&mut self, more: usize) -> bool {
        if self.overflowed || self.len() + more > FRAME_BYTES_MAX {
            self.overflowed = true;
        }
        !self.overflowed
    }

    fn close_event(&mut self) {
        let records = length(self.bytes.len() - self.event_at - EVENT_HEAD);
        set(&mut self.bytes, self.event_at + RECORDS_AT + 4, records);
    }

    // Runs of one partition are the rule, and a frame knows few partitions: a scan that
    // compares numbers first beats a map and needs no seed.
    fn index_of(&mut self, partition: &Partition) -> u32 {
        let same = |known: &Partition| {
            known.number() == partition.number() && known.topic() == partition.topic()
        };
        if !self.table.get(self.last).is_some_and(same) {
            self.last = self.table.iter().position(same).unwrap_or_else(|| {
                self.table_bytes += 4 + partition.topic().len() + 4;
                self.table.push(partition.clone());
                self.table.len() - 1
            });
        }
        length(self.last)
    }
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a frame is at most 64 Mi")
}

fn set(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn add(bytes: &mut [u8], at: usize, more: u32) {
    let old: [u8; 4] = bytes[at..at + 4]
        .try_into()
        .expect("four bytes are four bytes");
    set(bytes, at, u32::from_le_bytes(old) + more);
}

/// A received `Results` frame, checked completely.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Results {
    /// Counts the frames of a session, +1 each.
    pub seq: u64,
    /// Who may see these results (R10).
    pub stamp: Stamp,
    /// The group generation of the input when it sent them.
    pub generation: i32,
    partitions: Vec<Partition>,
    count: u32,
    events: Bytes,
    frame: Bytes,
}

impl Results {
    /// Checks a frame (without its length, with its kind).
    pub(super) fn decode(frame: Bytes) -> Result<Self, Error> {
        let malformed = |what| Error::Malformed {
            frame: "Results",
            what,
        };
        let mut reader = Reader::new(&frame[1..]);
        let (seq, stamp, generation, count, events) = (|| {
            let head = (reader.u64()?, reader.stamp()?, reader.i32()?, reader.u32()?);
            let bytes = reader.u32()?;
            let events = reader.take(bytes as usize)?;
            Ok((head.0, head.1, head.2, head.3, events))
        })()
        .map_err(malformed)?;
        let partitions = reader.list(Reader::partition).map_err(malformed)?;
        reader.end().map_err(malformed)?;
        check_events(events, count, partitions.len()).map_err(malformed)?;
        Ok(Self {
            seq,
            stamp,
            generation,
            partitions,
            count,
            events: frame.slice_ref(events),
            frame: frame.clone(),
        })
    }

    /// The topic-partitions that the events of this frame name by index.
    pub fn partitions(&self) -> &[Partition] {
        &self.partitions
    }

    /// How many events it holds.
    pub fn len(&self) -> u32 {
        self.count
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of the frame as it was sent; what credit counts.
    pub fn frame_bytes(&self) -> usize {
        self.frame.len() + 4
    }

    /// The events in order. Each shares the frame's memory and lives as long as it likes.
    pub fn events(&self) -> Events {
        Events {
            rest: self.events.clone(),
            next: 0,
        }
    }

    /// The frame as it was received, without its length.
    pub(super) fn frame(&self) -> &[u8] {
        &self.frame
    }
}

fn check_events(events: &[u8], count: u32, partitions: usize) -> Result<(), Malformed> {
    let mut reader = Reader::new(events);
    for _ in 0..count {
        if reader.u32()? as usize >= partitions {
            return Err("an event names a partition that the table does not have");
        }
        reader.position()?;
        reader.u64()?;
        reader.fate()?;
        let records = reader.u32()?;
        let bytes = reader.u32()?;
        let mut inner = Reader::new(reader.take(bytes as usize)?);
        for _ in 0..records {
            read_record(&mut inner)?;
        }
        inner.end()?;
    }
    reader.end()
}

/// The events of a frame.
#[derive(Clone, Debug)]
pub struct Events {
    rest: Bytes,
    next: u32,
}

impl Iterator for Events {
    type Item = ResultEvent;

    fn next(&mut self) -> Option<ResultEvent> {
        if self.rest.is_empty() {
            return None;
        }
        let mut event = (|| {
            let mut reader = Reader::new(&self.rest);
            let event = ResultEvent {
                index: self.next,
                partition: reader.u32()?,
                position: reader.position()?,
                lane: reader.u64()?,
                fate: reader.fate()?,
                count: reader.u32()?,
                records: Bytes::new(),
            };
            Ok::<_, Malformed>((event, reader.u32()? as usize))
        })()
        .expect("decode checked every event");
        let whole = self.rest.split_to(EVENT_HEAD + event.1);
        event.0.records = whole.slice(EVENT_HEAD..);
        self.next += 1;
        Some(event.0)
    }
}

/// One event of a frame and its records.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ResultEvent {
    /// Its index in the frame, the name that `Stored` uses.
    pub index: u32,
    /// Index into [`Results::partitions`].
    pub partition: u32,
    /// Its position in that partition.
    pub position: Position,
    /// Seeded hash of its lane; 0 is no lane. Records of one lane keep their order (P-3).
    pub lane: u64,
    /// What the input decided.
    pub fate: FateCode,
    count: u32,
    records: Bytes,
}

impl ResultEvent {
    /// The records to store, in order.
    pub fn records(&self) -> Records<'_> {
        Records {
            reader: Reader::new(&self.records),
            left: self.count,
        }
    }

    /// How many records it has.
    pub fn record_count(&self) -> u32 {
        self.count
    }

    /// Bytes of its records in the frame.
    pub fn record_bytes(&self) -> usize {
        self.records.len()
    }

    /// Takes the first record off and hands it, with this event for [`Self::share`], to `read`:
    /// a cursor that a later turn can go on from.
    pub fn next_record<T>(&mut self, read: impl FnOnce(&Self, Record<'_>) -> T) -> Option<T> {
        let mut records = self.records();
        let record = records.next()?;
        let left = records.reader.rest().len();
        let read = read(self, record);
        self.count -= 1;
        self.records.advance(self.records.len() - left);
        Some(read)
    }

    /// Shares a key, value or header of one of its records beyond the borrow.
    ///
    /// # Panics
    /// If `part` does not come from this event.
    pub fn share(&self, part: &[u8]) -> Bytes {
        self.records.slice_ref(part)
    }
}

/// The records of an event.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    reader: Reader<'a>,
    left: u32,
}

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        self.left = self.left.checked_sub(1)?;
        Some(read_record(&mut self.reader).expect("decode checked every record"))
    }
}

/// One record to store.
#[derive(Clone, Debug)]
pub struct Record<'a> {
    /// Where it goes.
    pub destination: Destination<'a>,
    /// A fixed partition.
    pub partition: Option<i32>,
    /// Epoch milliseconds; `None`: the time of storing.
    pub timestamp_ms: Option<i64>,
    /// The key; `None` is null.
    pub key: Option<&'a [u8]>,
    /// The value; `None` is null.
    pub value: Option<&'a [u8]>,
    /// The headers in order.
    pub headers: RecordHeaders<'a>,
}

fn read_record<'a>(reader: &mut Reader<'a>) -> Result<Record<'a>, Malformed> {
    let destination = match reader.u8()? {
        0 => Destination::Output,
        1 => Destination::DeadLetter,
        2 => Destination::Verification,
        3 => Destination::Topic(reader.text()?),
        _ => return Err("the destination is unknown"),
    };
    let partition = reader.i32()?;
    if partition < NO_PARTITION {
        return Err("a partition number is negative");
    }
    let timestamp = reader.i64()?;
    let key = reader.bytes()?;
    let value = reader.bytes()?;
    let left = reader.u32()?;
    let rest = reader.rest();
    for _ in 0..left {
        read_header(reader)?;
    }
    Ok(Record {
        destination,
        partition: (partition != NO_PARTITION).then_some(partition),
        timestamp_ms: (timestamp != NO_TIMESTAMP).then_some(timestamp),
        key,
        value,
        headers: RecordHeaders {
            rest: &rest[..rest.len() - reader.rest().len()],
            left,
        },
    })
}

fn read_header<'a>(reader: &mut Reader<'a>) -> Result<(&'a [u8], Option<&'a [u8]>), Malformed> {
    Ok((reader.some_bytes()?, reader.bytes()?))
}

/// The headers of a record, in order, duplicates included.
#[derive(Clone, Debug)]
pub struct RecordHeaders<'a> {
    rest: &'a [u8],
    left: u32,
}

impl<'a> Iterator for RecordHeaders<'a> {
    type Item = (&'a [u8], Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let mut reader = Reader::new(self.rest);
        let header = read_header(&mut reader).expect("decode checked every header");
        self.rest = reader.rest();
        Some(header)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left as usize, Some(self.left as usize))
    }
}

impl ExactSizeIterator for RecordHeaders<'_> {}
