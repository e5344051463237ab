//! The formatter never changes what a file means, keeps comments, and comes to rest.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::fmt::Write as _;

use policy::format::format;
use policy::parse::parse;
use policy::source::Source;
use policy::testing::{Random, objects};
use serde_json::Value;

fn formatted(text: &str) -> String {
    format(&Source::new("p.yaml", text)).unwrap_or_else(|problems| panic!("{problems}\n{text}"))
}

#[test]
fn lays_out_and_keeps_comments() {
    let text = "# head
apiVersion:   cofferdam.dev/v1
kind: Policy # the kind
metadata: {name:   shop-db,  owner: 'team-shop' }
spec:
    # who
    subject: { app: db }
    ingress:
    -   action: allow   # why
        peers: [ {selector: {app: web}},
           # the office
           {cidr: 10.0.0.0/8} ]
    # nothing more


    egress: []
# tail
";
    let wanted = "# head
apiVersion: cofferdam.dev/v1
kind: Policy # the kind
metadata: {name: shop-db, owner: \"team-shop\"}
spec:
  # who
  subject: {app: db}
  ingress:
    - action: allow # why
      peers: [
        {selector: {app: web}},
        # the office
        {cidr: 10.0.0.0/8}
      ]
    # nothing more

  egress: []
# tail
";
    assert_eq!(formatted(text), wanted);
    assert_eq!(formatted(wanted), wanted);
    // Line ends of another system and a byte order mark are layout.
    let windows = format!("\u{feff}{}", text.replace('\n', "\r\n"));
    assert_eq!(formatted(&windows), wanted);
}

#[test]
fn json_stays_json() {
    let text = r#"{"apiVersion":"cofferdam.dev/v1","kind":"AddressGroup","metadata":{"name":"partners-with-a-long-name"},
        "spec":{"cidrs":["198.51.100.0/24","2001:db8:1::/48","203.0.113.0/24"]}}"#;
    let once = formatted(text);
    let read = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    assert_eq!(read(&once), read(text));
    assert_eq!(formatted(&once), once);
}

#[test]
fn refuses_what_does_not_parse() {
    for text in [
        "a: [",
        "kind: Policy\n",
        "apiVersion: cofferdam.dev/v1\nkind: Polcy\n",
        "a: 1\n",
    ] {
        let problems = format(&Source::new("p.yaml", text)).expect_err(text);
        assert!(problems.to_string().contains("p.yaml:"), "{problems}");
    }
    // An inventory is no policy, but ours.
    let inventory = "managedNetworks: [ 10.0.0.0/8 ]\nworkloads: []\n";
    assert_eq!(
        formatted(inventory),
        "managedNetworks: [10.0.0.0/8]\nworkloads: []\n"
    );
}

/// Writes a document in a random, ugly style with random comments.
struct Ugly<'a> {
    random: &'a mut Random,
    text: String,
    comments: Vec<String>,
}

impl Ugly<'_> {
    fn comment(&mut self) -> String {
        let text = format!("c{} \"it's\" {{x: [", self.comments.len());
        self.comments.push(text.clone());
        format!("# {text}")
    }

    fn end_of_line(&mut self) {
        if self.random.chance(15) {
            let comment = self.comment();
            write!(
                self.text,
                "{}{comment}",
                " ".repeat(1 + self.random.below(3))
            )
            .unwrap();
        }
        self.text.push('\n');
        if self.random.chance(5) {
            self.text.push_str(&"\n".repeat(1 + self.random.below(3)));
        }
    }

    fn own_line(&mut self, indent: usize) {
        if self.random.chance(10) {
            let comment = self.comment();
            writeln!(self.text, "{}{comment}", " ".repeat(indent)).unwrap();
        }
    }

    fn scalar(&mut self, value: &Value) {
        let text = match value {
            Value::String(text) => match self.random.below(3) {
                0 => value.to_string(),
                1 => format!("'{}'", text.replace('\'', "''")),
                _ => plain(text).unwrap_or_else(|| value.to_string()),
            },
            other => other.to_string(),
        };
        self.text.push_str(&text);
    }

    fn flow(&mut self, value: &Value, indent: usize) {
        let gap = |random: &mut Random| " ".repeat(random.below(3));
        match value {
            Value::Object(map) => {
                self.text.push('{');
                for (index, (key, value)) in map.iter().enumerate() {
                    self.separate(index, indent);
                    self.scalar(&Value::String(key.clone()));
                    write!(self.text, ": {}", gap(self.random)).unwrap();
                    self.flow(value, indent);
                }
                self.text.push_str(&gap(self.random));
                self.text.push('}');
            }
            Value::Array(items) => {
                self.text.push('[');
                for (index, value) in items.iter().enumerate() {
                    self.separate(index, indent);
                    self.flow(value, indent);
                }
                self.text.push(']');
            }
            scalar => self.scalar(scalar),
        }
    }

    fn separate(&mut self, index: usize, indent: usize) {
        if index > 0 {
            self.text.push(',');
            if self.random.chance(15) {
                self.end_of_line();
                self.own_line(indent + 1);
                self.text.push_str(&" ".repeat(indent + 1));
            } else {
                self.text.push(' ');
            }
        }
    }

    fn block(&mut self, value: &Value, indent: usize) {
        let step = 1 + self.random.below(4);
        match value {
            Value::Object(map) if !map.is_empty() => {
                for (key, value) in map {
                    self.own_line(indent);
                    self.text.push_str(&" ".repeat(indent));
                    self.scalar(&Value::String(key.clone()));
                    self.text.push(':');
                    self.value(value, indent, indent + step);
                }
            }
            Value::Array(items) if !items.is_empty() => {
                for value in items {
                    self.own_line(indent);
                    write!(self.text, "{}-", " ".repeat(indent)).unwrap();
                    self.value(value, indent, indent + step);
                }
            }
            scalar => {
                self.text.push_str(&" ".repeat(indent));
                self.flow(scalar, indent);
                self.end_of_line();
            }
        }
    }

    fn value(&mut self, value: &Value, indent: usize, inner: usize) {
        let compound = match value {
            Value::Object(map) => !map.is_empty(),
            Value::Array(items) => !items.is_empty(),
            _ => false,
        };
        if compound && self.random.chance(70) {
            self.end_of_line();
            self.block(value, inner);
        } else {
            self.text.push_str(&" ".repeat(1 + self.random.below(2)));
            self.flow(value, indent);
            self.end_of_line();
        }
    }
}

/// A text without quotes, where it may go without.
fn plain(text: &str) -> Option<String> {
    let harmless = |c: char| c.is_ascii_alphabetic() || matches!(c, '-' | '/' | '.');
    let is_word = text.chars().next()?.is_ascii_alphabetic()
        && text.chars().all(harmless)
        && !matches!(
            text,
            "true" | "false" | "null" | "yes" | "no" | "on" | "off" | "y" | "n"
        );
    is_word.then(|| text.to_owned())
}

#[test]
fn random_files_keep_meaning_and_comments() {
    let (mut files, mut comments, mut changed) = (0, 0, 0);
    for seed in 0..120 {
        let random = &mut Random::new(seed);
        let objects = objects(random);
        let mut ugly = Ugly {
            random,
            text: String::new(),
            comments: Vec::new(),
        };
        for object in &objects {
            ugly.text.push_str("---");
            ugly.end_of_line();
            ugly.block(&object.to_json(), 0);
        }
        let (text, written) = (ugly.text, ugly.comments);
        let read = |text: &str| parse(&[Source::new("p.yaml", text)]);
        let Ok(before) = read(&text) else {
            // The generator also makes peers that the parser refuses.
            continue;
        };
        let once = match format(&Source::new("p.yaml", text.as_str())) {
            Ok(once) => once,
            Err(problems) => panic!("seed {seed}: {problems}\n{text}"),
        };
        assert_eq!(read(&once).unwrap(), before, "seed {seed}");
        assert_eq!(formatted(&once), once, "seed {seed}");
        for comment in &written {
            assert!(
                once.contains(&format!("# {comment}\n")),
                "seed {seed}: {comment}\n{once}"
            );
        }
        files += 1;
        comments += written.len();
        changed += usize::from(once != text);
    }
    assert!(
        files > 80 && comments > 1_000 && changed > 80,
        "{files} {comments} {changed}"
    );
}
