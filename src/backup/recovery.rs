//! The recovery set as a tar file.

use std::io::Read;

use jiff::Timestamp;
use zeroize::Zeroizing;

use crate::ports::{ErrorCode, PortError, PortResult, RecoverySet};

/// Largest recovery set, in bytes: keys, certificates and a little configuration.
pub(super) const BYTES_MAX: u64 = 32 << 20;

/// Refuses a set that lacks one of the paths, or holds it empty.
pub fn require(set: &RecoverySet, paths: &[&str]) -> PortResult<()> {
    let absent: Vec<&str> =
        paths.iter().filter(|path| set.get(**path).is_none_or(|(_, bytes)| bytes.is_empty())).copied().collect();
    if absent.is_empty() && !set.is_empty() {
        return Ok(());
    }
    let message = if set.is_empty() {
        "the recovery set is empty".to_owned()
    } else {
        format!("the recovery set lacks: {}", absent.join(", "))
    };
    Err(PortError::new(ErrorCode::Invalid, message).hint(
        "no snapshot was taken: without the cluster's keys beside it, its data could not be brought back to life",
    ))
}

/// Packs a set, in order of its paths. Files belong to root and carry the snapshot's time.
pub fn pack(set: &RecoverySet, at: Timestamp) -> PortResult<Zeroizing<Vec<u8>>> {
    let failed = |e: std::io::Error| PortError::new(ErrorCode::Local, format!("pack the recovery set: {e}"));
    let mut archive = tar::Builder::new(Vec::new());
    for (path, (mode, bytes)) in set {
        check_path(path)?;
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(*mode & 0o777);
        header.set_mtime(u64::try_from(at.as_second()).unwrap_or_default());
        header.set_entry_type(tar::EntryType::Regular);
        archive.append_data(&mut header, path, bytes.as_slice()).map_err(failed)?;
    }
    let packed = Zeroizing::new(archive.into_inner().map_err(failed)?);
    if packed.len() as u64 > BYTES_MAX {
        return Err(PortError::new(
            ErrorCode::LimitExceeded,
            format!("the recovery set has {} bytes; {BYTES_MAX} at most", packed.len()),
        ));
    }
    Ok(packed)
}

/// Unpacks a set. Anything but plain files below the set's own root is refused.
pub fn unpack(bytes: &[u8]) -> PortResult<RecoverySet> {
    let damaged = |e: std::io::Error| PortError::new(ErrorCode::Corrupt, format!("unpack the recovery set: {e}"));
    let mut set = RecoverySet::new();
    for entry in tar::Archive::new(bytes).entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let path = entry.path().map_err(damaged)?.to_string_lossy().into_owned();
        check_path(&path)?;
        if entry.header().entry_type() != tar::EntryType::Regular {
            return Err(PortError::new(ErrorCode::Corrupt, format!("{path} in the recovery set is not a plain file")));
        }
        let mode = entry.header().mode().map_err(damaged)? & 0o777;
        let mut content = Vec::new();
        entry.read_to_end(&mut content).map_err(damaged)?;
        set.insert(path, (mode, content));
    }
    Ok(set)
}

fn check_path(path: &str) -> PortResult<()> {
    let plain = !path.is_empty() && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    if plain {
        return Ok(());
    }
    Err(PortError::new(ErrorCode::Invalid, format!("{path:?} is not a usable path in a recovery set")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_survives_packing() {
        let long = format!("pki/{}/ca.crt", "x".repeat(150));
        let set = RecoverySet::from([
            ("cluster.yaml".to_owned(), (0o644, b"kind: Cluster".to_vec())),
            ("pki/ca.key".to_owned(), (0o600, vec![7; 5000])),
            (long, (0o644, vec![1])),
        ]);
        let packed = pack(&set, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(unpack(&packed).unwrap(), set);
        assert_eq!(packed, pack(&set, Timestamp::UNIX_EPOCH).unwrap());
    }

    #[test]
    fn an_incomplete_set_is_refused_by_name() {
        let set = RecoverySet::from([("a".to_owned(), (0o600, vec![1])), ("b".to_owned(), (0o600, vec![]))]);
        assert!(require(&set, &["a"]).is_ok());
        let refused = require(&set, &["a", "b", "c"]).unwrap_err();
        assert_eq!(refused.message, "the recovery set lacks: b, c");
        assert!(require(&RecoverySet::new(), &[]).is_err());
    }

    #[test]
    fn paths_that_escape_are_refused() {
        for path in ["../etc/passwd", "/etc/passwd", "a//b", ""] {
            let set = RecoverySet::from([(path.to_owned(), (0o600, vec![1]))]);
            assert!(pack(&set, Timestamp::UNIX_EPOCH).is_err(), "{path}");
        }
    }
}
