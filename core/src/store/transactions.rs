//! Exactly-once: one transaction for all results between two ends (D-E1..D-E5, P-5, P-6).
//!
//! The producer begins a transaction with the first record after an end. One failed record, a
//! revoked partition or a lost session spoils it: it is aborted at once, everything else of it
//! is answered as failed, and the input hears of it when it asks for the end.
//!
//! Invariant: offsets are committed only with all results that the session sent since the last
//! end, each of them stored.
//! Invariant: while a transaction ends no record enters the producer.
//! Invariant: each `Transaction` is answered by one `Ended`, after the answers of its results.

use std::time::Duration;

use super::lanes::UNORDERED;
use super::{Effect, Failed, Rebuild, Store};
use crate::contract::publish::{
    ABORTED, Fault, Mode, Reply, StoreClass, Transaction, TransactionEnding, TransactionOutcome,
};
use crate::time::Time;

/// Where the transaction stands.
#[derive(Debug, Default)]
pub(super) struct Transactions {
    producer: Producer,
    /// When the producer's transaction began, on the boot clock.
    began: Duration,
    /// Results have come since the session's last end.
    holds: bool,
    /// What the input will be told when it asks for the end.
    verdict: Option<TransactionOutcome>,
    /// The input has asked for the end.
    asked: Option<Transaction>,
}

/// What the producer is doing.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum Producer {
    /// It has no transaction.
    #[default]
    Idle,
    /// Records are in its transaction.
    Open,
    /// The driver ends the transaction; it decides what the present session is told, or not.
    Ending { decides: bool },
}

/// How the driver found the transaction to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TransactionEnded {
    /// Everything is stored.
    Committed,
    /// Nothing is.
    Aborted,
    /// Nobody knows, and the producer is of no use any more: it was fenced, or failed for good.
    Unknown,
}

impl Transactions {
    /// Whether the producer has none.
    pub(super) fn is_idle(&self) -> bool {
        self.producer == Producer::Idle
    }

    /// Whether records may enter the producer.
    pub(super) fn takes_records(&self) -> bool {
        self.verdict.is_none() && !matches!(self.producer, Producer::Ending { .. })
    }

    /// A record enters the producer.
    pub(super) fn entered(&mut self, now: Time) {
        if self.producer != Producer::Open {
            self.producer = Producer::Open;
            self.began = now.boot;
        }
    }

    /// Since when records wait for an input that says nothing.
    fn waits_since(&self) -> Option<Duration> {
        let waits =
            self.producer == Producer::Open && self.verdict.is_none() && self.asked.is_none();
        waits.then_some(self.began)
    }
}

impl Store {
    pub(super) fn exactly_once(&self) -> bool {
        self.settings.mode == Mode::ExactlyOnce
    }

    /// Whether the producer may be replaced by another one without harm to a transaction.
    pub fn is_between_transactions(&self) -> bool {
        self.transactions.is_idle()
    }

    /// Results have come.
    pub(super) fn transaction_grows(&mut self) -> Result<(), Fault> {
        if self.transactions.asked.is_some() {
            return out_of_turn("no results may follow a Transaction before its Ended".to_owned());
        }
        self.transactions.holds = true;
        Ok(())
    }

    /// Whether results that come now have failed already.
    pub(super) fn is_spoiled(&self) -> bool {
        self.transactions.verdict.is_some()
    }

    /// The input asks for the end.
    pub(super) fn transaction(&mut self, transaction: Transaction) -> Result<(), Fault> {
        if !self.exactly_once() {
            return out_of_turn("this session is not exactly-once".to_owned());
        }
        if self.transactions.asked.is_some() {
            return out_of_turn("the transaction before has not ended".to_owned());
        }
        let session = self.session.as_ref();
        let last = session.and_then(|session| session.last_seq).unwrap_or(0);
        let seq = transaction.seq;
        if seq != last {
            return out_of_turn(format!(
                "a transaction ends at frame {seq}, the last one is {last}"
            ));
        }
        if transaction.ending == TransactionEnding::Abort {
            self.spoil();
        }
        self.transactions.asked = Some(transaction);
        Ok(())
    }

    /// The transaction cannot be committed any more: what is left of it fails.
    pub(super) fn spoil(&mut self) {
        if !self.exactly_once() || self.is_spoiled() {
            return;
        }
        self.transactions.verdict = Some(TransactionOutcome::Aborted);
        self.train = None;
        let waiting = std::mem::take(&mut self.lanes.at(UNORDERED).waiting);
        for slot in waiting {
            let event = self.event(slot);
            event.waiting = false;
            event.fail(aborted());
            self.finish(slot);
        }
    }

    /// Partitions are gone: what the transaction holds of them must not be stored. Once the input
    /// has asked to commit, the brokers judge.
    pub(super) fn spoil_by_revocation(&mut self) {
        if self.transactions.holds && self.transactions.asked.is_none() {
            self.spoil();
        }
    }

    /// When the transaction is given up, because the input may be frozen: readers of what is
    /// committed wait for its end.
    pub(super) fn transaction_late(&self) -> Option<Duration> {
        let since = self.transactions.waits_since()?;
        Some(since + self.settings.transaction_open_max)
    }

    pub(super) fn spoil_late(&mut self, now: Time) {
        if self.transaction_late().is_some_and(|at| now.boot >= at) {
            self.spoil();
        }
    }

    /// A failure as the input shall hear it: in a spoiled transaction it is not the cause.
    pub(super) fn as_told(&self, failed: Failed) -> Failed {
        if self.exactly_once() && self.is_spoiled() && failed.class == StoreClass::Transient {
            aborted()
        } else {
            failed
        }
    }

    /// The session is over, and so is its transaction (P-6), unless it is being committed already.
    pub(super) fn abandon_transaction(&mut self) {
        self.transactions.holds = false;
        self.transactions.asked = None;
        self.transactions.verdict = None;
        if let Producer::Ending { decides } = &mut self.transactions.producer {
            *decides = false;
        }
    }

    /// What has to be done about the transaction now, and what is told of its end.
    pub(super) fn settle_transaction(&mut self, effects: &mut Vec<Effect>) {
        if self.rebuild != Rebuild::No {
            return;
        }
        let it = &mut self.transactions;
        if it.producer == Producer::Open && (it.verdict.is_some() || !it.holds) {
            it.producer = Producer::Ending { decides: false };
            effects.push(Effect::Abort);
            return;
        }
        let settled = self.open == 0 && self.answers.unanswered() == 0;
        let ends = matches!(it.producer, Producer::Ending { .. });
        let Some(asked) = it.asked.take_if(|_| settled && !ends) else {
            return;
        };
        if let Some(outcome) = it.verdict.take() {
            it.holds = false;
            match outcome {
                TransactionOutcome::Committed => self.counters.committed += 1,
                TransactionOutcome::Aborted | TransactionOutcome::Unknown => {
                    self.counters.aborted += 1;
                }
            }
            let seq = asked.seq;
            effects.push(Effect::Reply(Reply::Ended { seq, outcome }));
        } else if let TransactionEnding::Commit {
            group_metadata,
            offsets,
        } = asked.ending.clone()
        {
            it.producer = Producer::Ending { decides: true };
            it.asked = Some(asked);
            effects.push(Effect::Commit {
                group_metadata,
                offsets,
            });
        }
    }

    /// The driver has ended the transaction.
    pub fn transaction_ended(&mut self, ended: TransactionEnded) {
        let decides = self.transactions.producer == Producer::Ending { decides: true };
        self.transactions.producer = Producer::Idle;
        match ended {
            TransactionEnded::Unknown => self.producer_lost(decides),
            TransactionEnded::Committed if decides => {
                self.transactions.verdict = Some(TransactionOutcome::Committed);
            }
            TransactionEnded::Aborted if decides => {
                self.transactions.verdict = Some(TransactionOutcome::Aborted);
            }
            TransactionEnded::Committed | TransactionEnded::Aborted => {}
        }
    }

    /// The producer was fenced or failed for good (D-E5). The present session has to treat its
    /// assignments as lost if anything of it was in there.
    pub(super) fn producer_lost(&mut self, with_the_session: bool) {
        if self.rebuild == Rebuild::No {
            self.rebuild = Rebuild::Wanted;
        }
        self.transactions.producer = Producer::Idle;
        if self.exactly_once() && (with_the_session || self.is_spoiled()) {
            self.spoil();
            self.transactions.verdict = Some(TransactionOutcome::Unknown);
        }
    }

    /// The producer was made anew.
    pub(super) fn transaction_reset(&mut self) {
        self.transactions.producer = Producer::Idle;
    }
}

fn out_of_turn(message: String) -> Result<(), Fault> {
    Err(Fault {
        code: "Sequence".to_owned(),
        message,
    })
}

/// How an event fails whose transaction another one has spoiled.
pub(super) fn aborted() -> Failed {
    Failed::new(
        StoreClass::Transient,
        ABORTED,
        "another result of its transaction was not stored",
    )
}

#[cfg(test)]
mod tests;
