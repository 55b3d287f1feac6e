//! Memory of a process.

use crate::units::Bytes;

/// Highest resident memory of this process so far, from the kernel's own count; `None` where the system does not keep one.
pub fn peak_resident() -> Option<Bytes> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    high_water_mark(&status)
}

fn high_water_mark(status: &str) -> Option<Bytes> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(Bytes(kibibytes * 1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_line_is_read_in_bytes() {
        assert_eq!(high_water_mark("Name:\tx\nVmHWM:\t   1234 kB\n"), Some(Bytes(1234 * 1024)));
        assert_eq!(high_water_mark("Name:\tx\n"), None);
    }
}
