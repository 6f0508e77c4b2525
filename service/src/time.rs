//! Reads the clocks for the machines, which never do it themselves.
//!
//! Leases need CLOCK_BOOTTIME: all containers of a node share it, and it goes on while the
//! machine sleeps, which `std::time::Instant` does not.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use millrace_core::time::Time;
use rustix::time::{ClockId, clock_gettime};

/// Both clocks, now.
pub fn clock() -> Time {
    Time {
        boot: boot(),
        wall_ms: wall_ms(),
    }
}

/// Since the node started.
fn boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(
        u64::try_from(now.tv_sec).expect("the boot clock starts at 0"),
        u32::try_from(now.tv_nsec).expect("nanoseconds are below a billion"),
    )
}

/// Milliseconds since 1970; before it if the clock is set so.
fn wall_ms() -> i64 {
    let ms = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => ms(since),
        Err(before) => -ms(before.duration()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_clock_is_the_kernels_and_never_goes_back() {
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let uptime: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        let first = clock();
        let second = clock();
        assert!(second.boot >= first.boot);
        assert!(
            (first.boot.as_secs_f64() - uptime).abs() < 5.0,
            "{first:?} {uptime}"
        );
        assert!(first.wall_ms > 1_700_000_000_000);
    }
}
