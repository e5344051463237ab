//! The form in which the kernel holds a content: addresses, classes and cells in arrays of lines
//! ([`datapath::lines`]), rules of port ranges in a trie, and with each class a word that says which look-ups would find
//! nothing.

use std::collections::{BTreeMap, HashMap};

use datapath::abi::{
    Addr4Line, Addr6Line, AddrValue, CellLine, ClassCells, ClassKey, ClassLine, ClassValue,
    Geometry, RuleKey, RuleValue, TAKEN, cells,
};
use datapath::lines;
use datapath::packet::V6;
use datapath::table::Tabled;

use super::content::{Content, Flat, Part};
use super::layout::Layout;
use super::{KernelError, Result};

/// A content as the kernel's maps hold it.
///
/// # Errors
/// When its keys collide.
pub(crate) fn shape(content: &Content) -> Result<Content> {
    let mut shaped = content.clone();
    let (ranges, rules, known) = cells_of(content);
    let classes = class_lines(content, &known)?;
    let cells = cell_lines(&rules)?;
    let addr4 = addr4_lines(content)?;
    let addr6 = addr6_lines(content)?;
    let mut geometry = like(Part::Geometry);
    let length = |flat: &Flat| u32::try_from(flat.len()).unwrap_or(u32::MAX);
    geometry.push(
        &0u32,
        &Geometry {
            addr4: length(&addr4),
            addr6: length(&addr6),
            classes: length(&classes),
            cells: length(&cells),
        },
    );
    *shaped.part_mut(Part::Rules) = ranges;
    *shaped.part_mut(Part::Cells) = cells;
    *shaped.part_mut(Part::Classes) = classes;
    *shaped.part_mut(Part::Addr4) = addr4;
    *shaped.part_mut(Part::Addr6) = addr6;
    *shaped.part_mut(Part::Geometry) = geometry;
    Ok(shaped)
}

/// The content that the kernel's maps were made of. Maps that no content would have become are given back as they are:
/// their digest is that of no policy.
pub(crate) fn unshape(shaped: &Content) -> Content {
    let mut content = shaped.clone();
    let mut addr4 = Flat::of(Part::Addr4);
    for (_, line) in shaped.part(Part::Addr4).entries::<u32, Addr4Line>() {
        for ((addr, identity), flags) in line.addr.iter().zip(line.identity).zip(line.flags) {
            if flags != 0 {
                addr4.push(&addr.to_ne_bytes(), &bound(identity, flags));
            }
        }
    }
    let mut addr6 = Flat::of(Part::Addr6);
    for (_, line) in shaped.part(Part::Addr6).entries::<u32, Addr6Line>() {
        for ((addr, identity), flags) in line.addr.iter().zip(line.identity).zip(line.flags) {
            if flags != 0 {
                addr6.push(&octets(*addr), &bound(identity, flags));
            }
        }
    }
    let mut classes = Flat::of(Part::Classes);
    for (_, line) in shaped.part(Part::Classes).entries::<u32, ClassLine>() {
        let ClassCells { class, filter, .. } = line.cells;
        if class != 0 {
            let key = ClassKey {
                endpoint: line.scope >> 1,
                identity: line.identity,
                direction: line.scope & 1,
            };
            classes.push(&key, &ClassValue { class, filter });
        }
    }
    let mut rules = shaped.part(Part::Rules).clone();
    for (_, line) in shaped.part(Part::Cells).entries::<u32, CellLine>() {
        if line.class != 0 {
            rules.push(&rule_key(line.class, line.port), &line.value);
        }
    }
    *content.part_mut(Part::Addr4) = addr4;
    *content.part_mut(Part::Addr6) = addr6;
    *content.part_mut(Part::Classes) = classes;
    *content.part_mut(Part::Rules) = rules;
    *content.part_mut(Part::Cells) = Flat::of(Part::Cells);
    *content.part_mut(Part::Geometry) = Flat::of(Part::Geometry);
    content.sort();
    match shape(&content) {
        Ok(again) if again == *shaped => content,
        _ => shaped.clone(),
    }
}

/// The cells of port ranges, all others, and what is known of each class's.
fn cells_of(content: &Content) -> (Flat, Vec<(RuleKey, RuleValue)>, HashMap<u32, ClassCells>) {
    let mut known: HashMap<u32, ClassCells> = HashMap::new();
    let (mut ranges, mut exact) = (like(Part::Rules), Vec::new());
    for (key, value) in content.part(Part::Rules).entries::<RuleKey, RuleValue>() {
        let class = known.entry(key.class).or_default();
        match key.prefix_len {
            RuleKey::FULL => class.present |= 1 << cells::bit(key.protocol, key.port),
            RuleKey::ANY_PORT => class.present |= cells::PROTOCOLS,
            RuleKey::ANY_PROTOCOL => {
                class.present |= cells::DEFAULT;
                class.default = value;
            }
            _ => {
                class.present |= cells::RANGES;
                ranges.push(&key, &value);
                continue;
            }
        }
        exact.push((key, value));
    }
    (ranges, exact, known)
}

fn class_lines(content: &Content, known: &HashMap<u32, ClassCells>) -> Result<Flat> {
    let entries: Vec<(ClassKey, ClassValue)> = content.part(Part::Classes).entries().collect();
    let other: BTreeMap<_, u32> = entries
        .iter()
        .map(|(key, value)| ((key.endpoint, key.identity, key.direction), value.filter))
        .collect();
    let scope = |key: &ClassKey| key.endpoint << 1 | key.direction;
    let hashes = entries
        .iter()
        .map(|(key, _)| lines::class(key.identity, scope(key)))
        .collect();
    lay_out(Part::Classes, hashes, 1, |keys| {
        let mut line = ClassLine::default();
        if let Some((key, value)) = one(keys, &entries) {
            let back = other.get(&(key.endpoint, key.identity, key.direction ^ 1));
            line = ClassLine {
                identity: key.identity,
                scope: scope(key),
                cells: ClassCells {
                    class: value.class,
                    filter: value.filter,
                    back_filter: back.copied().unwrap_or(0),
                    ..known.get(&value.class).copied().unwrap_or_default()
                },
            };
        }
        line
    })
}

fn cell_lines(cells: &[(RuleKey, RuleValue)]) -> Result<Flat> {
    let port = |key: &RuleKey| lines::port_of_cell(key.prefix_len, key.protocol, key.port);
    let hashes = cells
        .iter()
        .map(|(key, _)| lines::cell(key.class, port(key)))
        .collect();
    lay_out(Part::Cells, hashes, 1, |keys| {
        let mut line = CellLine::default();
        if let Some((key, value)) = one(keys, cells) {
            line.class = key.class;
            line.port = port(key);
            line.value = *value;
        }
        line
    })
}

fn addr4_lines(content: &Content) -> Result<Flat> {
    let entries: Vec<(u32, AddrValue)> = content
        .part(Part::Addr4)
        .entries::<[u8; 4], AddrValue>()
        .map(|(addr, value)| (u32::from_ne_bytes(addr), value))
        .collect();
    let hashes = entries
        .iter()
        .map(|(addr, _)| lines::addr4(*addr))
        .collect();
    lay_out(Part::Addr4, hashes, 4, |keys| {
        let mut line = Addr4Line::default();
        let places = line
            .addr
            .iter_mut()
            .zip(&mut line.identity)
            .zip(&mut line.flags);
        for (((addr, identity), flags), key) in places.zip(keys) {
            if let Some((own, value)) = key.and_then(|key| entries.get(key)) {
                (*addr, *identity, *flags) = (*own, value.identity, value.flags | TAKEN);
            }
        }
        line
    })
}

fn addr6_lines(content: &Content) -> Result<Flat> {
    let entries: Vec<([u64; 2], AddrValue)> = content
        .part(Part::Addr6)
        .entries::<[u8; 16], AddrValue>()
        .map(|(addr, value)| (<V6 as Tabled>::mapped_words(&addr), value))
        .collect();
    let hashes = entries
        .iter()
        .map(|(addr, _)| lines::addr6(*addr))
        .collect();
    lay_out(Part::Addr6, hashes, 2, |keys| {
        let mut line = Addr6Line::default();
        let places = line
            .addr
            .iter_mut()
            .zip(&mut line.identity)
            .zip(&mut line.flags);
        for (((addr, identity), flags), key) in places.zip(keys) {
            if let Some((own, value)) = key.and_then(|key| entries.get(key)) {
                (*addr, *identity, *flags) = (*own, value.identity, value.flags | TAKEN);
            }
        }
        line
    })
}

/// The array of a part: `line` writes one, given the keys that lie in it.
fn lay_out<T: aya::Pod>(
    part: Part,
    hashes: Vec<u64>,
    ways: usize,
    line: impl Fn(&[Option<usize>]) -> T,
) -> Result<Flat> {
    let layout = Layout::of(&hashes, ways).ok_or(KernelError::Layout { map: part.map() })?;
    let mut flat = like(part);
    for (index, keys) in (0u32..).zip(layout.lines()) {
        flat.push(&index, &line(keys));
    }
    Ok(flat)
}

/// The only key of a line.
fn one<'a, T>(keys: &[Option<usize>], all: &'a [T]) -> Option<&'a T> {
    keys.first().copied().flatten().and_then(|key| all.get(key))
}

/// The key of a cell from what its line says.
const fn rule_key(class: u32, port: u32) -> RuleKey {
    let [bits, protocol, high, low] = port.to_be_bytes();
    RuleKey {
        prefix_len: bits as u32,
        class,
        protocol,
        port: [high, low],
        pad: 0,
    }
}

const fn bound(identity: u32, flags: u32) -> AddrValue {
    AddrValue {
        identity,
        flags: flags & !TAKEN,
    }
}

/// An IPv6 address from its words in memory order.
fn octets(words: [u64; 2]) -> [u8; 16] {
    let [high, low] = words.map(u64::to_ne_bytes);
    let mut octets = [0; 16];
    for (to, from) in octets.iter_mut().zip(high.into_iter().chain(low)) {
        *to = from;
    }
    octets
}

/// An empty table of the kernel's sizes.
fn like(part: Part) -> Flat {
    let (key, value) = part.kernel_sizes();
    Flat::new(key, value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content() -> Content {
        let mut content = Content::default();
        for (identity, class) in [(5u32, 1u32), (6, 2), (7, 1)] {
            for direction in 0..2u32 {
                let key = ClassKey {
                    endpoint: 1,
                    identity,
                    direction,
                };
                let value = ClassValue {
                    class,
                    filter: direction * 9,
                };
                content.part_mut(Part::Classes).push(&key, &value);
            }
        }
        for (class, prefix_len, protocol, port) in [
            (1, RuleKey::FULL, 6, 443u16),
            (1, RuleKey::ANY_PROTOCOL, 0, 0),
            (2, 48, 6, 0x1f00),
            (2, RuleKey::ANY_PORT, 17, 0),
        ] {
            let key = RuleKey {
                prefix_len,
                class,
                protocol,
                port: port.to_be_bytes(),
                pad: 0,
            };
            let value = RuleValue {
                rule: u32::from(port) + class,
                ..RuleValue::default()
            };
            content.part_mut(Part::Rules).push(&key, &value);
        }
        for last in 0..9u8 {
            let value = AddrValue {
                identity: u32::from(last),
                flags: u32::from(last) % 3,
            };
            content
                .part_mut(Part::Addr4)
                .push(&[10, 0, 0, last], &value);
            let mut addr = [0u8; 16];
            (addr[0], addr[15]) = (0xfd, last);
            content.part_mut(Part::Addr6).push(&addr, &value);
        }
        content.sort();
        content
    }

    fn lines<T: aya::Pod>(shaped: &Content, part: Part) -> Vec<T> {
        shaped
            .part(part)
            .entries::<u32, T>()
            .map(|(_, line)| line)
            .collect()
    }

    #[test]
    fn a_content_comes_back_from_its_shape() {
        let content = content();
        let shaped = shape(&content).expect("shape");
        assert_eq!(shaped.part(Part::Rules).len(), 1);
        let cells: Vec<CellLine> = lines(&shaped, Part::Cells);
        assert_eq!(cells.iter().filter(|line| line.class != 0).count(), 3);
        let classes: Vec<ClassLine> = lines(&shaped, Part::Classes);
        let classes: Vec<_> = classes
            .iter()
            .filter(|line| line.cells.class != 0)
            .collect();
        assert_eq!(classes.len(), 6);
        for line in classes {
            let value = line.cells;
            assert_eq!(value.back_filter, (1 - (line.scope & 1)) * 9);
            let wanted = if value.class == 1 {
                assert_eq!(value.default.rule, 1);
                cells::DEFAULT | 1 << cells::bit(6, 443u16.to_be_bytes())
            } else {
                cells::RANGES | cells::PROTOCOLS
            };
            assert_eq!(value.present, wanted, "{line:?}");
        }
        assert_eq!(unshape(&shaped), content);
        assert_eq!(unshape(&shaped).digest(), content.digest());
        let empty = Content::default();
        assert_eq!(unshape(&shape(&empty).expect("shape")), empty);
    }

    #[test]
    fn a_shape_that_was_changed_is_no_content() {
        let content = content();
        let change = |part: Part, index: usize, byte: usize| {
            let mut shaped = shape(&content).expect("shape");
            let mut flat = like(part);
            let old = shaped.part(part);
            let (keys, values) = (old.keys().chunks(4), old.values().chunks(64));
            for (number, (key, value)) in keys.zip(values).enumerate() {
                let mut value = value.to_vec();
                if number == index {
                    value[byte] ^= 1;
                }
                flat.push_raw(key, &value);
            }
            *shaped.part_mut(part) = flat;
            unshape(&shaped).digest()
        };
        for part in [Part::Addr4, Part::Addr6, Part::Classes, Part::Cells] {
            let shaped = shape(&content).expect("shape");
            for index in 0..shaped.part(part).len() {
                // Every byte: what lies there, what is said to be absent, and what should be zero.
                for byte in 0..64 {
                    assert_ne!(
                        change(part, index, byte),
                        content.digest(),
                        "{part:?} {index} {byte}"
                    );
                }
            }
        }
    }
}
