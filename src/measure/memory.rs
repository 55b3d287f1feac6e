//! Memory of a process.

use crate::units::Bytes;

/// Highest resident memory of this process so far, from the kernel's own count; `None` where the system does not keep one.
pub fn peak_resident() -> Option<Bytes> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    high_water_mark(&status)
}

/// Lets `peak_resident` count from now on: what a process needed to get ready is not what its work needs. Linux only; elsewhere the
/// peak stays that of the whole process.
pub fn forget_peak_resident() {
    // 5: "reset the peak resident set size to the process's current one" (proc(5), clear_refs).
    std::fs::write("/proc/self/clear_refs", "5").ok();
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
    fn memory_that_was_given_back_is_forgotten() {
        const BIG: u64 = 1 << 30;
        drop(std::hint::black_box(vec![1u8; BIG as usize]));
        let before = peak_resident();
        forget_peak_resident();
        // Other tests of this process need memory too, and hold it meanwhile.
        if let (Some(before), Some(after)) = (before, peak_resident()) {
            assert!(before.0 >= BIG && after.0 + BIG / 2 < before.0, "{before} then {after}");
        }
    }

    #[test]
    fn the_kernels_line_is_read_in_bytes() {
        assert_eq!(high_water_mark("Name:\tx\nVmHWM:\t   1234 kB\n"), Some(Bytes(1234 * 1024)));
        assert_eq!(high_water_mark("Name:\tx\n"), None);
    }
}
