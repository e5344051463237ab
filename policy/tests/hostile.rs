//! Hostile texts: refused in bounded time and memory, with the place named, by every parser.
//!
//! An allocator that counts measures the memory, so that the bound holds for the parser and not for the
//! machine. All in one test: tests of one binary run side by side and would count each other.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use policy::api::parse_probes;
use policy::format::format;
use policy::lint::parse_flows;
use policy::parse::parse;
use policy::problems::Problems;
use policy::source::Source;
use policy::testing::{Random, objects};
use policy::world::World;

/// Counts what is allocated.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn count(size: usize) {
    let now = NOW.fetch_add(size, Relaxed) + size;
    PEAK.fetch_max(now, Relaxed);
}

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    // SAFETY: the contract is the one of the trait.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    // SAFETY: the contract is the one of the trait.
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the pointer came from `alloc` above, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }

    // SAFETY: the contract is the one of the trait.
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The bounds: generous for a debug build on a busy machine, far from what a bomb takes.
const TIME: Duration = Duration::from_secs(60);
const MEMORY: usize = 400 << 20;

/// A text, and what the refusal must say; `None` where it may be anything.
struct Hostile {
    name: &'static str,
    bytes: Vec<u8>,
}

fn hostile(name: &'static str, text: impl Into<Vec<u8>>) -> Hostile {
    Hostile {
        name,
        bytes: text.into(),
    }
}

fn with_rules(rules: &str) -> String {
    format!(
        "apiVersion: cofferdam.dev/v1\nkind: Policy\nmetadata: {{name: p}}\nspec:\n  subject: {{app: db}}\n  ingress: {rules}\n"
    )
}

fn texts() -> Vec<Hostile> {
    const SIZE: usize = 4_000_000;
    let bomb = |close: &str| {
        (1..40).fold(
            "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned(),
            |text, level| {
                let list = vec![format!("*a{}", level - 1); 9].join(", ");
                text + &format!("a{level}: &a{level} [{list}]\n")
            },
        ) + close
    };
    let merges: String = (1..200).fold("a0: &a0 {k: v}\n".to_owned(), |text, level| {
        text + &format!(
            "a{level}: &a{level} {{<<: [*a{0}, *a{0}, *a{0}], k{level}: v}}\n",
            level - 1
        )
    });
    let keys: String = (0..90_000).map(|index| format!("k{index}: 1\n")).collect();
    let one =
        "apiVersion: cofferdam.dev/v1\nkind: Policy\nmetadata: {name: p}\nspec: {subject: all}\n";
    vec![
        hostile("100 MB of one letter", vec![b'x'; 100 << 20]),
        hostile("100 MB of documents", "---\na: 1\n".repeat((100 << 20) / 9)),
        hostile("alias bomb", bomb("")),
        hostile("alias of itself", "a: &a [*a]\n"),
        hostile("unknown alias", "a: *nothing\n"),
        hostile("merge keys", merges),
        hostile("lists 100,000 deep", "[".repeat(100_000)),
        hostile("mappings 100,000 deep", "{a: ".repeat(100_000)),
        hostile("block lists 100,000 deep", "- ".repeat(100_000)),
        hostile(
            "closed lists 100,000 deep",
            "[".repeat(100_000) + &"]".repeat(100_000),
        ),
        hostile("question marks", "? ".repeat(100_000)),
        hostile("anchors", "a: ".to_owned() + &"&a ".repeat(100_000)),
        hostile("a million documents", "---\n1\n".repeat(660_000)),
        hostile("a million empty documents", "---\n".repeat(999_999)),
        hostile("a long scalar", "x".repeat(SIZE)),
        hostile("a long quoted scalar", format!("a: \"{}", "x".repeat(SIZE))),
        hostile("a long key", "k".repeat(SIZE) + ": v\n"),
        hostile(
            "a list of many",
            with_rules(&format!("[{}]", "x,".repeat(600_000))),
        ),
        hostile(
            "rules that are none",
            with_rules(&format!("[{}]", "{},".repeat(200_000))),
        ),
        hostile("ninety thousand keys", keys),
        hostile("one key again and again", "a: 1\n".repeat(90_000)),
        hostile(
            "comments only, then nonsense",
            "# c\n".repeat(900_000) + "]",
        ),
        hostile(
            "bad UTF-8",
            b"apiVersion: cofferdam.dev/v1\nkind: \xff\xfe\n".to_vec(),
        ),
        hostile("UTF-16", b"\xff\xfea\x00:\x00 \x001\x00".to_vec()),
        hostile("overlong UTF-8", b"a: \xc0\xaf\n".to_vec()),
        hostile("NUL", "apiVersion: cofferdam.dev/v1\0\n"),
        hostile("control characters", "a: \u{1}\u{2}\n"),
        hostile("two marks of byte order", "\u{feff}\u{feff}a: 1\n"),
        hostile("tabs", "spec:\n\tsubject: all\n"),
        hostile(
            "a tag that makes objects",
            "!!python/object/apply:os.system [id]\n",
        ),
        hostile(
            "a tagged kind",
            one.replace("Policy", "!!python/name:os.system Policy"),
        ),
        hostile(
            "a tagged document",
            format!(
                "--- !<tag:example,2000:x>\n{}",
                one.replace("kind: Policy", "kind: !!int Policy")
            ),
        ),
        hostile(
            "a huge number",
            with_rules(&format!(
                "[{{action: allow, ports: [{{port: {}}}]}}]",
                "9".repeat(100_000)
            )),
        ),
        hostile(
            "a number that is none",
            with_rules("[{action: allow, ports: [{port: .nan}]}]"),
        ),
        hostile(
            "a hexadecimal flood",
            with_rules(
                "[{action: allow, ports: [{port: 0xffffffffffffffffffffffffffffffffffffffff}]}]",
            ),
        ),
        hostile(
            "repeated keys",
            one.to_owned() + "spec: {subject: {app: web}}\n",
        ),
        hostile(
            "JSON with repeated keys",
            r#"{"apiVersion": "cofferdam.dev/v1", "kind": "Policy", "metadata": {"name": "p", "name": "q"}, "spec": {"subject": "all"}}"#,
        ),
        hostile(
            "JSON cut off",
            r#"{"apiVersion": "cofferdam.dev/v1", "kind": "Policy", "metadata": {"name": "p"}, "spec": {"subj"#,
        ),
        hostile("a directive", "%YAML 9.9\n---\na: 1\n"),
        hostile("complex keys", "? [a, b]\n: 1\n? {c: d}\n: 2\n"),
    ]
}

/// What this thread has had of a processor: others on the machine do not count.
fn processor_time() -> Duration {
    // The first number of proc_pid_schedstat is in nanoseconds.
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
}

/// Runs a parser over a text; what it says, the time and the memory it took.
fn measured<T>(
    hostile: &Hostile,
    read: impl FnOnce(&Source) -> Result<T, Problems>,
) -> (Result<(), Problems>, Duration, usize) {
    let before = NOW.load(Relaxed);
    PEAK.store(before, Relaxed);
    let began = processor_time();
    let result = Source::from_bytes("x.yaml", &hostile.bytes).and_then(|source| read(&source));
    let (time, memory) = (processor_time() - began, PEAK.load(Relaxed) - before);
    (result.map(|_| ()), time, memory)
}

type Reader = (&'static str, fn(&Source) -> Result<(), Problems>);

#[test]
fn every_parser_refuses_hostile_texts_in_bounds() {
    let readers: [Reader; 5] = [
        ("policies", |source| {
            parse(std::slice::from_ref(source)).map(|_| ())
        }),
        ("inventory", |source| World::parse(source).map(|_| ())),
        ("probes", |source| parse_probes(source).map(|_| ())),
        ("flows", |source| parse_flows(source).map(|_| ())),
        ("format", |source| format(source).map(|_| ())),
    ];
    let (mut slowest, mut largest) = (Duration::ZERO, 0);
    for text in texts() {
        for (name, read) in readers {
            // The formatter reads with the same parser first.
            if name == "format" && (1 << 20..4 << 20).contains(&text.bytes.len()) {
                continue;
            }
            let (result, time, memory) = measured(&text, read);
            let what = format!("{name}: {}: {time:.1?}, {} KiB", text.name, memory >> 10);
            if time > Duration::from_secs(2) || memory > 100 << 20 {
                println!("{what}");
            }
            assert!(time < TIME && memory < MEMORY, "{what}");
            (slowest, largest) = (slowest.max(time), largest.max(memory));
            // A text of nothing is no mistake to some; everything else is refused with its place.
            let empty = text.name == "a million empty documents"
                || text.name == "comments only, then nonsense";
            match result {
                Ok(()) => assert!(empty, "{what}: accepted"),
                Err(problems) => {
                    let first = &problems.0[0];
                    assert!(
                        first.file == "x.yaml" && first.line > 0 && first.column > 0,
                        "{what}: {first}"
                    );
                    assert!(
                        first.message.len() < 10_000,
                        "{what}: {} bytes",
                        first.message.len()
                    );
                    assert!(
                        problems.0.len() <= 1_001,
                        "{what}: {} problems",
                        problems.0.len()
                    );
                }
            }
        }
    }
    println!("slowest {slowest:?}, largest {} MiB", largest >> 20);
    harmless();
    mutated();
}

/// What looks odd and is in order.
fn harmless() {
    let one =
        "apiVersion: cofferdam.dev/v1\nkind: Policy\nmetadata: {name: p}\nspec:\n  subject: all\n";
    let read = |text: &str| parse(&[Source::new("x.yaml", text)]);
    let wanted = read(one).unwrap();
    for text in [
        format!("\u{feff}{one}"),
        one.replace('\n', "\r\n"),
        format!("---\n{one}...\n---\n# nothing\n"),
        format!("%YAML 1.2\n---\n{one}"),
        format!("# a comment\n\n{one}\n\n"),
        one.replace("all", "!!str all"),
        one.replace("metadata: {name: p}", "metadata: &m {name: p}"),
        r#"{"apiVersion": "cofferdam.dev/v1", "kind": "Policy", "metadata": {"name": "p"}, "spec": {"subject": "all"}}"#.to_owned(),
    ] {
        assert_eq!(read(&text).unwrap(), wanted, "{text}");
    }
}

/// Random changes of valid texts: no panic, and nothing is read as another thing than the text says: what
/// is accepted comes back the same from its own serialised form.
fn mutated() {
    let (mut accepted, mut refused) = (0, 0);
    for seed in 0..1_500 {
        let random = &mut Random::new(seed);
        let mut bytes = if seed % 2 == 0 {
            include_bytes!("data/full.yaml").to_vec()
        } else {
            let all: Vec<String> = objects(random)
                .iter()
                .map(|object| object.to_json().to_string())
                .collect();
            all.join("\n---\n").into_bytes()
        };
        for _ in 0..1 + random.below(4) {
            mutate(&mut bytes, random);
        }
        let read = Source::from_bytes("x.yaml", &bytes).and_then(|source| {
            parse(std::slice::from_ref(&source)).map(|objects| (source, objects))
        });
        match read {
            Ok((source, objects)) => {
                accepted += 1;
                let json: Vec<String> = objects
                    .iter()
                    .map(|object| object.to_json().to_string())
                    .collect();
                let again = parse(&[Source::new("y.json", json.join("\n---\n"))]);
                assert_eq!(again.as_ref(), Ok(&objects), "seed {seed}: {}", source.text);
                if seed % 20 == 0 {
                    let text = format(&source).map(|text| parse(&[Source::new("z.yaml", text)]));
                    // It may be refused, but never be changed.
                    if let Ok(formatted) = text {
                        assert_eq!(formatted.as_ref(), Ok(&objects), "seed {seed}");
                    }
                }
            }
            Err(problems) => {
                refused += 1;
                assert!(!problems.0.is_empty());
                assert!(
                    problems.0.iter().all(|problem| problem.line > 0),
                    "{problems}"
                );
            }
        }
    }
    println!("{accepted} accepted, {refused} refused");
    assert!(accepted > 30 && refused > 1_000, "{accepted} {refused}");
}

fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    const PIECES: [&str; 24] = [
        "\n", "  ", "\t", "- ", ": ", "{", "}", "[", "]", ",", "#", "'", "\"", "&a ", "*a", "|",
        ">", "!!int ", "---\n", "<<: ", "\0", "null", "~", "0",
    ];
    let at = random.below(bytes.len());
    match random.below(6) {
        0 => bytes[at] = random.bits() as u8,
        1 => {
            bytes.remove(at);
        }
        2 => {
            let piece = random.pick(&PIECES);
            bytes.splice(at..at, piece.bytes());
        }
        3 => bytes.truncate(at.max(1)),
        4 => {
            // A line twice.
            let lines: Vec<Vec<u8>> = bytes
                .split_inclusive(|byte| *byte == b'\n')
                .map(<[u8]>::to_vec)
                .collect();
            let line = random.pick(&lines);
            bytes.splice(at..at, line);
        }
        _ => {
            let from = random.below(bytes.len());
            let to = (from + random.below(20)).min(bytes.len());
            let piece = bytes[from..to].to_vec();
            bytes.splice(at..at, piece);
        }
    }
}
