//! Bundlegate reads odd tar archives as OPA does: the same files with the same content, or
//! neither of them any.

use std::{fs, io::Write as _};

use fastrand::Rng;
use tempfile::TempDir;

use crate::verdicts::{is_meant, ours, pick, theirs};

const BLOCK: usize = 512;

/// Every archive begins with a manifest that owns `a`, so that a file which only one side sees,
/// or sees other content in, makes the verdicts differ.
#[tokio::test]
async fn generated_archives_get_the_verdict_of_opa() {
    const ARCHIVES: usize = 3_000;
    let seed = std::env::var("SEED")
        .ok()
        .map_or(7, |seed| seed.parse().unwrap());
    let folder = TempDir::new().unwrap();
    let mut random = Rng::with_seed(seed);
    let archives: Vec<_> = (0..ARCHIVES).map(|_| archive(&mut random)).collect();
    let files: Vec<_> = (0..ARCHIVES)
        .map(|number| folder.path().join(format!("{number}.tar.gz")))
        .collect();
    files
        .iter()
        .zip(&archives)
        .for_each(|(file, (archive, _))| fs::write(file, gzip(archive)).unwrap());
    let said = theirs(&files).await;
    let (mut loads, mut meant, mut wrong) = (0, 0, Vec::new());
    for ((archive, listing), theirs) in archives.iter().zip(&said) {
        let ours = ours(&gzip(archive));
        loads += usize::from(theirs.is_ok());
        match ours.is_ok() == theirs.is_ok() {
            true => {}
            false if is_meant(&ours, theirs) => meant += 1,
            false => wrong.push(format!("OPA {theirs:?}, ours {ours:?}: {listing:?}")),
        }
    }
    println!(
        "generated archives: {ARCHIVES} verdicts, OPA loads {loads}, other on purpose: {meant}"
    );
    assert!(
        wrong.is_empty(),
        "{} differ: {:#?}",
        wrong.len(),
        &wrong[..wrong.len().min(20)]
    );
    assert!(
        (ARCHIVES / 8..ARCHIVES * 7 / 8).contains(&loads),
        "{loads} load: too few of a kind to tell"
    );
}

/// The limit of Go's `archive/tar` on what describes a member, from both sides.
#[tokio::test]
async fn extended_headers_have_the_limit_that_opa_has() {
    const LIMIT: usize = 1 << 20;
    let folder = TempDir::new().unwrap();
    let mut files = Vec::new();
    for kind in *b"xgLK" {
        for length in [LIMIT, LIMIT + 1] {
            let content = match kind {
                b'x' | b'g' => record("comment", &vec![b'c'; length - "1048576 comment=\n".len()]),
                b'L' => [&b"data.json\0"[..], &vec![b'n'; length - 10]].concat(),
                _ => vec![b'k'; length],
            };
            assert_eq!(content.len(), length);
            let mut archive = member(b"ustar\x0000", "meta", kind, &content);
            archive.extend(member(b"ustar\x0000", "data.json", b'0', b"{}"));
            archive.resize(archive.len() + 2 * BLOCK, 0);
            let file = folder.path().join(format!("{}-{length}", char::from(kind)));
            fs::write(&file, gzip(&archive)).unwrap();
            files.push((file, length == LIMIT));
        }
    }
    let paths: Vec<_> = files.iter().map(|(file, _)| file).collect();
    for ((file, loads), theirs) in files.iter().zip(theirs(&paths).await) {
        assert_eq!(theirs.is_ok(), *loads, "OPA on {file:?}: {theirs:?}");
        assert_eq!(
            ours(&fs::read(file).unwrap()).is_ok(),
            *loads,
            "ours on {file:?}"
        );
    }
}

const CONTENTS: &[&[u8]] = &[
    b"{\"a\":1}",
    b"{}",
    b"{\"b\":1}",
    b"",
    b"7\n",
    b"1\n0\n7\n",
    b"0\n",
    b"2\n0\n1\n3\n1\n",
    b"1\n0\n600\n",
];

/// An archive, and what is in it.
fn archive(random: &mut Rng) -> (Vec<u8>, Vec<String>) {
    let mut archive = member(b"ustar\x0000", ".manifest", b'0', br#"{"roots":["a"]}"#);
    let mut listing = Vec::new();
    for _ in 0..random.usize(1..4) {
        let extensions = *pick(random, &[0, 0, 1, 1, 2]);
        for _ in 0..extensions {
            add(&mut archive, &mut listing, extension(random), random);
        }
        let kind = *pick(random, b"000000000000\x00\x00575S1ZD");
        let name = pick(
            random,
            &[
                "data.json",
                "a/data.json",
                "b/data.json",
                "README",
                "a/data.json/",
                "data.jso",
            ],
        );
        let mut content = pick(random, CONTENTS).to_vec();
        // A map in front of the content fills a block.
        if content.ends_with(b"\n") {
            content.resize(BLOCK, 0);
            content.extend(b"{\"a\":1}");
        }
        add(
            &mut archive,
            &mut listing,
            member(magic(random), name, kind, &content),
            random,
        );
    }
    archive.resize(
        archive.len() + *pick(random, &[2, 2, 2, 1, 0, 20]) * BLOCK,
        0,
    );
    if random.u8(..30) == 0 {
        archive.truncate(archive.len() - random.usize(1..BLOCK));
    }
    (archive, listing)
}

fn magic(random: &mut Rng) -> &'static [u8; 8] {
    const MAGIC: &[[u8; 8]] = &[
        *b"ustar\x0000",
        *b"ustar  \0",
        *b"ustar\x0000",
        *b"ustar  \0",
        [0; 8],
        *b"ustar\0xx",
        *b"ustar 00",
    ];
    pick(random, MAGIC)
}

/// Adds a member, now and then with one field of its header replaced.
fn add(archive: &mut Vec<u8>, listing: &mut Vec<String>, mut member: Vec<u8>, random: &mut Rng) {
    const FIELDS: &[(usize, usize)] = &[
        (100, 8),
        (108, 8),
        (116, 8),
        (124, 12),
        (124, 12),
        (136, 12),
        (257, 8),
        (329, 8),
        (337, 8),
        (345, 12),
        (357, 12),
        (345, 32),
        (386, 12),
        (398, 12),
        (482, 1),
        (483, 12),
        (508, 4),
    ];
    const LARGE: &[&[u8]] = &[b"777777777777", b"\x80\xff\xff\xff\xff\xff\xff\xff"];
    const VALUES: &[&[u8]] = &[
        b"",
        b"\0",
        b" ",
        b"7",
        b"07",
        b" 7 ",
        b"00000000007\0",
        b"8",
        b"-1",
        b"+7",
        b"7\x007",
        b"7 7",
        b"x",
        b"\xff\xff\xff",
        b"\x80\0\0\0\0\0\0\0\0\0\0\x07",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"a",
        b"00000001000",
        b"00000001007",
        b"tar\0",
        b"b/",
    ];
    if random.u8(..4) == 0 {
        let (start, length) = *pick(random, FIELDS);
        // OPA reserves as much memory as a header says, and dies of large sizes.
        let is_size = matches!(start, 124 | 483);
        let values = if is_size || random.u8(..8) > 0 {
            VALUES
        } else {
            LARGE
        };
        let value = pick(random, values);
        let field = &mut member[start..start + length];
        field.fill(0);
        let length = value.len().min(length);
        field[..length].copy_from_slice(&value[..length]);
        sum(&mut member, random.u8(..8) == 0);
    }
    listing.push(shown(&member[..BLOCK]));
    listing.push(shown(&member[BLOCK..]));
    archive.extend(member);
}

/// Bytes with runs of NUL left out.
fn shown(bytes: &[u8]) -> String {
    let parts = bytes
        .split(|byte| *byte == 0)
        .filter(|part| !part.is_empty());
    parts
        .map(|part| part.escape_ascii().to_string())
        .collect::<Vec<_>>()
        .join(" ")
}

/// A member that describes the next one.
fn extension(random: &mut Rng) -> Vec<u8> {
    let kind = *pick(random, b"xxxxxxLKg");
    let content = match kind {
        b'L' | b'K' => pick(
            random,
            &[
                &b"a/data.json\0"[..],
                b"b/data.json",
                b"",
                b"\0x",
                b"data.json\0garbage",
                b"a/data.json/\0",
            ],
        )
        .to_vec(),
        _ => records(random),
    };
    member(magic(random), "././@LongLink", kind, &content)
}

const SPARSE: &[(&str, &str)] = &[
    ("GNU.sparse.major", "1"),
    ("GNU.sparse.minor", "0"),
    ("GNU.sparse.major", "0"),
    ("GNU.sparse.minor", "1"),
    ("GNU.sparse.name", "data.json"),
    ("GNU.sparse.name", "b/data.json"),
    ("GNU.sparse.realsize", "7"),
    ("GNU.sparse.size", "7"),
    ("GNU.sparse.size", "8"),
    ("GNU.sparse.size", "-1"),
    ("GNU.sparse.size", ""),
    ("GNU.sparse.map", "0,7"),
    ("GNU.sparse.map", "0,2,2,5"),
    ("GNU.sparse.map", ""),
    ("GNU.sparse.map", "0,7,"),
    ("GNU.sparse.numblocks", "1"),
    ("GNU.sparse.numblocks", "2"),
    ("GNU.sparse.numblocks", "0"),
    ("GNU.sparse.offset", "0"),
    ("GNU.sparse.numbytes", "7"),
    ("GNU.sparse.offset", "7"),
    ("GNU.sparse.numbytes", "0,7"),
];
const PLAIN: &[(&str, &str)] = &[
    ("path", "a/data.json"),
    ("path", "b/data.json"),
    ("path", ""),
    ("path", "data\0.json"),
    ("path", "a/data.json/"),
    ("size", "7"),
    ("size", ""),
    ("size", "+7"),
    ("size", "-7"),
    ("size", "x"),
    ("size", "0"),
    ("uid", "1"),
    ("uid", "x"),
    ("gid", "-1"),
    ("gid", "99999999999999999999"),
    ("mtime", "1.5"),
    ("mtime", "1.5x"),
    ("mtime", "-1."),
    ("atime", ""),
    ("ctime", "1e3"),
    ("comment", "line\n17 path=x\n"),
    ("comment", "\0"),
    ("uname", "\0"),
    ("linkpath", "x"),
    ("a\0b", "c"),
    ("SCHILY.xattr.user.x", "\0"),
    ("", "x"),
    ("path", "data.json"),
];

/// An extended header.
fn records(random: &mut Rng) -> Vec<u8> {
    let mut bytes = Vec::new();
    match random.u8(..4) {
        0 => {
            for (key, value) in [
                ("major", "1"),
                ("minor", "0"),
                ("name", *pick(random, &["data.json", "b/data.json"])),
                ("realsize", "7"),
            ] {
                bytes.extend(record(&format!("GNU.sparse.{key}"), value.as_bytes()));
            }
        }
        1 => {
            for (key, value) in [("size", "7"), ("numblocks", "1"), ("map", "0,7")] {
                bytes.extend(record(&format!("GNU.sparse.{key}"), value.as_bytes()));
            }
        }
        _ => {}
    }
    for _ in 0..random.usize(0..3) {
        let from = if random.bool() { PLAIN } else { SPARSE };
        let (key, value) = pick(random, from);
        bytes.extend(record(key, value.as_bytes()));
    }
    if random.u8(..12) == 0 && !bytes.is_empty() {
        let at = random.usize(..bytes.len());
        bytes[at] = *pick(random, b"\n 0=9x\0");
    }
    bytes
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

/// A header and its content, in blocks.
fn member(magic: &[u8; 8], name: &str, kind: u8, content: &[u8]) -> Vec<u8> {
    let mut member = vec![0; BLOCK];
    member[..name.len()].copy_from_slice(name.as_bytes());
    member[100..107].copy_from_slice(b"0000644");
    member[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
    member[156] = kind;
    member[257..265].copy_from_slice(magic);
    sum(&mut member, false);
    member.extend(content);
    member.resize(member.len().next_multiple_of(BLOCK), 0);
    member
}

/// The checksum of a header, as POSIX has it or as Sun's tar added it.
fn sum(member: &mut [u8], signed: bool) {
    member[148..156].fill(b' ');
    let sum: i64 = match signed {
        true => member[..BLOCK]
            .iter()
            .map(|byte| i64::from(byte.cast_signed()))
            .sum(),
        false => member[..BLOCK].iter().map(|byte| i64::from(*byte)).sum(),
    };
    member[148..155].copy_from_slice(format!("{:06o}\0", sum.max(0)).as_bytes());
}

fn gzip(archive: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(archive).unwrap();
    gzip.finish().unwrap()
}
