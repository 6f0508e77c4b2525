//! One of several connections that ask at once (point 7).

use std::sync::Arc;

use millrace_core::outcome::Outcome;
use millrace_core::token::Stamp;

use super::answers::{describe, failure};
use super::compare;
use super::probe::Probe;
use crate::chain;
use crate::http::Connection;
use crate::records::Draft;

/// Requests per connection.
const ROUNDS: usize = 8;

/// One connection of point 7.
pub(super) struct Lane {
    pub(super) probe: Probe,
    pub(super) drafts: Arc<Vec<Draft>>,
    pub(super) expected: Arc<Vec<Outcome>>,
    pub(super) compare: bool,
    pub(super) single: bool,
    pub(super) number: usize,
}

impl Lane {
    pub(super) async fn run(self) -> Result<(), String> {
        let address = &self.probe.plan.address;
        let mut connection = Connection::open(address).await.map_err(|e| chain(&e))?;
        for round in 0..ROUNDS {
            let which = (self.number + round) % self.drafts.len();
            let first = i64::try_from(self.number * ROUNDS + round).unwrap_or(0);
            let call = self
                .probe
                .app_call(&[&self.drafts[which]], first, Stamp::Live);
            let request = if self.single {
                self.probe.single_request(&call)
            } else {
                self.probe.batch_request(&call)
            };
            let answer = self.probe.send_on(&mut connection, &request).await;
            let answer = answer.map_err(|e| chain(&e))?;
            let closes = answer
                .headers
                .get(http::header::CONNECTION)
                .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"close"));
            let asked = if self.single {
                self.probe.read_single(answer)
            } else {
                self.probe.read_batch(&call, answer)
            };
            if !same(&asked.outcome, &self.expected[which], self.compare) {
                return Err(format!(
                    "an event was answered otherwise than alone: {}",
                    describe(&asked)
                ));
            }
            if closes || !connection.kept().await {
                return Err("the app closed the connection; keep it open".to_owned());
            }
        }
        Ok(())
    }
}

fn same(a: &Outcome, b: &Outcome, compare: bool) -> bool {
    match (a, b) {
        (Outcome::Items(a), Outcome::Items(b)) if compare => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| compare::items(a, b))
        }
        _ => failure(a).map(|failure| failure.class) == failure(b).map(|failure| failure.class),
    }
}
