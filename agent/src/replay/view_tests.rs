//! Reading and fitting frames.

use super::*;

/// An IPv4 UDP frame of a length.
fn udp(length: usize) -> Vec<u8> {
    let mut frame = vec![0; length];
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[14] = 0x45;
    let total = u16::try_from(length - ETHERNET).expect("fits");
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    frame[23] = 17;
    frame[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    frame[34..38].copy_from_slice(&[0x13, 0x88, 0, 53]);
    frame
}

#[test]
fn a_tuple_is_read_from_what_was_captured() {
    let frame = udp(500);
    let view = View::of(&frame[..42], 500);
    let tuple = view.tuple.expect("understood");
    assert_eq!((tuple.source_port, tuple.destination_port), (5000, 53));
    assert!(!view.cut);
    let view = View::of(&frame[..36], 500);
    assert!(view.cut, "the ports were not captured");
    assert!(view.tuple.is_none() && view.ends.is_some());
    let view = View::of(&frame[..36], 36);
    assert!(!view.cut, "broken on the wire, not in the capture");
}

#[test]
fn both_directions_have_one_key() {
    let a: (IpAddr, u16) = ("10.0.0.1".parse().expect("ip"), 5000);
    let b: (IpAddr, u16) = ("10.0.0.2".parse().expect("ip"), 53);
    assert_eq!(FlowKey::new(17, a, b), FlowKey::new(17, b, a));
    assert_ne!(FlowKey::new(17, a, b), FlowKey::new(6, a, b));
    // ICMP: the other port is type and code, and no part of the flow.
    assert_eq!(
        FlowKey::new(1, a, (b.0, 8 << 8)),
        FlowKey::new(1, a, (b.0, 0))
    );
}

#[test]
fn what_was_cut_by_the_capture_is_made_whole() {
    let frame = udp(500);
    let (fitted, missing) = fit(&frame[..60], 500);
    assert_eq!((fitted.len(), missing), (500, 0));
    assert_eq!(fitted[..60], frame[..60]);
    let (fitted, missing) = fit(&frame, 500);
    assert!(matches!(fitted, Cow::Borrowed(_)) && missing == 0);
}

#[test]
fn what_is_too_long_loses_its_end_and_the_bytes_are_told() {
    for captured in [100, 9000] {
        let frame = udp(9000);
        let (fitted, missing) = fit(&frame[..captured], 9000);
        assert_eq!(fitted.len(), LONGEST);
        assert_eq!(missing, 9000 - LONGEST);
        let total = usize::from(u16::from_be_bytes([fitted[16], fitted[17]]));
        assert_eq!(total + missing, 9000 - ETHERNET);
        let tuple = View::of(&fitted, fitted.len()).tuple.expect("still sound");
        assert_eq!(tuple.source_port, 5000);
    }
    // A length that lies stays a lie.
    let mut frame = udp(9000);
    frame[16..18].copy_from_slice(&[0xff, 0xff]);
    let (fitted, missing) = fit(&frame, 9000);
    assert_eq!((&fitted[16..18], missing), (&[0xff, 0xff][..], 0));
    // No IP: nothing to correct.
    let mut frame = udp(9000);
    frame[12] = 0x88;
    assert_eq!(fit(&frame, 9000).1, 9000 - LONGEST);
}
