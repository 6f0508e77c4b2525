//! What a process uses and may use, from `/proc` and the control group.

use std::path::Path;
use std::time::Duration;

/// What a process has used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Usage {
    /// Processor time since it started, user and system.
    pub cpu: Duration,
    /// Memory it holds now.
    pub resident_bytes: u64,
}

/// What the process `pid` uses; `None` if it is gone.
pub fn of(pid: u32) -> Option<Usage> {
    read(&Path::new("/proc").join(pid.to_string()))
}

/// What this process uses.
pub fn own() -> Option<Usage> {
    read(Path::new("/proc/self"))
}

fn read(folder: &Path) -> Option<Usage> {
    let stat = std::fs::read_to_string(folder.join("stat")).ok()?;
    let pages: u64 = std::fs::read_to_string(folder.join("statm"))
        .ok()?
        .split(' ')
        .nth(1)?
        .parse()
        .ok()?;
    Some(Usage {
        cpu: cpu(&stat)?,
        resident_bytes: pages * rustix::param::page_size() as u64,
    })
}

/// Fields 14 and 15 of `stat`. The second field is the program's name in brackets, and may hold
/// spaces and brackets itself, so count from the last one.
fn cpu(stat: &str) -> Option<Duration> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ').skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    let ticks_per_second = rustix::param::clock_ticks_per_second();
    Some(Duration::from_millis(
        (user + system) * 1_000 / ticks_per_second,
    ))
}

/// Memory that this process may use: the limit of its control group, else what the machine has.
pub fn memory_limit_bytes() -> u64 {
    let group = [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ]
    .iter()
    .filter_map(|path| {
        std::fs::read_to_string(path)
            .ok()?
            .trim()
            .parse::<u64>()
            .ok()
    })
    .min();
    let machine = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| machine_bytes(&text));
    // Without a limit, control groups of version 1 give a number near 2^63.
    match (group, machine) {
        (Some(group), Some(machine)) => group.min(machine),
        (Some(bytes), None) | (None, Some(bytes)) => bytes,
        (None, None) => UNKNOWN_MEMORY_BYTES,
    }
}

/// What is assumed on a machine that does not tell: small, so that flow control errs on the
/// safe side.
const UNKNOWN_MEMORY_BYTES: u64 = 512 << 20;

fn machine_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_memory_and_its_processor_time_grows_with_work() {
        let before = own().unwrap();
        assert!(before.resident_bytes > 100_000);
        let mut sum = 0_u64;
        while own().unwrap().cpu < before.cpu + Duration::from_millis(20) {
            sum = std::hint::black_box((0..100_000_u64).fold(sum, u64::wrapping_add));
        }
        assert_eq!(of(std::process::id()).is_some(), own().is_some());
        assert_eq!(of(u32::MAX), None);
    }

    #[test]
    fn a_program_name_may_hold_anything() {
        let stat = "7 (a) b) R 1 1 1 0 -1 4 0 0 0 0 150 50 0 0 20 0 1 0 0 0 0";
        let ticks = rustix::param::clock_ticks_per_second();
        assert_eq!(cpu(stat), Some(Duration::from_millis(200_000 / ticks)));
    }

    #[test]
    fn the_memory_limit_is_at_most_the_machines() {
        let limit = memory_limit_bytes();
        assert!(limit > 1 << 20 && limit < 1 << 50, "{limit}");
        assert_eq!(machine_bytes("MemTotal:       16 kB\n"), Some(16_384));
    }
}
