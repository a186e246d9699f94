//! What Kubernetes writes into etcd, as far as a comparison needs to understand it: the protobuf envelope, and in it the
//! object's identity and specification.

/// How a value begins that is stored as protobuf.
const MAGIC: &[u8] = b"k8s\0";

/// The parts of a stored object that a controller does not change by doing its work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts<'a> {
    /// The object's unique id: another one means another object under the same name.
    pub uid: &'a [u8],
    /// The encoded specification; empty if the kind has none.
    pub spec: &'a [u8],
}

/// Reads identity and specification of an object whose fields are metadata (1), spec (2) and status (3), as those of all
/// workloads are. `None` if the value is not such an object.
pub fn parts(value: &[u8]) -> Option<Parts<'_>> {
    // runtime.Unknown: 1 type, 2 raw; ObjectMeta: 5 uid.
    let raw = field(value.strip_prefix(MAGIC)?, 2)?;
    let metadata = field(raw, 1)?;
    Some(Parts { uid: field(metadata, 5)?, spec: field(raw, 2).unwrap_or_default() })
}

/// The first occurrence of a length-delimited field.
fn field(mut message: &[u8], wanted: u64) -> Option<&[u8]> {
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        let (number, kind) = (tag >> 3, tag & 7);
        match kind {
            0 => drop(varint(&mut message)?),
            1 => message = message.get(8..)?,
            2 => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                let (content, rest) = message.split_at_checked(length)?;
                if number == wanted {
                    return Some(content);
                }
                message = rest;
            }
            5 => message = message.get(4..)?,
            _ => return None,
        }
    }
    None
}

fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn delimited(number: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2];
        let mut length = content.len();
        while length >= 0x80 {
            out.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
            length >>= 7;
        }
        out.push(u8::try_from(length).unwrap());
        out.extend(content);
        out
    }

    /// A stored object as the API server writes it.
    pub fn stored(uid: &str, spec: &str, status: &str) -> Vec<u8> {
        let metadata = [delimited(1, b"name"), delimited(5, uid.as_bytes())].concat();
        let mut raw = [delimited(1, &metadata), delimited(2, spec.as_bytes())].concat();
        raw.extend(delimited(3, status.as_bytes()));
        [MAGIC.to_vec(), delimited(1, b"type"), delimited(2, &raw)].concat()
    }

    #[test]
    fn identity_and_specification_are_found_beside_any_status() {
        let long = "x".repeat(300);
        let value = stored("uid-1", &long, "running");
        assert_eq!(parts(&value), Some(Parts { uid: b"uid-1", spec: long.as_bytes() }));
    }

    #[test]
    fn what_is_not_protobuf_has_no_parts() {
        assert_eq!(parts(b"k8s:enc:secretbox:v1:key1:abc"), None);
        assert_eq!(parts(b"{\"kind\":\"Pod\"}"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
            let _ = parts(&[MAGIC, &bytes].concat());
        }
    }
}
