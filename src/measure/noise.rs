//! Signs that the machine was not ours alone.

/// Load average of the last minute, where the system tells.
pub fn load_average() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

/// Processor time of the whole machine since its start, and of this process, in clock ticks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CpuTimes {
    total: u64,
    stolen: u64,
    idle: u64,
    own: u64,
}

impl CpuTimes {
    /// Now; `None` where the system does not tell.
    pub fn read() -> Option<CpuTimes> {
        parse(&std::fs::read_to_string("/proc/stat").ok()?, &std::fs::read_to_string("/proc/self/stat").ok()?)
    }

    /// Share of the time since `before` that the hypervisor gave to others.
    pub fn steal_share_since(&self, before: &CpuTimes) -> Option<f64> {
        self.share_since(before, |_| self.stolen.saturating_sub(before.stolen))
    }

    /// Share of the time since `before` in which a processor worked for another process, or for another guest of the host.
    pub fn others_share_since(&self, before: &CpuTimes) -> Option<f64> {
        let apart = self.idle.saturating_sub(before.idle) + self.own.saturating_sub(before.own);
        self.share_since(before, |total| total.saturating_sub(apart))
    }

    /// Share of the ticks since `before` that `part` makes of them.
    fn share_since(&self, before: &CpuTimes, part: impl Fn(u64) -> u64) -> Option<f64> {
        let total = self.total.checked_sub(before.total).filter(|t| *t > 0)?;
        Some(part(total) as f64 / total as f64)
    }
}

/// The line `cpu user nice system idle iowait irq softirq steal ...` (proc_stat(5)), and the 14th and 15th field of a process's own line
/// (proc_pid_stat(5)), whose second, its name, may have spaces.
fn parse(stat: &str, process: &str) -> Option<CpuTimes> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_whitespace().take(8).map(|t| t.parse().ok()).collect::<Option<_>>()?;
    let (_, fields) = process.rsplit_once(')')?;
    let own: Vec<u64> = fields.split_whitespace().skip(11).take(2).map(|t| t.parse().ok()).collect::<Option<_>>()?;
    let [user, system] = own[..] else { return None };
    Some(CpuTimes { total: ticks.iter().sum(), stolen: *ticks.get(7)?, idle: ticks[3] + ticks[4], own: user + system })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process with a name of two words that has worked for so many ticks.
    fn process(user: u64, system: u64) -> String {
        format!("77 (two words) S 1 77 77 0 -1 4194560 9 0 0 0 {user} {system} 5 5 20 0 1 0 300 1 1\n")
    }

    #[test]
    fn stolen_time_is_a_share_of_all_time_between_two_readings() {
        let before = parse("cpu  100 0 50 800 10 0 0 40 0 0\ncpu0 1 2", &process(0, 0)).unwrap();
        let after = parse("cpu  150 0 50 830 10 0 0 60 0 0\n", &process(0, 0)).unwrap();
        assert_eq!(after.steal_share_since(&before), Some(0.2));
        assert_eq!(before.steal_share_since(&before), None);
        assert_eq!(parse("cpu 1 2 3", &process(0, 0)), None);
    }

    /// Of 200 ticks 80 pass idle, and 60 with this process.
    #[test]
    fn what_is_neither_idle_nor_ours_went_to_others() {
        let before = parse("cpu  100 0 50 800 10 0 0 40 0 0\n", &process(90, 10)).unwrap();
        let after = parse("cpu  160 5 80 870 20 5 0 60 0 0\n", &process(130, 30)).unwrap();
        assert_eq!(after.others_share_since(&before), Some(0.3));
        assert_eq!(after.others_share_since(&after), None);
        assert_eq!(parse("cpu  100 0 50 800 10 0 0 40 0 0\n", "77 (two words) S 1"), None);
    }

    #[test]
    fn a_process_knows_its_own_time() {
        let before = CpuTimes::read().unwrap();
        let start = std::time::Instant::now();
        while CpuTimes::read().unwrap().own < before.own + 5 {
            assert!(start.elapsed() < std::time::Duration::from_secs(60));
        }
    }
}
