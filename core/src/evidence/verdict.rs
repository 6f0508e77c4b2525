//! Holds the evidence against the minimums and gates of `release.verification` (J7).
//!
//! Fail: the minimums are met, and an obeyed gate with `onFail: Reject` misses. Error: an obeyed
//! gate cannot be evaluated; it holds, and never fails. Inconclusive: a minimum is missed when
//! `maxDuration` is over, or the guard gave up (J9). Pending: a minimum is missed and there is
//! time. Else Pass; gates with `onFail: Hold` that miss are listed, and then only a person may
//! promote.
//!
//! Invariant: a verdict depends on its arguments only. A gate with `dryRun` never changes it.
//! Invariant: what is not known is never taken for good: NaN and missing numbers meet no bound.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Summary;
use super::agreement::Tally;
use super::drift::delta_points;
use crate::contract::block::{Gate, GateSource, OnFail, Verification};

/// What follows from the evidence.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Verdict {
    /// Not enough seen yet.
    Pending,
    /// Nothing speaks against the candidate.
    Pass,
    /// It differs too much.
    Fail,
    /// A gate cannot be evaluated.
    Error,
    /// Not enough seen, and the time is over.
    Inconclusive,
}

impl Verdict {
    /// As people and machines read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Pass => "Pass",
            Self::Fail => "Fail",
            Self::Error => "Error",
            Self::Inconclusive => "Inconclusive",
        }
    }
}

/// What others say about a gate that is not ours.
#[derive(Clone, PartialEq, Debug)]
pub enum Word {
    /// The query's answer.
    Number(f64),
    /// The webhook agrees.
    Yes,
    /// The webhook does not agree, and says why.
    No(String),
    /// There is no answer, because of this.
    Unknown(String),
}

/// What happened beside the events.
#[derive(Clone, PartialEq, Debug)]
pub struct Circumstances {
    /// Since the candidate began to shadow, without pauses by the guard.
    pub elapsed: Duration,
    /// The guard gave up (J9).
    pub guard_gave_up: bool,
    /// Words about gates with a query or webhook, by their index in `gates`.
    pub words: BTreeMap<usize, Word>,
}

/// How a gate stands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum State {
    /// Every bound holds.
    Met,
    /// A bound does not hold.
    Missed,
    /// Nobody can say.
    Unknown,
}

impl State {
    /// As machines read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Met => "Met",
            Self::Missed => "Missed",
            Self::Unknown => "Unknown",
        }
    }
}

/// One bound of a gate.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Bound {
    /// `min`, `max` or `maxDelta`.
    pub name: &'static str,
    /// What it is.
    pub limit: f64,
    /// What was found; finite.
    pub found: Option<f64>,
}

impl Bound {
    fn state(&self) -> State {
        let holds = |found: f64| match self.name {
            "min" => found >= self.limit,
            _ => found <= self.limit,
        };
        match self.found {
            None => State::Unknown,
            Some(found) if holds(found) => State::Met,
            Some(_) => State::Missed,
        }
    }
}

/// A gate and how it stands.
#[derive(Clone, PartialEq, Debug)]
pub struct GateReport {
    /// The metric, or the gate's name.
    pub name: String,
    /// What a miss means.
    pub on_fail: OnFail,
    /// Shown only.
    pub dry_run: bool,
    /// How it stands.
    pub state: State,
    /// Its bounds; none for a webhook.
    pub bounds: Vec<Bound>,
    /// One sentence for people.
    pub says: String,
}

/// A minimum and how it stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Minimum {
    /// `minEvents`, `minDuration` or `minPartitions`.
    pub name: &'static str,
    /// Events, milliseconds or partitions.
    pub wanted: u64,
    /// What there is.
    pub found: u64,
}

impl Minimum {
    /// Whether there is enough.
    pub fn is_met(&self) -> bool {
        self.found >= self.wanted
    }
}

/// Verdict and reasons.
#[derive(Clone, PartialEq, Debug)]
pub struct Judgement {
    /// The verdict.
    pub verdict: Verdict,
    /// What must be seen at least.
    pub minimums: Vec<Minimum>,
    /// All gates, in the order of the document.
    pub gates: Vec<GateReport>,
    /// `maxDuration` is over: what is neither Pass nor Fail now stays so.
    pub over: bool,
    /// The guard gave up (J9).
    pub guard_gave_up: bool,
}

impl Judgement {
    /// Obeyed gates with `onFail: Hold` that miss: a person must decide.
    pub fn held(&self) -> impl Iterator<Item = &GateReport> {
        self.obeyed(State::Missed)
            .filter(|gate| gate.on_fail == OnFail::Hold)
    }

    /// Whether `promotion.mode: Auto` may go on without a person.
    pub fn may_promote_unasked(&self) -> bool {
        self.verdict == Verdict::Pass && self.held().next().is_none()
    }

    fn obeyed(&self, state: State) -> impl Iterator<Item = &GateReport> {
        self.gates
            .iter()
            .filter(move |gate| gate.state == state && !gate.dry_run)
    }

    /// Why the verdict is what it is: a word for machines and a sentence for people.
    pub fn reasons(&self) -> Vec<(&'static str, String)> {
        let missing = self.minimums.iter().filter(|minimum| !minimum.is_met());
        let minimums = |word: &'static str| {
            let says = missing.clone().map(
                move |Minimum {
                          name,
                          wanted,
                          found,
                      }| {
                    let unit = if *name == "minDuration" { " ms" } else { "" };
                    (
                        word,
                        format!("{name}: {found}{unit} of {wanted}{unit} so far"),
                    )
                },
            );
            says.collect::<Vec<_>>()
        };
        let gates = |word: &'static str, gates: &mut dyn Iterator<Item = &GateReport>| {
            gates.map(|gate| (word, gate.says.clone())).collect()
        };
        match self.verdict {
            Verdict::Fail => gates(
                "GateMissed",
                &mut self
                    .obeyed(State::Missed)
                    .filter(|gate| gate.on_fail == OnFail::Reject),
            ),
            Verdict::Error => gates("GateUnknown", &mut self.obeyed(State::Unknown)),
            Verdict::Pass => gates("GateHolds", &mut self.held()),
            Verdict::Pending => minimums("MinimumMissed"),
            Verdict::Inconclusive => {
                let mut reasons = minimums("TimeOver");
                if self.guard_gave_up {
                    let says = "the candidate hurt the live release too often, so it was stopped";
                    reasons.insert(0, ("GuardGaveUp", says.to_owned()));
                }
                reasons
            }
        }
    }
}

/// Judges the evidence.
pub fn judge(
    verification: &Verification,
    summary: &Summary,
    circumstances: &Circumstances,
) -> Judgement {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let minimum = |name, wanted, found| Minimum {
        name,
        wanted,
        found,
    };
    let minimums = vec![
        minimum(
            "minEvents",
            verification.min_events,
            summary.agreement.total,
        ),
        minimum(
            "minDuration",
            ms(verification.min_duration),
            ms(circumstances.elapsed),
        ),
        minimum(
            "minPartitions",
            verification.min_partitions.into(),
            summary.partitions as u64,
        ),
    ];
    let gates = verification.gates.iter().enumerate();
    let gates = gates.map(|(i, gate)| report(gate, summary, circumstances.words.get(&i)));
    let mut judgement = Judgement {
        verdict: Verdict::Pending,
        minimums,
        gates: gates.collect(),
        over: circumstances.elapsed >= verification.max_duration,
        guard_gave_up: circumstances.guard_gave_up,
    };
    judgement.verdict = verdict(&judgement);
    judgement
}

fn verdict(judgement: &Judgement) -> Verdict {
    let enough = judgement.minimums.iter().all(Minimum::is_met);
    let rejected = judgement
        .obeyed(State::Missed)
        .any(|gate| gate.on_fail == OnFail::Reject);
    let unknown = judgement.obeyed(State::Unknown).next().is_some();
    if enough && rejected {
        Verdict::Fail
    } else if judgement.guard_gave_up || (!enough && judgement.over) {
        Verdict::Inconclusive
    } else if !enough {
        Verdict::Pending
    } else if unknown {
        Verdict::Error
    } else {
        Verdict::Pass
    }
}

fn report(gate: &Gate, summary: &Summary, word: Option<&Word>) -> GateReport {
    let (name, bounds, state, says) = match &gate.source {
        GateSource::Metric(metric) => own(metric, gate, summary),
        GateSource::Prometheus { name, max, .. } => query(name, *max, word),
        GateSource::Webhook { name, .. } => webhook(name, word),
    };
    GateReport {
        name: super::compare::cut(&name),
        on_fail: gate.on_fail,
        dry_run: gate.dry_run,
        state,
        bounds,
        says: super::compare::cut(&says),
    }
}

type Seen = (String, Vec<Bound>, State, String);

/// A gate on one of our own numbers.
fn own(metric: &str, gate: &Gate, summary: &Summary) -> Seen {
    let percent = |share: Option<f64>| share.map(|share| share * 100.0);
    let rate = |both: [Tally; 2]| (percent(both[1].share()), delta_points(both));
    let (level, delta) = match metric {
        "agreement" => (percent(summary.agreement_lower()), None),
        "errorRate" => rate(summary.errors),
        "deadLetterRate" => rate(summary.dead_letters),
        "p95LatencyRatio" => (summary.latency_ratio, None),
        _ => (None, None),
    };
    let bounds: Vec<_> = [
        ("min", gate.min, level),
        ("max", gate.max, level),
        ("maxDelta", gate.max_delta, delta),
    ]
    .into_iter()
    .filter_map(|(name, limit, found)| {
        limit.map(|limit| Bound {
            name,
            limit,
            found: found.filter(|found| found.is_finite()),
        })
    })
    .collect();
    let state = overall(&bounds);
    let says = match state {
        State::Unknown => format!("{metric} is not known"),
        State::Met | State::Missed => {
            let shown = bounds.iter().map(|bound| say(bound, metric));
            format!("{metric} {}", shown.collect::<Vec<_>>().join(", "))
        }
    };
    (metric.to_owned(), bounds, state, says)
}

/// A miss is a miss, whatever else is unknown. No bound at all is no statement.
fn overall(bounds: &[Bound]) -> State {
    let has = |state| bounds.iter().any(|bound| bound.state() == state);
    if has(State::Missed) {
        State::Missed
    } else if bounds.is_empty() || has(State::Unknown) {
        State::Unknown
    } else {
        State::Met
    }
}

fn say(bound: &Bound, metric: &str) -> String {
    let Some(found) = bound.found else {
        return format!("is not known ({} {})", bound.name, bound.limit);
    };
    let (unit, rose) = match (metric, bound.name) {
        ("p95LatencyRatio", _) => ("", ""),
        (_, "maxDelta") => (" points", " more than the live release's"),
        _ => (" %", ""),
    };
    let found = crate::contract::canonical::number((found * 1e5).round() / 1e5);
    format!("is {found}{unit}{rose} ({} {})", bound.name, bound.limit)
}

fn query(name: &str, max: f64, word: Option<&Word>) -> Seen {
    let found = match word {
        Some(Word::Number(found)) if found.is_finite() => Ok(*found),
        Some(Word::Number(found)) => Err(format!("the query answers {found}")),
        Some(Word::Unknown(why)) => Err(why.clone()),
        Some(Word::Yes | Word::No(_)) => Err("not a number".to_owned()),
        None => Err("not asked yet".to_owned()),
    };
    let bound = Bound {
        name: "max",
        limit: max,
        found: found.as_ref().ok().copied(),
    };
    let says = match found {
        Ok(found) => format!("{name} is {found} (max {max})"),
        Err(why) => format!("{name} is not known: {why}"),
    };
    (name.to_owned(), vec![bound], bound.state(), says)
}

fn webhook(name: &str, word: Option<&Word>) -> Seen {
    let (state, says) = match word {
        Some(Word::Yes) => (State::Met, format!("{name} agrees")),
        Some(Word::No(why)) => (State::Missed, format!("{name} does not agree: {why}")),
        Some(Word::Unknown(why)) => (State::Unknown, format!("{name} is not known: {why}")),
        Some(Word::Number(_)) => (
            State::Unknown,
            format!("{name} is not known: a bare number"),
        ),
        None => (
            State::Unknown,
            format!("{name} is not known: not asked yet"),
        ),
    };
    (name.to_owned(), Vec::new(), state, says)
}

#[cfg(test)]
mod tests;
