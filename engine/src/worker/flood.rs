//! Notices a flood of small packets by the rate at which one direction exceeds the other.
//!
//! Requests and responses come in pairs, however fast they are, and must not wait for each other. A flood
//! goes one way. See docs/decisions/0010-moderation.md.

use std::time::{Duration, Instant};

/// Minimum time over which a rate is taken.
const WINDOW: Duration = Duration::from_millis(1);
/// Packets per second that one direction must exceed the other by.
const FLOOD: u128 = 20_000;

/// Decides, window by window, whether a worker carries a flood.
#[derive(Debug)]
pub(super) struct Flood {
    since: Instant,
    /// Egress packets minus ingress packets when the window began.
    balance: i64,
    on: bool,
}

impl Flood {
    pub(super) fn new() -> Flood {
        Flood { since: Instant::now(), balance: 0, on: false }
    }

    /// Returns whether the last whole window was one of a flood. `packets` are the totals of egress and of
    /// ingress so far.
    #[inline]
    pub(super) fn check(&mut self, now: Instant, packets: (u64, u64)) -> bool {
        let took = now.saturating_duration_since(self.since);
        if took >= WINDOW {
            let balance = packets.0.wrapping_sub(packets.1) as i64;
            let excess = balance.wrapping_sub(self.balance).unsigned_abs();
            self.on = u128::from(excess) * Duration::from_secs(1).as_nanos() > FLOOD * took.as_nanos();
            (self.since, self.balance) = (now, balance);
        }
        self.on
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Carries this many packets each way per millisecond for five milliseconds, and returns the decisions
    /// after each of them.
    fn decisions(flood: &mut Flood, packets: &mut (u64, u64), each: (u64, u64)) -> Vec<bool> {
        (0..5)
            .map(|_| {
                *packets = (packets.0 + each.0, packets.1 + each.1);
                let now = flood.since + WINDOW;
                flood.check(now, *packets)
            })
            .collect()
    }

    #[test]
    fn a_flood_goes_one_way() {
        let (mut flood, mut packets) = (Flood::new(), (0, 0));
        assert_eq!(decisions(&mut flood, &mut packets, (20, 0)), [false; 5]);
        assert_eq!(decisions(&mut flood, &mut packets, (21, 0)), [true; 5]);
        assert_eq!(decisions(&mut flood, &mut packets, (500, 500)), [false; 5], "pairs");
        assert_eq!(decisions(&mut flood, &mut packets, (3, 24)), [true; 5]);
        assert_eq!(decisions(&mut flood, &mut packets, (24, 5)), [false; 5]);
    }

    #[test]
    fn a_decision_holds_for_a_window_and_silence_ends_it() {
        let mut flood = Flood::new();
        let start = flood.since;
        assert!(!flood.check(start + WINDOW / 2, (1000, 0)), "less than a window");
        assert!(flood.check(start + WINDOW, (1000, 0)));
        assert!(flood.check(start + WINDOW + WINDOW / 2, (1000, 0)));
        assert!(!flood.check(start + Duration::from_secs(60), (1021, 0)), "21 packets in a minute");
    }

    #[test]
    fn totals_may_have_any_value_and_time_may_stand_still() {
        let mut flood = Flood::new();
        let mut now = flood.since;
        for packets in [(0, u64::MAX), (u64::MAX, 0), (1 << 63, 0), (0, 1 << 63), (u64::MAX, u64::MAX)] {
            now += WINDOW;
            flood.check(now, packets);
            flood.check(now - WINDOW / 2, packets);
        }
        assert!(!flood.check(now + WINDOW, (u64::MAX, u64::MAX)));
    }
}
