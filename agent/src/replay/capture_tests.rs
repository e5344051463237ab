//! Every format in both byte orders, and what damage does to them.

use super::*;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Order {
    Little,
    Big,
}

struct Writer {
    order: Order,
    bytes: Vec<u8>,
}

impl Writer {
    const fn new(order: Order) -> Self {
        Self {
            order,
            bytes: Vec::new(),
        }
    }

    fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes.extend(match self.order {
            Order::Little => value.to_le_bytes(),
            Order::Big => value.to_be_bytes(),
        });
        self
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes.extend(match self.order {
            Order::Little => value.to_le_bytes(),
            Order::Big => value.to_be_bytes(),
        });
        self
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes.extend(match self.order {
            Order::Little => value.to_le_bytes(),
            Order::Big => value.to_be_bytes(),
        });
        self
    }

    fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// A pcapng block around a body.
    fn block(&mut self, kind: u32, body: impl FnOnce(&mut Self)) -> &mut Self {
        let mut inner = Self::new(self.order);
        body(&mut inner);
        while !inner.bytes.len().is_multiple_of(4) {
            inner.bytes.push(0);
        }
        let length = u32::try_from(inner.bytes.len() + 12).expect("short");
        self.u32(kind).u32(length).raw(&inner.bytes).u32(length)
    }
}

const FRAMES: [&[u8]; 3] = [b"first frame", b"", b"the third frame, longer"];

/// 2023-11-14T22:13:20Z, and a fraction.
const AT: i64 = 1_700_000_000_000_000_000;

fn pcap(order: Order, nanoseconds: bool) -> Vec<u8> {
    let mut out = Writer::new(order);
    out.u32(if nanoseconds {
        0xa1b2_3c4d
    } else {
        0xa1b2_c3d4
    })
    .u16(2)
    .u16(4)
    .u32(0)
    .u32(0)
    .u32(65_535)
    .u32(1);
    for (number, frame) in (0u32..).zip(FRAMES) {
        let length = u32::try_from(frame.len()).expect("short");
        out.u32(1_700_000_000)
            .u32(number * 5)
            .u32(length)
            .u32(length + 7)
            .raw(frame);
    }
    out.bytes
}

fn pcapng(order: Order) -> Vec<u8> {
    let mut out = Writer::new(order);
    out.block(0x0a0d_0d0a, |body| {
        body.u32(0x1a2b_3c4d).u16(1).u16(0).u64(u64::MAX);
    });
    // Milliseconds, and 1000 seconds to be added.
    out.block(1, |body| {
        body.u16(1).u16(0).u32(0);
        body.u16(9).u16(1).raw(&[3, 0, 0, 0]);
        body.u16(14).u16(8).u64(1000);
        body.u16(0).u16(0);
    });
    // 1/1024 seconds.
    out.block(1, |body| {
        body.u16(101).u16(0).u32(0);
        body.u16(9).u16(1).raw(&[0x8a, 0, 0, 0]);
        body.u16(0).u16(0);
    });
    for (number, frame) in (0u32..).zip(FRAMES) {
        let units: u64 = if number == 1 {
            1_700_000_000 << 10
        } else {
            1_699_999_000_000 + u64::from(number) * 5
        };
        out.block(6, |body| {
            body.u32(u32::from(number == 1))
                .u32((units >> 32) as u32)
                .u32(units as u32);
            let length = u32::try_from(frame.len()).expect("short");
            body.u32(length).u32(length + 7).raw(frame);
        });
        out.block(0xbad, |body| {
            body.raw(b"a block that nobody knows");
        });
    }
    out.bytes
}

type Read_ = (Vec<(i64, Link, usize, Vec<u8>)>, Option<CaptureError>);

fn read(bytes: &[u8]) -> Read_ {
    let mut found = Vec::new();
    // Little room, so that the reader has to refill and grow.
    let outcome = frames_with(128, bytes, |frame| {
        found.push((
            frame.at_ns,
            frame.link,
            frame.original,
            frame.bytes.to_vec(),
        ));
        Ok::<_, ()>(())
    });
    match outcome {
        Ok(Ok(())) => (found, None),
        Ok(Err(())) => unreachable!("never said"),
        Err(error) => (found, Some(error)),
    }
}

fn all() -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for order in [Order::Little, Order::Big] {
        all.push((format!("pcap {order:?} µs"), pcap(order, false)));
        all.push((format!("pcap {order:?} ns"), pcap(order, true)));
        all.push((format!("pcapng {order:?}"), pcapng(order)));
    }
    all
}

#[test]
fn both_byte_orders_and_both_resolutions_are_read() {
    for order in [Order::Little, Order::Big] {
        for (nanoseconds, unit) in [(false, 1000), (true, 1)] {
            let (found, error) = read(&pcap(order, nanoseconds));
            assert!(error.is_none(), "{error:?}");
            assert_eq!(found.len(), 3);
            for (number, (frame, meant)) in found.iter().zip(FRAMES).enumerate() {
                let at = AT + i64::try_from(number).expect("small") * 5 * unit;
                let expected = (at, Link::Ethernet, meant.len() + 7, meant.to_vec());
                assert_eq!(*frame, expected, "{order:?} {nanoseconds}");
            }
        }
    }
}

#[test]
fn pcapng_with_units_offsets_and_unknown_blocks_is_read() {
    for order in [Order::Little, Order::Big] {
        let (found, error) = read(&pcapng(order));
        assert!(error.is_none(), "{order:?}: {error:?}");
        let times: Vec<i64> = found.iter().map(|frame| frame.0).collect();
        assert_eq!(times, [AT, AT, AT + 10_000_000], "{order:?}");
        let links: Vec<Link> = found.iter().map(|frame| frame.1).collect();
        assert_eq!(links, [Link::Ethernet, Link::RawIp, Link::Ethernet]);
        assert!(
            found
                .iter()
                .zip(FRAMES)
                .all(|(frame, meant)| frame.3 == meant)
        );
    }
}

#[test]
fn a_capture_that_is_cut_anywhere_gives_what_is_whole_and_says_where() {
    for (name, bytes) in all() {
        let (whole, _) = read(&bytes);
        for length in 0..bytes.len() {
            let (found, error) = read(bytes.get(..length).expect("in range"));
            assert!(
                found.len() <= whole.len() && found[..] == whole[..found.len()],
                "{name}"
            );
            match error {
                // Between two records nothing is missing.
                None => assert!(length >= 24, "{name} {length}"),
                Some(CaptureError::CutOff { offset }) => {
                    assert!(offset <= length as u64, "{name} {length} {offset}");
                }
                Some(CaptureError::NotACapture) => assert!(length < 28, "{name} {length}"),
                Some(other) => panic!("{name} {length}: {other}"),
            }
        }
    }
}

#[test]
fn no_flipped_bit_makes_it_panic_or_hang() {
    let mut damaged = 0;
    for (name, bytes) in all() {
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut bytes = bytes.clone();
                bytes[at] ^= 1 << bit;
                let (_, error) = read(&bytes);
                if let Some(error) = error {
                    damaged += 1;
                    assert!(!error.to_string().is_empty(), "{name}");
                }
            }
        }
    }
    assert!(damaged > 500, "flips do damage: {damaged}");
}

#[test]
fn random_bytes_behind_a_good_header_do_no_harm() {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for round in 0..500 {
        for (_, good) in all() {
            let header = good.len().min(if good[0] == 0x0a { 28 } else { 24 });
            let mut bytes = good[..header].to_vec();
            for _ in 0..round % 200 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                // Small numbers often: types and lengths that mean something.
                bytes.push(if state & 0x300 == 0 {
                    state as u8
                } else {
                    (state & 0xf) as u8
                });
            }
            read(&bytes);
        }
    }
}

#[test]
fn a_record_without_end_is_refused_before_memory_is() {
    let mut bytes = pcap(Order::Little, false);
    // Length of the first frame: 2 GiB, with a lot behind it.
    bytes[32..36].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    bytes.resize(LONGEST * 3, 0);
    let (found, error) = read(&bytes);
    assert!(found.is_empty());
    assert!(
        matches!(error, Some(CaptureError::Damaged { offset: 24, .. })),
        "{error:?}"
    );
}

#[test]
fn other_files_are_no_captures() {
    for bytes in [&b""[..], b"hello, this is a text and no capture", &[0; 64]] {
        let (_, error) = read(bytes);
        assert!(
            matches!(error, Some(CaptureError::NotACapture)),
            "{error:?}"
        );
    }
}
