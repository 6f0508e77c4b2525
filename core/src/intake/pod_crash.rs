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
//! Invariant: the stored commits of a suspect range that name nobody say that an end of the pod is
//! not its doing: what is known of the range stays known.
//! Invariant: the count begins anew when the watermark has passed the range.

use super::Intake;
use super::io::{Effect, Fact};
use super::tenure::{EventRef, Letter, Place, Tenure, TenureId};
use crate::contract::commit::{CrashState, Named};
use crate::contract::result::{Reason, Stage};
use crate::ledger::Number;
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
    /// Whom the next commit names: the first of its group, or the only one. Nobody while no event
    /// of the range is about to go, or at the app.
    named: Option<Position>,
    /// Who was named alone when an owner ended uncleanly, and at how many ends in a row.
    blamed: Option<(Position, u32)>,
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
            blamed: None,
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
        let named = |named: Named| (position.plus(named.delta), named.times);
        let mut known = Self {
            count: state.count,
            until: position.plus(state.range),
            blamed: state.named.map(named),
            ..Self::none()
        };
        if !state.clean {
            (known.says_unclean, known.cut_unclean) = (true, true);
            known.acknowledged = known.blamed.map(|(position, _)| position);
            known.cut = known.acknowledged;
            known.ended_uncleanly(position.plus(window).min(log_end).max(position));
        }
        known
    }

    /// The last owner did not leave in order; it can have read up to `end`.
    fn ended_uncleanly(&mut self, end: Position) {
        match (&mut self.blamed, self.count) {
            // It was one of the group, of which none was alone yet.
            (Some((first, _)), UNCLEAN_BEFORE_SUSPICION) => {
                self.until = first.plus(limits::POD_CRASH_GROUP).min(end);
                self.blamed = None;
                self.count = UNCLEAN_BEFORE_NAMING;
            }
            (Some((_, times)), _) => *times = times.saturating_add(1),
            // Nobody was suspected yet.
            (None, count) => {
                self.until = end;
                self.count = count.saturating_add(1).min(UNCLEAN_BEFORE_SUSPICION);
            }
        }
    }

    /// Whether so many ends were unclean that events are suspected.
    fn is_suspicious(&self) -> bool {
        self.count >= UNCLEAN_BEFORE_SUSPICION
    }

    /// Whether the events behind this watermark are in the suspect range.
    fn suspects(&self, watermark: Position) -> bool {
        self.is_suspicious() && watermark < self.until
    }

    /// Whether a name stands for a group of events.
    fn names_groups(&self) -> bool {
        self.group() > 1
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

    /// At how many unclean ends in a row this event was named alone.
    fn times(&self, position: Position) -> u32 {
        let blamed = self.blamed.filter(|(at, _)| *at == position);
        blamed.map_or(0, |(_, times)| times)
    }

    /// The event that is dead-lettered when its turn comes.
    fn condemned(&self) -> Option<Position> {
        let (position, times) = self.blamed?;
        (times >= NAMED_MAX).then_some(position)
    }

    /// The last commit is stored.
    pub(super) fn stored(&mut self) {
        self.acknowledged = self.cut;
        self.says_unclean = self.cut_unclean;
    }

    /// The last commit is not stored.
    pub(super) fn not_stored(&mut self) {
        self.wanted |= (self.cut, self.cut_unclean) != (self.acknowledged, self.says_unclean);
        self.cut = self.acknowledged;
        self.cut_unclean = self.says_unclean;
    }

    fn names_somebody(&self) -> bool {
        self.cut.is_some() || self.acknowledged.is_some()
    }
}

impl Tenure {
    /// Whether its events are answered one at a time, and there are some.
    pub(super) fn is_suspect(&self) -> bool {
        let within = self.crashes.suspects(self.ledger.watermark());
        self.is_live() && within && self.ledger.in_flight() > 0
    }

    /// Whether it has left its suspect range behind.
    fn has_passed(&self) -> bool {
        let watermark = self.ledger.watermark();
        self.crashes.is_suspicious() && !self.crashes.suspects(watermark)
    }

    /// Whether the stored commits name this event, or its group.
    fn names(&self, number: Option<Number>) -> bool {
        let work = number.and_then(|number| self.ledger.get(number));
        let position = work.map(|work| work.event.position());
        self.crashes.covers(self.crashes.acknowledged, position)
    }

    /// Whether nothing of what was answered is still on its way to the broker.
    fn is_stored(&self) -> bool {
        self.at_output == 0 && !self.has_unsent()
    }

    /// What a commit at `watermark` says that is cut now (E1, key `u`).
    pub(super) fn cut_crash_state(
        &mut self,
        clean: bool,
        watermark: Position,
    ) -> Option<CrashState> {
        let named = self.crashes.named.map(|position| {
            // Of a group the finished ones need no name.
            if self.crashes.names_groups() {
                position.max(watermark)
            } else {
                position
            }
        });
        self.crashes.named = named.filter(|position| self.may_be_named(*position, watermark));
        let state = self.crash_state(clean, watermark);
        self.crashes.cut = self.crashes.named;
        self.crashes.cut_unclean = state.is_some_and(|state| !state.clean);
        self.crashes.wanted = false;
        state
    }

    /// Whether an event, or a group from there on, is not finished.
    fn may_be_named(&self, position: Position, watermark: Position) -> bool {
        let unread = position >= self.ledger.end();
        position >= watermark
            && position.since(watermark) < limits::WINDOW_POSITIONS_MAX
            && (self.crashes.names_groups() || unread || self.ledger.find(position).is_some())
    }

    fn crash_state(&self, clean: bool, watermark: Position) -> Option<CrashState> {
        let crashes = &self.crashes;
        let passed = watermark >= crashes.until;
        let count = if passed { 0 } else { crashes.count };
        if clean && count == 0 {
            return None;
        }
        let suspected = count >= UNCLEAN_BEFORE_SUSPICION;
        let named = crashes.named.map(|at| (at, crashes.times(at)));
        let named = named
            .or(crashes.blamed)
            .filter(|(position, _)| suspected && self.may_be_named(*position, watermark));
        Some(CrashState {
            // A range of which nothing is at the app does not end the pod.
            clean: clean || (suspected && crashes.named.is_none()),
            count,
            range: if passed {
                0
            } else {
                crashes.until.since(watermark)
            },
            named: named.map(|(position, times)| Named {
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
}

impl Intake {
    pub(super) fn watches_pod(&self) -> bool {
        self.settings.rules.hold(Rule::PodCrash)
    }

    /// Whether events go one at a time, because one of them may kill the pod.
    pub(super) fn goes_serially(&self) -> bool {
        self.watches_pod() && (self.commits_bind() || self.tenures.values().any(Tenure::is_suspect))
    }

    /// Whether a stored commit names an event, or may do so, or still says that nothing of a
    /// range is at the app that has been passed.
    pub(super) fn commits_bind(&self) -> bool {
        let binds = |tenure: &Tenure| {
            let crashes = &tenure.crashes;
            let asleep = tenure.has_passed() && !crashes.says_unclean;
            tenure.is_live() && (crashes.names_somebody() || asleep)
        };
        self.watches_pod() && self.tenures.values().any(binds)
    }

    /// Takes one event of a suspect range out of its lane, to go alone. True if nothing goes
    /// before the output has stored what it has: any other event would need another name.
    pub(super) fn take_suspect(&mut self, now: Time, effects: &mut Vec<Effect>) -> bool {
        if !self.watches_pod() {
            return false;
        }
        let mut ids: Vec<TenureId> = self
            .tenures
            .iter()
            .filter(|(_, t)| t.is_suspect() && (t.lanes.ready() > 0 || !t.is_stored()))
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
            // Whoever is blamed is asked about first; then one position after the other, so that
            // a group is named once.
            let blamed = tenure.crashes.blamed;
            let blamed = blamed.and_then(|(position, _)| tenure.ledger.find(position));
            let next = tenure
                .lanes
                .prefer(|number| (Some(number) != blamed, number));
            // Another name would make its owner forget who is condemned.
            let condemned = tenure.crashes.condemned().is_some() && blamed.is_some();
            if condemned && next != blamed {
                continue;
            }
            // What was answered has to be stored before another name: then the commit with the
            // name says so, and a death makes nobody start over. And its lanes may go on within
            // the group.
            if !tenure.is_stored() && !tenure.names(next) {
                return true;
            }
            let unsent = tenure.unsent();
            let mut draft = super::dispatch::Draft::default();
            while draft.events.is_empty()
                && self.tenures[&id].unsent() == unsent
                && self.take_one(id, 1, &mut draft, now, effects)
            {}
            if let Some(event) = draft.events.pop() {
                self.work(event).expect("it was just taken").place = Place::Suspected;
                self.suspects.insert(event);
                return false;
            }
            if !self.tenures[&id].is_stored() {
                return true;
            }
        }
        false
    }

    /// Whether a call with these events may go: an event of a suspect range only when the stored
    /// commits name it, any other only when they name nobody. Otherwise they are made to.
    pub(super) fn is_named(&mut self, event: Option<EventRef>) -> bool {
        if !self.watches_pod() {
            return true;
        }
        let mut named = true;
        for (id, tenure) in &mut self.tenures {
            if !tenure.is_live() {
                continue;
            }
            let (suspect, passed) = (tenure.is_suspect(), tenure.has_passed());
            let wanted = event
                .filter(|event| event.tenure == *id && suspect)
                .and_then(|event| tenure.ledger.get(event.number))
                .map(|work| work.event.position());
            let crashes = &mut tenure.crashes;
            let covers = |who| crashes.covers(who, wanted);
            let next = covers(crashes.named);
            let cut = covers(crashes.cut) && (!passed || crashes.cut_unclean);
            let stored = covers(crashes.acknowledged) && (!passed || crashes.says_unclean);
            if !next {
                crashes.named = wanted;
            }
            crashes.wanted |= !cut;
            named &= cut && stored;
        }
        named
    }

    /// Tells operators what an unclean end has led to.
    pub(super) fn report_suspicion(&self, id: TenureId, effects: &mut Vec<Effect>) {
        let tenure = &self.tenures[&id];
        let crashes = &tenure.crashes;
        if crashes.suspects(tenure.ledger.watermark()) {
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
        let (at, deadly, end) = (Position::new(100), Position::new(900), Position::new(4_000));
        let mut state = None;
        for death in 1..=5 {
            let known = PodCrashes::inherit(state, at, 5_000, end);
            assert_eq!(known.count, (death - 1).min(3), "death {death}");
            assert_eq!((known.named, known.condemned()), (None, None));
            let named = match known.count {
                0 | 1 => None,
                2 => Some(Position::new(880)),
                _ => Some(deadly),
            };
            if known.count >= 2 {
                assert!(deadly < known.until && known.covers(named, Some(deadly)));
            }
            state = Some(CrashState {
                clean: false,
                count: known.count,
                range: known.until.since(at),
                named: named.map(|named| Named {
                    delta: named.since(at),
                    times: known.times(named),
                }),
            });
        }
        let known = PodCrashes::inherit(state, at, 5_000, end);
        assert_eq!(known.condemned(), Some(deadly));
    }

    /// Another partition's event was at the app when the pod ended: what is known stays known.
    #[test]
    fn d_b7_an_end_while_nobody_of_the_range_was_at_the_app_changes_nothing() {
        let at = Position::new(100);
        let asleep = CrashState {
            clean: true,
            count: 3,
            range: 64,
            named: Some(Named { delta: 7, times: 1 }),
        };
        let known = PodCrashes::inherit(Some(asleep), at, 5_000, Position::new(1_000));
        assert_eq!((known.count, known.until), (3, Position::new(164)));
        assert_eq!(
            (known.blamed, known.named),
            (Some((Position::new(107), 1)), None)
        );
        assert_eq!((known.acknowledged, known.says_unclean), (None, false));
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
