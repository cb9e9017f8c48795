//! Minimum cuts. Dinic, "Algorithm for solution of a problem of maximum flow in a network with power estimation",
//! Soviet Mathematics Doklady 11, 1970.

use std::collections::VecDeque;

/// A network of places with directed edges that have capacities.
pub(super) struct Network {
    /// An edge and the one back have neighbouring numbers.
    edges: Vec<Edge>,
    /// The edges that leave each place.
    leaving: Vec<Vec<usize>>,
}

struct Edge {
    to: usize,
    left: u64,
}

/// Where the flow comes from.
pub(super) const SOURCE: usize = 0;

/// Where the flow goes to.
pub(super) const SINK: usize = 1;

/// The capacity of an edge that must not be cut.
pub(super) const ENDLESS: u64 = 1 << 62;

impl Network {
    /// Source and sink alone.
    pub fn new() -> Network {
        Network { edges: Vec::new(), leaving: vec![Vec::new(), Vec::new()] }
    }

    /// A new place.
    pub fn place(&mut self) -> usize {
        self.leaving.push(Vec::new());
        self.leaving.len() - 1
    }

    /// A new edge. To cut it costs its capacity; it is cut when `from` comes to lie on the source's side and `to` on the
    /// other.
    pub fn edge(&mut self, from: usize, to: usize, capacity: u64) {
        for (from, to, left) in [(from, to, capacity), (to, from, 0)] {
            self.leaving[from].push(self.edges.len());
            self.edges.push(Edge { to, left });
        }
    }

    /// Which places lie on the source's side of a cheapest cut; of all such cuts the one with the fewest there.
    pub fn cut(mut self) -> Vec<bool> {
        loop {
            let levels = self.levels();
            if levels[SINK].is_none() {
                return levels.iter().map(Option::is_some).collect();
            }
            self.block(levels);
        }
    }

    /// How many edges with room lie between the source and each place.
    fn levels(&self) -> Vec<Option<usize>> {
        let mut levels = vec![None; self.leaving.len()];
        levels[SOURCE] = Some(0);
        let mut queue = VecDeque::from([(SOURCE, 0)]);
        while let Some((at, level)) = queue.pop_front() {
            for &edge in &self.leaving[at] {
                let Edge { to, left } = self.edges[edge];
                if left > 0 && levels[to].is_none() {
                    levels[to] = Some(level + 1);
                    queue.push_back((to, level + 1));
                }
            }
        }
        levels
    }

    /// Fills all shortest ways from the source to the sink.
    fn block(&mut self, mut levels: Vec<Option<usize>>) {
        let mut next = vec![0; self.leaving.len()];
        let mut way: Vec<usize> = Vec::new();
        loop {
            let at = way.last().map_or(SOURCE, |&edge| self.edges[edge].to);
            if at == SINK {
                let flow = way.iter().map(|&edge| self.edges[edge].left).min().unwrap_or(0);
                for edge in way.drain(..) {
                    self.edges[edge].left -= flow;
                    self.edges[edge ^ 1].left = self.edges[edge ^ 1].left.saturating_add(flow);
                }
                continue;
            }
            let deeper = levels[at].map(|level| level + 1);
            let open = |&edge: &usize| self.edges[edge].left > 0 && levels[self.edges[edge].to] == deeper;
            match self.leaving[at].get(next[at]) {
                Some(edge) if open(edge) => way.push(*edge),
                Some(_) => next[at] += 1,
                None => {
                    levels[at] = None;
                    if way.pop().is_none() {
                        return;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_cut_is_cheaper(edges in prop::collection::vec((0usize..7, 0usize..7, 0u64..9), 0..25)) {
            let mut network = Network::new();
            (0..5).for_each(|_| {
                network.place();
            });
            edges.iter().for_each(|&(from, to, capacity)| network.edge(from, to, capacity));
            let cost = |side: &dyn Fn(usize) -> bool| -> u64 {
                edges.iter().filter(|e| side(e.0) && !side(e.1)).map(|e| e.2).sum()
            };
            let found = network.cut();
            prop_assert!(found[SOURCE] && !found[SINK]);
            let best = (0u32..128).filter(|s| s & 3 == 1).map(|s| cost(&|at| s >> at & 1 == 1)).min();
            prop_assert_eq!(Some(cost(&|at| found[at])), best);
        }
    }
}
