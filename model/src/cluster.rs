//! A block with its controller: what `plan` makes of people, Git, pods that die and messages that
//! come late.
//!
//! Pods hand over by the real `role`, in one step per partition; what can go wrong inside such a
//! step is the business of [`crate::owners`]. The controller plans and then carries its list out
//! one action at a time, so that everybody else can move in between, and it can be restarted.
//!
//! Invariant: what a step cannot change is no step, so the walk ends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use millrace_core::contract::grant::{Granted, Grants};
use millrace_core::contract::intent::{Intent, Received};
use millrace_core::evidence::guard;
use millrace_core::position::{Partition, Position};
use millrace_core::release::plan::{
    Action, Decision, DecisionAction, Evidence, Guard, Members, Observed, Phase, Pods, Policy,
    Spec, Status, Verdict, plan,
};
use millrace_core::release::role::{Role, View, role, stamped};
use millrace_core::token::{ReleaseId, Token};

use crate::explore::World;

mod actions;

/// An hour: longer than every time-out but that of an approval.
const TICK_MS: i64 = 3_600_000;

/// How much may happen to a block beyond what has to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Budget {
    /// Hours that pass.
    pub ticks: u8,
    /// Partitions that are added.
    pub partitions: u8,
    /// Releases all of whose pods die for good.
    pub deaths: u8,
    /// Changes of Git.
    pub changes: u8,
    /// Restarts of the pods of a release, which then know no intent.
    pub restarts: u8,
    /// Decisions of people.
    pub decisions: u8,
    /// Controllers that are restarted in the middle of a list.
    pub crashes: u8,
    /// Intents that arrive late instead of the newest.
    pub stale: u8,
}

/// How the controller carries a list of actions out.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Lists {
    /// One action at a time: everybody else moves in between.
    OneByOne,
    /// All at once: smaller worlds.
    AtOnce,
    /// All at once, and intents arrive with it: smaller still.
    Heard,
}

/// A block and everybody who has to do with it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Cluster {
    /// What the planner would see.
    pub observed: Observed,
    /// Epoch ms.
    pub now_ms: i64,
    /// How the controller carries its list out.
    pub lists: Lists,
    /// What the controller still has to carry out.
    pub todo: Vec<Action>,
    /// Every intent ever pushed; any may arrive late, or again.
    pub issued: Vec<Intent>,
    /// The newest that the pods of a release know.
    pub heard: BTreeMap<ReleaseId, Intent>,
    /// Releases whose pods do nothing any more.
    pub dead: BTreeSet<ReleaseId>,
    /// What may still happen.
    pub budget: Budget,
    /// What people may say.
    pub words: Vec<Word>,
    /// A rule that was broken in the step that led here.
    pub broken: Option<&'static str>,
}

/// What a person may say about the candidate, or about the release that cannot hand over.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Word {
    /// About the candidate.
    Blue(DecisionAction),
    /// About the other one.
    Green(DecisionAction),
    /// Retry the release that was rejected last.
    Retry,
}

impl Word {
    /// Saying it again changes nothing, so it needs no budget.
    fn is_free(self) -> bool {
        matches!(
            self,
            Self::Blue(DecisionAction::Depose) | Self::Green(DecisionAction::Depose)
        )
    }
}

/// One thing that can happen.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Step {
    /// The controller looks and makes its list.
    Look,
    /// It carries the first of its list out.
    Act,
    /// It is restarted and forgets its list.
    Crash,
    /// Pods come and go as asked, and their group settles.
    Pods(ReleaseId),
    /// An intent reaches the pods of a release.
    Hear(ReleaseId, usize),
    /// The owner of a partition reads tokens and does what its role says.
    Own(ReleaseId, Partition),
    /// The comparison comes to an end.
    Judge(Verdict),
    /// Somebody decides.
    Decide(Word),
    /// Git asks for this release.
    Change(String),
    /// A partition is added.
    Add,
    /// All pods of a release die for good.
    Die(ReleaseId),
    /// The pods of a release start again and have forgotten the intent.
    Restart(ReleaseId),
    /// An hour passes.
    Tick,
}

/// A cluster and the policy of its block, which never changes.
#[derive(Clone, Debug)]
pub struct Block {
    /// The cluster.
    pub cluster: Cluster,
    /// How releases go.
    pub policy: Arc<Policy>,
}

impl PartialEq for Block {
    fn eq(&self, other: &Self) -> bool {
        self.cluster == other.cluster
    }
}

impl Eq for Block {}

impl std::hash::Hash for Block {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.cluster.hash(state);
    }
}

impl Cluster {
    /// A block that has never been released, with `partitions` empty partitions.
    pub fn new(partitions: i32, hash8: &str) -> Self {
        let all = (0..partitions).map(|n| (Partition::new("tx", n), Position::START));
        Self {
            observed: Observed {
                spec: Spec {
                    generation: 1,
                    hash8: hash8.to_owned(),
                    author: None,
                },
                status: Status::new(0),
                partitions: Some(all.collect()),
                groups: BTreeMap::new(),
                registry: BTreeMap::new(),
                pods: BTreeMap::new(),
                decisions: Vec::new(),
                evidence: Evidence {
                    verdict: Verdict::Pending,
                    held: false,
                    digest: None,
                },
                guard: Guard {
                    suspended: guard::Record::default(),
                    failing_since_ms: None,
                },
                snapshot: BTreeMap::new(),
            },
            now_ms: TICK_MS,
            lists: Lists::OneByOne,
            todo: Vec::new(),
            issued: Vec::new(),
            heard: BTreeMap::new(),
            dead: BTreeSet::new(),
            budget: Budget::default(),
            words: Vec::new(),
            broken: None,
        }
    }

    /// Another release is asked for.
    pub fn ask_for(&mut self, hash8: &str) {
        self.observed.spec.generation += 1;
        hash8.clone_into(&mut self.observed.spec.hash8);
    }

    /// A decision is made.
    pub fn decide(&mut self, action: DecisionAction, release: &ReleaseId, actor: &str) {
        self.observed.decisions.push(Decision {
            name: format!("{action:?} by {actor}"),
            action,
            release: release.clone(),
            evidence: None,
            actor: actor.to_owned(),
            answered: false,
        });
    }

    /// Which releases hold a partition Live.
    pub fn holders<'a>(&'a self, partition: &'a Partition) -> impl Iterator<Item = &'a ReleaseId> {
        let groups = self.observed.groups.keys();
        groups.filter(move |release| self.observed.live(release, partition).is_some())
    }

    fn pods(&mut self, release: &ReleaseId) {
        let Some(pods) = self.observed.pods.get_mut(release) else {
            return;
        };
        let dead = self.dead.contains(release);
        pods.running = pods.wanted;
        pods.ready = if dead { 0 } else { pods.wanted };
        let (wanted, ready) = (pods.wanted, pods.ready);
        let assigned: BTreeSet<_> = self.observed.fresh().cloned().collect();
        if wanted == 0 {
            self.heard.remove(release);
        }
        if let Some(group) = self.observed.groups.get_mut(release) {
            group.members = if ready == 0 {
                Members::Empty
            } else {
                Members::Stable {
                    since_ms: 0,
                    assigned,
                }
            };
        }
    }

    /// The owner of a partition does what its role says, in one commit.
    fn own(&mut self, release: &ReleaseId, partition: &Partition) {
        let observed = &self.observed;
        let others: Vec<_> = observed
            .groups
            .keys()
            .filter(|other| *other != release)
            .filter_map(|other| Some((other.clone(), observed.token(other, partition)?.clone())))
            .collect();
        let grants = observed
            .registry
            .get(partition)
            .and_then(|grant| grant.release.as_ref());
        let me = observed.token(release, partition).cloned();
        let heard = self.heard.get(release).cloned();
        let grant = grants
            .and_then(|grants: &Grants| grants.of(release))
            .cloned();
        let view = View {
            this: release,
            partition,
            me: me.as_ref(),
            others: &others,
            grant: grant.as_ref(),
            intent: heard.as_ref(),
        };
        let token = match role(&view) {
            Role::Halt(_) | Role::Shadow => return,
            Role::Take(Granted { token, .. }) => token,
            Role::Adopt { from, epoch, of } => Token::Live {
                epoch,
                from,
                peer: Some(of),
            },
            Role::Sealing { to, epoch } => Token::Sealed {
                epoch,
                at: Position::START,
                to: Some(to),
            },
            Role::Live => match me.clone() {
                Some(Token::Live { epoch, from, peer }) => Token::Live {
                    epoch: stamped(&view, epoch),
                    from,
                    peer,
                },
                Some(Token::Shadow { .. } | Token::Sealed { .. }) | None => return,
            },
        };
        if Some(&token) != me.as_ref() {
            self.commit_fresh(release, partition, token);
        }
    }

    fn hear(&mut self, release: &ReleaseId, index: usize) {
        let intent = &self.issued[index];
        if intent.received(self.heard.get(release)) == Received::Accepted {
            self.heard.insert(release.clone(), intent.clone());
        }
    }

    fn hear_all(&mut self) {
        let Some(newest) = self.issued.len().checked_sub(1) else {
            return;
        };
        let running = |(_, pods): &(&ReleaseId, &Pods)| pods.running > 0;
        let there = self.observed.pods.iter().filter(running);
        let there: Vec<_> = there.map(|(release, _)| release.clone()).collect();
        for release in there {
            if !self.dead.contains(&release) {
                self.hear(&release, newest);
            }
        }
    }

    fn about(&self, word: Word) -> Option<(DecisionAction, ReleaseId)> {
        let status = &self.observed.status;
        match word {
            Word::Blue(action) => Some((action, status.blue.clone()?)),
            Word::Green(action) => Some((action, status.green.clone()?)),
            Word::Retry => Some((DecisionAction::Retry, status.rejected.last()?.clone())),
        }
    }

    fn do_step(&mut self, step: &Step, policy: &Policy) {
        match step {
            Step::Look => {
                let plan = plan(&self.observed, policy, self.now_ms);
                let idle = plan.actions.is_empty() && plan.waiting_on.is_empty();
                if idle && plan.phase != Phase::Stable {
                    self.broken = Some("neither an action nor a wait, and not Stable");
                }
                self.todo = plan.actions;
                if self.lists != Lists::OneByOne {
                    for action in std::mem::take(&mut self.todo) {
                        self.carry_out(action);
                    }
                }
                if self.lists == Lists::Heard {
                    self.hear_all();
                }
            }
            Step::Act => {
                let action = self.todo.remove(0);
                self.carry_out(action);
            }
            Step::Crash => {
                self.todo.clear();
                self.budget.crashes -= 1;
            }
            Step::Pods(release) => self.pods(release),
            Step::Hear(release, index) => {
                if index + 1 < self.issued.len() {
                    self.budget.stale -= 1;
                }
                self.hear(release, *index);
            }
            Step::Own(release, partition) => self.own(release, partition),
            Step::Judge(verdict) => self.observed.evidence.verdict = *verdict,
            Step::Decide(word) => {
                if !word.is_free() {
                    self.budget.decisions -= 1;
                }
                if let Some((action, release)) = self.about(*word) {
                    self.decide(action, &release, "somebody");
                }
            }
            Step::Change(hash8) => {
                self.budget.changes -= 1;
                self.ask_for(hash8);
            }
            Step::Add => {
                self.budget.partitions -= 1;
                let n = self.observed.fresh().count();
                let n = i32::try_from(n).expect("there are few");
                if let Some(all) = &mut self.observed.partitions {
                    all.insert(Partition::new("tx", n), Position::START);
                }
            }
            Step::Die(release) => {
                self.budget.deaths -= 1;
                self.dead.insert(release.clone());
            }
            Step::Restart(release) => {
                self.budget.restarts -= 1;
                self.heard.remove(release);
            }
            Step::Tick => {
                self.budget.ticks -= 1;
                self.now_ms += TICK_MS;
            }
        }
    }

    fn steps(&self) -> Vec<Step> {
        let mut steps = vec![if self.todo.is_empty() {
            Step::Look
        } else {
            Step::Act
        }];
        if !self.todo.is_empty() && self.budget.crashes > 0 {
            steps.push(Step::Crash);
        }
        for (release, pods) in &self.observed.pods {
            steps.push(Step::Pods(release.clone()));
            if pods.running == 0 || self.dead.contains(release) {
                continue;
            }
            let newest = self.issued.len().wrapping_sub(1);
            for index in 0..self.issued.len() {
                if index == newest || self.budget.stale > 0 {
                    steps.push(Step::Hear(release.clone(), index));
                }
            }
            if self.observed.groups.contains_key(release) {
                let own = |p: &Partition| Step::Own(release.clone(), p.clone());
                steps.extend(self.observed.fresh().map(own));
            }
            if self.budget.restarts > 0 && self.heard.contains_key(release) {
                steps.push(Step::Restart(release.clone()));
            }
            if self.budget.deaths > 0 {
                steps.push(Step::Die(release.clone()));
            }
        }
        if self.observed.status.phase == Phase::Shadowing
            && self.observed.evidence.verdict == Verdict::Pending
        {
            steps.push(Step::Judge(Verdict::Pass));
            steps.push(Step::Judge(Verdict::Fail));
        }
        if self.observed.decisions.is_empty() {
            let words = self
                .words
                .iter()
                .filter(|word| word.is_free() || self.budget.decisions > 0);
            steps.extend(words.map(|word| Step::Decide(*word)));
        }
        if self.budget.changes > 0 {
            steps.extend(["aaaaaaaa", "cccccccc"].map(|hash8| Step::Change(hash8.to_owned())));
        }
        if self.budget.partitions > 0 {
            steps.push(Step::Add);
        }
        if self.budget.ticks > 0 {
            steps.push(Step::Tick);
        }
        steps
    }
}

impl World for Block {
    type Step = Step;

    fn steps(&self) -> Vec<Step> {
        if self.cluster.broken.is_some() {
            return Vec::new();
        }
        self.cluster.steps()
    }

    fn after(&self, step: &Step) -> Option<Self> {
        let mut next = self.clone();
        next.cluster.do_step(step, &self.policy);
        (next != *self).then_some(next)
    }
}

impl Block {
    /// What can happen now, whatever was broken.
    pub fn cluster_steps(&self) -> Vec<Step> {
        self.cluster.steps()
    }

    /// Lets everything happen that must, until nothing changes.
    ///
    /// # Panics
    /// If that takes more than `rounds_max` rounds.
    pub fn settle(&mut self, rounds_max: usize) {
        for _ in 0..rounds_max {
            let before = self.cluster.clone();
            self.round();
            if self.cluster == before {
                return;
            }
        }
        panic!(
            "it does not come to rest: {:?}",
            self.cluster.observed.status
        );
    }

    /// One look of the controller, carried out, and one turn of everybody else.
    pub fn round(&mut self) {
        let policy = Arc::clone(&self.policy);
        let cluster = &mut self.cluster;
        cluster.do_step(&Step::Look, &policy);
        while !cluster.todo.is_empty() {
            cluster.do_step(&Step::Act, &policy);
        }
        for step in cluster.steps() {
            match step {
                Step::Pods(_) | Step::Own(..) => cluster.do_step(&step, &policy),
                Step::Hear(_, index) if index + 1 == cluster.issued.len() => {
                    cluster.do_step(&step, &policy);
                }
                Step::Look
                | Step::Act
                | Step::Crash
                | Step::Hear(..)
                | Step::Judge(_)
                | Step::Decide(_)
                | Step::Change(_)
                | Step::Add
                | Step::Die(_)
                | Step::Restart(_)
                | Step::Tick => {}
            }
        }
    }
}
