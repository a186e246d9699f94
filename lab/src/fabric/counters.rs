//! How much went through a machine's public interface, counted where it cannot reset it: at the other end of its cable.

use std::fs;

use super::PUBLIC;
use crate::error::LabError;
use crate::netns;

/// Since the cable was plugged in, which is since the machine's last boot. As the machine sees the directions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub in_bytes: u64,
    pub in_packets: u64,
    pub out_bytes: u64,
    pub out_packets: u64,
}

/// Reads the counters of a machine or load balancer. Nothing while it is not plugged in.
pub(crate) fn of(id: u64) -> Result<Traffic, LabError> {
    let text = netns::within(PUBLIC, || fs::read_to_string("/proc/thread-self/net/dev"))?;
    Ok(parse(&text, &format!("p{id}")))
}

/// The fabric's end receives what the machine sends.
fn parse(text: &str, cable: &str) -> Traffic {
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix(cable)?.strip_prefix(':'));
    let numbers: Vec<u64> =
        line.unwrap_or_default().split_whitespace().map(|word| word.parse().unwrap_or_default()).collect();
    let number = |index: usize| numbers.get(index).copied().unwrap_or_default();
    Traffic { out_bytes: number(0), out_packets: number(1), in_bytes: number(8), in_packets: number(9) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directions_are_the_machines() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
                    face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n\
                    \u{20}  p10:      70       1    0    0    0     0          0         0       80       2    0    0    0     0       0          0\n\
                    \u{20}   p1: 1000 10 0 0 0 0 0 0 2000 20 0 0 0 0 0 0\n";
        let traffic = parse(text, "p1");
        assert_eq!(traffic, Traffic { in_bytes: 2000, in_packets: 20, out_bytes: 1000, out_packets: 10 });
        assert_eq!(parse(text, "p2"), Traffic::default());
    }
}
