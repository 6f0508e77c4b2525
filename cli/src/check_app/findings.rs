//! What the checks found, one verdict per point of the list in app-contract.md.

use serde::Serialize;

/// How a point ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The app does what the contract asks.
    Passed,
    /// It does not; each sentence says what was expected and what came.
    Failed(Vec<String>),
    /// It does not apply, or could not be asked; the sentence says why.
    Skipped(String),
}

/// One point of the list.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// Its number in app-contract.md.
    pub point: u8,
    /// What it asks.
    pub name: &'static str,
    /// How it ended.
    pub verdict: Verdict,
    /// What people should know besides.
    pub remarks: Vec<String>,
}

/// All points.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Findings {
    /// Whether no point failed.
    pub ok: bool,
    /// In the order of the list.
    pub points: Vec<Finding>,
}

/// Collects what one point finds.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub(super) failures: Vec<String>,
    pub(super) remarks: Vec<String>,
}

impl Notes {
    pub(super) fn fail(&mut self, text: impl Into<String>) {
        self.failures.push(text.into());
    }

    pub(super) fn remark(&mut self, text: impl Into<String>) {
        self.remarks.push(text.into());
    }

    pub(super) fn finding(self, point: u8, name: &'static str) -> Finding {
        Finding {
            point,
            name,
            verdict: if self.failures.is_empty() {
                Verdict::Passed
            } else {
                Verdict::Failed(self.failures)
            },
            remarks: self.remarks,
        }
    }
}

pub(super) fn skipped(point: u8, name: &'static str, why: &str) -> Finding {
    Finding {
        point,
        name,
        verdict: Verdict::Skipped(why.to_owned()),
        remarks: Vec::new(),
    }
}
