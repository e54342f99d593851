"""OCI artifacts with an OPA bundle as their layer, signatures as cosign 2 makes them, and the two
kinds of storage that they are written to: an OCI image layout, and that of CNCF distribution."""
import base64, gzip, hashlib, io, json, os, subprocess, tarfile

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
TITLE = "org.opencontainers.image.title"
REF_NAME = "org.opencontainers.image.ref.name"
SIMPLE = "application/vnd.dev.cosign.simplesigning.v1+json"
SIGNATURE = "dev.cosignproject.cosign/signature"
EMPTY = b"{}"


def sha(data):
    return hashlib.sha256(data).hexdigest()


def descriptor(kind, data, **annotations):
    found = {"mediaType": kind, "digest": f"sha256:{sha(data)}", "size": len(data)}
    return {**found, "annotations": annotations} if annotations else found


def manifest_of(layers):
    config = descriptor("application/vnd.oci.empty.v1+json", EMPTY)
    return json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}).encode()


def tarball(files):
    """A gzipped tar of (name, bytes) pairs."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    # Level 1: most content is noise, and 20 MB of it take a second at level 9.
    return gzip.compress(raw.getvalue(), 1, mtime=0)


def noise(size):
    """A tarball of `size` random bytes, which OPA ignores."""
    return tarball([("noise.bin", os.urandom(size))])


def small_bundle(number):
    """A bundle of about 2 kB with a root of its own."""
    text = f'package team{number}\n\ndefault allow := false\n\nallow if input.user == "user-{number}"\n'
    data = json.dumps({f"team{number}": {"noise": os.urandom(600).hex()}})
    manifest = json.dumps({"revision": f"r{number}", "roots": [f"team{number}"]})
    return tarball([(".manifest", manifest.encode()), ("data.json", data.encode()), ("policy.rego", text.encode())])


class Signer:
    """An ECDSA key, and signatures over simple signing payloads by the openssl program."""

    def __init__(self, folder):
        self.key, self.public = f"{folder}/release.key", f"{folder}/release.pub"
        openssl = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", self.key]
        subprocess.run(openssl, check=True)
        subprocess.run(["openssl", "ec", "-in", self.key, "-pubout", "-out", self.public], check=True,
                       stderr=subprocess.DEVNULL)

    def sign(self, digest):
        payload = json.dumps({"critical": {"identity": {"docker-reference": ""}, "image": {
            "docker-manifest-digest": f"sha256:{digest}"}, "type": "cosign container image signature"},
            "optional": None}).encode()
        done = subprocess.run(["openssl", "dgst", "-sha256", "-sign", self.key], input=payload, check=True,
                              capture_output=True)
        signature = base64.b64encode(done.stdout).decode()
        return payload, manifest_of([descriptor(SIMPLE, payload, **{SIGNATURE: signature})])


def artifact(layer, signer=None, tag="live"):
    """(tags with manifests, blobs) of an artifact with one layer."""
    # oras pull writes only layers with a title.
    manifest = manifest_of([descriptor(LAYER, layer, **{TITLE: "bundle.tar.gz"})])
    tags, blobs = {tag: manifest}, [EMPTY, layer, manifest]
    if signer:
        payload, signature = signer.sign(sha(manifest))
        tags[f"sha256-{sha(manifest)}.sig"] = signature
        blobs += [payload, signature]
    return tags, blobs


def small_artifacts(signer, count):
    """(number, tags with manifests, blobs) of each of `count` small bundles."""
    for number in range(count):
        yield number, *artifact(small_bundle(number), signer)


def write(path, data):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)


def write_repository(root, repository, tags, blobs):
    """Writes into the storage of distribution's filesystem driver; `root` is its rootdirectory."""
    base = f"{root}/docker/registry/v2"
    folder = f"{base}/repositories/{repository}"
    for blob in blobs:
        digest = sha(blob)
        write(f"{base}/blobs/sha256/{digest[:2]}/{digest}/data", blob)
        write(f"{folder}/_layers/sha256/{digest}/link", f"sha256:{digest}".encode())
    # A gateway may be polling, so signatures come before what they sign, and links last.
    for tag, manifest in reversed(tags.items()):
        link = f"sha256:{sha(manifest)}".encode()
        write(f"{folder}/_manifests/revisions/sha256/{sha(manifest)}/link", link)
        write(f"{folder}/_manifests/tags/{tag}/index/sha256/{sha(manifest)}/link", link)
        replace(f"{folder}/_manifests/tags/{tag}/current/link", link)


def fill_registry(root, made):
    for number, tags, blobs in made:
        write_repository(root, f"team/bundle-{number}", tags, blobs)


def replace(path, data):
    """Writes a file in one step, for readers that look at any time."""
    write(f"{path}.new", data)
    os.replace(f"{path}.new", path)


def write_layout(root, entries, blobs):
    """Writes an OCI image layout; `entries` are the descriptors of its index."""
    for blob in blobs:
        write(f"{root}/blobs/sha256/{sha(blob)}", blob)
    write(f"{root}/oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    replace(f"{root}/index.json", json.dumps({"schemaVersion": 2, "manifests": entries}).encode())


def write_artifact(root, layer):
    """Writes a layout whose only artifact has this layer."""
    tags, blobs = artifact(layer)
    write_layout(root, [descriptor(MANIFEST, tags["live"])], blobs)


def fill_layout(root, made):
    entries, blobs = [], []
    for number, tags, parts in made:
        blobs += parts
        for tag, manifest in tags.items():
            name = f"bundle-{number}" if tag == "live" else tag
            entries.append(descriptor(MANIFEST, manifest, **{REF_NAME: name}))
    write_layout(root, entries, blobs)
