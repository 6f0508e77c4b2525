//! The evidence as a document: canonical JSON with its SHA-256, small enough for a ReleaseRecord
//! (J8). Decisions bind to the digest.
//!
//! Invariant: the same evidence and judgement give the same bytes. No clock is in it: of the
//! minimum duration the document says only whether it was met.
//! Invariant: at most `EVIDENCE_DOCUMENT_BYTES_MAX` bytes. What is left out is said: first fields
//! that do not differ, then rare pairs of labels, steady fields, the least bad disagreements.
//! Gates, minimums and totals always stay.

use serde_json::{Value, json};

use super::Summary;
use super::agreement::Tally;
use super::compare::Severity;
use super::drift::{FieldDrift, Spread, delta_points};
use super::record::Class;
use super::verdict::{Bound, GateReport, Judgement, Minimum};
use super::worst::Disagreement;
use crate::contract::block::OnFail;
use crate::contract::canonical::{self, Unwritable};
use crate::limits::EVIDENCE_DOCUMENT_BYTES_MAX;

/// A finished document.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Document {
    /// Canonical JSON.
    pub text: String,
    /// `sha256:` and 64 hexadecimal digits.
    pub digest: String,
}

/// Why there is no document.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// A number that JSON cannot carry.
    #[error("failed to write the evidence")]
    Number(#[from] Unwritable),
    /// The gates alone are too large.
    #[error(
        "the evidence takes {bytes} bytes although only its gates are left, and may take {EVIDENCE_DOCUMENT_BYTES_MAX}: name fewer gates under release.verification.gates"
    )]
    TooLarge {
        /// What it takes.
        bytes: usize,
    },
}

/// How much of the long lists is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Room {
    context: bool,
    confusion: usize,
    fields: usize,
    worst: usize,
}

impl Room {
    /// The next smaller one: the least important shrinks first, and to nothing only when nothing
    /// else is left.
    fn smaller(self) -> Option<Self> {
        let half = |length: usize, floor: usize| (length / 2).max(floor);
        Some(match self {
            Self { context: true, .. } => Self {
                context: false,
                ..self
            },
            Self {
                confusion: 17.., ..
            } => Self {
                confusion: half(self.confusion, 16),
                ..self
            },
            Self { fields: 9.., .. } => Self {
                fields: half(self.fields, 8),
                ..self
            },
            Self { worst: 6.., .. } => Self {
                worst: half(self.worst, 5),
                ..self
            },
            Self { confusion: 1.., .. } => Self {
                confusion: self.confusion / 2,
                ..self
            },
            Self { fields: 1.., .. } => Self {
                fields: self.fields / 2,
                ..self
            },
            Self { worst: 1.., .. } => Self {
                worst: self.worst / 2,
                ..self
            },
            _ => return None,
        })
    }
}

/// Writes evidence and judgement.
pub fn document(summary: &Summary, judgement: &Judgement) -> Result<Document, Error> {
    let mut room = Room {
        context: true,
        confusion: summary.confusion.len(),
        fields: summary.fields.len(),
        worst: summary.worst.len(),
    };
    loop {
        let text = canonical::text(&value(summary, judgement, room))?;
        if text.len() <= EVIDENCE_DOCUMENT_BYTES_MAX {
            let digest = canonical::digest(&text);
            return Ok(Document { text, digest });
        }
        room = room
            .smaller()
            .ok_or(Error::TooLarge { bytes: text.len() })?;
    }
}

fn value(summary: &Summary, judgement: &Judgement, room: Room) -> Value {
    let reasons = judgement.reasons();
    let reasons = reasons
        .iter()
        // How long it took so far is not evidence.
        .filter(|(_, says)| !says.starts_with("minDuration"))
        .map(|(word, says)| json!({"reason": word, "says": says}));
    let worst = summary.worst.iter().take(room.worst);
    let confusion = summary.confusion.iter().take(room.confusion);
    json!({
        "version": 1,
        "green": summary.green.as_str(),
        "blue": summary.blue.as_str(),
        "verdict": judgement.verdict.as_str(),
        "reasons": reasons.collect::<Vec<_>>(),
        "held": judgement.held().map(|gate| gate.name.as_str()).collect::<Vec<_>>(),
        "gates": judgement.gates.iter().map(gate).collect::<Vec<_>>(),
        "minimums": judgement.minimums.iter().map(minimum).collect::<Vec<_>>(),
        "agreement": agreement(summary),
        "latency": {
            "greenP95Us": summary.latency_p95_us[0],
            "blueP95Us": summary.latency_p95_us[1],
            "ratio": summary.latency_ratio,
        },
        "errors": rate(summary.errors),
        "deadLetters": rate(summary.dead_letters),
        "partitions": summary.partitions,
        "records": records(summary),
        "fields": steadiest_last(&summary.fields, room.fields),
        "confusion": confusion.map(|(g, b, n)| json!([g, b, n])).collect::<Vec<_>>(),
        "worst": worst.map(|one| disagreement(one, room.context)).collect::<Vec<_>>(),
        "leftOut": {
            "moreFields": summary.more_fields,
            "fieldsThatAgree": !room.context,
            "fields": summary.fields.len() - room.fields,
            "confusion": summary.confusion.len() - room.confusion,
            "worst": summary.worst.len() - room.worst,
        },
    })
}

fn gate(gate: &GateReport) -> Value {
    let bound =
        |bound: &Bound| json!({"bound": bound.name, "limit": bound.limit, "found": bound.found});
    json!({
        "name": gate.name,
        "onFail": match gate.on_fail { OnFail::Reject => "Reject", OnFail::Hold => "Hold" },
        "dryRun": gate.dry_run,
        "state": gate.state.as_str(),
        "bounds": gate.bounds.iter().map(bound).collect::<Vec<_>>(),
        "says": gate.says,
    })
}

fn minimum(minimum: &Minimum) -> Value {
    let mut value = json!({
        "name": minimum.name,
        "wanted": minimum.wanted,
        "met": minimum.is_met(),
    });
    if minimum.name != "minDuration" {
        value["found"] = Value::from(minimum.found);
    }
    value
}

fn agreement(summary: &Summary) -> Value {
    let interval = summary.interval();
    json!({
        "events": summary.agreement.total,
        "agreeing": summary.agreement.hits,
        "lower": interval.lower,
        "upper": interval.upper,
        "adjustedLower": summary.agreement_lower(),
        "noise": {
            "events": summary.noise.total,
            "disagreeing": summary.noise.misses().hits,
        },
    })
}

fn rate([green, blue]: [Tally; 2]) -> Value {
    json!({
        "green": green.hits,
        "blue": blue.hits,
        "events": blue.total,
        "deltaPoints": delta_points([green, blue]),
    })
}

fn records(summary: &Summary) -> Value {
    let counts = &summary.counts;
    json!({
        "paired": counts.paired,
        "askedAgain": counts.asked_again,
        "tooLarge": summary.too_large,
        "noLabel": summary.no_label,
        "unreadable": summary.unreadable,
        "repeats": counts.repeats,
        "late": counts.late,
        "leftWithGreen": counts.left_with_green,
        "leftWithBlue": counts.left_with_blue,
        "leftWithoutBaseline": counts.left_without_baseline,
        "waitingForBlue": counts.waiting_for_blue,
        "waitingForGreen": counts.waiting_for_green,
        "gaps": counts.gaps,
        "foreign": counts.foreign,
        "unasked": counts.unasked,
        "beyond": counts.beyond,
    })
}

/// The fields that moved most, the most moved first. One that only one release has moved most.
fn steadiest_last(fields: &[FieldDrift], count: usize) -> Vec<Value> {
    let mut fields: Vec<_> = fields.iter().collect();
    let moved = |field: &FieldDrift| field.stability.unwrap_or(f64::MAX);
    fields.sort_by(|a, b| {
        moved(b)
            .total_cmp(&moved(a))
            .then_with(|| a.path.cmp(&b.path))
    });
    let spread = |of: &Spread| json!({"count": of.count, "mean": of.mean, "deviation": of.deviation, "odd": of.odd});
    fields
        .into_iter()
        .take(count)
        .map(|field| {
            json!({
                "path": field.path,
                "green": spread(&field.green),
                "blue": spread(&field.blue),
                "meanDifference": field.mean_difference,
                "stability": field.stability,
            })
        })
        .collect()
}

fn disagreement(one: &Disagreement, context: bool) -> Value {
    let made =
        |(class, results): (Class, u64)| json!({"class": class.as_str(), "results": results});
    let fields = one.fields.iter().filter(|field| field.differs || context);
    let field = |field: &super::compare::Field| {
        json!({
            "result": field.result,
            "path": field.path,
            "green": field.green,
            "blue": field.blue,
            "differs": field.differs,
        })
    };
    json!({
        "source": one.source.to_string(),
        "severity": one.severity.as_str(),
        "excess": match one.severity {
            Severity::Number(excess) => Some(excess),
            Severity::Value | Severity::Class => None,
        },
        "green": made(one.green),
        "blue": made(one.blue),
        "fields": fields.map(field).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests;
