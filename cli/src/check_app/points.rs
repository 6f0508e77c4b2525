//! The points of the list in app-contract.md, asked one after the other.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use millrace_core::contract::app::{ContentMode, OFFER_PATH, Offer};
use millrace_core::outcome::{Class, FailureKind, Item, Outcome};
use millrace_core::token::Stamp;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::answers::{
    answered_ids, describe, error_problems, failure, ill_formed, negotiated, speaks_of_an_error,
};
use super::compare;
use super::events::{self, Odd};
use super::findings::{Finding, Findings, Notes, skipped};
use super::parallel::Lane;
use super::probe::{Asked, Plan, Probe, Wanted, WantedContent};
use super::push::Desk;
use super::push_points::PUSH;
use crate::chain;
use crate::http::{Answer, Call, CallError, Connection};
use crate::records::Draft;

/// How many requests at once (point 7).
const PARALLEL: [usize; 3] = [1, 4, 32];

/// The app does not answer at all.
#[derive(Debug, thiserror::Error)]
#[error("the app cannot be reached at {address}: is it running?")]
pub struct Unreachable {
    address: crate::http::Address,
    #[source]
    source: CallError,
}

/// Why nothing was asked.
#[derive(Debug, thiserror::Error)]
pub enum Unasked {
    /// The app is not there.
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// Results cannot be taken.
    #[error("cannot listen for the app's results on 127.0.0.1:{port} (--push)")]
    Port {
        /// Where.
        port: u16,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Asks every point that applies.
pub async fn check(plan: Plan) -> Result<Findings, Unasked> {
    let desk = match plan.push {
        None => None,
        Some(port) => Some(
            Desk::open(
                port,
                plan.max_response_bytes,
                plan.content == WantedContent::CloudEvents,
            )
            .await
            .map_err(|source| Unasked::Port { port, source })?,
        ),
    };
    let mut check = Check {
        probe: Probe::new(plan),
        seen: Vec::new(),
        desk,
    };
    let points = check.all().await?;
    let failed = |finding: &Finding| matches!(finding.verdict, super::Verdict::Failed(_));
    Ok(Findings {
        ok: !points.iter().any(failed),
        points,
    })
}

pub(super) struct Check {
    pub(super) probe: Probe,
    /// Every answer so far, for point 11.
    pub(super) seen: Vec<Answer>,
    /// Where results are posted, in push mode.
    pub(super) desk: Option<Desk>,
}

impl Check {
    async fn all(&mut self) -> Result<Vec<Finding>, Unreachable> {
        let (first, negotiation) = self.health_and_negotiation().await?;
        let push = self.probe.plan.push.is_some();
        let offered: &[String] = negotiation.as_ref().map_or(&[], |about| &about.content);
        let offers = |word: &str| offered.iter().any(|one| one.eq_ignore_ascii_case(word));
        let (raw, cloud_events) = match self.probe.plan.content {
            WantedContent::Auto => (offered.is_empty() || offers("raw"), offers("cloudevents")),
            WantedContent::Raw => (true, false),
            WantedContent::CloudEvents => (false, true),
        };
        if !raw {
            self.probe = self.probe.asking(ContentMode::Binary);
        }
        let (single, batch) = self.kinds(negotiation.as_ref()).await;
        let idempotent = negotiation.as_ref().is_some_and(|about| about.idempotent);
        let mut points = vec![first];
        if single {
            points.push(self.odd_events().await);
            points.push(self.undecodable().await);
        } else {
            let why = "the app takes no single requests; its batches are asked in point 4";
            points.push(skipped(2, ODD, why));
            points.push(skipped(3, UNDECODABLE, why));
        }
        points.push(if batch {
            let limit = negotiation.as_ref().and_then(|about| about.max_batch);
            self.batches(limit, idempotent).await
        } else {
            skipped(4, BATCH, "the app takes no batches")
        });
        points.push(match (idempotent, self.sample()) {
            (false, _) => skipped(5, TWICE, "the app does not say that it is idempotent"),
            (true, _) if push => skipped(5, TWICE, "in push mode the answer holds no results"),
            (true, None) => skipped(5, TWICE, NO_SAMPLE),
            (true, Some(sample)) if single => self.twice(&sample).await,
            (true, Some(_)) => skipped(5, TWICE, "compared in point 4"),
        });
        points.push(self.oversized(single).await);
        points.push(self.parallel(single, idempotent).await);
        points.push(self.deadline_and_abort(single).await);
        points.push(if self.desk.is_some() {
            self.pushes().await
        } else {
            skipped(9, PUSH, "no --push: results are in the response")
        });
        let forms = cloud_events.then_some((single, batch));
        points.push(self.shadow_and_forms(single, forms).await);
        points.push(self.error_bodies());
        Ok(points)
    }

    fn sample(&self) -> Option<Draft> {
        self.probe.plan.samples.first().cloned()
    }

    /// A sample, or an event that any app should at least refuse politely.
    pub(super) fn some_event(&self) -> Draft {
        self.sample().unwrap_or_else(|| Draft {
            key: Some(Bytes::from_static(b"cust-1")),
            value: Some(Bytes::from_static(b"{}")),
            ..Draft::default()
        })
    }

    pub(super) async fn ask(&mut self, draft: &Draft, stamp: Stamp) -> Result<Asked, CallError> {
        let asked = self.probe.ask(draft, stamp).await?;
        self.seen.push(asked.answer.clone());
        Ok(asked)
    }

    async fn still_healthy(&self, notes: &mut Notes, after: &str) {
        match self.probe.healthy().await {
            Ok(answer) if (200..300).contains(&answer.status) => {}
            Ok(answer) => notes.fail(format!(
                "after {after} the health endpoint answers {}",
                answer.status
            )),
            Err(error) => notes.fail(format!("after {after} the app is gone: {}", chain(&error))),
        }
    }

    async fn health_and_negotiation(&mut self) -> Result<(Finding, Option<Offer>), Unreachable> {
        let plan = Arc::clone(&self.probe.plan);
        let mut notes = Notes::default();
        let answer = self.probe.healthy().await.map_err(|source| Unreachable {
            address: plan.address.clone(),
            source,
        })?;
        if !(200..300).contains(&answer.status) {
            notes.fail(format!(
                "GET {} answers {}; 2xx means ready",
                plan.health, answer.status
            ));
        }
        let about = self.probe.send(&Call::get(OFFER_PATH)).await;
        let negotiation = match about {
            Ok(answer) if answer.status == 404 => {
                notes.remark("no negotiation document: your configuration decides");
                None
            }
            Ok(answer) if answer.status == 200 => {
                negotiated(&answer.body, plan.push.is_some(), &mut notes)
            }
            Ok(answer) => {
                notes.fail(format!(
                    "GET {OFFER_PATH} answers {}; give 200 with the document, or 404",
                    answer.status
                ));
                None
            }
            Err(error) => {
                let error = chain(&error);
                notes.fail(format!("GET {OFFER_PATH} has no answer: {error}"));
                None
            }
        };
        Ok((notes.finding(1, HEALTH), negotiation))
    }

    /// Which kinds of requests to ask with: single, batch.
    async fn kinds(&mut self, negotiation: Option<&Offer>) -> (bool, bool) {
        match self.probe.plan.wanted {
            Wanted::Single => (true, false),
            Wanted::Batch => (false, true),
            // Push mode knows no others.
            Wanted::Auto if self.desk.is_some() => (true, false),
            Wanted::Auto => match negotiation.filter(|about| !about.requests.is_empty()) {
                Some(about) => {
                    let has = |kind: &str| about.requests.iter().any(|known| known == kind);
                    (has("single"), has("batch"))
                }
                None => {
                    let draft = self.some_event();
                    let call = self.probe.app_call(&[&draft], 0, Stamp::Live);
                    let served = |answer: Result<Answer, CallError>| {
                        !answer.is_ok_and(|answer| matches!(answer.status, 404 | 405 | 501))
                    };
                    let single = self.probe.send(&self.probe.single_request(&call)).await;
                    let batch = self.probe.send(&self.probe.batch_request(&call)).await;
                    // One that serves neither is asked for single requests, and fails them.
                    let (single, batch) = (served(single), served(batch));
                    (single || !batch, batch)
                }
            },
        }
    }

    async fn odd_events(&mut self) -> Finding {
        let mut notes = Notes::default();
        let samples = self.probe.plan.samples.clone();
        if samples.is_empty() {
            notes.remark("no sample given (--sample): good answers were not checked");
        }
        for (number, sample) in (1..).zip(&samples) {
            match self.ask(sample, Stamp::Live).await {
                Ok(asked) if failure(&asked.outcome).is_some() => notes.fail(format!(
                    "sample {number} was not answered: {}",
                    describe(&asked)
                )),
                Ok(_) => {}
                Err(error) => notes.fail(format!("sample {number}: {}", chain(&error))),
            }
        }
        for Odd { what, draft } in events::odd(samples.first()) {
            match self.ask(&draft, Stamp::Live).await {
                Ok(asked) => {
                    if let Some(why) = ill_formed(&asked) {
                        notes.fail(format!("{what}: {why}"));
                    }
                }
                Err(error) => notes.fail(format!("{what}: {}", chain(&error))),
            }
        }
        self.still_healthy(&mut notes, "odd events").await;
        notes.finding(2, ODD)
    }

    async fn undecodable(&mut self) -> Finding {
        let mut notes = Notes::default();
        let mut accepted = Vec::new();
        for Odd { what, draft } in events::undecodable(self.sample().as_ref()) {
            let asked = match self.ask(&draft, Stamp::Live).await {
                Ok(asked) => asked,
                Err(error) => {
                    notes.fail(format!("{what}: {}", chain(&error)));
                    continue;
                }
            };
            match failure(&asked.outcome) {
                Some(failure) if failure.class == Class::Permanent => {}
                Some(_) => notes.fail(format!(
                    "{what}: {}; refuse what you cannot decode with 400 or 422, or it is tried \
                     again and again",
                    describe(&asked)
                )),
                None if speaks_of_an_error(&asked.answer.body) => notes.fail(format!(
                    "{what}: {} with a body that speaks of an error; it would be published as a \
                     result",
                    asked.answer.status
                )),
                None => accepted.push(what),
            }
        }
        if !accepted.is_empty() {
            let accepted = accepted.join(", ");
            notes.remark(format!(
                "the app accepts {accepted}; fine if it takes any bytes"
            ));
        }
        self.still_healthy(&mut notes, "undecodable events").await;
        notes.finding(3, UNDECODABLE)
    }

    async fn batches(&mut self, limit: Option<usize>, idempotent: bool) -> Finding {
        let mut notes = Notes::default();
        let plan = Arc::clone(&self.probe.plan);
        let most = limit.unwrap_or(usize::MAX).min(plan.batch_max).max(1);
        let mut drafts: Vec<Draft> = plan.samples.clone();
        let odd = events::odd(drafts.first()).into_iter().map(|odd| odd.draft);
        drafts.push(self.some_event());
        drafts.extend(odd);
        let mut straight = None;
        for size in [1, most] {
            // Shuffled: odd and good events mixed, and every size starts somewhere else.
            let chosen: Vec<&Draft> = (0..size).map(|n| &drafts[(n * 7) % drafts.len()]).collect();
            let call = self.probe.app_call(&chosen, 0, Stamp::Live);
            let items = self.batch(&call, size, &mut notes).await;
            straight = items.map(|items| (call, items));
        }
        if let Some((mut call, items)) = straight {
            call.events.reverse();
            let turned = self.batch(&call, most, &mut notes).await;
            if let (true, Some(turned)) = (idempotent, turned) {
                let pairs = items.iter().zip(turned.iter().rev());
                let differ = pairs.filter(|(a, b)| !compare::items(a, b)).count();
                if differ > 0 {
                    notes.fail(format!(
                        "{differ} of {most} events are answered differently when the batch is \
                         turned round; match answers to events by id"
                    ));
                }
            }
        }
        if most < 2 {
            notes.remark("max_batch is 1: larger batches were not asked");
        }
        if plan.samples.is_empty() {
            notes.remark("no sample given (--sample): good answers were not checked");
        } else {
            self.samples_in_batches(&mut notes).await;
        }
        self.still_healthy(&mut notes, "batches").await;
        notes.finding(4, BATCH)
    }

    /// Sends a batch, and checks that it answers every id once and no other.
    async fn batch(
        &mut self,
        call: &millrace_core::intake::io::Call,
        size: usize,
        notes: &mut Notes,
    ) -> Option<Vec<Item>> {
        let asked = match self.probe.ask_batch(call).await {
            Ok(asked) => asked,
            Err(error) => {
                notes.fail(format!("a batch of {size}: {}", chain(&error)));
                return None;
            }
        };
        self.seen.push(asked.answer.clone());
        let wanted: HashSet<_> = call.events.iter().map(|event| event.id.as_str()).collect();
        match answered_ids(&asked.answer.body) {
            Some(ids) if asked.answer.status < 300 => {
                let missing = wanted.iter().filter(|id| !ids.iter().any(|had| had == *id));
                let missing = missing.count();
                let unknown = ids
                    .iter()
                    .filter(|id| !wanted.contains(id.as_str()))
                    .count();
                let twice = ids.len() - ids.iter().collect::<HashSet<_>>().len();
                for (count, what) in [
                    (missing, "events have no answer"),
                    (unknown, "answers name no event of the batch"),
                    (twice, "answers repeat an id"),
                ] {
                    if count > 0 {
                        notes.fail(format!("in a batch of {size}, {count} {what}"));
                    }
                }
            }
            _ => {}
        }
        match asked.outcome {
            Outcome::Items(items) => {
                let malformed = |item: &&Item| match item {
                    Item::Failed(failure) => failure.kind == FailureKind::Malformed,
                    _ => false,
                };
                if let Some(Item::Failed(failure)) = items.iter().find(malformed) {
                    notes.fail(format!(
                        "an answer of a batch of {size}: {}",
                        failure.message
                    ));
                }
                Some(items)
            }
            _ => {
                notes.fail(format!(
                    "a batch of {size} was not answered: {}",
                    describe(&asked)
                ));
                None
            }
        }
    }

    async fn samples_in_batches(&mut self, notes: &mut Notes) {
        let samples = self.probe.plan.samples.clone();
        for (number, sample) in (1..).zip(&samples) {
            let call = self.probe.app_call(&[sample], 0, Stamp::Live);
            if let Some(items) = self.batch(&call, 1, notes).await
                && let [Item::Failed(failure)] = items.as_slice()
            {
                notes.fail(format!(
                    "sample {number} was not answered in a batch: {} {}",
                    failure.code, failure.message
                ));
            }
        }
    }

    async fn twice(&mut self, sample: &Draft) -> Finding {
        let mut notes = Notes::default();
        let mut items = Vec::new();
        for _ in 0..2 {
            match self.ask(sample, Stamp::Live).await {
                Ok(Asked {
                    outcome: Outcome::Items(item),
                    ..
                }) => items.extend(item),
                Ok(asked) => notes.fail(describe(&asked)),
                Err(error) => notes.fail(chain(&error)),
            }
        }
        if let [first, second] = items.as_slice()
            && !compare::items(first, second)
        {
            notes.fail("the same event was answered differently the second time");
        }
        notes.finding(5, TWICE)
    }

    async fn oversized(&mut self, single: bool) -> Finding {
        let mut notes = Notes::default();
        let bytes = self.probe.plan.max_request_bytes + 1;
        let mut draft = self.some_event();
        draft.value = Some(vec![b' '; bytes].into());
        let call = self.probe.app_call(&[&draft], 0, Stamp::Live);
        let request = if single {
            self.probe.single_request(&call)
        } else {
            self.probe.batch_request(&call)
        };
        match self.probe.send(&request).await {
            Ok(answer) => {
                if answer.status != 413 {
                    notes.fail(format!(
                        "a body of {bytes} bytes is answered with {}; refuse it with 413, so that \
                         a batch is halved and a single event is put aside",
                        answer.status
                    ));
                }
                self.seen.push(answer);
            }
            Err(error) => notes.fail(format!(
                "a body of {bytes} bytes is not answered ({}); read it or refuse it with 413",
                chain(&error)
            )),
        }
        self.still_healthy(&mut notes, "an oversized request").await;
        notes.finding(6, OVERSIZED)
    }

    async fn parallel(&mut self, single: bool, idempotent: bool) -> Finding {
        let mut notes = Notes::default();
        let mut drafts = self.probe.plan.samples.clone();
        if drafts.is_empty() {
            drafts.push(self.some_event());
        }
        let drafts = Arc::new(drafts);
        let mut expected = Vec::new();
        for draft in drafts.iter() {
            match alone(&self.probe, draft, single).await {
                Ok(asked) => expected.push(asked.outcome),
                Err(error) => {
                    notes.fail(chain(&error));
                    return notes.finding(7, PARALLEL_NAME);
                }
            }
        }
        let distinct = drafts.len() > 1;
        if single && !(distinct && idempotent) {
            notes.remark(
                "answers could not be told apart: give several samples, of an app that says it \
                 is idempotent",
            );
        }
        let expected = Arc::new(expected);
        for connections in PARALLEL {
            let mut tasks = JoinSet::new();
            for number in 0..connections {
                let lane = Lane {
                    probe: self.probe.clone(),
                    drafts: Arc::clone(&drafts),
                    expected: Arc::clone(&expected),
                    compare: idempotent,
                    single,
                    number,
                };
                tasks.spawn(lane.run());
            }
            let mut problems = Vec::new();
            while let Some(ended) = tasks.join_next().await {
                match ended {
                    Ok(Ok(())) => {}
                    Ok(Err(problem)) => problems.push(problem),
                    Err(error) => problems.push(error.to_string()),
                }
            }
            if let Some(problem) = problems.first() {
                notes.fail(format!(
                    "with {connections} requests at once, {} of {connections} connections had a \
                     problem: {problem}",
                    problems.len()
                ));
            }
        }
        notes.finding(7, PARALLEL_NAME)
    }

    async fn deadline_and_abort(&mut self, single: bool) -> Finding {
        let mut notes = Notes::default();
        let draft = self.some_event();
        let started = Instant::now();
        match alone(&self.probe, &draft, single).await {
            Ok(_) => notes.remark(format!(
                "answered within {:?}, the deadline is {:?}",
                started.elapsed(),
                self.probe.plan.timeout
            )),
            Err(error) => notes.fail(chain(&error)),
        }
        for _ in 0..4 {
            let call = self.probe.app_call(&[&draft], 0, Stamp::Live);
            let request = if single {
                self.probe.single_request(&call)
            } else {
                self.probe.batch_request(&call)
            };
            if let Ok(mut connection) = Connection::open(&self.probe.plan.address).await {
                // Long enough for the app to have begun, too short for most to have ended.
                let short = std::time::Duration::from_millis(2);
                drop(connection.call(&request, short, 1 << 20).await);
            }
        }
        self.still_healthy(&mut notes, "aborted requests").await;
        if let Err(error) = alone(&self.probe, &draft, single).await {
            notes.fail(format!("after aborted requests: {}", chain(&error)));
        }
        notes.finding(8, DEADLINE)
    }

    /// `forms`: whether single and batch requests are asked with CloudEvents, too.
    async fn shadow_and_forms(&mut self, single: bool, forms: Option<(bool, bool)>) -> Finding {
        let mut notes = Notes::default();
        match forms {
            Some((single, batch)) => self.cloud_events(&mut notes, single, batch).await,
            None => notes.remark("CloudEvents were not asked: the app does not offer them"),
        }
        let draft = self.some_event();
        let mut outcomes = Vec::new();
        for stamp in [Stamp::Live, Stamp::Shadow] {
            let asked = if single {
                self.ask(&draft, stamp).await
            } else {
                let call = self.probe.app_call(&[&draft], 0, stamp);
                self.probe.ask_batch(&call).await
            };
            match asked {
                Ok(asked) => outcomes.push(asked),
                Err(error) => notes.fail(format!(
                    "Millrace-Mode {}: {}",
                    stamp.as_str(),
                    chain(&error)
                )),
            }
        }
        if let [live, shadow] = outcomes.as_slice() {
            let class = |asked: &Asked| failure(&asked.outcome).map(|failure| failure.class);
            if class(live) != class(shadow) {
                notes.fail(format!(
                    "with `Millrace-Mode: shadow` the same event is answered otherwise: {} \
                     instead of {}",
                    describe(shadow),
                    describe(live)
                ));
            }
        }
        notes.finding(10, SHADOW)
    }

    /// Every answer of this run is looked at again.
    fn error_bodies(&self) -> Finding {
        let mut notes = Notes::default();
        let refused = self.seen.iter().filter(|answer| answer.status >= 400);
        let mut looked_at = 0;
        let mut told = HashSet::new();
        for answer in refused {
            looked_at += 1;
            for problem in error_problems(answer) {
                if told.insert(problem.clone()) {
                    notes.fail(problem);
                }
            }
        }
        notes.remark(format!("{looked_at} refusals were looked at"));
        notes.finding(11, ERRORS)
    }
}

pub(super) async fn alone(probe: &Probe, draft: &Draft, single: bool) -> Result<Asked, CallError> {
    if single {
        return probe.ask(draft, Stamp::Live).await;
    }
    let call = probe.app_call(&[draft], 0, Stamp::Live);
    probe.ask_batch(&call).await
}

const HEALTH: &str = "health and negotiation document";
const ODD: &str = "samples and odd events are answered in form";
const UNDECODABLE: &str = "undecodable events are refused for good";
const BATCH: &str = "batches answer every id once";
const TWICE: &str = "the same request twice";
const OVERSIZED: &str = "an oversized request is refused with 413";
const PARALLEL_NAME: &str = "parallel requests on kept connections";
const DEADLINE: &str = "answers in time, survives aborted requests";
const SHADOW: &str = "shadow mode and CloudEvents are accepted";
const ERRORS: &str = "Retry-After and error bodies parse";
const NO_SAMPLE: &str = "no sample given (--sample)";
