//! Ends of the logs that a source reads, for lag.
//!
//! The token thread asks the brokers for them: a client by itself learns an end only from a
//! fetch, so a paused partition would keep the end of its last one. Behind the last record there
//! may be markers of transactions, which nobody hands over; what was read tells where the records
//! end (see [`Ends::read`]).
//!
//! Invariant: ends that are older than [`KNOWN_FOR`] are not known any more.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use millrace_core::position::{Partition, Position};
use tokio::time::Instant;

/// How often the brokers are asked.
pub(super) const ASK_EVERY: Duration = Duration::from_secs(1);

/// How long an answer counts.
const KNOWN_FOR: Duration = Duration::from_secs(4);

/// What is known about ends. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Ends(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    /// Ends as the brokers told them.
    told: Option<(Instant, HashMap<Partition, Position>)>,
    read: HashMap<Partition, Read>,
}

/// There is no record from `next` up to `until`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Read {
    pub(super) next: Position,
    pub(super) until: Position,
}

impl Ends {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The brokers told these.
    pub(super) fn told(&self, asked: Instant, ends: HashMap<Partition, Position>) {
        self.known().told = Some((asked, ends));
    }

    /// How far a client has read.
    pub(super) fn read(&self, read: HashMap<Partition, Read>) {
        self.known().read = read;
    }
}

/// Ends of the logs that a source reads. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LogEnds {
    pub(super) ends: Ends,
}

impl LogEnds {
    /// The position behind the last record of each partition (last stable offset), as of a
    /// second ago. `None`: the brokers do not tell. A partition whose leader does not is left out.
    pub fn get(&self) -> Option<HashMap<Partition, Position>> {
        let known = self.ends.known();
        let (asked, told) = known.told.as_ref()?;
        if asked.elapsed() > KNOWN_FOR {
            return None;
        }
        let end = |(partition, told): (&Partition, &Position)| {
            let read = known.read.get(partition).filter(|read| *told <= read.until);
            let end = read.map_or(*told, |read| read.next.min(*told));
            (partition.clone(), end)
        };
        Some(told.iter().map(end).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(offset: i64) -> Position {
        Position::new(offset)
    }

    #[tokio::test(start_paused = true)]
    async fn markers_behind_the_last_record_are_no_lag_and_old_answers_do_not_count() {
        let partition = Partition::new("t", 0);
        let ends = Ends::default();
        let log_ends = LogEnds { ends: ends.clone() };
        assert_eq!(log_ends.get(), None);
        for (next, until, told, expect) in [
            (5, 6, 6, 5), // a marker at 5
            (5, 6, 9, 9), // something came behind it
            (9, 6, 9, 9), // and was read
            (7, 8, 6, 6), // the answer is older than what was read
        ] {
            let read = Read {
                next: at(next),
                until: at(until),
            };
            ends.read(HashMap::from([(partition.clone(), read)]));
            ends.told(
                Instant::now(),
                HashMap::from([(partition.clone(), at(told))]),
            );
            assert_eq!(log_ends.get().unwrap()[&partition], at(expect));
        }
        tokio::time::advance(KNOWN_FOR + Duration::from_millis(1)).await;
        assert_eq!(log_ends.get(), None);
    }
}
