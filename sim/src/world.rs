//! The model world: a broker with a consumer group, apps and output proxies in virtual time,
//! around real intake and store machines.
//!
//! Everything that happens is taken from one queue in the order of time; what is at random is
//! drawn from the seed when it is decided. Inputs reach a machine through [`World::feed`] only,
//! and its effects are carried out there, one by one, under the eyes of the [`Laws`].
//!
//! Invariant: carrying out an effect never feeds a machine; its end comes back later.
//! Invariant: a frozen process sees nothing until it thaws, then everything in order.

mod app;
mod client;
mod commits;
mod ending;
mod faults;
mod group;
pub(crate) mod happening;
pub mod log;
pub(crate) mod output;
mod pushing;
mod transactions;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use millrace_core::intake::Intake;
use millrace_core::intake::io::{CallId, Effect, Input, Link};
use millrace_core::rules::Rules;
use millrace_core::time::Time;

use self::app::App;
use self::client::Client;
use self::group::Group;
use self::happening::Scheduled;
pub(crate) use self::happening::{ClientId, Half, Happening, Who};
use self::log::{EPOCH_MS, Log};
use self::output::OutputPod;
use self::transactions::Transactional;
use crate::event_log::{self, Trace};
use crate::laws::{Law, Lawful, Laws, Violation};
use crate::random::Random;
use crate::scenario::Scenario;

/// One pod: an input process while it lives, and an output.
pub(crate) struct Pod {
    pub(crate) life: u32,
    pub(crate) process: Option<Process>,
    pub(crate) output: OutputPod,
    /// Its node's boot clock and wall clock run ahead of the world's by this much.
    boot_ahead: Duration,
    wall_ahead_ms: i64,
    /// Halves that do not run, and what waits for them.
    frozen: Option<(bool, bool)>,
    stalled: VecDeque<Happening>,
}

/// One input process.
pub(crate) struct Process {
    pub(crate) intake: Intake,
    pub(crate) client: Client,
    pub(crate) app: App,
    /// The session of the publish connection, if it is up as far as the input knows.
    pub(crate) session: Option<u64>,
    pub(crate) answers: Vec<(CallId, millrace_core::outcome::Outcome)>,
    wake_at: Option<Duration>,
    stop_by: Option<Duration>,
}

/// A whole run.
pub struct World {
    pub(crate) scenario: Scenario,
    pub(crate) rules: Rules,
    pub(crate) random: Random,
    pub(crate) now: Duration,
    queue: BinaryHeap<Reverse<Scheduled>>,
    order: u64,
    step: u64,
    pub(crate) logs: Vec<Log>,
    pub(crate) group: Group,
    pub(crate) pods: Vec<Pod>,
    /// What the brokers know about the producers of each pod.
    pub(crate) transactional: Vec<Transactional>,
    pub(crate) laws: Laws,
    pub(crate) names: u64,
    /// No more faults: everything has to come to an end now.
    pub(crate) quiet: bool,
    phase: Phase,
    /// Calls and batches tried per event, by partition and index.
    pub(crate) tries: Vec<Vec<u32>>,
    pub(crate) output_away_until: Duration,
    trace: Trace,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Busy,
    /// Since when, and when and with what something last moved on.
    Settling {
        since: Duration,
        moved: Duration,
        open: u64,
    },
    Draining {
        since: Duration,
    },
    Done,
}

/// What a run came to, for people.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Summary {
    /// Things that happened.
    pub steps: u64,
    /// Events of the log.
    pub events: u64,
    /// Records that were stored more than once.
    pub repeats: u64,
    /// Virtual time.
    pub lasted: Duration,
}

/// A drain has this long.
const DRAINED_WITHIN: Duration = Duration::from_secs(55);
/// A wake-up may be so late.
const LATE: Duration = Duration::from_millis(50);
/// More steps than any orderly run takes.
const STEPS_MAX: u64 = 3_000_000;

impl World {
    /// A world at its beginning.
    pub fn new(scenario: Scenario, rules: Rules, trace: Trace) -> Self {
        let mut random = Random::new(scenario.seed.wrapping_mul(31).wrapping_add(7));
        let logs = Log::all(&scenario, &mut random);
        let laws = Laws::new(&scenario, &logs);
        let group = Group::new(&scenario, &mut random);
        let tries = logs.iter().map(|log| vec![0; log.records.len()]).collect();
        let transactional = (0..scenario.pods).map(|_| Transactional::default());
        let transactional = transactional.collect();
        let pods = (0..scenario.pods)
            .map(|_| Pod {
                life: 0,
                process: None,
                output: OutputPod::new(&scenario),
                boot_ahead: Duration::from_secs(random.between(1, 1_000_000)),
                wall_ahead_ms: random.between(0, 4_000).cast_signed() - 2_000,
                frozen: None,
                stalled: VecDeque::new(),
            })
            .collect();
        let mut world = Self {
            rules,
            random,
            now: Duration::ZERO,
            queue: BinaryHeap::new(),
            order: 0,
            step: 0,
            logs,
            group,
            pods,
            transactional,
            laws,
            names: 0,
            quiet: false,
            phase: Phase::Busy,
            tries,
            output_away_until: Duration::ZERO,
            trace,
            scenario,
        };
        for pod in 0..world.scenario.pods {
            if world.scenario.once {
                world.init_producer(pod);
            }
            let after = world.random.ms(0, if pod == 0 { 1_000 } else { 20_000 });
            world.after(after, Happening::Start(pod));
        }
        let seeded = world.random.ms(0, 5_000);
        world.after(seeded, Happening::Seeded);
        world.after(world.scenario.busy_for, Happening::Quiesce);
        world.plan_faults();
        world
    }

    /// Runs to the end or to the first broken law.
    pub fn run(&mut self) -> Result<Summary, Violation> {
        while self.phase != Phase::Done {
            self.step()?;
        }
        self.laws.ended()?;
        Ok(Summary {
            steps: self.step,
            events: self.scenario.events,
            repeats: self.laws.repeats(),
            lasted: self.now,
        })
    }

    /// What the trace kept.
    pub fn into_trace(self) -> Vec<String> {
        self.trace.into_lines()
    }

    /// The number of the last step.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// Lets the next thing happen.
    fn step(&mut self) -> Lawful {
        let Some(Reverse(next)) = self.queue.pop() else {
            return Err(Law::Liveness.broken("nothing will ever happen again"));
        };
        self.step += 1;
        if self.step > STEPS_MAX {
            return Err(Law::WakeUps.broken(format!("still busy after {STEPS_MAX} steps")));
        }
        self.now = self.now.max(next.at);
        if let Some((pod, half)) = next.happening.half() {
            let stops = self.pods[pod]
                .frozen
                .is_some_and(|(input, output)| match half {
                    Half::Input => input,
                    Half::Output => output,
                });
            if stops {
                self.pods[pod].stalled.push_back(next.happening);
                return Ok(());
            }
        }
        self.trace.step(self.step, self.now);
        self.happen(next.happening)
    }

    pub(crate) fn after(&mut self, after: Duration, happening: Happening) {
        self.order += 1;
        self.queue.push(Reverse(Scheduled {
            at: self.now + after,
            order: self.order,
            happening,
        }));
    }

    pub(crate) fn name(&mut self) -> u64 {
        self.names += 1;
        self.names
    }

    pub(crate) fn note(&mut self, text: impl FnOnce() -> String) {
        self.trace.note(text);
    }

    fn happen(&mut self, happening: Happening) -> Lawful {
        match happening {
            Happening::Fault(fault) => self.fault(fault)?,
            Happening::Quiesce => self.quiesce()?,
            Happening::Check => self.check()?,
            Happening::Seeded => self.group.seed(&self.scenario),
            Happening::Start(pod) => self.start(pod),
            Happening::Thaw(pod) => self.thaw(pod),
            Happening::Mend(who, client) => self.mend(who, client),
            Happening::Expire(member, silence) => self.expire(member, silence),
            Happening::Complete(epoch) => self.complete(epoch),
            Happening::Wake(who) => self.wake(who)?,
            Happening::Fetch(who, client) => self.fetch(who, client)?,
            Happening::ReadTokens(who, client, partition) => {
                self.read_tokens(who, client, partition)
            }
            Happening::TokensRead(who, client, partition, read) => {
                self.tokens_read(who, client, partition, *read)?;
            }
            Happening::CommitSend(who, client, commit) => self.commit_send(who, client, commit),
            Happening::CommitArrive(wire) => self.commit_arrive(*wire)?,
            Happening::CommitAnswer(who, client, commit, outcome) => {
                self.commit_answer(who, client, commit, outcome)?;
            }
            Happening::LateSend(who, client, offsets) => self.late_send(who, client, offsets),
            Happening::Destroyed(who, client) => self.destroyed(who, client)?,
            Happening::Join(who, client) => self.join(who, client),
            Happening::Notice(who, client) => self.notice(who, client),
            Happening::Sync(who, client, assignment) => self.sync(who, client, *assignment)?,
            Happening::AssignCallback(who, client, add) => {
                self.assign_callback(who, client, add)?
            }
            Happening::LoseNotice(who, client, member) => self.lose_notice(who, client, member)?,
            Happening::AppAnswer(who, call) => self.app_answer(who, call)?,
            Happening::GivenUp(who, call) => self.given_up(who, call)?,
            Happening::AppWork(who, call) => self.app_work(who, call)?,
            Happening::AppPost(who, call) => self.app_post(who, call)?,
            Happening::PostAnswered(who, call, answer) => self.post_answered(who, call, answer)?,
            Happening::AppCrash(who, call) => self.app_crash(who, call),
            Happening::PodDies(who, call) => self.pod_dies(who, call),
            Happening::ConnectionLost(who, call, death) => {
                self.connection_lost(who, call, death)?;
            }
            Happening::FlushAnswers(who) => self.flush_answers(who)?,
            Happening::AppProbed(who) => self.app_probed(who)?,
            Happening::Connect(who) => self.connect(who)?,
            Happening::ToInput(who, session, reply) => self.hear_output(who, session, reply)?,
            Happening::LinkLost(who, session) => self.link_lost(who, session)?,
            Happening::ToOutput(pod, session, frame) => self.hear_input(pod, session, frame)?,
            Happening::OutputClose(pod, session) => self.output_close(pod, session)?,
            Happening::SendBatches(pod, life) => self.send_batches(pod, life)?,
            Happening::BatchArrive(batch) => self.batch_arrive(*batch)?,
            Happening::BatchEnd(pod, life, ended) => self.batch_end(pod, life, ended)?,
            Happening::Rebuilt(pod, life) => self.rebuilt(pod, life)?,
            Happening::MetadataRead(who, client, commit, partitions) => {
                self.metadata_read(who, client, commit, &partitions)?;
            }
            Happening::OutputReady(pod, life) => self.output_ready(pod, life),
            Happening::OutputWakes(pod, life) => self.output_wakes(pod, life)?,
            Happening::OffsetsArrive(ending, group, offsets) => {
                self.offsets_arrive(ending, group, offsets)?;
            }
            Happening::EndSend(ending) => self.end_send(ending),
            Happening::EndArrive(ending, answers) => self.end_arrive(ending, answers)?,
            Happening::AbortArrive(ending) => self.abort_arrive(ending),
            Happening::TransactionExpires(pod, name) => self.transaction_expires(pod, name),
            Happening::TransactionTold(ending, ended) => self.transaction_ended(&ending, ended)?,
        }
        Ok(())
    }

    /// The process that is meant, if it still lives.
    pub(crate) fn process(&mut self, who: Who) -> Option<&mut Process> {
        let pod = &mut self.pods[who.pod];
        if pod.life == who.life {
            pod.process.as_mut()
        } else {
            None
        }
    }

    /// Its client, if that is still the same.
    pub(crate) fn client(&mut self, who: Who, client: ClientId) -> Option<&mut Client> {
        self.process(who)
            .map(|process| &mut process.client)
            .filter(|known| known.id == client)
    }

    /// A pod's clocks.
    pub(crate) fn local(&self, pod: usize) -> Time {
        let pod = &self.pods[pod];
        let since = i64::try_from(self.now.as_millis()).expect("runs are short");
        Time {
            boot: self.now + pod.boot_ahead,
            wall_ms: EPOCH_MS + since + pod.wall_ahead_ms,
        }
    }

    pub(crate) fn index_of(partition: &millrace_core::position::Partition) -> usize {
        usize::try_from(partition.number()).expect("partitions count from zero")
    }

    /// Gives a machine its next input and carries out what it asks for.
    pub(crate) fn feed(&mut self, who: Who, input: Input) -> Lawful {
        let now = self.local(who.pod);
        let tick = matches!(input, Input::Tick);
        self.trace
            .note(|| format!("pod {} <- {}", who.pod, event_log::input(&input)));
        self.laws.fed(who, &input);
        let mut effects = Vec::new();
        let Some(process) = self.process(who) else {
            return Ok(());
        };
        process.intake.on(now, input, &mut effects);
        let idle = effects.is_empty();
        for effect in effects {
            self.trace
                .note(|| format!("pod {} -> {}", who.pod, event_log::effect(&effect)));
            self.carry_out(who, effect)?;
        }
        let Some(process) = self.process(who) else {
            return Ok(());
        };
        let state = process.intake.state();
        let deadline = process.intake.deadline();
        self.laws.stepped(who, &state)?;
        let due = deadline.map(|at| at.boot.saturating_sub(now.boot));
        self.laws.turned(who, tick && idle, due, self.now)?;
        self.rearm(who, due);
        Ok(())
    }

    fn rearm(&mut self, who: Who, due: Option<Duration>) {
        let now = self.now;
        let late = if self.random.permille(100) {
            self.random.ms(0, 30)
        } else {
            Duration::ZERO
        };
        let process = self.process(who).expect("it was just fed");
        let wake_at = due.map(|due| now + due);
        if process.wake_at == wake_at {
            return;
        }
        process.wake_at = wake_at;
        if let Some(due) = due {
            self.after(due + late, Happening::Wake(who));
        }
    }

    fn wake(&mut self, who: Who) -> Lawful {
        let now = self.now;
        match self.process(who) {
            Some(process) if process.wake_at.is_some_and(|at| at <= now) => {
                process.wake_at = None;
                self.feed(who, Input::Tick)
            }
            _ => Ok(()),
        }
    }

    fn carry_out(&mut self, who: Who, effect: Effect) -> Lawful {
        match effect {
            Effect::ReadTokens(partition) => {
                let after = self.random.latency(30, 3_000);
                if let Some(process) = self.process(who) {
                    let client = process.client.id;
                    self.after(
                        after,
                        Happening::ReadTokens(who, client, Self::index_of(&partition)),
                    );
                }
                Ok(())
            }
            Effect::Assign(starts) => self.assign(who, starts),
            Effect::Unassign(partitions) => self.unassign(who, &partitions),
            Effect::Seek {
                partition,
                position,
            } => self.seek(who, &partition, position),
            Effect::Pause(partition) => self.pause(who, &partition, true),
            Effect::Resume(partition) => self.pause(who, &partition, false),
            Effect::Call(call) => {
                self.laws.called(who, &call, &self.logs)?;
                self.call(who, call);
                Ok(())
            }
            Effect::Publish(frame) => {
                let offset = self.pods[who.pod].boot_ahead;
                self.laws
                    .published(who, &frame, self.now, offset, &self.logs)?;
                self.publish(who, frame);
                Ok(())
            }
            Effect::Commit(commit) => {
                self.laws.commit_cut(who, &commit, self.now)?;
                self.commit(who, commit);
                Ok(())
            }
            Effect::ReadGroupMetadata { commit, partitions } => {
                self.read_group_metadata(who, commit, partitions);
                Ok(())
            }
            Effect::ProbeApp => {
                let after = self.random.latency(20, 2_000);
                self.after(after, Happening::AppProbed(who));
                Ok(())
            }
            Effect::Rejoin => {
                self.laws.rejoins(who);
                self.rejoin(who);
                Ok(())
            }
            Effect::Report(_) => Ok(()),
            Effect::Stop => self.stop(who),
        }
    }

    /// A new input process in a pod.
    fn start(&mut self, pod: usize) {
        if self.pods[pod].process.is_some() || matches!(self.phase, Phase::Draining { .. }) {
            return;
        }
        let seed = self.random.bits();
        let client = self.name();
        let intake = Intake::new(self.scenario.settings(pod, self.rules), seed);
        self.pods[pod].life += 1;
        self.pods[pod].process = Some(Process {
            intake,
            client: Client::new(client),
            app: App::default(),
            session: None,
            answers: Vec::new(),
            wake_at: None,
            stop_by: None,
        });
        let who = Who {
            pod,
            life: self.pods[pod].life,
        };
        self.laws.started(who);
        self.note(|| format!("pod {pod} starts"));
        let after = self.random.ms(0, 500);
        self.after(after, Happening::Connect(who));
        let after = self.random.ms(0, 1_000);
        self.after(after, Happening::Join(who, client));
    }

    /// The intake says that everything is settled: its client leaves, and it is gone.
    fn stop(&mut self, who: Who) -> Lawful {
        let now = self.now;
        let process = self.process(who).expect("it just spoke");
        let in_time = process.stop_by.is_some_and(|by| now <= by);
        let at_deadline = process.stop_by.is_some_and(|by| now + LATE >= by);
        self.laws.stopped(who, in_time, at_deadline)?;
        self.leave(who)?;
        self.pods[who.pod].process = None;
        self.laws.gone(who);
        let life = self.pods[who.pod].output.session();
        if let Some(session) = life {
            self.after(Duration::ZERO, Happening::OutputClose(who.pod, session));
        }
        if !matches!(self.phase, Phase::Draining { .. }) {
            let after = self.random.ms(100, 20_000);
            self.after(after, Happening::Start(who.pod));
        }
        Ok(())
    }

    pub(crate) fn drain(&mut self, who: Who) -> Lawful {
        let stop_by = self.now + DRAINED_WITHIN + LATE;
        let Some(process) = self.process(who) else {
            return Ok(());
        };
        if process.stop_by.is_some() {
            return Ok(());
        }
        process.stop_by = Some(stop_by);
        let deadline = self.local(who.pod).plus(DRAINED_WITHIN);
        self.feed(who, Input::Drain { deadline })
    }

    fn link_input(&mut self, who: Who, link: Link) -> Lawful {
        self.feed(who, Input::Link(link))
    }
}
