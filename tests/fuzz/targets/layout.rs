//! A folder in the image layout format: its `index.json` with the images in it, and the entries of
//! the cache. One blob follows a line of `---`; `DIGEST` stands for its digest.

#![no_main]

use std::{fs, path::PathBuf, sync::LazyLock};

use bundlegate::{
    images::Images,
    oci::{Digest, Layout, LayoutIndex, Reference},
    store::fuzzing::record,
};
use libfuzzer_sys::fuzz_target;

static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = bundlegate_fuzz::scratch("layout");
    Images::open(&folder).expect("a folder of our own");
    folder
});

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    let (index, blob) = text
        .split_once(bundlegate_fuzz::SEPARATOR)
        .unwrap_or((&text, ""));
    let digest = Digest::sha256(blob.as_bytes());
    let path = FOLDER.join("blobs/sha256").join(digest.hex());
    fs::write(&path, blob).expect("the folder is there");
    fs::write(
        FOLDER.join("index.json"),
        index.replace("DIGEST", digest.as_str()),
    )
    .expect("the folder is there");
    read();
    fs::remove_file(path).expect("no other process removes it");
});

fn read() {
    let Ok(index) = Layout::open(&*FOLDER)
        .expect("its marker is in order")
        .index()
    else {
        return;
    };
    let bytes = index
        .to_bytes()
        .expect("every part is a string or a number");
    assert_eq!(
        serde_json::from_slice::<LayoutIndex>(&bytes).expect("we wrote it"),
        index
    );
    for entry in index.manifests.iter().filter_map(record) {
        assert_eq!(record(&entry), Some(entry));
    }
    let images = Images::open(&FOLDER).expect("a folder of our own");
    for image in images.list().expect("the index is in order") {
        let name: Reference = image.name().parse().expect("its name is a reference");
        let found = images
            .resolve(&name)
            .expect("the index is in order")
            .expect("it is listed");
        // Of several entries with one name, the first counts.
        let first = index.named(&image.name()).map(|first| &first.digest);
        assert!([Some(&image.digest), first].contains(&Some(&found.digest)));
    }
}
