//! Packs the two programs of `tools/go/images` as container images, so that a worker starts pods without a registry.

use std::collections::BTreeMap;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::download::hex;

/// What containerd's `sandbox_image` must be set to. The content is hk-dr's own pause program under the upstream name, so
/// that a worker that can reach the registry would get the upstream image in its place.
pub const PAUSE_IMAGE: &str = "registry.k8s.io/pause:3.10";
/// Answers over HTTP on port 8080.
pub const WEB_IMAGE: &str = "hk-dr.local/web:1";

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: &'static str,
    digest: String,
    size: usize,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<&'static str, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    media_type: &'static str,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    media_type: &'static str,
    manifests: Vec<Descriptor>,
}

#[derive(Serialize)]
struct Image {
    created: &'static str,
    architecture: &'static str,
    os: &'static str,
    config: Config,
    rootfs: RootFs,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    user: &'static str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    exposed_ports: BTreeMap<&'static str, BTreeMap<(), ()>>,
    entrypoint: Vec<String>,
    working_dir: &'static str,
}

#[derive(Serialize)]
struct RootFs {
    r#type: &'static str,
    diff_ids: Vec<String>,
}

/// The blobs of a layout, by digest.
#[derive(Default)]
struct Blobs(BTreeMap<String, Vec<u8>>);

impl Blobs {
    fn add(&mut self, media_type: &'static str, content: Vec<u8>) -> Descriptor {
        let digest = hex(&Sha256::digest(&content));
        let size = content.len();
        self.0.insert(digest.clone(), content);
        Descriptor { media_type, digest: format!("sha256:{digest}"), size, annotations: BTreeMap::new() }
    }

    fn add_json(&mut self, media_type: &'static str, value: &impl Serialize) -> Descriptor {
        self.add(media_type, json(value))
    }

    fn add_image(
        &mut self,
        name: &str,
        program: (&str, &[u8]),
        user: &'static str,
        port: Option<&'static str>,
    ) -> Descriptor {
        let (file, content) = program;
        let mut layer = tar::Builder::new(Vec::new());
        append(&mut layer, file, content, 0o755);
        // Uncompressed: a worker imports it faster than it could inflate it, and no compressor's version can change it.
        let layer = self.add("application/vnd.oci.image.layer.v1.tar", finish(layer));
        let image = Image {
            created: "1970-01-01T00:00:00Z",
            architecture: "amd64",
            os: "linux",
            config: Config {
                user,
                exposed_ports: port.into_iter().map(|p| (p, BTreeMap::new())).collect(),
                entrypoint: vec![format!("/{file}")],
                working_dir: "/",
            },
            rootfs: RootFs { r#type: "layers", diff_ids: vec![layer.digest.clone()] },
        };
        let config = self.add_json("application/vnd.oci.image.config.v1+json", &image);
        let manifest = Manifest { schema_version: 2, media_type: MANIFEST, config, layers: vec![layer] };
        let mut descriptor = self.add_json(MANIFEST, &manifest);
        let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        descriptor.annotations.insert("io.containerd.image.name", name.to_owned());
        descriptor.annotations.insert("org.opencontainers.image.ref.name", tag.to_owned());
        descriptor
    }
}

/// An OCI image layout in a tar file, as `ctr images import` reads it. The same programs give the same bytes.
pub(super) fn pack(pause: &[u8], web: &[u8]) -> Vec<u8> {
    let mut blobs = Blobs::default();
    let manifests = vec![
        blobs.add_image(PAUSE_IMAGE, ("pause", pause), "65535:65535", None),
        blobs.add_image(WEB_IMAGE, ("web", web), "65532:65532", Some("8080/tcp")),
    ];
    let index = Index { schema_version: 2, media_type: "application/vnd.oci.image.index.v1+json", manifests };
    let mut layout = tar::Builder::new(Vec::new());
    append(&mut layout, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644);
    append(&mut layout, "index.json", &json(&index), 0o644);
    for (digest, content) in &blobs.0 {
        append(&mut layout, &format!("blobs/sha256/{digest}"), content, 0o644);
    }
    finish(layout)
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("strings, numbers and lists always serialize")
}

fn append(archive: &mut tar::Builder<Vec<u8>>, path: &str, content: &[u8], mode: u32) {
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    archive.append_data(&mut header, path, content).expect("short relative paths fit, and memory takes every write");
}

fn finish(archive: tar::Builder<Vec<u8>>) -> Vec<u8> {
    archive.into_inner().expect("memory takes every write")
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn members(bundle: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(bundle);
        let read = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (entry.path().unwrap().to_string_lossy().into_owned(), content)
        };
        archive.entries().unwrap().map(read).collect()
    }

    #[test]
    fn the_same_programs_give_the_same_bytes() {
        let bundle = pack(b"pause program", b"web program");
        assert_eq!(bundle, pack(b"pause program", b"web program"));
        assert_eq!(
            hex(&Sha256::digest(&bundle)),
            "b6c47cf40a7bc6843ca81e173235fc0d860f42e35d83ebfc3e860d98911ea87d",
            "the layout changed: pin demo-images anew under a new version"
        );
    }

    #[test]
    fn every_digest_names_what_it_should() {
        let members = members(&pack(b"pause program", b"web program"));
        for (path, content) in &members {
            if let Some(digest) = path.strip_prefix("blobs/sha256/") {
                assert_eq!(digest, hex(&Sha256::digest(content)));
            }
        }
        let index: serde_json::Value = serde_json::from_slice(&members["index.json"]).unwrap();
        let names: Vec<_> = index["manifests"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| {
                let digest = m["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
                let manifest: serde_json::Value =
                    serde_json::from_slice(&members[&format!("blobs/sha256/{digest}")]).unwrap();
                for part in [&manifest["config"], &manifest["layers"][0]] {
                    let digest = part["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
                    assert_eq!(members[&format!("blobs/sha256/{digest}")].len() as u64, part["size"].as_u64().unwrap());
                }
                m["annotations"]["io.containerd.image.name"].as_str().unwrap()
            })
            .collect();
        assert_eq!(names, [PAUSE_IMAGE, WEB_IMAGE]);
    }
}
