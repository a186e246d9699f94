//! Signatures in minisign's format (<https://jedisct1.github.io/minisign/>): stock `minisign -V` checks what is signed
//! here. Pure: bytes in, bytes out; only making a key or a signature draws random bytes.
//!
//! A signature lies beside what it signs, under the same name with `.minisig`. Its trusted comment names the object, so
//! that a good signature of one object is none for another.

use std::fmt;
use std::io::Cursor;

use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;
use minisign::{KeyPair, SecretKeyBox, SignatureBox};
use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use crate::ports::{ErrorCode, PortError, PortResult};

/// What a signature's name ends with.
pub const SUFFIX: &str = ".minisig";
/// Largest signature that is read, in bytes; a real one has three hundred and the object's name.
pub const SIGNATURE_BYTES_MAX: u64 = 4 << 10;
/// A secret key: algorithm, key derivation, checksum's algorithm, salt, two limits, number, both halves, checksum.
const SECRET_BYTES: usize = 2 + 2 + 2 + 32 + 8 + 8 + 8 + 64 + 32;
/// What the trusted comment says before the object's name.
const COMMENT: &str = "hk-dr object:";

/// The name of an object's signature.
pub fn signature_name(object: &str) -> String {
    format!("{object}{SUFFIX}")
}

/// A public key: 56 characters of base64, beginning `RW`.
#[derive(Clone)]
pub struct PublicKey {
    key: minisign::PublicKey,
    text: String,
}

impl PublicKey {
    /// Reads minisign's one-line form (the second line of a `.pub` file).
    ///
    /// # Errors
    /// `Invalid`, with what it should look like.
    pub fn parse(text: &str) -> PortResult<Self> {
        let text = text.trim();
        let key = minisign::PublicKey::from_base64(text).map_err(|_| {
            PortError::new(ErrorCode::Invalid, format!("`{text}` is not a minisign public key"))
                .hint("it has 56 characters and begins with RW; `hk-dr keys signing show` prints yours")
        })?;
        Ok(Self { key, text: text.to_owned() })
    }

    /// The number that minisign shows: 16 hexadecimal digits.
    pub fn id(&self) -> String {
        key_id(self.key.keynum())
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.text)
    }
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

/// A secret key that signs.
pub struct SigningKey {
    key: minisign::SecretKey,
    public: PublicKey,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public.id())
    }
}

impl SigningKey {
    /// Makes a new key.
    ///
    /// # Errors
    /// `Local` if the system gives no random bytes.
    pub fn generate() -> PortResult<Self> {
        let pair = KeyPair::generate_unencrypted_keypair().map_err(|e| failed("make a signing key", &e))?;
        let public = PublicKey::parse(&pair.pk.to_base64())?;
        Ok(Self { key: pair.sk, public })
    }

    /// Reads minisign's secret key file, one without a password: what protects it is `secrets.yaml.age` around it.
    ///
    /// # Errors
    /// `Invalid`, without repeating the text: it may be a secret with a typing error.
    pub fn parse(text: &SecretString) -> PortResult<Self> {
        let wrong = || {
            PortError::new(ErrorCode::Invalid, "the signing key in secrets.yaml.age is not a minisign secret key")
                .hint("it is the content of a file made by `minisign -G -W`, or by `hk-dr keys signing init`")
        };
        let line = text.expose_secret().lines().nth(1).unwrap_or_default().trim();
        let bytes = Zeroizing::new(BASE64.decode(line).ok().filter(|b| b.len() == SECRET_BYTES).ok_or_else(wrong)?);
        let plain = bytes.starts_with(b"Ed\0\0");
        // minisign leaves the checksum of a key without password empty; the library wants it or a correct one.
        let key = if plain && bytes[SECRET_BYTES - 32..].iter().all(|byte| *byte == 0) {
            minisign::SecretKey::from_bytes(&bytes)
        } else {
            SecretKeyBox::from_string(text.expose_secret()).and_then(SecretKeyBox::into_unencrypted_secret_key)
        }
        .map_err(|_| wrong())?;
        let public = minisign::PublicKey::from_secret_key(&key).map_err(|_| wrong())?;
        let key = Self { public: PublicKey::parse(&public.to_base64())?, key };
        // Fails if the halves do not belong together.
        key.sign("", b"").map_err(|_| wrong())?;
        Ok(key)
    }

    /// Minisign's secret key file.
    pub fn to_text(&self) -> PortResult<SecretString> {
        let boxed = self.key.to_box(Some("hk-dr signing key")).map_err(|e| failed("write a signing key", &e))?;
        Ok(SecretString::from(boxed.into_string()))
    }

    /// Its public half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Signs the content of an object; the result is the content of the `.minisig` beside it.
    ///
    /// # Errors
    /// `Local` if the system gives no random bytes.
    pub fn sign(&self, object: &str, data: &[u8]) -> PortResult<String> {
        let comment = format!("{COMMENT}{object}");
        let untrusted = format!("signature by hk-dr, key {}", self.public.id());
        minisign::sign(Some(&self.public.key), &self.key, Cursor::new(data), Some(&comment), Some(&untrusted))
            .map(SignatureBox::into_string)
            .map_err(|e| failed(&format!("sign {object}"), &e))
    }
}

/// Why an object is not believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// There is no signature.
    Unsigned,
    /// The signature does not decode.
    Damaged,
    /// Signed, but by a key that is not named; its number.
    OtherKey(String),
    /// A signature of something else than this content.
    Wrong,
    /// A good signature, but of an object of that name.
    OtherObject(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsigned => f.write_str("it is not signed"),
            Self::Damaged => f.write_str("its signature is damaged"),
            Self::OtherKey(id) => write!(f, "it is signed by key {id}, which cluster.yaml does not name"),
            Self::Wrong => f.write_str("its signature is of other content: it was changed after it was signed"),
            Self::OtherObject(name) => write!(f, "its signature is that of {name}: it was copied from there"),
        }
    }
}

impl Refusal {
    /// As an error about an object in a bucket.
    pub fn error(&self, object: &str, store: &str) -> PortError {
        PortError::new(ErrorCode::Unsigned, format!("{object} in {store} is not believed: {self}")).hint(match self {
            Self::Unsigned => {
                "nothing was changed; if you know that it is yours, `hk-dr keys signing adopt` signs what has no \
                 signature, and --accept-unsigned uses it this once"
            }
            _ => {
                "nothing was changed; someone wrote to the bucket who does not hold the signing key: use another \
                 snapshot or another copy; --accept-unsigned uses it all the same"
            }
        })
    }
}

/// The keys whose signatures count.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    keys: Vec<PublicKey>,
}

impl Trust {
    /// From public keys in minisign's one-line form.
    ///
    /// # Errors
    /// See [`PublicKey::parse`].
    pub fn parse(keys: &[String]) -> PortResult<Self> {
        Ok(Self { keys: keys.iter().map(|text| PublicKey::parse(text)).collect::<PortResult<_>>()? })
    }

    /// Whether no key is named, so that nothing can be checked.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether a key is one of them.
    pub fn names(&self, key: &PublicKey) -> bool {
        self.keys.contains(key)
    }

    /// Checks an object's content against its signature. Returns the number of the key that signed.
    pub fn check(&self, object: &str, data: &[u8], signature: Option<&[u8]>) -> Result<String, Refusal> {
        let text = std::str::from_utf8(signature.ok_or(Refusal::Unsigned)?).map_err(|_| Refusal::Damaged)?;
        if !has_signatures_form(text) {
            return Err(Refusal::Damaged);
        }
        let signature = SignatureBox::from_string(text).map_err(|_| Refusal::Damaged)?;
        let id = key_id(signature.keynum());
        let Some(key) = self.keys.iter().find(|key| key.key.keynum() == signature.keynum()) else {
            return Err(Refusal::OtherKey(id));
        };
        minisign::verify(&key.key, &signature, Cursor::new(data), true, false, false).map_err(|_| Refusal::Wrong)?;
        let comment = signature.trusted_comment().map_err(|_| Refusal::Damaged)?;
        let named = comment.strip_prefix(COMMENT).unwrap_or("something that hk-dr did not sign");
        if named == object { Ok(id) } else { Err(Refusal::OtherObject(named.to_owned())) }
    }
}

/// Four lines, the second and fourth of exact lengths. The library takes shorter ones and panics over them later, and what
/// lies in a bucket may come from anybody.
fn has_signatures_form(text: &str) -> bool {
    let lines: Vec<&str> = text.lines().collect();
    let bytes = |line: &str| BASE64.decode(line.trim()).map_or(0, |bytes| bytes.len());
    matches!(lines[..], [_, signature, _, global] if bytes(signature) == 74 && bytes(global) == 64)
}

/// As minisign shows it: the number is stored with its lowest byte first.
fn key_id(number: &[u8]) -> String {
    number.iter().rev().map(|byte| format!("{byte:02X}")).collect()
}

fn failed(doing: &str, error: &minisign::PError) -> PortError {
    PortError::new(ErrorCode::Local, format!("cannot {doing}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trust(keys: &[&SigningKey]) -> Trust {
        Trust::parse(&keys.iter().map(|key| key.public().to_string()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn a_signature_is_of_one_content_one_name_and_one_key() {
        let (mine, other) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        let trusted = trust(&[&mine]);
        let signature = mine.sign("demo/a", b"content").unwrap();
        let check = |object: &str, data: &[u8], text: &str| trusted.check(object, data, Some(text.as_bytes()));
        assert_eq!(check("demo/a", b"content", &signature), Ok(mine.public().id()));
        assert_eq!(check("demo/a", b"Content", &signature), Err(Refusal::Wrong));
        assert_eq!(check("demo/b", b"content", &signature), Err(Refusal::OtherObject("demo/a".into())));
        assert_eq!(trusted.check("demo/a", b"content", None), Err(Refusal::Unsigned));
        let foreign = other.sign("demo/a", b"content").unwrap();
        assert_eq!(check("demo/a", b"content", &foreign), Err(Refusal::OtherKey(other.public().id())));
        assert!(trust(&[&other, &mine]).check("demo/a", b"content", Some(signature.as_bytes())).is_ok());
        // A comment that was changed, and a file cut anywhere.
        assert!(check("demo/b", b"content", &signature.replace("object:demo/a", "object:demo/b")).is_err());
        for end in 0..signature.trim_end().len() {
            assert!(check("demo/a", b"content", &signature[..end]).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn keys_survive_being_written_down_and_show_nothing() {
        let key = SigningKey::generate().unwrap();
        let again = SigningKey::parse(&key.to_text().unwrap()).unwrap();
        assert_eq!(again.public(), key.public());
        let signature = again.sign("x", b"1").unwrap();
        assert!(trust(&[&key]).check("x", b"1", Some(signature.as_bytes())).is_ok());
        assert_eq!(format!("{key:?}"), format!("SigningKey({})", key.public().id()));
        assert!(SigningKey::parse(&SecretString::from("untrusted comment: x\nRWQ")).is_err());
        assert!(PublicKey::parse("age1xyz").is_err());
    }

    #[test]
    fn stock_minisign_agrees_in_both_directions() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let run = |arguments: &[&str]| {
            let output = std::process::Command::new("minisign").args(arguments).output().unwrap();
            (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let key = SigningKey::generate().unwrap();
        std::fs::write(path("object"), b"content").unwrap();
        std::fs::write(path("object.minisig"), key.sign("demo/object", b"content").unwrap()).unwrap();
        let (good, said) = run(&["-V", "-P", &key.public().to_string(), "-m", &path("object")]);
        assert!(good && said.contains("hk-dr object:demo/object"), "{said}");
        std::fs::write(path("object"), b"Content").unwrap();
        assert!(!run(&["-V", "-P", &key.public().to_string(), "-m", &path("object")]).0);

        // A key that minisign made signs here.
        assert!(run(&["-G", "-W", "-p", &path("key.pub"), "-s", &path("key.sec")]).0);
        let stock = SigningKey::parse(&std::fs::read_to_string(path("key.sec")).unwrap().into()).unwrap();
        let public = std::fs::read_to_string(path("key.pub")).unwrap();
        assert_eq!(public.lines().nth(1), Some(stock.public().to_string().as_str()));
        // minisign shows no leading zeros.
        assert!(public.contains(stock.public().id().trim_start_matches('0')), "{public}");
    }
}
