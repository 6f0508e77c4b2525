//! What can happen, and what it does: owners, pods, the controller.

use super::{
    Commit, EVENTS, NAMES, Off, Outcome, Owners, Pod, Role, Step, Token, WINDOW, X, Y, bit, has,
    position, text,
};

const OUTCOMES: [Outcome; 2] = [Outcome::Known, Outcome::Unknown];

impl Owners {
    pub(super) fn possible(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.issued < self.setup.intents && self.may_issue() {
            steps.push(Step::Issue);
        }
        if self.may_depose() {
            steps.push(Step::Depose);
        }
        if self.may_discard() {
            steps.push(Step::Discard);
        }
        for release in [X, Y] {
            if self.groups[release].is_none() {
                continue;
            }
            let owner = self.owner_of(release);
            if let Some(owner) = owner {
                let open = self.pods[release][owner].limbo.is_some();
                // R4b: the unassign comes only after every commit of the partition ended.
                if self.faults.moves > 0 && !(open && self.holds(Off::Exclusion)) {
                    steps.push(Step::Revoke(release));
                }
                if self.faults.evictions > 0 {
                    steps.push(Step::Evict(release));
                }
            }
            // Offsets of a group expire only while it has no members.
            if self.faults.expiries > 0 && self.has_no_members(release) {
                steps.push(Step::Expire(release));
            }
            for pod in 0..self.pods[release].len() {
                self.of_pod(release, pod, &mut steps);
            }
        }
        steps
    }

    /// The controller asks for the way back only while it is asked to; a next promotion only after
    /// everything is in one hand again (section 6).
    fn may_issue(&self) -> bool {
        self.issued < 2 || self.is_handed_over()
    }

    fn may_depose(&self) -> bool {
        let live = matches!(self.token(X), Some(Token::Live { .. }));
        self.setup.depose && self.issued == 1 && live && self.has_no_members(X)
    }

    fn has_no_members(&self, release: usize) -> bool {
        let mut pods = self.pods[release].iter();
        let none = pods.all(|pod| pod.member.is_none() || pod.evicted);
        none && self.owner_of(release).is_none()
    }

    /// Aborting is over once X's token is above every intent to Y (R8).
    fn may_discard(&self) -> bool {
        let needed = if self.holds(Off::Stamp) { 3 } else { 0 };
        let live = matches!(self.token(X), Some(Token::Live { epoch, .. }) if epoch >= needed);
        self.setup.discard && self.issued == 2 && live && self.groups[Y].is_some()
    }

    fn of_pod(&self, release: usize, index: usize, steps: &mut Vec<Step>) {
        let pod = &self.pods[release][index];
        // Until it is asked to take everything back, a deposed release has no pods (R11).
        let gone = release == X && self.deposed && self.issued < 2;
        if self.owner_of(release).is_none() && !pod.evicted && !gone && pod.owner.is_none() {
            steps.push(Step::Assign(release, index));
        }
        for number in pod.intent + 1..=self.issued {
            steps.push(Step::Hear(release, index, number));
        }
        if self.faults.crashes > 0 && (pod.member.is_some() || pod.evicted) {
            steps.push(Step::Crash(release, index));
        }
        if pod.evicted {
            steps.push(Step::Wake(release, index));
        }
        if pod.limbo.is_some() {
            steps.push(Step::Late(release, index));
            steps.push(Step::Never(release, index));
        }
        if pod.owner.is_some() {
            self.of_owner(release, index, pod, steps);
        }
    }

    fn of_owner(&self, release: usize, index: usize, pod: &Pod, steps: &mut Vec<Step>) {
        let Some(owner) = &pod.owner else { return };
        let role = self.role_off(release, pod);
        // R4c: a member in doubt commits nothing more on p.
        let in_doubt = pod.limbo.is_some() && self.holds(Off::Doubt);
        let stops = in_doubt && pod.limbo.as_ref().is_some_and(|commit| commit.hands_over);
        let outcomes = OUTCOMES.into_iter().filter(|outcome| {
            *outcome == Outcome::Known || self.faults.unknown > 0 && pod.limbo.is_none()
        });
        for o in (owner.base..EVENTS).filter(|_| !stops) {
            if self.may_dispatch(owner, &role, o) {
                steps.push(Step::Dispatch(release, index, o));
            }
        }
        for o in (0..EVENTS).filter(|o| has(owner.in_flight, *o)) {
            steps.push(Step::Answer(release, index, o));
            if self.faults.failures > 0 {
                steps.push(Step::Fail(release, index, o));
            }
        }
        if in_doubt {
            return;
        }
        for outcome in outcomes {
            match &role {
                Role::Live | Role::Sealing { .. } => {
                    if self.next_commit(release, pod).is_some() {
                        steps.push(Step::Commit(release, index, outcome));
                    }
                    if self.seal(release, pod, false).is_some() {
                        steps.push(Step::Seal(release, index, outcome));
                    }
                    if self.seal(release, pod, true).is_some() {
                        steps.push(Step::SealCarried(release, index, outcome));
                    }
                }
                Role::Adopt { .. } => steps.push(Step::Adopt(release, index, outcome)),
                Role::Halt(_) | Role::Shadow | Role::Take(_) => {}
            }
        }
    }

    /// The role; without seals, what a pushed cut would make of it.
    fn role_off(&self, release: usize, pod: &Pod) -> Role {
        let Some(owner) = &pod.owner else {
            return Role::Shadow;
        };
        let pushed = !self.holds(Off::Seal) && pod.intent == 1;
        match (&owner.token, release) {
            (Some(Token::Shadow { .. }), Y) if pushed => Role::Adopt {
                from: position(self.pushed_cut),
                epoch: 2,
                of: NAMES[X].clone(),
            },
            (Some(Token::Live { epoch: 2.., .. }), Y) if pushed => Role::Live,
            (Some(_) | None, _) => self.role(release, pod, owner),
        }
    }

    fn may_dispatch(&self, owner: &super::Owner, role: &Role, o: u8) -> bool {
        let open = !has(owner.terminal, o) && !has(owner.in_flight | owner.unstored, o);
        let within = o < owner.base + WINDOW;
        let allowed = match role {
            Role::Live => true,
            // R1: nothing new at or above the horizon; R6: but all below the floor.
            Role::Sealing { .. } if self.holds(Off::Seal) => o < owner.cut(),
            Role::Sealing { .. } => o < self.pushed_cut,
            Role::Halt(_) | Role::Shadow | Role::Adopt { .. } | Role::Take(_) => false,
        };
        allowed && open && within && owner.is_next_of_lane(o)
    }

    /// The next plain commit, if it says anything new.
    fn next_commit(&self, release: usize, pod: &Pod) -> Option<Commit> {
        let owner = pod.owner.as_ref()?;
        let token = self.stamp(release, pod, owner.token.as_ref()?);
        let mut after = owner.clone();
        after.terminal |= owner.unstored;
        let at = after.watermark();
        let metadata = text(&token, at, after.above(at));
        let known = text(owner.token.as_ref()?, owner.base, owner.above(owner.base));
        let groups = self.groups[release].as_ref();
        let stored = groups.and_then(|group| group.committed.as_ref());
        let same = stored.is_some_and(|(_, text)| **text == *metadata) && known == metadata;
        (!same).then_some(Commit {
            at,
            metadata,
            results: owner.unstored,
            hands_over: false,
        })
    }

    /// R1: the commit that seals.
    fn seal(&self, release: usize, pod: &Pod, carried: bool) -> Option<Commit> {
        let owner = pod.owner.as_ref()?;
        let Role::Sealing { to, epoch } = self.role(release, pod, owner) else {
            return None;
        };
        if owner.in_flight != 0 || !self.holds(Off::Seal) {
            return None;
        }
        let mut after = owner.clone();
        after.terminal |= owner.unstored;
        let (watermark, cut) = (after.watermark(), after.cut());
        let (at, ledger) = match carried {
            false if watermark >= cut => (cut, 0),
            // Only holes remain; what was perhaps answered before must not be among them (R6).
            true if watermark < cut && watermark >= owner.floor => {
                let above = after.above(watermark);
                (watermark, if self.holds(Off::Carried) { above } else { 0 })
            }
            false | true => return None,
        };
        let token = Token::Sealed {
            epoch,
            at: position(at),
            to: Some(to),
        };
        Some(Commit {
            at,
            metadata: text(&token, at, ledger),
            results: owner.unstored,
            hands_over: true,
        })
    }

    /// R3: the commit that adopts.
    fn adoption(&self, release: usize, pod: &Pod) -> Option<Commit> {
        let Role::Adopt { from, epoch, of } = self.role_off(release, pod) else {
            return None;
        };
        let seal = self.token(1 - release)?;
        let at = if self.holds(Off::Seal) {
            Self::cut_of(&seal)
        } else {
            self.pushed_cut
        };
        let ledger = if self.holds(Off::Seal) {
            self.ledger_of_seal(1 - release)
        } else {
            0
        };
        let token = Token::Live {
            epoch,
            from,
            peer: Some(of),
        };
        Some(Commit {
            at,
            metadata: text(&token, at, ledger),
            results: 0,
            hands_over: true,
        })
    }

    pub(super) fn take(&mut self, step: Step) {
        match step {
            Step::Issue => {
                self.issued += 1;
                let committed = self.groups[X]
                    .as_ref()
                    .and_then(|group| group.committed.as_ref());
                if self.issued == 1 {
                    self.pushed_cut = committed.map_or(0, |(at, _)| *at);
                }
            }
            Step::Hear(release, pod, number) => self.pods[release][pod].intent = number,
            Step::Assign(release, pod) => self.assign(release, pod),
            Step::Revoke(release) => {
                self.faults.moves -= 1;
                if let Some(owner) = self.owner_of(release) {
                    self.pods[release][owner].owner = None;
                }
                self.unassign(release);
            }
            Step::Evict(release) => {
                self.faults.evictions -= 1;
                if let Some(owner) = self.owner_of(release) {
                    self.pods[release][owner].evicted = true;
                }
                self.unassign(release);
            }
            Step::Wake(release, pod) => self.restart(release, pod),
            Step::Crash(release, pod) => {
                self.faults.crashes -= 1;
                if self.owner_of(release) == Some(pod) && !self.pods[release][pod].evicted {
                    self.unassign(release);
                }
                self.pods[release][pod] = Pod::default();
            }
            Step::Dispatch(release, pod, o) => self.owner(release, pod, |owner| {
                owner.in_flight |= bit(o);
            }),
            Step::Answer(release, pod, o) => self.answer(release, pod, o),
            Step::Fail(release, pod, o) => {
                self.faults.failures -= 1;
                self.owner(release, pod, |owner| owner.in_flight &= !bit(o));
            }
            Step::Commit(release, pod, outcome) => {
                let commit = self.next_commit(release, &self.pods[release][pod]);
                self.commit(release, pod, commit, outcome);
            }
            Step::Seal(release, pod, outcome) => {
                let commit = self.seal(release, &self.pods[release][pod], false);
                self.commit(release, pod, commit, outcome);
            }
            Step::SealCarried(release, pod, outcome) => {
                self.carried = true;
                let commit = self.seal(release, &self.pods[release][pod], true);
                self.commit(release, pod, commit, outcome);
            }
            Step::Adopt(release, pod, outcome) => {
                let commit = self.adoption(release, &self.pods[release][pod]);
                self.commit(release, pod, commit, outcome);
            }
            Step::Late(release, pod) => self.late(release, pod),
            Step::Never(release, pod) => self.pods[release][pod].limbo = None,
            Step::Depose => self.depose(),
            Step::Discard => {
                self.groups[Y] = None;
                self.pods[Y].clear();
            }
            Step::Expire(release) => {
                self.faults.expiries -= 1;
                if let Some(group) = &mut self.groups[release] {
                    group.committed = None;
                }
            }
        }
    }

    /// All partitions are lost: the client is destroyed, and with it what it had not sent (R4c).
    fn restart(&mut self, release: usize, pod: usize) {
        let intent = self.pods[release][pod].intent;
        self.pods[release][pod] = Pod {
            intent,
            ..Pod::default()
        };
    }

    fn owner(&mut self, release: usize, pod: usize, change: impl FnOnce(&mut super::Owner)) {
        if let Some(owner) = &mut self.pods[release][pod].owner {
            change(owner);
        }
    }

    fn answer(&mut self, release: usize, pod: usize, o: u8) {
        if self.exactly_once() {
            return self.owner(release, pod, |owner| {
                owner.in_flight &= !bit(o);
                owner.unstored |= bit(o);
            });
        }
        // R4: eviction takes longer than the lease, so its results are refused by the output.
        if self.pods[release][pod].evicted && self.holds(Off::Lease) {
            return;
        }
        self.publish(release, o);
        self.owner(release, pod, |owner| {
            owner.in_flight &= !bit(o);
            owner.terminal |= bit(o);
        });
    }

    fn commit(&mut self, release: usize, pod: usize, commit: Option<Commit>, outcome: Outcome) {
        let Some(commit) = commit else { return };
        if outcome == Outcome::Unknown {
            self.faults.unknown -= 1;
            self.pods[release][pod].limbo = Some(commit);
        } else if self.accepts(release, pod) {
            self.apply(release, &commit);
            self.committed(release, pod, &commit);
        } else {
            self.restart(release, pod);
        }
    }

    /// The client sends at last, with the generation of that moment.
    fn late(&mut self, release: usize, pod: usize) {
        let Some(commit) = self.pods[release][pod].limbo.take() else {
            return;
        };
        if !self.accepts(release, pod) {
            return self.restart(release, pod);
        }
        self.apply(release, &commit);
        if self.holds(Off::Doubt) && self.owner_of(release) == Some(pod) {
            self.committed(release, pod, &commit);
        }
    }
}
