//! Errors of routers on the way: path-MTU discovery and traceroute.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use crate::common::{Lab, in_namespace, patience};
use crate::far::{Far, NARROW, has, ip, permit, run_in};

#[test]
fn a_narrow_link_on_the_way_is_found() {
    const BYTES: usize = 400_000;
    let Some(mut lab) = Lab::new("a_narrow_link_on_the_way_is_found") else {
        return;
    };
    let far = Far::of(&lab);
    permit(&lab, &[("tcp", 5432)]);
    lab.start();
    let listener = lab.listen(5432);
    for (from, to) in Far::addresses().into_iter().zip([lab.v4(), lab.v6()]) {
        let mut client = in_namespace(&far.ns, || {
            TcpStream::connect_timeout(&SocketAddr::new(to, 5432), patience())
        })
        .expect("connect");
        let (mut server, _) = listener.accept().expect("accept");
        client.set_read_timeout(Some(patience())).expect("timeout");
        server.set_write_timeout(Some(patience())).expect("timeout");
        // The host's segments are too long for the far link; only the router's error tells it.
        let received = std::thread::scope(|scope| {
            scope.spawn(move || {
                server.write_all(&vec![7; BYTES]).expect("send");
            });
            let mut received = Vec::new();
            client.read_to_end(&mut received).map(|_| received.len())
        });
        assert_eq!(received.expect("all of it"), BYTES, "{from}");
        let route = ip(&format!("-n {} route get {from}", lab.host));
        assert!(route.contains(&format!("mtu {NARROW}")), "{route}");
    }
}

#[test]
fn traceroute_sees_the_way_out_and_not_the_way_in() {
    let test = "traceroute_sees_the_way_out_and_not_the_way_in";
    if !has(test, "traceroute") {
        return;
    }
    let Some(mut lab) = Lab::new(test) else {
        return;
    };
    let far = Far::of(&lab);
    permit(&lab, &[("tcp", 5432)]);
    lab.start();
    let hops = |text: &str| -> Vec<String> {
        text.lines()
            .skip(1)
            .filter_map(|line| line.split_whitespace().nth(1).map(str::to_owned))
            .collect()
    };
    for method in ["", "-I"] {
        for (family, router, target) in [
            ("-4", "10.66.0.2", "10.66.1.2"),
            ("-6", "fd66::2", "fd67::2"),
        ] {
            let command = format!("traceroute {family} {method} -n -N 1 -q 1 -w 5 -m 4 {target}");
            assert_eq!(
                hops(&run_in(&lab.host, &command)),
                [router, target],
                "{command}"
            );
        }
        // Of a host that allows one TCP port, probes see nothing.
        let command = format!("traceroute -4 {method} -n -N 1 -q 1 -w 1 -m 2 10.66.0.1");
        assert_eq!(
            hops(&run_in(&far.ns, &command)),
            ["10.66.1.1", "*"],
            "{command}"
        );
    }
}
