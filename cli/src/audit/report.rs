//! What an audit found, for people and for programs.
//!
//! Invariant: every event is counted exactly once: `events = answered + filtered +
//! dead_lettered + pending + lost`.

use std::fmt;

use serde::Serialize;

/// How many events and results of each kind.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize)]
pub struct Counts {
    /// Events that the input topics held when the audit began.
    pub events: u64,
    /// Events with at least one result and no dead letter.
    pub answered: u64,
    /// Settled events with neither result nor dead letter that count as filtered by the app.
    pub filtered: u64,
    /// Events with a dead letter (D-V2: it wins over results).
    pub dead_lettered: u64,
    /// Events that are not settled yet and have no outcome.
    pub pending: u64,
    /// Settled events without any outcome.
    pub lost: u64,
    /// Copies of results and dead letters beyond the first.
    pub duplicated: u64,
    /// First deliveries that came behind a later event of the same lane.
    pub out_of_order: u64,
    /// Results whose `millrace-id` is not one of their event's.
    pub wrong_id: u64,
    /// Results and dead letters of events that the input topics never held.
    pub unknown_event: u64,
    /// Events answered by more than one release (I2).
    pub two_releases: u64,
    /// Repeats further back than the window allows (R5).
    pub beyond_window: u64,
}

impl Counts {
    pub(super) fn of(&mut self, offence: Offence) -> &mut u64 {
        match offence {
            Offence::Lost => &mut self.lost,
            Offence::Duplicated => &mut self.duplicated,
            Offence::OutOfOrder => &mut self.out_of_order,
            Offence::WrongId => &mut self.wrong_id,
            Offence::UnknownEvent => &mut self.unknown_event,
            Offence::TwoReleases => &mut self.two_releases,
            Offence::BeyondWindow => &mut self.beyond_window,
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        let Self {
            events,
            answered,
            filtered,
            dead_lettered,
            pending,
            lost,
            duplicated,
            out_of_order,
            wrong_id,
            unknown_event,
            two_releases,
            beyond_window,
        } = other;
        self.events += events;
        self.answered += answered;
        self.filtered += filtered;
        self.dead_lettered += dead_lettered;
        self.pending += pending;
        self.lost += lost;
        self.duplicated += duplicated;
        self.out_of_order += out_of_order;
        self.wrong_id += wrong_id;
        self.unknown_event += unknown_event;
        self.two_releases += two_releases;
        self.beyond_window += beyond_window;
    }
}

/// The seven counts that everybody asks for, in one line.
impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "events={} answered={} filtered={} dead_lettered={} lost={} duplicated={} out_of_order={}",
            self.events,
            self.answered,
            self.filtered,
            self.dead_lettered,
            self.lost,
            self.duplicated,
            self.out_of_order
        )
    }
}

/// One source partition's counts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct PartitionReport {
    /// `topic/number`.
    pub partition: String,
    /// Everything below is settled, as far as any commit says.
    pub watermark: Option<i64>,
    /// Its counts.
    #[serde(flatten)]
    pub counts: Counts,
}

/// What is wrong with something.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Offence {
    /// A settled event without outcome.
    Lost,
    /// A copy beyond the first.
    Duplicated,
    /// A first delivery behind a later event of its lane.
    OutOfOrder,
    /// A `millrace-id` that is not the event's.
    WrongId,
    /// The event does not exist.
    UnknownEvent,
    /// Answered by two releases.
    TwoReleases,
    /// Repeated from further back than the window.
    BeyondWindow,
}

impl fmt::Display for Offence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lost => "lost",
            Self::Duplicated => "duplicated",
            Self::OutOfOrder => "out of order",
            Self::WrongId => "wrong id",
            Self::UnknownEvent => "unknown event",
            Self::TwoReleases => "two releases",
            Self::BeyondWindow => "beyond the window",
        })
    }
}

/// One of the first things that are wrong.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Offender {
    /// What is wrong.
    pub offence: Offence,
    /// The event, as `topic/partition/offset`.
    pub event: String,
    /// The result or dead letter, as `topic/partition/offset`; none for a lost event.
    pub record: Option<String>,
    /// For people.
    pub detail: String,
}

/// What an audit found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Report {
    /// Whether the promise held.
    pub ok: bool,
    /// All partitions together.
    #[serde(flatten)]
    pub counts: Counts,
    /// Results that belong to the audited events, repeats included.
    pub results: u64,
    /// Dead letters that belong to the audited events, repeats included.
    pub dead_letters: u64,
    /// Records of the result and dead-letter topics that no audited event led to.
    pub unrelated: u64,
    /// Results and dead letters of events that the input topics no longer hold.
    pub expired: u64,
    /// How far back the furthest repeat reached, in positions.
    pub repeat_span_max: u64,
    /// Releases that answered, and how many results each wrote.
    pub releases: Vec<(String, u64)>,
    /// Per source partition.
    pub partitions: Vec<PartitionReport>,
    /// The first of each kind.
    pub offenders: Vec<Offender>,
    /// What one must know to read the counts.
    pub notes: Vec<String>,
}
