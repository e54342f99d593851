//! The fast path answers as hyper does: the same bytes lead to the same responses.

use proptest::{collection::vec, prelude::*, sample::select, test_runner::TestRunner};

use crate::server::both_paths::BothPaths;

const HOST: &str = "Host: x\r\n";

/// Headers of a request for the bundle. `ETAG` stands for its entity tag.
const HEADERS: &[&str] = &[
    "",
    "If-None-Match: ETAG\r\n",
    "if-none-match: W/ETAG\r\n",
    "If-None-Match: \"x\", ETAG\r\n",
    "If-None-Match: ETAG, \"x\"\r\n",
    "If-None-Match: ETAG\r\nIf-None-Match: \"x\"\r\n",
    "If-None-Match: *\r\n",
    "If-None-Match:\r\n",
    "If-None-Match:\tETAG\t\r\n",
    "If-None-Match: ETAG\r\nPrefer: wait=1\r\n",
    "If-None-Match: ETAG\r\nPrefer: modes=snapshot,delta;wait=2\r\n",
    "Prefer: respond-async\r\nPrefer: wait=1\r\nIf-None-Match: ETAG\r\n",
    "Authorization: Bearer token\r\n",
    "Authorization: Bearer other\r\n",
    "Authorization: Basic eDp5\r\n",
    "Authorization: Bearer token\r\nAuthorization: Bearer other\r\n",
    "User-Agent: Open Policy Agent/0.38.1 (linux, amd64)\r\n",
    "User-Agent: Open Policy Agent/1.22.2 (linux, amd64)\r\nAccept-Encoding: gzip\r\n",
    "X-Forwarded-For: 10.0.0.1, 10.0.0.2\r\n",
    "Connection: close\r\n",
    "Connection: CLOSE\r\nIf-None-Match: ETAG\r\n",
    "Connection: Keep-Alive\r\n",
    "Connection: close, TE\r\n",
    "Connection: close\r\nConnection: keep-alive\r\n",
    "Connection: Upgrade\r\nUpgrade: websocket\r\n",
    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    "Content-Length: 0\r\n",
    "Content-Length: 5\r\nContent-Length: 0\r\n",
    "Content-Length: x\r\n",
    "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
    "Host: y\r\n",
    "X: a\r\n b\r\n",
    "X : a\r\n",
    "X: a\rb\r\n",
    ": a\r\n",
    "X\r\n",
    "Trailer: X\r\n",
];
/// Targets of a request.
const TARGETS: &[&str] = &[
    "/authz/main",
    "/bundle/authz/main",
    "/bundles/authz/main?x=1",
    "/bundles/authz/main#x",
    "/bundles/authz%2Fmain",
    "/bundles/authz/m%61in",
    "/bundles/authz/%4",
    "/bundles/authz/%zz",
    "/bundles/none",
    "/bundles/secret",
    "/",
    "//",
    "/bundles/authz/main/",
    "/bundles//authz/main",
    "/bundles/ä",
    "/bundles/\"",
    "/bundles/<x>",
    "/bundles/a|b",
    "/bundles/a\\b",
    "/bundles/^",
    "http://x/bundles/authz/main",
    "*",
    "x:80",
    "",
    "/bundles/authz/main?",
    "/?/",
    "/%00",
];
/// Request lines.
const REQUEST_LINES: &[&str] = &[
    "HEAD /bundles/authz/main HTTP/1.1",
    "OPTIONS * HTTP/1.1",
    "POST /bundles/authz/main HTTP/1.1",
    "CONNECT x:80 HTTP/1.1",
    "get /bundles/authz/main HTTP/1.1",
    "GET /bundles/authz/main HTTP/1.0",
    "GET /bundles/authz/main HTTP/1.2",
    "GET /bundles/authz/main HTTP/2.0",
    "GET  /bundles/authz/main HTTP/1.1",
    " GET /bundles/authz/main HTTP/1.1",
    "\r\n\r\nGET /bundles/authz/main HTTP/1.1",
    "GET /bundles/authz/main",
    "GET /bundles/authz/main HTTP/1.1 ",
    "PRI * HTTP/2.0",
    "GET /bundles/authz/main HTTP/1.1\nX: y",
];

/// Requests and other bytes that clients send, each in the parts in which it arrives. `ETAG` stands
/// for the entity tag of the bundle.
fn corpus() -> Vec<Vec<String>> {
    let whole = |bytes: &str| vec![bytes.to_owned()];
    let get = |headers: &str| format!("GET /bundles/authz/main HTTP/1.1\r\n{HOST}{headers}\r\n");
    let path = |path: &str| whole(&format!("GET {path} HTTP/1.1\r\n{HOST}\r\n"));
    let line = |line: &str| whole(&format!("{line}\r\n{HOST}\r\n"));
    let known = "If-None-Match: ETAG\r\n";
    let mut corpus: Vec<_> = HEADERS.iter().map(|headers| whole(&get(headers))).collect();
    for target in TARGETS {
        corpus.push(path(target));
    }
    for request_line in REQUEST_LINES {
        corpus.push(line(request_line));
    }
    let (one, other) = (get(""), get(known));
    let fields = |count: usize| {
        (0..count)
            .map(|n| format!("X{n}: y\r\n"))
            .collect::<String>()
    };
    corpus.extend([
        whole(&format!("{one}{other}{}", path("/none")[0])),
        whole(&format!(
            "{other}{}{other}",
            line("HEAD /bundles/authz/main HTTP/1.1")[0]
        )),
        whole(&format!("{}{one}", get("Connection: close\r\n"))),
        whole(&format!("{}hello{one}", get("Content-Length: 5\r\n"))),
        whole(&format!(
            "{}0\r\n\r\n{one}",
            get("Transfer-Encoding: chunked\r\n")
        )),
        whole(&format!(
            "{}{other}",
            get("Prefer: wait=2\r\nIf-None-Match: ETAG\r\n")
        )),
        whole(&format!("{other}\0\u{1}")),
        whole(&other.replace("\r\n", "\n")),
        whole(&get(&fields(31))),
        whole(&get(&fields(40))),
        whole(&get(&fields(120))),
        whole(&get(&format!("X: {}\r\n", "y".repeat(12_000)))),
        whole(&get(&format!("X: {}\r\n", "y".repeat(20_000)))),
        whole(&get(&format!("X: {}\r\n", "y".repeat(70_000)))),
        path(&format!("/{}", "a".repeat(9_000))),
        path(&format!("/{}", "a".repeat(66_000))),
        vec![one[..9].to_owned(), one[9..].to_owned()],
        vec![other.clone(), one[..20].to_owned(), one[20..].to_owned()],
        vec![format!("{other}{}", &one[..20]), one[20..].to_owned()],
        vec![
            get("Expect: 100-continue\r\nContent-Length: 2\r\n"),
            "ab".to_owned(),
        ],
        whole("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0"),
        vec![
            "PRI * HT".to_owned(),
            "TP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0".to_owned(),
        ],
        vec![
            other,
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0".to_owned(),
        ],
        whole("\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}"),
        whole(""),
    ]);
    corpus
}

fn assert_same(paths: &BothPaths, parts: &[Vec<u8>]) {
    let parts: Vec<&[u8]> = parts.iter().map(|part| &part[..]).collect();
    let text: Vec<_> = parts
        .iter()
        .map(|part| String::from_utf8_lossy(part))
        .collect();
    assert_eq!(
        paths.on_fast_path(&parts),
        paths.on_hyper(&parts),
        "{text:?}"
    );
}

fn with_etag(paths: &BothPaths, parts: &[String]) -> Vec<Vec<u8>> {
    let parts = parts.iter();
    parts
        .map(|part| part.replace("ETAG", paths.etag()).into_bytes())
        .collect()
}

#[test]
fn requests_of_the_corpus_get_the_same_responses_on_both_paths() {
    let paths = BothPaths::new();
    for parts in corpus() {
        assert_same(&paths, &with_etag(&paths, &parts));
    }
}

/// A change of a request of the corpus.
#[derive(Debug, Clone)]
enum Change {
    Insert(usize, &'static str),
    Remove(usize, usize),
    Replace(usize, u8),
    SplitAt(usize),
}

/// What is inserted.
const PIECES: &[&str] = &[
    "\r\n",
    "\n",
    " ",
    "\t",
    "\0",
    ":",
    "Connection: close\r\n",
    "Host: y\r\n",
    "GET ",
    "HTTP/1.0",
    "Expect: 100-continue\r\n",
    "Content-Length: 1\r\n",
    "Transfer-Encoding: chunked\r\n",
    "%",
    "?",
];

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (any::<usize>(), select(PIECES)).prop_map(|(at, piece)| Change::Insert(at, piece)),
        (any::<usize>(), 1..9_usize).prop_map(|(at, length)| Change::Remove(at, length)),
        (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Change::Replace(at, byte)),
        any::<usize>().prop_map(Change::SplitAt),
    ]
}

fn apply(parts: &mut Vec<Vec<u8>>, change: &Change) {
    let last = parts.last_mut().unwrap();
    let place = |at: usize| at % (last.len() + 1);
    match *change {
        Change::Insert(at, piece) => {
            let at = place(at);
            last.splice(at..at, piece.bytes());
        }
        Change::Remove(at, length) => {
            let at = place(at);
            last.drain(at..(at + length).min(last.len()));
        }
        Change::Replace(at, byte) => {
            let at = place(at);
            if let Some(changed) = last.get_mut(at) {
                *changed = byte;
            }
        }
        Change::SplitAt(at) => {
            let rest = last.split_off(place(at));
            parts.push(rest);
        }
    }
}

#[test]
fn changed_requests_get_the_same_responses_on_both_paths() {
    let paths = BothPaths::new();
    let corpus: Vec<_> = corpus()
        .iter()
        .filter(|parts| parts[0].len() < 4096)
        .map(|parts| with_etag(&paths, parts).concat())
        .collect();
    let strategy = (vec(select(corpus), 1..3), vec(change(), 0..4));
    let mut runner = TestRunner::new(ProptestConfig::with_cases(2_000));
    let result = runner.run(&strategy, |(requests, changes)| {
        let mut parts = vec![requests.concat()];
        for change in &changes {
            apply(&mut parts, change);
        }
        assert_same(&paths, &parts);
        Ok(())
    });
    result.unwrap();
}
