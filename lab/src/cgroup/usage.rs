//! What a machine has used of processor and disks, by its control group.

use std::fs;

use super::Group;

/// Since the group was made. Writes that the kernel flushes later on its own are not counted on version 1.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Usage {
    /// Of all cores.
    pub cpu_seconds: f64,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub reads: u64,
    pub writes: u64,
}

impl Group {
    /// Reads the counters. What the host does not count is 0.
    pub(crate) fn usage(&self) -> Usage {
        let read = |controller: Option<&str>, file: &str| {
            let tree = match controller {
                Some(controller) => self.tree(controller),
                None => self.cgroups.trees.iter().find(|t| t.version == 2),
            };
            tree.and_then(|tree| fs::read_to_string(self.level(tree).join(file)).ok()).unwrap_or_default()
        };
        if self.cgroups.unified() {
            return version_2(&read(None, "cpu.stat"), &read(None, "io.stat"));
        }
        let blkio = |file: &str| read(Some("blkio"), &format!("blkio.throttle.{file}_recursive"));
        version_1(&read(Some("cpuacct"), "cpuacct.usage"), &blkio("io_service_bytes"), &blkio("io_serviced"))
    }
}

/// `nanoseconds`; lines such as `254:0 Read 4096`, and a total without a device.
fn version_1(cpu: &str, bytes: &str, operations: &str) -> Usage {
    let sum = |text: &str, kind: &str| {
        let value = |line: &str| {
            let mut words = line.split_whitespace();
            let device = words.next()?.contains(':');
            (device && words.next()? == kind).then(|| words.next()?.parse::<u64>().ok())?
        };
        text.lines().filter_map(value).sum()
    };
    Usage {
        cpu_seconds: cpu.trim().parse::<u64>().unwrap_or_default() as f64 / 1e9,
        read_bytes: sum(bytes, "Read"),
        written_bytes: sum(bytes, "Write"),
        reads: sum(operations, "Read"),
        writes: sum(operations, "Write"),
    }
}

/// `usage_usec N` among other lines; lines such as `254:0 rbytes=4096 wbytes=0 rios=1 wios=0`.
fn version_2(cpu: &str, io: &str) -> Usage {
    let microseconds = cpu.lines().find_map(|l| l.strip_prefix("usage_usec ")?.trim().parse::<u64>().ok());
    let sum = |key: &str| {
        let words = io.split_whitespace().filter_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        words.filter_map(|value| value.parse::<u64>().ok()).sum()
    };
    Usage {
        cpu_seconds: microseconds.unwrap_or_default() as f64 / 1e6,
        read_bytes: sum("rbytes"),
        written_bytes: sum("wbytes"),
        reads: sum("rios"),
        writes: sum("wios"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_read() {
        let expected = Usage { cpu_seconds: 1.5, read_bytes: 4096, written_bytes: 8192, reads: 1, writes: 2 };
        let one = version_1(
            "1500000000\n",
            "254:0 Read 4000\n7:0 Read 96\n254:0 Write 8192\n254:0 Total 12192\nTotal 12288\n",
            "254:0 Read 1\n254:0 Write 2\nTotal 3\n",
        );
        assert_eq!(one, expected);
        let two = version_2(
            "usage_usec 1500000\nuser_usec 1\n",
            "254:0 rbytes=4000 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n7:0 rbytes=96 wbytes=0 rios=0 wios=0\n",
        );
        assert_eq!(two, expected);
        assert_eq!(version_1("", "Total 0", ""), Usage::default());
    }
}
