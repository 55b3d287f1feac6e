//! How long ranks need to exchange what they hold.
//!
//! Latency and bandwidth terms of Thakur, Rabenseifner and Gropp (IJHPCA 19(1), 2005): a ring moves (n-1)/n of the bytes through every link;
//! small messages go along a tree, log n hops. A group that spans several domains runs its ring through all of them: each domain's traffic
//! leaves through the network ports of all the group's ranks there (rails), and the slower of the two links sets the pace.

use super::layout::Dispatch;
use crate::hardware::Machine;

/// The links as a step sustains them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Links {
    /// GPUs of a domain.
    pub domain: f64,
    /// Bytes a second inside a domain, one GPU, one direction.
    pub inside: f64,
    /// Bytes a second between domains, one GPU, one direction.
    pub between: f64,
    pub latency_inside: f64,
    pub latency_between: f64,
    pub reduces_in_switch: bool,
}

/// Ranks that exchange: `size` of them, `stride` GPUs apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Group {
    pub size: f64,
    pub stride: f64,
}

impl Group {
    pub fn new(size: u32, stride: u32) -> Group {
        Group { size: f64::from(size), stride: f64::from(stride) }
    }
}

impl Links {
    /// The machine's links at these shares of their rates.
    pub fn new(machine: &Machine, inside: f64, between: f64) -> Links {
        Links {
            domain: f64::from(machine.scale_up.domain),
            inside: machine.scale_up.bytes_per_second * inside,
            between: machine.scale_out.bytes_per_second * between,
            latency_inside: machine.scale_up.latency,
            latency_between: machine.scale_out.latency,
            reduces_in_switch: machine.scale_up.reduces_in_switch,
        }
    }

    /// Ranks of the group that lie in one domain.
    pub fn together(&self, group: Group) -> f64 {
        (self.domain / group.stride).floor().clamp(1.0, group.size)
    }

    /// Seconds in which every rank gets all of `bytes`, of which each holds its part; or, the other way round, its sum of them.
    pub fn gather(&self, bytes: f64, group: Group) -> f64 {
        if group.size <= 1.0 {
            return 0.0;
        }
        let together = self.together(group);
        let domains = (group.size / together).ceil();
        let moved = bytes * (group.size - 1.0) / group.size;
        // Rounds of a tree: the logarithm to base 2, rounded up.
        let hops = |ranks: f64| f64::from((ranks as u32).max(1).next_power_of_two().trailing_zeros());
        if domains <= 1.0 {
            return moved / self.inside + hops(group.size) * self.latency_inside;
        }
        let between = moved / (self.between * together).min(self.inside);
        between + hops(domains) * self.latency_between + hops(together) * self.latency_inside
    }

    /// Seconds in which every rank gets the sum of all: a scatter of sums and a gathering (Rabenseifner), or once through a switch that adds.
    pub fn all_reduce(&self, bytes: f64, group: Group) -> f64 {
        if self.reduces_in_switch && group.size > 1.0 && self.together(group) >= group.size {
            return bytes / self.inside + 2.0 * self.latency_inside;
        }
        2.0 * self.gather(bytes, group)
    }

    /// Seconds of a message between neighbours that lie `stride` GPUs apart in a row.
    pub fn send(&self, bytes: f64, stride: f64) -> f64 {
        if stride < self.domain { bytes / self.inside + self.latency_inside } else { bytes / self.between + self.latency_between }
    }

    /// Seconds in which every rank sends each of its tokens to `copies` places drawn evenly among the ranks: `bytes` a copy, `tokens` a rank.
    pub fn all_to_all(&self, tokens: f64, bytes: f64, copies: f64, group: Group, dispatch: Dispatch) -> f64 {
        if group.size <= 1.0 {
            return 0.0;
        }
        let together = self.together(group);
        let domains = (group.size / together).ceil();
        let inside = tokens * bytes * copies * (group.size - 1.0) / group.size / self.inside;
        if domains <= 1.0 {
            return inside + self.latency_inside;
        }
        let reached = match dispatch {
            Dispatch::ByCopy => copies,
            Dispatch::ByDomain => domains * (1.0 - (1.0 - 1.0 / domains).powi(copies as i32)),
        };
        let between = tokens * bytes * reached * (domains - 1.0) / domains / self.between;
        inside.max(between) + self.latency_between
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINKS: Links =
        Links { domain: 8.0, inside: 400e9, between: 50e9, latency_inside: 0.0, latency_between: 0.0, reduces_in_switch: false };

    fn near(a: f64, b: f64) -> bool {
        (a / b - 1.0).abs() < 1e-9
    }

    #[test]
    fn a_ring_moves_all_but_its_own_part() {
        assert!(near(LINKS.gather(8e9, Group::new(8, 1)), 7e9 / 400e9));
        assert!(near(LINKS.all_reduce(8e9, Group::new(8, 1)), 14e9 / 400e9));
        assert_eq!(LINKS.gather(8e9, Group::new(1, 1)), 0.0);
    }

    /// 64 ranks, all 8 of every node: 8 rails of 50 GB/s are as fast as the link inside. Every eighth GPU: one rail a node.
    #[test]
    fn the_network_is_as_wide_as_the_ranks_of_a_node() {
        assert!(near(LINKS.gather(64e9, Group::new(64, 1)), 63e9 / 400e9));
        assert!(near(LINKS.gather(64e9, Group::new(64, 8)), 63e9 / 50e9));
        assert!(near(LINKS.gather(64e9, Group::new(64, 4)), 63e9 / 100e9));
    }

    #[test]
    fn tokens_go_once_to_another_node() {
        let one_node = LINKS.all_to_all(1000.0, 1e6, 8.0, Group::new(8, 1), Dispatch::ByDomain);
        assert!(near(one_node, 1000.0 * 1e6 * 8.0 * 7.0 / 8.0 / 400e9));
        // 8 places among 8 nodes reach 8 (1 - (7/8)^8) = 5.25 nodes in the mean, 7/8 of them foreign.
        let eight = LINKS.all_to_all(1000.0, 1e6, 8.0, Group::new(64, 1), Dispatch::ByDomain);
        assert!(near(eight, 1000.0 * 1e6 * 8.0 * (1.0 - 0.875f64.powi(8)) * 0.875 / 50e9));
        let copies = LINKS.all_to_all(1000.0, 1e6, 8.0, Group::new(64, 1), Dispatch::ByCopy);
        assert!(near(copies, 1000.0 * 1e6 * 8.0 * 0.875 / 50e9));
    }

    #[test]
    fn a_switch_that_adds_halves_a_sum() {
        let links = Links { reduces_in_switch: true, ..LINKS };
        assert!(near(links.all_reduce(8e9, Group::new(8, 1)), 8e9 / 400e9));
        assert!(near(links.all_reduce(8e9, Group::new(64, 8)), LINKS.all_reduce(8e9, Group::new(64, 8))));
    }
}
