//! Right sides of comparisons: single values, prefixes, ranges, and sets of them.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use crate::brownfield::intervals::{Addresses, Intervals};
use crate::brownfield::json;

/// The content of a named set or map.
pub(super) struct Content<'a> {
    /// Elements; of maps, pairs of key and value.
    pub(super) elements: &'a [Value],
    /// Why it cannot be relied on.
    pub(super) moving: bool,
}

impl<'a> Content<'a> {
    pub(super) fn of(body: &'a Value) -> Self {
        let flags = match body.get("flags") {
            Some(Value::Array(flags)) => flags.iter().filter_map(Value::as_str).collect(),
            Some(Value::String(flag)) => vec![flag.as_str()],
            _ => Vec::new(),
        };
        Self {
            elements: json::list(body, "elem"),
            moving: flags.contains(&"dynamic")
                || flags.contains(&"timeout")
                || body.get("timeout").is_some(),
        }
    }
}

/// The value inside an element that carries more (`counter`, `comment`, …); `None` when it expires.
pub(super) fn bare(value: &Value) -> Option<&Value> {
    match value.get("elem") {
        None => Some(value),
        Some(element) if element.get("expires").is_some() || element.get("timeout").is_some() => {
            None
        }
        Some(element) => element.get("val"),
    }
}

/// One address, prefix or range.
pub(super) fn address(value: &Value) -> Option<Addresses> {
    match value {
        Value::String(text) => {
            let address: IpAddr = text.parse().ok()?;
            Some(Addresses::range(address, address))
        }
        Value::Object(map) => {
            if let Some(prefix) = map.get("prefix") {
                let address: IpAddr = json::text(prefix, "addr")?.parse().ok()?;
                let length = u8::try_from(json::integer(prefix, "len")?).ok()?;
                return Some(Addresses::nets([IpNet::new(address, length).ok()?]));
            }
            let (low, high) = ends(map.get("range")?)?;
            Some(Addresses::range(
                low.as_str()?.parse().ok()?,
                high.as_str()?.parse().ok()?,
            ))
        }
        _ => None,
    }
}

/// One number or range of numbers; `named` knows words.
pub(super) fn number(value: &Value, named: &dyn Fn(&str) -> Option<u16>) -> Option<Intervals> {
    let one = |value: &Value| match value {
        Value::String(text) => text.parse().ok().or_else(|| named(text)),
        _ => value.as_u64().and_then(|number| u16::try_from(number).ok()),
    };
    if let Some(range) = value.get("range") {
        let (low, high) = ends(range)?;
        return Some(Intervals::range(one(low)?.into(), one(high)?.into()));
    }
    one(value).map(|number| Intervals::range(number.into(), number.into()))
}

fn ends(range: &Value) -> Option<(&Value, &Value)> {
    match range.as_array()?.as_slice() {
        [low, high] => Some((low, high)),
        _ => None,
    }
}
