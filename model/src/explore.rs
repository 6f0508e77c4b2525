//! Walks every reachable state of a world, and tells from which of them a goal can be reached.
//!
//! A model checker's `eventually` follows single paths and gives up at cycles; "completion stays
//! possible, whatever has happened" needs the edges, walked backwards from the goal (L1 to L3).
//!
//! Invariant: it keeps every state, so nothing is lost by hashes that collide.

use std::collections::HashMap;
use std::hash::Hash;

/// A world with its possible steps.
pub trait World: Clone + Eq + Hash {
    /// What can happen.
    type Step: Clone + std::fmt::Debug;

    /// Everything that can happen now.
    fn steps(&self) -> Vec<Self::Step>;

    /// The world after a step; `None`: it changes nothing that matters.
    fn after(&self, step: &Self::Step) -> Option<Self>;
}

/// Every reachable state.
pub struct Graph<W: World> {
    states: Vec<W>,
    /// For each state: which state comes before it on a shortest way, and by which step.
    before: Vec<Option<(u32, W::Step)>>,
    /// For each state: whence it can be reached.
    from: Vec<Vec<u32>>,
}

impl<W: World> Graph<W> {
    /// Walks breadth first.
    ///
    /// # Panics
    /// With more than `states_max` states: the bounds of the world are wrong.
    pub fn of(first: W, states_max: usize) -> Self {
        let mut ids = HashMap::from([(first.clone(), 0_u32)]);
        let mut graph = Self {
            states: vec![first],
            before: vec![None],
            from: vec![Vec::new()],
        };
        let mut at = 0;
        while at < graph.states.len() {
            let id = index(at);
            for step in graph.states[at].steps() {
                let Some(next) = graph.states[at].after(&step) else {
                    continue;
                };
                let known = ids.get(&next).copied();
                let next_id = known.unwrap_or_else(|| {
                    let new = index(graph.states.len());
                    ids.insert(next.clone(), new);
                    graph.states.push(next);
                    graph.before.push(Some((id, step)));
                    graph.from.push(Vec::new());
                    new
                });
                graph.from[next_id as usize].push(id);
            }
            at += 1;
            assert!(at <= states_max, "more than {states_max} states");
        }
        graph
    }

    /// How many states there are.
    pub fn len(&self) -> usize {
        self.states.len()
    }

    /// There is always the first.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// How many steps lead from one to another.
    pub fn edges(&self) -> usize {
        self.from.iter().map(Vec::len).sum()
    }

    /// The states.
    pub fn states(&self) -> &[W] {
        &self.states
    }

    /// A shortest way to the first state of which `is_bad` holds, and that state.
    pub fn way_to(&self, is_bad: impl Fn(&W) -> bool) -> Option<(Vec<W::Step>, &W)> {
        let found = self.states.iter().position(is_bad)?;
        Some((self.way(found), &self.states[found]))
    }

    /// A state from which no state of which `is_goal` holds can be reached, with the way to it.
    pub fn stuck(&self, is_goal: impl Fn(&W) -> bool) -> Option<(Vec<W::Step>, &W)> {
        let mut reaches: Vec<bool> = self.states.iter().map(is_goal).collect();
        let mut open: Vec<usize> = (0..reaches.len()).filter(|id| reaches[*id]).collect();
        while let Some(id) = open.pop() {
            for before in &self.from[id] {
                let before = *before as usize;
                if !reaches[before] {
                    reaches[before] = true;
                    open.push(before);
                }
            }
        }
        let found = reaches.iter().position(|reaches| !reaches)?;
        Some((self.way(found), &self.states[found]))
    }

    fn way(&self, to: usize) -> Vec<W::Step> {
        let mut way = Vec::new();
        let mut at = to;
        while let Some((before, step)) = &self.before[at] {
            way.push(step.clone());
            at = *before as usize;
        }
        way.reverse();
        way
    }
}

fn index(at: usize) -> u32 {
    u32::try_from(at).expect("there are fewer states than that")
}
