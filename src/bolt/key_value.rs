//! Entries of the bucket `key`: a revision as the key, a protobuf `mvccpb.KeyValue` as the value.

use crate::ports::KeyValue;

/// The revision a change happened at: the transaction, and the change's number inside of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision {
    pub main: i64,
    pub sub: i64,
}

/// One version of one key as etcd stores it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub revision: Revision,
    /// Set for a deletion: the key-value then holds nothing but the key.
    pub tombstone: bool,
    pub key_value: KeyValue,
}

/// Reads `<main: 8 bytes, big endian>_<sub: 8 bytes>`, with a `t` behind it for a deletion.
pub fn revision(key: &[u8]) -> Option<(Revision, bool)> {
    let tombstone = match key.len() {
        17 => false,
        18 if key[17] == b't' => true,
        _ => return None,
    };
    if key[8] != b'_' {
        return None;
    }
    let part = |at: usize| Some(i64::from_be_bytes(key.get(at..at + 8)?.try_into().ok()?)).filter(|n| *n >= 0);
    Some((Revision { main: part(0)?, sub: part(9)? }, tombstone))
}

/// Decodes `mvccpb.KeyValue`; unknown fields are skipped, as protobuf wants it.
pub fn decode(mut bytes: &[u8]) -> Option<KeyValue> {
    let mut kv =
        KeyValue { key: Vec::new(), value: Vec::new(), create_revision: 0, mod_revision: 0, version: 0, lease: 0 };
    while !bytes.is_empty() {
        match field(&mut bytes)? {
            (1, Field::Bytes(key)) => kv.key = key.to_vec(),
            (2, Field::Number(n)) => kv.create_revision = n.cast_signed(),
            (3, Field::Number(n)) => kv.mod_revision = n.cast_signed(),
            (4, Field::Number(n)) => kv.version = n.cast_signed(),
            (5, Field::Bytes(value)) => kv.value = value.to_vec(),
            (6, Field::Number(n)) => kv.lease = n.cast_signed(),
            (1..=6, _) => return None,
            _ => {}
        }
    }
    Some(kv)
}

/// Encodes `mvccpb.KeyValue` as etcd does: fields in order, empty ones left out. A deletion has nothing but its key.
pub fn encode(kv: &KeyValue) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(kv.key.len() + kv.value.len() + 48);
    let put_bytes = |bytes: &mut Vec<u8>, tag: u8, content: &[u8]| {
        if !content.is_empty() {
            bytes.push(tag);
            put_varint(bytes, content.len() as u64);
            bytes.extend_from_slice(content);
        }
    };
    put_bytes(&mut bytes, 0x0a, &kv.key);
    for (tag, number) in [(0x10, kv.create_revision), (0x18, kv.mod_revision), (0x20, kv.version)] {
        put_number(&mut bytes, tag, number);
    }
    put_bytes(&mut bytes, 0x2a, &kv.value);
    put_number(&mut bytes, 0x30, kv.lease);
    bytes
}

/// Encodes `leasepb.Lease`: what etcd keeps of a lease, under its id as 8 bytes, big endian.
pub fn encode_lease(id: i64, ttl_seconds: i64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(24);
    put_number(&mut bytes, 0x08, id);
    put_number(&mut bytes, 0x10, ttl_seconds);
    bytes
}

/// The key of the bucket `key` for a change.
pub fn revision_key(revision: Revision, tombstone: bool) -> Vec<u8> {
    let mut key = Vec::with_capacity(18);
    key.extend_from_slice(&revision.main.to_be_bytes());
    key.push(b'_');
    key.extend_from_slice(&revision.sub.to_be_bytes());
    if tombstone {
        key.push(b't');
    }
    key
}

fn put_number(bytes: &mut Vec<u8>, tag: u8, number: i64) {
    if number != 0 {
        bytes.push(tag);
        put_varint(bytes, number.cast_unsigned());
    }
}

fn put_varint(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// The key and the lease, without copying the value.
pub fn key_and_lease(mut bytes: &[u8]) -> Option<(&[u8], i64)> {
    let (mut key, mut lease) = (&[][..], 0);
    while !bytes.is_empty() {
        match field(&mut bytes)? {
            (1, Field::Bytes(found)) => key = found,
            (6, Field::Number(n)) => lease = n.cast_signed(),
            _ => {}
        }
    }
    Some((key, lease))
}

/// Only the version, without copying the key or looking at the value.
pub(super) fn version(mut bytes: &[u8]) -> Option<i64> {
    while !bytes.is_empty() {
        if let (4, Field::Number(n)) = field(&mut bytes)? {
            return Some(n.cast_signed());
        }
    }
    Some(0)
}

enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Fixed,
}

fn field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Field<'a>)> {
    let tag = varint(bytes)?;
    let value = match tag & 7 {
        0 => Field::Number(varint(bytes)?),
        1 => {
            take(bytes, 8)?;
            Field::Fixed
        }
        2 => {
            let length = usize::try_from(varint(bytes)?).ok()?;
            Field::Bytes(take(bytes, length)?)
        }
        5 => {
            take(bytes, 4)?;
            Field::Fixed
        }
        _ => return None,
    };
    Some((tag >> 3, value))
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (head, tail) = bytes.split_at_checked(length)?;
    *bytes = tail;
    Some(head)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)?[0];
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}
