//! Which event may have killed the whole pod (D-B7): what the last owner left behind, the suspect
//! range, and whom the ledger names while one event of it is at the app.
//!
//! A commit says whether its owner left in order. An owner that reads that the last one did not
//! counts. From the second time on it answers what that one can have had at the app one event at
//! a time, in groups of neighbouring positions that a stored commit names first. If that ends
//! uncleanly too, the named group is the range, and each event of it is named alone. An event
//! that was named alone at two unclean ends in a row is dead-lettered undispatched.
//!
//! Invariant: while events of a suspect range are open, one event is at the app, and the stored
//! commits name it, or its group, and nobody else.
//! Invariant: the count begins anew when the watermark has passed the range.

use super::Intake;
use super::io::{Effect, Fact};
use super::tenure::{EventRef, Letter, Place, Tenure, TenureId};
use crate::contract::commit::{CrashState, Named};
use crate::contract::result::{Reason, Stage};
use crate::limits;
use crate::position::Position;
use crate::rules::Rule;
use crate::time::Time;

/// Unclean ends after which the range is worked one event at a time, group after group.
const UNCLEAN_BEFORE_SUSPICION: u32 = 2;

/// Unclean ends after which each event is named alone.
const UNCLEAN_BEFORE_NAMING: u32 = 3;

/// An event that was the named one at so many unclean ends in a row is not asked about again:
/// once may be chance, because pods end of other things too.
const NAMED_MAX: u32 = 2;

/// What is known about the ends of this partition's owners.
#[derive(Debug)]
pub(super) struct PodCrashes {
    /// Owners that ended uncleanly since the last range was passed.
    count: u32,
    /// End of the range in which the culprit must lie.
    until: Position,
    /// Whom the next commit names, and at how many unclean ends it was named alone before. The
    /// first of its group, or the only one.
    named: Option<(Position, u32)>,
    /// Whom the last commit that was cut names.
    cut: Option<Position>,
    /// Whether the last commit that was cut says that we are at work.
    cut_unclean: bool,
    /// Whom the last acknowledged commit names.
    pub(super) acknowledged: Option<Position>,
    /// Whether the last acknowledged commit says that we are at work.
    pub(super) says_unclean: bool,
    /// The next commit does not wait for its time.
    pub(super) wanted: bool,
}

impl PodCrashes {
    /// Nothing is known.
    pub(super) fn none() -> Self {
        Self {
            count: 0,
            until: Position::START,
            named: None,
            cut: None,
            cut_unclean: false,
            acknowledged: None,
            says_unclean: false,
            wanted: false,
        }
    }

    /// What an owner that starts at `position` makes of the last one's words: an unclean end
    /// counts. The culprit lies in the window of that owner, and in the log of its time.
    pub(super) fn inherit(
        state: Option<CrashState>,
        position: Position,
        window: u64,
        log_end: Position,
    ) -> Self {
        let Some(state) = state else {
            return Self::none();
        };
        let mut known = Self {
            count: state.count,
            until: position.plus(state.range),
            named: state
                .named
                .map(|named| (position.plus(named.delta), named.times)),
            ..Self::none()
        };
        known.acknowledged = known.named.map(|(position, _)| position);
        known.cut = known.acknowledged;
        known.says_unclean = !state.clean;
        if !state.clean {
            known.ended_uncleanly(position.plus(window).min(log_end).max(position));
        }
        known
    }

    /// The last owner did not leave in order; it can have read up to `end`.
    fn ended_uncleanly(&mut self, end: Position) {
        match (&mut self.named, self.count) {
            // It was one of the group, of which none was alone yet.
            (Some((first, _)), UNCLEAN_BEFORE_SUSPICION) => {
                self.until = first.plus(limits::POD_CRASH_GROUP).min(end);
                self.named = None;
                self.count = UNCLEAN_BEFORE_NAMING;
            }
            (Some((_, times)), _) => *times = times.saturating_add(1),
            // Nobody of the range was at the app.
            (None, count) => {
                self.until = end;
                self.count = count.saturating_add(1).min(UNCLEAN_BEFORE_SUSPICION);
            }
        }
    }

    /// How many positions a name stands for.
    fn group(&self) -> u64 {
        if self.count < UNCLEAN_BEFORE_NAMING {
            limits::POD_CRASH_GROUP
        } else {
            1
        }
    }

    /// Whether a commit that names `first` names this event.
    fn covers(&self, first: Option<Position>, event: Option<Position>) -> bool {
        match (first, event) {
            (Some(first), Some(event)) => first <= event && event < first.plus(self.group()),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        }
    }

    /// The event that is dead-lettered when its turn comes.
    fn condemned(&self) -> Option<Position> {
        let (position, times) = self.named?;
        (times >= NAMED_MAX).then_some(position)
    }

    /// The last commit is stored.
    pub(super) fn stored(&mut self) {
        self.acknowledged = self.cut;
        self.says_unclean = self.cut_unclean;
    }

    /// The last commit is not stored.
    pub(super) fn not_stored(&mut self) {
        self.wanted |= self.cut != self.acknowledged;
        self.cut = self.acknowledged;
    }

    fn names_somebody(&self) -> bool {
        self.cut.is_some() || self.acknowledged.is_some()
    }
}

impl Tenure {
    /// Whether its events are answered one at a time, and there are some.
    pub(super) fn is_suspect(&self) -> bool {
        self.is_live()
            && self.crashes.count >= UNCLEAN_BEFORE_SUSPICION
            && self.ledger.watermark() < self.crashes.until
            && self.ledger.in_flight() > 0
    }

    /// What a commit at `watermark` says that is cut now (E1, key `u`).
    pub(super) fn cut_crash_state(
        &mut self,
        clean: bool,
        watermark: Position,
    ) -> Option<CrashState> {
        let state = self.crash_state(clean, watermark);
        let named = state.as_ref().and_then(|state| state.named.as_ref());
        self.crashes.cut = named.map(|named| watermark.plus(named.delta));
        self.crashes.cut_unclean = !clean;
        self.crashes.wanted = false;
        state
    }

    fn crash_state(&self, clean: bool, watermark: Position) -> Option<CrashState> {
        let passed = watermark >= self.crashes.until;
        let count = if passed { 0 } else { self.crashes.count };
        let alone = self.crashes.group() == 1;
        let named = self.crashes.named.map(|(position, times)| {
            // Of a group the finished ones need no name.
            (
                if alone {
                    position
                } else {
                    position.max(watermark)
                },
                times,
            )
        });
        let named = named.filter(|(position, _)| {
            let open =
                *position >= self.ledger.end() || self.ledger.find(*position).is_some() || !alone;
            *position >= watermark
                && position.since(watermark) < limits::WINDOW_POSITIONS_MAX
                && open
        });
        if clean && count == 0 {
            return None;
        }
        Some(CrashState {
            clean,
            count,
            range: if passed {
                0
            } else {
                self.crashes.until.since(watermark)
            },
            named: named.filter(|_| count > 0).map(|(position, times)| Named {
                delta: position.since(watermark),
                times,
            }),
        })
    }

    /// Whether there is anything that the last commit does not say, the clean end included.
    pub(super) fn is_unsettled(&self) -> bool {
        self.is_dirty() || self.crashes.says_unclean
    }

    /// The dead letter of an event that was named at too many unclean ends.
    pub(super) fn pod_crash_letter(&self, position: Position) -> Option<Letter> {
        (self.crashes.condemned() == Some(position)).then(|| {
            let message = "the pod ended uncleanly twice in a row while this event was alone at \
                           the app"
                .to_owned();
            Letter::of(Reason::AppCrash, Stage::App, "POD_CRASH", message)
        })
    }

    /// Whether an event is to be dead-lettered and stays named until that is done.
    fn condemns(&self) -> bool {
        self.crashes.condemned().is_some_and(|position| {
            position >= self.ledger.end() || self.ledger.find(position).is_some()
        })
    }
}

impl Intake {
    /// Not under exactly-once: there every name costs a transaction, and a pod that was killed at
    /// random would come back too slowly (decision 0008).
    pub(super) fn watches_pod(&self) -> bool {
        self.settings.rules.hold(Rule::PodCrash) && !self.exactly_once()
    }

    /// Whether events go one at a time, because one of them may kill the pod.
    pub(super) fn goes_serially(&self) -> bool {
        self.watches_pod()
            && (self.names_somebody() || self.tenures.values().any(Tenure::is_suspect))
    }

    /// Whether a stored commit names an event, or may do so.
    pub(super) fn names_somebody(&self) -> bool {
        let names = |tenure: &Tenure| tenure.is_live() && tenure.crashes.names_somebody();
        self.watches_pod() && self.tenures.values().any(|t| names(t) && !t.condemns())
    }

    /// Takes one event of a suspect range out of its lane, to go alone.
    pub(super) fn take_suspect(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if !self.watches_pod() {
            return;
        }
        // What was answered has to be stored first: then the commit that names the next event
        // says so, and a death makes nobody start over.
        let stored = |t: &Tenure| t.at_output == 0 && !t.has_unsent();
        let mut ids: Vec<TenureId> = self
            .tenures
            .iter()
            .filter(|(_, t)| t.is_suspect() && t.lanes.ready() > 0)
            .filter(|(_, t)| t.crashes.group() > 1 || stored(t))
            .filter(|(id, _)| !self.pushes.counting(&[**id]))
            .map(|(id, _)| *id)
            .collect();
        // The partition of the named group first: another one would need a name of its own.
        ids.sort_by_key(|id| !self.tenures[id].crashes.names_somebody());
        for id in ids {
            if !self.may_send(id, now) {
                continue;
            }
            let tenure = self.tenures.get_mut(&id).expect("it was just there");
            // Whoever was named when the last owner died is asked about first; then one position
            // after the other, so that a group is named once.
            let named = tenure.crashes.named;
            let named = named.and_then(|(position, _)| tenure.ledger.find(position));
            let first = tenure
                .ledger
                .iter()
                .find(|(.., work)| work.place == Place::Waiting)
                .map(|(number, ..)| number);
            if let Some(number) = named.or(first) {
                tenure.lanes.prefer(number);
            }
            let mut draft = super::dispatch::Draft::default();
            while draft.events.is_empty()
                && !self.tenures[&id].has_unsent()
                && self.take_one(id, 1, &mut draft, now, effects)
            {}
            if let Some(event) = draft.events.pop() {
                self.work(event).expect("it was just taken").place = Place::Suspected;
                self.suspects.insert(event);
                return;
            }
        }
    }

    /// Whether a call with these events may go: an event of a suspect range only when the stored
    /// commits name it, any other only when they name nobody. Otherwise they are made to.
    pub(super) fn is_named(&mut self, event: Option<EventRef>) -> bool {
        if !self.watches_pod() {
            return true;
        }
        let mut named = true;
        for (id, tenure) in &mut self.tenures {
            // A condemned event stays named until it is buried: that blames nobody else.
            if !tenure.is_live() || tenure.condemns() {
                continue;
            }
            let suspect = tenure.is_suspect();
            let wanted = event
                .filter(|event| event.tenure == *id && suspect)
                .and_then(|event| tenure.ledger.get(event.number))
                .map(|work| work.event.position());
            let crashes = &mut tenure.crashes;
            if crashes.covers(crashes.acknowledged, wanted) && crashes.covers(crashes.cut, wanted) {
                continue;
            }
            named = false;
            if crashes.covers(crashes.cut, wanted) {
                continue;
            }
            // An event that was named at the last end keeps its number.
            let times = crashes.named.filter(|(at, _)| Some(*at) == wanted);
            crashes.named = wanted.map(|at| (at, times.map_or(0, |(_, times)| times)));
            crashes.wanted = true;
        }
        named
    }

    /// Tells operators what an unclean end has led to.
    pub(super) fn report_suspicion(&self, id: TenureId, effects: &mut Vec<Effect>) {
        let tenure = &self.tenures[&id];
        let crashes = &tenure.crashes;
        if crashes.count >= UNCLEAN_BEFORE_SUSPICION && tenure.ledger.watermark() < crashes.until {
            effects.push(Effect::Report(Fact::PodCrashes {
                partition: tenure.partition.clone(),
                times: crashes.count,
                until: crashes.until,
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An event that kills the pod whenever it is at the app: how many pods it takes.
    #[test]
    fn d_b7_five_ends_find_the_event_and_others_are_never_condemned() {
        let (deadly, end) = (Position::new(900), Position::new(4_000));
        let mut state = None;
        let mut condemned = Vec::new();
        for death in 1..=5 {
            let mut known = PodCrashes::inherit(state, Position::new(100), 5_000, end);
            // The named one goes first; of a group the watermark is the first.
            known.named = match known.count {
                0 | 1 => None,
                2 => Some((Position::new(880), 0)),
                _ => known.named.or(Some((deadly, 0))),
            };
            if known.count >= 2 {
                assert!(
                    deadly < known.until && known.covers(known.named.map(|n| n.0), Some(deadly))
                );
            }
            condemned.push(known.condemned());
            let named = known.named.map(|(at, times)| Named {
                delta: at.since(Position::new(100)),
                times,
            });
            state = Some(CrashState {
                clean: false,
                count: known.count,
                range: known.until.since(Position::new(100)),
                named,
            });
            assert_eq!(known.count, (death - 1).min(3), "death {death}");
        }
        let known = PodCrashes::inherit(state, Position::new(100), 5_000, end);
        assert_eq!(known.condemned(), Some(deadly));
        assert_eq!(condemned, [None; 5]);
    }

    #[test]
    fn d_b7_an_end_while_nobody_of_the_range_was_at_the_app_widens_the_range_again() {
        let at = Position::new(100);
        let state = CrashState {
            clean: false,
            count: 3,
            range: 64,
            named: None,
        };
        let known = PodCrashes::inherit(Some(state), at, 5_000, Position::new(1_000));
        assert_eq!((known.count, known.until), (2, Position::new(1_000)));
    }

    #[test]
    fn d_b7_a_clean_end_counts_nothing() {
        let state = CrashState {
            clean: true,
            count: 2,
            range: 300,
            named: None,
        };
        let end = Position::new(1_000);
        let known = PodCrashes::inherit(Some(state), Position::new(100), 5_000, end);
        assert_eq!((known.count, known.until), (2, Position::new(400)));
    }
}
