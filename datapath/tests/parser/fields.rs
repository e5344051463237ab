//! Fields of headers that are understood.

use datapath::packet::{Kind, Packet, parse4, parse6, tcp};
use datapath::sim::packets::{self, end};

use super::memory::Memory;

#[test]
fn sequence_and_acknowledgment_numbers_are_in_host_order_and_only_tcps() {
    let numbers = |frame: &mut Vec<u8>, l4: usize| {
        frame[l4 + 4..l4 + 8].copy_from_slice(&0x0102_0304u32.to_be_bytes());
        frame[l4 + 8..l4 + 12].copy_from_slice(&0xfffe_fdfcu32.to_be_bytes());
    };
    let mut frame = packets::tcp(end("192.0.2.1", 40000), end("192.0.2.2", 443), tcp::ACK, 3);
    numbers(&mut frame, 34);
    let mut packet = Packet::default();
    parse4(&Memory::of(&frame), 14, &mut packet).unwrap();
    assert_eq!((packet.seq, packet.ack), (0x0102_0304, 0xfffe_fdfc));

    // The same memory is used for the next packet: nothing of the last one may stay.
    let datagram = packets::udp(end("192.0.2.1", 40000), end("192.0.2.2", 443), 30);
    parse4(&Memory::of(&datagram), 14, &mut packet).unwrap();
    assert_eq!((packet.seq, packet.ack), (0, 0));

    let mut frame = packets::tcp(
        end("2001:db8::1", 40000),
        end("2001:db8::2", 443),
        tcp::SYN,
        0,
    );
    numbers(&mut frame, 54);
    let mut packet = Packet::default();
    parse6(&Memory::of(&frame), 14, &mut packet).unwrap();
    assert_eq!((packet.seq, packet.ack), (0x0102_0304, 0xfffe_fdfc));
}

#[test]
fn control_of_one_family_is_no_control_in_the_other() {
    // Neighbour solicitation, errors and redirects under the number of the other family's control protocol.
    for kind in [1, 3, 5, 133, 135, 137, 143] {
        let message = [kind, 0, 0, 0, 0, 7, 0, 1, 0x45, 0, 0, 0];
        let (a, b) = (end("192.0.2.1", 0), end("192.0.2.2", 0));
        let frame = packets::ip(a.addr, b.addr, 58, &message);
        let mut packet = Packet::default();
        parse4(&Memory::of(&frame), 14, &mut packet).unwrap();
        assert!(matches!(packet.kind, Kind::Flow), "{kind}");
        assert!(packet.is_opening());
        assert_eq!(packet.policy_port, u16::from(kind) << 8);

        let (a, b) = (end("2001:db8::1", 0), end("2001:db8::2", 0));
        let frame = packets::ip(a.addr, b.addr, 1, &message);
        let mut packet = Packet::default();
        parse6(&Memory::of(&frame), 14, &mut packet).unwrap();
        assert!(matches!(packet.kind, Kind::Flow), "{kind}");
        assert_eq!(packet.policy_port, u16::from(kind) << 8);
    }
}
