//! Point 9 of the list: correlation echoed, posts before the answer, and what the app makes of a
//! post that was not stored.

use millrace_core::outcome::Outcome;
use millrace_core::token::Stamp;

use super::answers::describe;
use super::findings::{Finding, Notes};
use super::points::Check;
use super::push::Post;
use crate::chain;

pub(super) const PUSH: &str = "push mode: posts before the answer, with the correlation";

impl Check {
    pub(super) async fn pushes(&mut self) -> Finding {
        let mut notes = Notes::default();
        let posted = self.ask_and_look(&mut notes, false).await;
        match posted {
            None => {}
            Some((posts, _)) if posts.is_empty() => notes.remark(
                "the app answered 2xx and posted nothing: the event counts as filtered; give a \
                 --sample that has a result",
            ),
            Some(_) => {
                if let Some((posts, good)) = self.ask_and_look(&mut notes, true).await
                    && good
                    && !posts.is_empty()
                {
                    notes.remark(
                        "the app answers 2xx although its result was not stored; the event comes \
                         again all the same",
                    );
                }
            }
        }
        notes.finding(9, PUSH)
    }

    /// Asks once, and judges what was posted by the time of the answer; `None` if the app did
    /// not answer as it should. Whether the answer was a success comes along.
    async fn ask_and_look(
        &mut self,
        notes: &mut Notes,
        failing: bool,
    ) -> Option<(Vec<Post>, bool)> {
        let draft = self.some_event();
        let desk = self.desk.as_ref().expect("push mode has one");
        desk.take();
        desk.fail(failing);
        let expected = self.probe.upcoming_correlation();
        let asked = self.ask(&draft, Stamp::Live).await;
        let desk = self.desk.as_ref().expect("push mode has one");
        let posts = desk.take();
        desk.fail(false);
        let asked = match asked {
            Ok(asked) => asked,
            Err(error) => {
                notes.fail(chain(&error));
                return None;
            }
        };
        let good = matches!(asked.outcome, Outcome::Items(_));
        if !good && !failing {
            let whose = if self.probe.plan.samples.is_empty() {
                "; give a --sample that the app answers well"
            } else {
                ""
            };
            notes.fail(format!("{}{whose}", describe(&asked)));
            return None;
        }
        for post in &posts {
            match (&post.problem, post.correlation) {
                (Some(problem), _) => {
                    notes.fail(format!("a post is not as it should be: {problem}"))
                }
                (None, None) => notes.fail(
                    "a post does not echo Millrace-Correlation; such an app needs \
                     app.push.correlate: Serial",
                ),
                (None, Some(echoed)) if echoed != expected => {
                    notes.fail("a post echoes the correlation of another request");
                }
                (None, Some(_)) => {}
            }
        }
        Some((posts, good))
    }
}
