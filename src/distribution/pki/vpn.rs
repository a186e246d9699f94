//! WireGuard's keys: the VPN host's, and hk-dr's own. Both are in the recovery set, so that a rebuilt host is the one that
//! people's configurations know.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use boringtun::x25519::{PublicKey, StaticSecret};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{PkiError, random, unusable};

/// How many keys of its own hk-dr has at the VPN host: one for each process at a time.
pub const VPN_SLOTS: u32 = 64;

const HOST: &str = "vpn/host.key";
const OWN: &str = "vpn/hk-dr.key";
pub(super) const FILES: [&str; 2] = [HOST, OWN];

/// Private keys of the VPN.
#[derive(Clone)]
pub struct VpnKeys {
    host: Zeroizing<[u8; 32]>,
    /// What hk-dr's own keys are derived from.
    own: Zeroizing<[u8; 32]>,
}

impl VpnKeys {
    pub(super) fn generate() -> Result<Self, PkiError> {
        Ok(Self { host: random()?, own: random()? })
    }

    /// The files they are kept in, with their text.
    pub(super) fn to_files(&self) -> [(&'static str, Zeroizing<String>); 2] {
        let text = |key: &Zeroizing<[u8; 32]>| Zeroizing::new(BASE64_STANDARD.encode(&key[..]));
        [(HOST, text(&self.host)), (OWN, text(&self.own))]
    }

    pub(super) fn from_files(host: &str, own: &str) -> Result<Self, PkiError> {
        let key = |path: &str, text: &str| {
            let bytes = Zeroizing::new(BASE64_STANDARD.decode(text.trim()).unwrap_or_default());
            let key: [u8; 32] = bytes[..].try_into().map_err(|_| unusable(path, "it is not 32 bytes in base64"))?;
            Ok::<_, PkiError>(Zeroizing::new(key))
        };
        Ok(Self { host: key(HOST, host)?, own: key(OWN, own)? })
    }

    /// The host's private key as `wg` takes it.
    pub fn host_private(&self) -> Zeroizing<String> {
        Zeroizing::new(BASE64_STANDARD.encode(&self.host[..]))
    }

    /// The host's public key.
    pub fn host_public(&self) -> [u8; 32] {
        public_of(&self.host)
    }

    /// One of hk-dr's own private keys.
    pub fn slot_private(&self, slot: u32) -> Zeroizing<[u8; 32]> {
        let mut hash = Sha256::new();
        hash.update(b"hk-dr vpn slot\0");
        hash.update(&self.own[..]);
        hash.update(slot.to_be_bytes());
        Zeroizing::new(hash.finalize().into())
    }

    /// The public key of one of hk-dr's own, as `wg` takes it.
    pub fn slot_public(&self, slot: u32) -> String {
        BASE64_STANDARD.encode(public_of(&self.slot_private(slot)))
    }
}

fn public_of(private: &Zeroizing<[u8; 32]>) -> [u8; 32] {
    PublicKey::from(&StaticSecret::from(**private)).to_bytes()
}

/// A fresh pair for a person: private and public key in base64.
pub fn wireguard_pair() -> Result<(Zeroizing<String>, String), PkiError> {
    let private: Zeroizing<[u8; 32]> = random()?;
    let public = BASE64_STANDARD.encode(public_of(&private));
    Ok((Zeroizing::new(BASE64_STANDARD.encode(&private[..])), public))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_their_files_and_slots_differ() {
        let keys = VpnKeys::generate().unwrap();
        let files = keys.to_files();
        let back = VpnKeys::from_files(&files[0].1, &files[1].1).unwrap();
        assert_eq!((back.host_public(), back.slot_public(3)), (keys.host_public(), keys.slot_public(3)));
        assert_ne!(keys.slot_public(3), keys.slot_public(4));
        assert!(VpnKeys::from_files("c2hvcnQ=", &files[1].1).is_err());
    }

    #[test]
    fn public_keys_are_those_of_the_specification() {
        // RFC 7748, 6.1: Alice.
        let alice: [u8; 32] = [
            0x77, 0x07, 0x6d, 0x0a, 0x73, 0x18, 0xa5, 0x7d, 0x3c, 0x16, 0xc1, 0x72, 0x51, 0xb2, 0x66, 0x45, 0xdf, 0x4c,
            0x2f, 0x87, 0xeb, 0xc0, 0x99, 0x2a, 0xb1, 0x77, 0xfb, 0xa5, 0x1d, 0xb9, 0x2c, 0x2a,
        ];
        let public = public_of(&Zeroizing::new(alice));
        assert_eq!(public[..4], [0x85, 0x20, 0xf0, 0x09]);
        assert_eq!(public[30..], [0x4e, 0x6a]);
    }
}
