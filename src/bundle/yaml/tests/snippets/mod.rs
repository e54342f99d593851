//! YAML texts, each with the JSON that OPA 1.22.2 makes of it.

mod collections;
mod documents;
mod properties;
mod scalars;
mod texts;

/// A text and its JSON, as `opa eval` writes it, with members sorted by name.
pub(crate) type Row = (&'static str, &'static str);

/// Stands for the JSON of a text that OPA refuses.
pub(crate) const REFUSED: &str = "";

pub(crate) fn rows() -> impl Iterator<Item = &'static Row> {
    [
        scalars::ROWS,
        texts::ROWS,
        collections::ROWS,
        properties::ROWS,
        documents::ROWS,
    ]
    .into_iter()
    .flatten()
}

/// Texts that are composed of the texts above and of single indicators, the same for the same seed.
pub(crate) fn combinations(seed: u64, count: usize) -> Vec<String> {
    let mut random = fastrand::Rng::with_seed(seed);
    let texts: Vec<&str> = rows()
        .map(|(text, _)| *text)
        .filter(|text| !makes_a_random_choice(text))
        .collect();
    (0..count)
        .map(|_| match random.u8(0..3) {
            0 => (0..random.usize(1..15))
                .map(|_| pick(&mut random, FRAGMENTS))
                .collect(),
            1 => mutate(&mut random, &texts),
            _ => fill(&mut random, &texts, 2),
        })
        .collect()
}

/// Whether OPA takes one of two values by the random order of a Go map, which is refused here.
fn makes_a_random_choice(text: &str) -> bool {
    text.contains("<<: {1: a}") || text.contains("<<: {'1': a}")
}

fn pick<'a>(random: &mut fastrand::Rng, texts: &[&'a str]) -> &'a str {
    texts[random.usize(..texts.len())]
}

fn mutate(random: &mut fastrand::Rng, texts: &[&str]) -> String {
    let mut text: Vec<char> = pick(random, texts).chars().collect();
    for _ in 0..random.usize(1..4) {
        let at = random.usize(..=text.len());
        let end = (at + random.usize(..3)).min(text.len());
        let fragment = if random.bool() {
            pick(random, FRAGMENTS)
        } else {
            ""
        };
        text.splice(at..end, fragment.chars());
    }
    text.into_iter().collect()
}

/// Fills the gaps of a frame with texts, some of them nested.
fn fill(random: &mut fastrand::Rng, texts: &[&str], depth: usize) -> String {
    let mut parts = pick(random, FRAMES).split('_');
    let mut filled = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let inner = match depth {
            1.. if random.u8(0..3) == 0 => fill(random, texts, depth - 1),
            _ => pick(random, texts).to_owned(),
        };
        let indented = format!("\n{}", " ".repeat(random.usize(1..5)));
        filled += &if random.bool() {
            inner.replace('\n', &indented)
        } else {
            inner
        };
        filled += part;
    }
    filled
}

const FRAMES: &[&str] = &[
    "a: _",
    "- _\n- _",
    "{a: _, b: _}",
    "[_, _]",
    "_: _",
    "a:\n  b: _\n  c: _",
    "? _\n: _",
    "_ # c",
    "&x _",
    "!!str _",
    "!a _",
    "_\n---\n_",
    "_\n...\n_",
    "a: &x _\nb: *x\n",
    "_\n_",
    "'_'",
    "\"_\"",
    "|\n _",
    "<<: _\nx: _",
    "{_: _}",
    "a: _\n_: b",
    "-\n _\n- _",
];

const FRAGMENTS: &[&str] = &[
    " ",
    "\n",
    "\n ",
    "\n  ",
    "  ",
    "\t",
    "\r\n",
    "\r",
    ": ",
    ":",
    "- ",
    "-",
    "? ",
    "?",
    ", ",
    ",",
    "[",
    "]",
    "{",
    "}",
    "#",
    " # c\n",
    "&x ",
    "*x",
    "*x ",
    "!!str ",
    "!!int ",
    "!!binary ",
    "!a ",
    "! ",
    "!!merge ",
    "<<: ",
    "<<",
    "|\n ",
    ">\n ",
    "|-\n",
    "|+2\n  ",
    "'",
    "\"",
    "\\",
    "\\\n",
    "\"a\"",
    "'a'",
    "a",
    "b",
    "1",
    "~",
    "---\n",
    "...\n",
    "--- ",
    "%YAML 1.1\n",
    "%TAG !e! a\n",
    "!e!x ",
    "0x1",
    "1_0",
    ".5",
    "1e3",
    "2023-01-01",
    "null",
    "\u{85}",
    "\u{2028}",
    "é",
    "a: ",
    "b: ",
    "a: &x ",
    "\n- ",
    "\n? ",
    "\n: ",
    "<<: *x",
    "<<: [*x]",
    "{<<: *x}",
    "'a': ",
    "1: ",
    "\"1\": ",
    "~: ",
    "aGk=",
];
