//! Until when live results of a partition may be sent, and doubt about its commits (R4, R4c).
//!
//! Invariant: a lease is counted from before the commit that carries it was sent, never from its
//! answer, so that it ends at this process before any successor can have been let in.

use std::time::Duration;

use crate::time::Time;

/// The right to send live results of one partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lease {
    /// `None`: it holds until it is cleared (exactly-once).
    length: Option<Duration>,
    /// When the last acknowledged commit was handed to the client.
    renewed_at: Option<Time>,
}

impl Lease {
    /// No right yet: the first commit of a tenure brings it.
    pub fn new(length: Option<Duration>) -> Self {
        Self {
            length,
            renewed_at: None,
        }
    }

    /// A generation-checked commit that was handed to the client at `sent` is acknowledged.
    pub fn renew(&mut self, sent: Time) {
        self.renewed_at = Some(self.renewed_at.map_or(sent, |before| before.max(sent)));
    }

    /// A rebalance took the partition, or its fate is unclear.
    pub fn clear(&mut self) {
        self.renewed_at = None;
    }

    /// Whether live results may be sent now.
    pub fn holds(&self, now: Time) -> bool {
        match self.length {
            Some(_) => self.until().is_some_and(|until| now.boot < until),
            None => self.renewed_at.is_some(),
        }
    }

    /// The end of the lease on the boot clock, if it has one.
    pub fn until(&self) -> Option<Duration> {
        Some(self.renewed_at?.boot + self.length?)
    }

    /// When an idle owner has to commit again: a quarter of the lease after the last time (R4).
    pub fn renewal_due(&self) -> Option<Duration> {
        Some(self.renewed_at?.boot + self.length? / 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: u64) -> Time {
        Time {
            boot: Duration::from_secs(s),
            wall_ms: 0,
        }
    }

    #[test]
    fn r4_a_lease_counts_from_the_sending_of_the_acknowledged_commit() {
        let mut lease = Lease::new(Some(Duration::from_secs(8)));
        assert!(!lease.holds(at(0)));
        lease.renew(at(10));
        assert!(lease.holds(at(17)));
        assert!(!lease.holds(at(18)));
        assert_eq!(lease.renewal_due(), Some(Duration::from_secs(12)));
        lease.renew(at(9));
        assert!(lease.holds(at(17)), "a late answer takes nothing away");
        lease.clear();
        assert!(!lease.holds(at(11)));
    }

    #[test]
    fn r4_without_a_length_it_holds_from_the_first_commit_until_it_is_cleared() {
        let mut lease = Lease::new(None);
        assert!(!lease.holds(at(0)));
        lease.renew(at(10));
        assert!(lease.holds(at(1_000_000)));
        assert_eq!((lease.until(), lease.renewal_due()), (None, None));
        lease.clear();
        assert!(!lease.holds(at(11)));
    }
}
