//! Signs that the machine was not ours alone.

/// Load average of the last minute, where the system tells.
pub fn load_average() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

/// Processor time of the whole machine since its start, in clock ticks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CpuTimes {
    total: u64,
    stolen: u64,
}

impl CpuTimes {
    /// Now; `None` where the system does not tell.
    pub fn read() -> Option<CpuTimes> {
        parse(&std::fs::read_to_string("/proc/stat").ok()?)
    }

    /// Share of the time since `before` that the hypervisor gave to others.
    pub fn steal_share_since(&self, before: &CpuTimes) -> Option<f64> {
        let total = self.total.checked_sub(before.total).filter(|t| *t > 0)?;
        Some(self.stolen.saturating_sub(before.stolen) as f64 / total as f64)
    }
}

/// The line `cpu user nice system idle iowait irq softirq steal ...` (proc_stat(5)).
fn parse(stat: &str) -> Option<CpuTimes> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_whitespace().take(8).map(|t| t.parse().ok()).collect::<Option<_>>()?;
    Some(CpuTimes { total: ticks.iter().sum(), stolen: *ticks.get(7)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stolen_time_is_a_share_of_all_time_between_two_readings() {
        let before = parse("cpu  100 0 50 800 10 0 0 40 0 0\ncpu0 1 2").unwrap();
        let after = parse("cpu  150 0 50 830 10 0 0 60 0 0\n").unwrap();
        assert_eq!(after.steal_share_since(&before), Some(0.2));
        assert_eq!(before.steal_share_since(&before), None);
        assert_eq!(parse("cpu 1 2 3"), None);
    }
}
