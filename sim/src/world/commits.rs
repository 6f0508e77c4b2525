//! Commits on their way to the coordinator, and the destruction of a client.
//!
//! As librdkafka does: a commit is stamped with member and generation when it is sent, not when
//! it is asked for; once asked for, nobody can take it back, short of destroying the client.

use std::time::Duration;

use millrace_core::intake::io::{Commit, CommitId, CommitOutcome, Committed, Input};

use super::World;
use super::client::Client;
use super::group::MemberId;
use super::happening::{ClientId, Happening, Who};
use crate::laws::Lawful;

/// A commit on its way to the coordinator.
#[derive(Debug)]
pub(crate) struct OnTheWire {
    who: Who,
    client: ClientId,
    member: Option<MemberId>,
    generation: i32,
    offsets: Vec<(usize, Committed)>,
    /// The commit that waits for an answer, and whether the answer arrives.
    answer: Option<(CommitId, Answer)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Answer {
    Arrives,
    Lost,
}

fn offsets_of(commit: &Commit) -> Vec<(usize, Committed)> {
    commit
        .offsets
        .iter()
        .map(|(p, c)| (World::index_of(p), c.clone()))
        .collect()
}

impl World {
    /// `Effect::Commit`.
    pub(crate) fn commit(&mut self, who: Who, commit: Commit) {
        let slow = self.random.permille(self.scenario.faults.commit_slow) && !self.quiet;
        let after = if slow {
            self.random.ms(100, 12_000)
        } else {
            self.random.latency(5, 300)
        };
        let Some(process) = self.process(who) else {
            return;
        };
        let (id, client) = (commit.id, process.client.id);
        if process.client.destroying {
            return;
        }
        process.client.open = Some(commit);
        self.after(after, Happening::CommitSend(who, client, id));
    }

    /// The client sends a commit, stamped with what it knows now.
    pub(crate) fn commit_send(&mut self, who: Who, client: ClientId, id: CommitId) {
        let quiet = self.quiet;
        let faults = self.scenario.faults;
        let Some(it) = self.client(who, client) else {
            return;
        };
        let Some(commit) = it.open.as_ref().filter(|c| c.id == id) else {
            return;
        };
        let offsets = offsets_of(commit);
        if it.cut || it.member.is_none() {
            // librdkafka waits for the coordinator, at most a session.
            let after = self.random.ms(100, 1_000);
            self.after(after, Happening::CommitSend(who, client, id));
            return;
        }
        let (member, generation) = (it.member, it.generation);
        let rebalancing = member.is_some_and(|m| self.group.is_joining(m));
        let unknown = !quiet && self.random.permille(faults.commit_unknown);
        let retriable = !quiet && self.random.permille(faults.commit_retriable);
        let fenced = !quiet && self.random.permille(faults.commit_fenced);
        let rebalancing = rebalancing && self.random.permille(500);
        let answered = self.random.latency(10, 2_000);
        if retriable || rebalancing {
            let outcome = CommitOutcome::Retriable("the coordinator is loading".into());
            self.after(answered, Happening::CommitAnswer(who, client, id, outcome));
            return;
        }
        if fenced {
            let outcome = CommitOutcome::NotOwner("illegal generation".into());
            self.after(answered, Happening::CommitAnswer(who, client, id, outcome));
            return;
        }
        let mut wire = OnTheWire {
            who,
            client,
            member,
            generation,
            offsets,
            answer: Some((id, Answer::Arrives)),
        };
        if unknown {
            let after = self.random.ms(100, 5_000);
            let outcome = CommitOutcome::Unknown("the request timed out".into());
            self.after(after, Happening::CommitAnswer(who, client, id, outcome));
            match self.random.below(3) {
                // It never arrives.
                0 => return,
                // It arrives, its answer does not.
                1 => wire.answer = Some((id, Answer::Lost)),
                // The client sends it again when nobody expects it any more.
                _ => {
                    let later = after + self.random.ms(1, 25_000);
                    let offsets = wire.offsets;
                    let it = self.client(who, client).expect("it was just there");
                    it.late.push(offsets.clone());
                    self.after(later, Happening::LateSend(who, client, offsets));
                    return;
                }
            }
        }
        let after = self.random.ms(0, 30);
        self.after(after, Happening::CommitArrive(Box::new(wire)));
    }

    /// A commit whose end was told as unknown is sent after all.
    pub(crate) fn late_send(
        &mut self,
        who: Who,
        client: ClientId,
        offsets: Vec<(usize, Committed)>,
    ) {
        let Some(it) = self.client(who, client) else {
            return;
        };
        let Some(found) = it.late.iter().position(|late| *late == offsets) else {
            return;
        };
        it.late.remove(found);
        let wire = OnTheWire {
            who,
            client,
            member: it.member,
            generation: it.generation,
            offsets,
            answer: None,
        };
        self.after(
            Duration::from_millis(1),
            Happening::CommitArrive(Box::new(wire)),
        );
    }

    /// The coordinator checks member and generation, nothing else.
    pub(crate) fn commit_arrive(&mut self, wire: OnTheWire) -> Lawful {
        let known = wire.member.is_some_and(|m| self.group.is_member(m));
        let outcome = if !known {
            CommitOutcome::NotOwner("unknown member".into())
        } else if wire.generation != self.group.generation {
            CommitOutcome::NotOwner("illegal generation".into())
        } else {
            self.apply(&wire)?;
            CommitOutcome::Done
        };
        if let Some((id, Answer::Arrives)) = wire.answer {
            let after = self.random.latency(10, 1_000);
            self.after(
                after,
                Happening::CommitAnswer(wire.who, wire.client, id, outcome),
            );
        }
        Ok(())
    }

    fn apply(&mut self, wire: &OnTheWire) -> Lawful {
        let member = wire.member.expect("the coordinator knows it");
        self.note(|| format!("the broker stores a commit of pod {}", wire.who.pod));
        for (partition, committed) in &wire.offsets {
            let before = self.group.committed_of(*partition).map(|c| c.position);
            let owner = self.group.owner(*partition);
            self.laws.commit_applied(
                wire.who,
                *partition,
                before,
                committed,
                owner == Some(member),
            )?;
            self.group.store(*partition, committed.clone());
        }
        Ok(())
    }

    pub(crate) fn commit_answer(
        &mut self,
        who: Who,
        client: ClientId,
        id: CommitId,
        outcome: CommitOutcome,
    ) -> Lawful {
        let Some(it) = self.client(who, client) else {
            return Ok(());
        };
        if it.open.take_if(|c| c.id == id).is_none() {
            return Ok(());
        }
        self.feed(
            who,
            Input::Committed {
                commit: id,
                outcome,
            },
        )
    }

    /// `Effect::Rejoin`: the client is destroyed on its own thread.
    pub(crate) fn rejoin(&mut self, who: Who) {
        let after = self.random.latency(200, 8_000);
        let Some(process) = self.process(who) else {
            return;
        };
        let it = &mut process.client;
        if it.destroying {
            return;
        }
        it.destroying = true;
        let client = it.id;
        self.after(after, Happening::Destroyed(who, client));
    }

    /// The client is gone: whatever it had asked for has happened or never will.
    pub(crate) fn destroyed(&mut self, who: Who, client: ClientId) -> Lawful {
        let leaves = self.random.permille(700);
        let Some(it) = self.client(who, client) else {
            return Ok(());
        };
        let (open, late, member, generation) = (
            it.open.take(),
            std::mem::take(&mut it.late),
            it.member,
            it.generation,
        );
        let open_offsets = open.as_ref().map(offsets_of);
        for offsets in late.into_iter().chain(open_offsets) {
            if self.random.permille(500) {
                self.commit_arrive(OnTheWire {
                    who,
                    client,
                    member,
                    generation,
                    offsets,
                    answer: None,
                })?;
            }
        }
        if let Some(open) = open {
            let outcome = CommitOutcome::Unknown("the client was destroyed".into());
            self.feed(
                who,
                Input::Committed {
                    commit: open.id,
                    outcome,
                },
            )?;
        }
        if let Some(member) = member {
            if leaves {
                self.member_leaves(member);
            } else {
                self.falls_silent(member);
            }
        }
        let new = self.name();
        if let Some(process) = self.process(who) {
            process.client = Client::new(new);
        }
        self.feed(who, Input::Rejoined)?;
        let after = self.random.ms(0, 500);
        self.after(after, Happening::Join(who, new));
        Ok(())
    }

    /// The process ends in order: its client is closed and leaves.
    pub(crate) fn leave(&mut self, who: Who) -> Lawful {
        let Some(process) = self.process(who) else {
            return Ok(());
        };
        let it = &mut process.client;
        let (late, member, generation, client) = (
            std::mem::take(&mut it.late),
            it.member,
            it.generation,
            it.id,
        );
        let open = it.open.take().as_ref().map(offsets_of);
        for offsets in late.into_iter().chain(open) {
            if self.random.permille(500) {
                self.commit_arrive(OnTheWire {
                    who,
                    client,
                    member,
                    generation,
                    offsets,
                    answer: None,
                })?;
            }
        }
        if let Some(member) = member {
            self.member_leaves(member);
        }
        Ok(())
    }
}
