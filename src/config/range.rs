use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// An IPv4 range in CIDR form whose base is its first address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    base: u32,
    bits: u8,
}

impl Range {
    /// Length of the prefix, 0 to 32.
    pub fn bits(self) -> u8 {
        self.bits
    }

    /// The first address, the network's own.
    pub fn first(self) -> Ipv4Addr {
        self.base.into()
    }

    /// The last address, the broadcast's.
    pub fn last(self) -> Ipv4Addr {
        (self.base | !mask(self.bits)).into()
    }

    /// Whether the address is in the range.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask(self.bits) == self.base
    }

    /// Whether all of the other range is in this one.
    pub fn covers(self, other: Self) -> bool {
        self.bits <= other.bits && self.contains(other.first())
    }

    /// Whether they share an address.
    pub fn overlaps(self, other: Self) -> bool {
        self.covers(other) || other.covers(self)
    }

    /// The address at this offset from the first, if it is in the range.
    pub fn nth(self, offset: u32) -> Option<Ipv4Addr> {
        self.base.checked_add(offset).map(Ipv4Addr::from).filter(|address| self.contains(*address))
    }
}

fn mask(bits: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0)
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first(), self.bits)
    }
}

impl FromStr for Range {
    /// What is wrong, as a hint.
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || "an address, a slash and a prefix length, such as 10.0.0.0/16".to_owned();
        let (address, bits) = text.split_once('/').ok_or_else(form)?;
        let address: Ipv4Addr = address.parse().map_err(|_| form())?;
        let bits: u8 = bits.parse().ok().filter(|bits| *bits <= 32).ok_or_else(form)?;
        let base = u32::from(address) & mask(bits);
        if base != u32::from(address) {
            return Err(format!("a range begins at its first address: {}", Self { base, bits }));
        }
        Ok(Self { base, bits })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_range_contains_its_ends_and_overlap_is_symmetric(a: u32, b: u32, x in 0u8..=32, y in 0u8..=32) {
            let (one, two) = (Range { base: a & mask(x), bits: x }, Range { base: b & mask(y), bits: y });
            prop_assert!(one.contains(one.first()) && one.contains(one.last()));
            prop_assert_eq!(one.overlaps(two), two.overlaps(one));
            prop_assert_eq!(one.overlaps(two), one.contains(two.first()) || two.contains(one.first()));
            prop_assert_eq!(one.to_string().parse::<Range>().unwrap(), one);
        }
    }

    #[test]
    fn a_range_that_begins_inside_itself_is_refused_with_its_beginning() {
        assert!("10.0.0.5/16".parse::<Range>().unwrap_err().contains("10.0.0.0/16"));
    }
}
