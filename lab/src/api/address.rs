//! IPv4 ranges and the pools of public addresses.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An IPv4 range in CIDR form; host bits are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    base: u32,
    prefix: u8,
}

impl Range {
    /// TEST-NET-3: addresses that belong to nobody.
    pub const PUBLIC: Range = Range { base: 0xcb00_7100, prefix: 24 };

    /// The range that is one address.
    pub fn host(address: Ipv4Addr) -> Self {
        Self { base: address.to_bits(), prefix: 32 }
    }

    fn mask(prefix: u8) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
    }

    pub fn first(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base)
    }

    /// The address a network's gateway has.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base | 1)
    }

    pub fn last(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base | !Self::mask(self.prefix))
    }

    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    pub fn has(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & Self::mask(self.prefix) == self.base
    }

    pub fn contains(&self, other: &Range) -> bool {
        self.prefix <= other.prefix && self.has(other.first())
    }

    pub fn overlaps(&self, other: &Range) -> bool {
        self.contains(other) || other.contains(self)
    }

    /// Addresses for hosts: all but the first and the last.
    pub fn hosts(&self) -> impl Iterator<Item = Ipv4Addr> {
        (self.first().to_bits().saturating_add(1)..self.last().to_bits()).map(Ipv4Addr::from_bits)
    }

    /// The ranges of a longer prefix inside this one, in order.
    pub fn parts(&self, prefix: u8) -> impl Iterator<Item = Range> {
        let (base, count) = (self.base, 1u64 << prefix.saturating_sub(self.prefix).min(31));
        (0..count).map(move |i| Range { base: base + ((i as u32) << (32 - u32::from(prefix))), prefix })
    }

    /// In one of the ranges that RFC 1918 sets aside for private use.
    pub fn is_private(&self) -> bool {
        let private = [
            Range { base: 0x0a00_0000, prefix: 8 },
            Range { base: 0xac10_0000, prefix: 12 },
            Range { base: 0xc0a8_0000, prefix: 16 },
        ];
        private.iter().any(|p| p.contains(self))
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first(), self.prefix)
    }
}

impl Serialize for Range {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Range {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// A text that is no range; says why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RangeError(String);

impl FromStr for Range {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || RangeError(format!("'{text}' is not an IPv4 range in CIDR form"));
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        if prefix > 32 {
            return Err(wrong());
        }
        let base = address.to_bits() & Self::mask(prefix);
        if base != address.to_bits() {
            return Err(RangeError(format!("'{text}' has host bits set")));
        }
        Ok(Self { base, prefix })
    }
}

/// Public addresses. One that was freed goes to the end of the queue, so that it is used again as late as possible: a
/// client that still talks to the old owner would otherwise reach a stranger.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pool {
    range: Range,
    free: VecDeque<Ipv4Addr>,
    taken: BTreeSet<Ipv4Addr>,
}

impl Pool {
    /// All hosts of the range but the gateway.
    pub fn new(range: Range) -> Self {
        let free = range.hosts().filter(|a| *a != range.gateway()).collect();
        Self { range, free, taken: BTreeSet::new() }
    }

    pub fn range(&self) -> Range {
        self.range
    }

    pub fn take(&mut self) -> Option<Ipv4Addr> {
        let address = self.free.pop_front()?;
        self.taken.insert(address);
        Some(address)
    }

    /// Gives back an address of the pool; another is ignored.
    pub fn give_back(&mut self, address: Ipv4Addr) {
        if self.taken.remove(&address) {
            debug_assert!(self.range.has(address));
            self.free.push_back(address);
        }
    }
}

/// Public IPv6 networks: each owner gets a /64. As with [`Pool`], what was freed is used again as late as possible.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pool6 {
    /// How many of the /64s were ever given out.
    used: u16,
    free: VecDeque<Ipv6Addr>,
}

impl Pool6 {
    /// A /48 within the range that is set aside for documentation.
    const BASE: u128 = 0x2001_0db8_0001_0000_0000_0000_0000_0000;

    pub fn new() -> Self {
        Self { used: 0, free: VecDeque::new() }
    }

    /// The first address of a free /64.
    pub fn take(&mut self) -> Option<Ipv6Addr> {
        match self.used.checked_add(1) {
            Some(used) => {
                self.used = used;
                Some(Ipv6Addr::from_bits(Self::BASE | u128::from(used) << 64))
            }
            None => self.free.pop_front(),
        }
    }

    pub fn give_back(&mut self, network: Ipv6Addr) {
        self.free.push_back(network);
    }
}

/// Whether an address is in the /64 that begins with `network`.
pub fn in_network6(network: Ipv6Addr, address: Ipv6Addr) -> bool {
    network.to_bits() >> 64 == address.to_bits() >> 64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn public_addresses_skip_the_reserved_and_come_back_last() {
        let mut pool = Pool::new(Range::PUBLIC);
        let first = pool.take().unwrap();
        assert_eq!(first, Ipv4Addr::new(203, 0, 113, 2));
        pool.give_back(first);
        let all: Vec<Ipv4Addr> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(all.len(), 253);
        assert_eq!(all.last(), Some(&first));
        assert!(!all.contains(&Ipv4Addr::new(203, 0, 113, 255)));
    }

    #[test]
    fn each_owner_gets_an_ipv6_network_of_its_own() {
        let mut pool = Pool6::new();
        let (one, two) = (pool.take().unwrap(), pool.take().unwrap());
        assert_eq!((one.to_string(), two.to_string()), ("2001:db8:1:1::".to_owned(), "2001:db8:1:2::".to_owned()));
        pool.give_back(one);
        assert_ne!(pool.take().unwrap(), one);
        assert!(in_network6(two, "2001:db8:1:2::1".parse().unwrap()) && !in_network6(one, two));
    }

    #[test]
    fn ranges_are_checked() {
        assert!("10.0.0.1/24".parse::<Range>().is_err());
        assert!("10.0.0.0".parse::<Range>().is_err());
        assert!("10.0.0.0/33".parse::<Range>().is_err());
        assert!("0.0.0.0/0".parse::<Range>().is_ok());
        let network: Range = "10.0.0.0/16".parse().unwrap();
        let subnet: Range = "10.0.1.0/24".parse().unwrap();
        assert!(network.contains(&subnet) && !subnet.contains(&network) && subnet.overlaps(&network));
        assert_eq!(subnet.gateway(), Ipv4Addr::new(10, 0, 1, 1));
        assert_eq!(network.parts(24).nth(1), Some(subnet));
        assert!(network.is_private() && !Range::PUBLIC.is_private());
    }

    proptest! {
        #[test]
        fn a_range_reads_back_as_written(address in any::<u32>(), prefix in 0u8..=32) {
            let base = address & Range::mask(prefix);
            let range = Range { base, prefix };
            prop_assert_eq!(range.to_string().parse::<Range>(), Ok(range));
            prop_assert!(range.has(range.first()) && range.has(range.last()));
        }
    }
}
