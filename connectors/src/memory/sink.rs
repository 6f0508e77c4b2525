//! A producer for the log in memory.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::{AppendFault, MemoryLog, State};
use crate::{AppendClass, Delivery, Record, Sink};

#[derive(Debug, Default)]
struct Ends {
    deliveries: Vec<(u64, Delivery)>,
    /// Records that wait behind a held or slow one: reports keep their order.
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    ticket: u64,
    /// `None`: held.
    end: Option<Delivery>,
    record: Record,
    /// A slow one's report is due.
    due: bool,
}

#[derive(Debug, Default)]
struct Shared {
    ends: Mutex<Ends>,
    reported: Notify,
    settled: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Ends> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports what is due, up to the first record that is not.
    fn report(&self) {
        let mut ends = self.lock();
        while let Some(first) = ends.waiting.front() {
            if !first.due || first.end.is_none() {
                break;
            }
            if let Some(Waiting {
                ticket,
                end: Some(end),
                ..
            }) = ends.waiting.pop_front()
            {
                ends.deliveries.push((ticket, end));
            }
        }
        let settled = ends.waiting.is_empty();
        drop(ends);
        self.reported.notify_one();
        if settled {
            self.settled.notify_waiters();
        }
    }
}

/// Appends to the log in memory.
#[derive(Debug)]
pub struct MemorySink {
    log: MemoryLog,
    shared: Arc<Shared>,
}

impl MemorySink {
    pub(super) fn new(log: MemoryLog) -> Self {
        Self {
            log,
            shared: Arc::default(),
        }
    }

    /// Ends the records that are held, and stores them.
    pub fn release(&mut self) {
        let mut state = self.log.lock();
        let mut ends = self.shared.lock();
        for waiting in &mut ends.waiting {
            if waiting.end.is_none() {
                waiting.end = Some(store(&mut state, &waiting.record));
            }
            waiting.due = true;
        }
        drop(ends);
        state.wake();
        drop(state);
        self.shared.report();
    }
}

fn failed(class: AppendClass) -> Delivery {
    Delivery::Failed {
        code: format!("{class:?}"),
        message: "a fault of the test".to_owned(),
        class,
    }
}

fn store(state: &mut State, record: &Record) -> Delivery {
    let partition = record
        .partition
        .unwrap_or_else(|| partition_of(state, record));
    if !state.topics.contains_key(&*record.topic) {
        return failed(AppendClass::Misconfigured);
    }
    match state.append(record, partition) {
        Some(position) => Delivery::Stored {
            partition,
            position,
        },
        None => failed(AppendClass::Rejected),
    }
}

/// Where a record goes that does not say: by its key as the Java client does it, else the first.
pub(super) fn partition_of(state: &State, record: &Record) -> i32 {
    let count = state.topics.get(&*record.topic).map_or(1, Vec::len);
    let count = i32::try_from(count.max(1)).expect("a test has few partitions");
    record
        .key
        .as_deref()
        .map_or(0, |key| (murmur2(key) & 0x7fff_ffff) % count)
}

/// The Java client's hash of keys.
fn murmur2(key: &[u8]) -> i32 {
    const M: u32 = 0x5bd1_e995;
    let length = u32::try_from(key.len()).expect("a key is below 4 GiB");
    let mut hash = 0x9747_b28c ^ length;
    let (words, rest) = key.as_chunks::<4>();
    for word in words {
        let mut mixed = u32::from_le_bytes(*word).wrapping_mul(M);
        mixed ^= mixed >> 24;
        hash = hash.wrapping_mul(M) ^ mixed.wrapping_mul(M);
    }
    if !rest.is_empty() {
        for (index, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * index);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^= hash >> 15;
    hash.cast_signed()
}

impl Sink for MemorySink {
    fn append(&mut self, ticket: u64, record: Record) -> Result<(), Record> {
        let mut state = self.log.lock();
        let fault = state.append_faults.pop_front();
        let (end, due) = match &fault {
            Some(AppendFault::Full) => return Err(record),
            Some(AppendFault::Held) => (None, true),
            Some(AppendFault::Fail(class)) => (Some(failed(class.clone())), true),
            Some(AppendFault::StoredButFailed(class)) => {
                store(&mut state, &record);
                (Some(failed(class.clone())), true)
            }
            Some(AppendFault::Slow(_)) => (Some(store(&mut state, &record)), false),
            None => (Some(store(&mut state, &record)), true),
        };
        state.wake();
        drop(state);
        self.shared.lock().waiting.push_back(Waiting {
            ticket,
            end,
            record,
            due,
        });
        if let Some(AppendFault::Slow(delay)) = fault {
            let shared = Arc::clone(&self.shared);
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                for waiting in &mut shared.lock().waiting {
                    if waiting.ticket == ticket {
                        waiting.due = true;
                    }
                }
                shared.report();
            });
        }
        self.shared.report();
        Ok(())
    }

    async fn deliveries(&mut self, into: &mut Vec<(u64, Delivery)>) {
        loop {
            {
                let mut ends = self.shared.lock();
                if !ends.deliveries.is_empty() {
                    into.append(&mut ends.deliveries);
                    return;
                }
            }
            self.shared.reported.notified().await;
        }
    }

    fn purge(&mut self) {
        for waiting in &mut self.shared.lock().waiting {
            if waiting.end.is_none() {
                waiting.end = Some(failed(AppendClass::Transient));
            }
            waiting.due = true;
        }
        self.shared.report();
    }

    async fn flush(&mut self) {
        loop {
            let settled = self.shared.settled.notified();
            tokio::pin!(settled);
            settled.as_mut().enable();
            if self.shared.lock().waiting.is_empty() {
                return;
            }
            settled.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::murmur2;

    #[test]
    fn keys_hash_as_in_the_java_client() {
        for (key, hash) in [
            (&b"21"[..], -973_932_308),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"a-little-bit-longer-string", -1_486_304_829),
            (
                b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
                -58_897_971,
            ),
            (b"abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key), hash);
        }
    }
}
