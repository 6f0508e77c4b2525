//! The CloudEvents half of point 10: one event in every form that the app may be asked in.

use millrace_core::contract::app::ContentMode;
use millrace_core::outcome::{Item, Outcome, Output};

use super::answers::{ill_formed, odd_attributes};
use super::findings::Notes;
use super::points::{Check, alone};
use crate::chain;

impl Check {
    /// One event as a CloudEvent, in every form.
    pub(super) async fn cloud_events(&mut self, notes: &mut Notes, single: bool, batch: bool) {
        let draft = self.some_event();
        let mut forms = Vec::new();
        if single {
            forms.push(("binary", ContentMode::Binary, true));
            forms.push(("structured", ContentMode::Structured, true));
        }
        if batch {
            forms.push(("batch", ContentMode::Structured, false));
        }
        for (name, content, single) in forms {
            let asked = match alone(&self.probe.asking(content), &draft, single).await {
                Ok(asked) => asked,
                Err(error) => {
                    notes.fail(format!("a {name} CloudEvent: {}", chain(&error)));
                    continue;
                }
            };
            self.seen.push(asked.answer.clone());
            if let Some(why) = ill_formed(&asked) {
                notes.fail(format!("a {name} CloudEvent: {why}"));
            } else if matches!(asked.answer.status, 406 | 415) {
                let status = asked.answer.status;
                notes.fail(format!("a {name} CloudEvent is not understood ({status})"));
            }
            let outputs: Vec<_> = match &asked.outcome {
                Outcome::Items(items) => items.iter().flat_map(outputs).collect(),
                Outcome::Failed(_) | Outcome::TooLarge(_) | Outcome::Abandoned => Vec::new(),
            };
            for problem in outputs.into_iter().flat_map(odd_attributes) {
                notes.fail(format!("the answer to a {name} CloudEvent: {problem}"));
            }
        }
    }
}

fn outputs(item: &Item) -> &[Output] {
    match item {
        Item::Emit(output) => std::slice::from_ref(output),
        Item::EmitMany(outputs) => outputs,
        Item::Filter | Item::Failed(_) => &[],
    }
}
