//! The form in which the kernel holds rules: a packet's cell is found by a hash of its class, protocol and port, not by
//! walking a trie that grows with the policy, and a class says which of these look-ups would find nothing.

use std::collections::{BTreeMap, HashMap};

use datapath::abi::{ClassCells, ClassKey, ClassValue, RuleKey, RuleValue, cells};

use super::content::{Content, Flat, Part};

/// A content as the kernel's maps hold it; keys stay sorted.
pub(crate) fn shape(content: &Content) -> Content {
    let mut shaped = content.clone();
    let rules = content.part(Part::Rules);
    let mut known: HashMap<u32, ClassCells> = HashMap::new();
    let (mut ranges, mut exact) = (like(Part::Rules), like(Part::Cells));
    for (key, value) in rules.entries::<RuleKey, RuleValue>() {
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
        exact.push(&key, &value);
    }
    let classes: BTreeMap<_, ClassValue> = content
        .part(Part::Classes)
        .entries::<ClassKey, ClassValue>()
        .map(|(key, value)| ((key.endpoint, key.identity, key.direction), value))
        .collect();
    let mut table = like(Part::Classes);
    for (key, value) in content
        .part(Part::Classes)
        .entries::<ClassKey, ClassValue>()
    {
        let back = classes.get(&(key.endpoint, key.identity, key.direction ^ 1));
        let entry = ClassCells {
            class: value.class,
            filter: value.filter,
            back_filter: back.map_or(0, |back| back.filter),
            ..known.get(&value.class).copied().unwrap_or_default()
        };
        table.push(&key, &entry);
    }
    *shaped.part_mut(Part::Rules) = ranges;
    *shaped.part_mut(Part::Cells) = exact;
    *shaped.part_mut(Part::Classes) = table;
    shaped
}

/// The content that the kernel's maps were made of. Maps that no content would have become are given back as they are:
/// their digest is that of no policy.
pub(crate) fn unshape(shaped: &Content) -> Content {
    let mut content = shaped.clone();
    let mut classes = Flat::of(Part::Classes);
    for (key, value) in shaped.part(Part::Classes).entries::<ClassKey, ClassCells>() {
        let ClassCells { class, filter, .. } = value;
        classes.push(&key, &ClassValue { class, filter });
    }
    let mut rules = shaped.part(Part::Rules).clone();
    for (key, value) in shaped.part(Part::Cells).entries::<RuleKey, RuleValue>() {
        rules.push(&key, &value);
    }
    rules.sort();
    *content.part_mut(Part::Classes) = classes;
    *content.part_mut(Part::Rules) = rules;
    *content.part_mut(Part::Cells) = Flat::of(Part::Cells);
    if shape(&content) == *shaped {
        content
    } else {
        shaped.clone()
    }
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
        content.sort();
        content
    }

    #[test]
    fn a_content_comes_back_from_its_shape() {
        let content = content();
        let shaped = shape(&content);
        assert_eq!(shaped.part(Part::Rules).len(), 1);
        assert_eq!(shaped.part(Part::Cells).len(), 3);
        let classes: Vec<(ClassKey, ClassCells)> = shaped.part(Part::Classes).entries().collect();
        for (key, value) in &classes {
            assert_eq!(value.back_filter, (1 - key.direction) * 9);
            let wanted = if value.class == 1 {
                assert_eq!(value.default.rule, 1);
                cells::DEFAULT | 1 << cells::bit(6, 443u16.to_be_bytes())
            } else {
                cells::RANGES | cells::PROTOCOLS
            };
            assert_eq!(value.present, wanted, "{key:?}");
        }
        assert_eq!(unshape(&shaped), content);
        assert_eq!(unshape(&shaped).digest(), content.digest());
    }

    #[test]
    fn a_shape_that_was_changed_is_no_content() {
        let content = content();
        let mut shaped = shape(&content);
        let mut classes = like(Part::Classes);
        for (key, value) in shape(&content)
            .part(Part::Classes)
            .entries::<ClassKey, ClassCells>()
        {
            // As if no cell of a single port were there: its denials would be overlooked.
            let value = ClassCells {
                present: value.present & cells::DEFAULT,
                ..value
            };
            classes.push(&key, &value);
        }
        *shaped.part_mut(Part::Classes) = classes;
        assert_ne!(unshape(&shaped).digest(), content.digest());
    }
}
