//! The broker's half: groups, fenced commits, the log of answers, and what must hold of them.
//!
//! Invariant: every commit and every answer comes by here, so that I1 to I5 are looked at each
//! time.

use super::{
    Commit, EVENTS, Group, Guarantee, NAMES, Off, Owner, Owners, Token, X, Y, bit, has, offset,
    read, terminal, text,
};

impl Owners {
    /// The coordinator assigns the partition; the generation rises for all members.
    pub(super) fn assign(&mut self, release: usize, pod: usize) {
        let Some(group) = &mut self.groups[release] else {
            return;
        };
        group.generation += 1;
        group.owner = u8::try_from(pod).ok();
        let generation = group.generation;
        let members = &mut self.pods[release];
        members[pod].member = Some(generation);
        for member in members
            .iter_mut()
            .filter(|pod| pod.member.is_some() && !pod.evicted)
        {
            member.member = Some(generation);
        }
        let owner = self.found(release);
        self.pods[release][pod].owner = Some(owner);
    }

    /// R2: what an owner finds before it does anything.
    fn found(&self, release: usize) -> Owner {
        let committed = self.groups[release]
            .as_ref()
            .and_then(|group| group.committed.clone());
        let (base, token, terminal) = match &committed {
            Some((at, text)) => {
                let metadata = read(text);
                let terminal = terminal(&metadata, *at);
                (*at, Some(metadata.token), terminal)
            }
            None if self.holds(Off::Missing) => (0, None, 0),
            None => {
                let epoch = 1;
                let from = super::position(0);
                let peer = None;
                (0, Some(Token::Live { epoch, from, peer }), 0)
            }
        };
        let floor = match token {
            Some(Token::Live { .. }) if self.setup.guarantee == Guarantee::AtLeastOnce => {
                (base + super::WINDOW).min(EVENTS)
            }
            Some(_) | None => 0,
        };
        Owner {
            token,
            base,
            terminal,
            in_flight: 0,
            unstored: 0,
            floor: if self.holds(Off::Floor) { floor } else { 0 },
        }
    }

    /// Nobody owns the partition any more.
    pub(super) fn unassign(&mut self, release: usize) {
        if let Some(group) = &mut self.groups[release] {
            group.owner = None;
        }
    }

    /// The owner of the partition, as the coordinator knows it.
    pub(super) fn owner_of(&self, release: usize) -> Option<usize> {
        self.groups[release].as_ref()?.owner.map(usize::from)
    }

    /// Whether the coordinator takes a commit of this pod: generations are fenced, not partitions.
    pub(super) fn accepts(&self, release: usize, pod: usize) -> bool {
        let generation = self.groups[release].as_ref().map(|group| group.generation);
        let pod = &self.pods[release][pod];
        pod.member.is_some() && pod.member == generation && !pod.evicted
    }

    /// Applies a commit: the offset, and the results of its transaction.
    pub(super) fn apply(&mut self, release: usize, commit: &Commit) {
        for o in (0..EVENTS).filter(|o| has(commit.results, *o)) {
            self.publish(release, o);
        }
        let metadata = read(&commit.metadata);
        self.check_start(release, &metadata.token);
        if let Some(group) = &mut self.groups[release] {
            group.committed = Some((commit.at, commit.metadata.clone()));
        }
        let both = [X, Y].map(|r| matches!(self.token(r), Some(Token::Live { .. })));
        if both == [true, true] && self.holds(Off::Seal) {
            self.broken = Some("I1: two releases are Live");
        }
        if matches!(metadata.token, Token::Live { .. } | Token::Sealed { .. }) {
            let named = terminal(&metadata, commit.at);
            let open = (0..EVENTS)
                .filter(|o| *o < commit.at || has(named, *o))
                .any(|o| self.answers[usize::from(o)] == [0, 0]);
            if open {
                self.broken = Some("I4: committed past an event that nobody answered");
            }
        }
        if let Token::Sealed { to: Some(to), .. } = &metadata.token {
            let receiver = if *to == NAMES[Y] { Y } else { X };
            if self.groups[receiver].is_none() {
                self.broken = Some("L2: sealed to a release that is gone");
            }
        }
    }

    /// I1: Live starts from the other one's seal.
    fn check_start(&mut self, release: usize, token: &Token) {
        let Token::Live { epoch, from, .. } = token else {
            return;
        };
        if matches!(self.token(release), Some(Token::Live { .. })) || !self.holds(Off::Seal) {
            return;
        }
        let starts = matches!(
            self.token(1 - release),
            Some(Token::Sealed { epoch: e, at, to: Some(to) })
                if e == *epoch && at == *from && to == NAMES[release]
        );
        if !starts {
            self.broken = Some("I1: Live without the seal that it starts from");
        }
    }

    /// A live result gets into the log.
    pub(super) fn publish(&mut self, release: usize, o: u8) {
        let holder = matches!(self.token(release), Some(Token::Live { .. }));
        if !holder && self.holds(Off::Seal) && self.holds(Off::Missing) {
            self.broken = Some("I5: a release that holds nothing has answered");
        }
        let other = 1 - release;
        let reported = self.deposed && self.setup.guarantee == Guarantee::AtLeastOnce;
        let index = usize::from(o);
        if self.answers[index][other] > 0 && !reported {
            self.broken = Some("I2: both releases answer one event");
        }
        if self.answers[index][release] > 0 && self.setup.guarantee == Guarantee::ExactlyOnce {
            self.broken = Some("I2: one event is committed twice");
        }
        let overtaken = (o + 1..EVENTS)
            .filter(|later| !self.carried || later % 2 == o % 2)
            .any(|later| self.answers[usize::from(later)][other] > 0);
        if overtaken && !reported {
            self.broken = Some("I3: an answer comes after a later one of the other release");
        }
        let count = &mut self.answers[index][release];
        *count = (*count + 1).min(2);
    }

    /// R11: the controller seals for a release without members.
    pub(super) fn depose(&mut self) {
        let Some((at, found)) = self.groups[X]
            .as_ref()
            .and_then(|group| group.committed.clone())
        else {
            return;
        };
        let mut metadata = read(&found);
        metadata.token = Token::Sealed {
            epoch: u64::from(self.issued) + 1,
            at: super::position(at),
            to: Some(NAMES[Y].clone()),
        };
        let ledger = if self.holds(Off::DeposeLedger) {
            terminal(&metadata, at)
        } else {
            0
        };
        let commit = Commit {
            at,
            metadata: text(&metadata.token, at, ledger),
            results: 0,
            hands_over: true,
        };
        self.deposed = true;
        self.carried = true;
        self.apply(X, &commit);
    }

    /// What the owner that adopts finds in the seal: its ledger (R3).
    pub(super) fn ledger_of_seal(&self, of: usize) -> u8 {
        let group: Option<&Group> = self.groups[of].as_ref();
        group
            .and_then(|group| group.committed.as_ref())
            .map_or(0, |(at, text)| terminal(&read(text), *at))
    }

    /// What the owner of a release knows once its commit is done.
    pub(super) fn committed(&mut self, release: usize, pod: usize, commit: &Commit) {
        let kept = self.holds(Off::FloorKept);
        let metadata = read(&commit.metadata);
        let Some(owner) = &mut self.pods[release][pod].owner else {
            return;
        };
        let adopts = commit.hands_over && matches!(metadata.token, Token::Live { .. });
        if adopts {
            // The shadow ledger is discarded, never merged (R3).
            owner.terminal = terminal(&metadata, commit.at);
            owner.in_flight = 0;
            // A first owner has answered nothing that it does not know of.
            owner.floor = 0;
        } else if !kept {
            owner.floor = 0;
        }
        for o in (0..EVENTS).filter(|o| has(commit.results, *o)) {
            owner.unstored &= !bit(o);
            owner.terminal |= bit(o);
        }
        owner.base = commit.at;
        owner.token = Some(metadata.token);
    }

    /// The cut of the seal that a release adopts.
    pub(super) fn cut_of(token: &Token) -> u8 {
        match token {
            Token::Sealed { at, .. } | Token::Shadow { at, .. } => offset(*at),
            Token::Live { from, .. } => offset(*from),
        }
    }
}
