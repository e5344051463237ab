//! Rule sets as people write them.

/// Name and text.
pub(crate) const NFTABLES: &[(&str, &str)] = &[
    (
        "a server",
        "table inet filter {
            set admins {
                type ipv4_addr
                flags interval
                elements = { 10.99.1.0/24, 10.99.200.7 }
            }
            chain ssh {
                ip saddr 10.99.1.5 return
                ip saddr @admins accept
                limit rate 4/minute log prefix \"ssh\"
            }
            chain input {
                type filter hook input priority filter; policy drop;
                ct state vmap { established : accept, related : accept, invalid : drop }
                iif lo accept
                ip6 nexthdr icmpv6 accept
                ip protocol icmp icmp type echo-request ip saddr != 10.99.2.0/24 accept
                tcp dport 22 jump ssh
                tcp dport { 80, 443, 8000-8010 } counter accept comment \"the site\"
                udp dport 53 ip saddr 10.99.0.0/17 accept
                ip6 saddr fd99::5:0/112 tcp dport 5432 accept
                tcp dport 9000 reject with tcp reset
                log prefix \"dropped\" drop
            }
            chain output {
                type filter hook output priority filter; policy accept;
                ip daddr 10.99.200.0/24 tcp dport != 443 drop
                meta nfproto ipv6 udp dport 514 drop
            }
        }",
    ),
    (
        "two tables, of which both have to accept",
        "table ip first {
            chain input {
                type filter hook input priority -10; policy accept;
                ip saddr 10.99.2.0/24 drop
                tcp dport 22 accept
                tcp dport 0-1023 ip saddr 10.99.200.7 drop
            }
        }
        table inet second {
            chain input {
                type filter hook input priority 0; policy drop;
                ct state established,related accept
                tcp dport { 22, 80 } accept
                udp dport 123 accept
                meta l4proto icmpv6 accept
            }
            chain pre {
                type filter hook prerouting priority mangle; policy accept;
                ct state new tcp dport 443 drop
                ip6 saddr fd99::2 tcp dport 80 drop
            }
        }",
    ),
    (
        "maps, gotos and returns",
        "table inet filter {
            map services {
                type inet_service : verdict
                elements = { 22 : goto guarded, 80 : accept, 443 : jump guarded, 9000 : drop }
            }
            set pairs {
                type ipv4_addr . inet_service
                elements = { 10.99.1.5 . 5432, 10.99.2.9 . 8005 }
            }
            chain guarded {
                ip saddr 10.99.0.2 accept
                ip saddr 10.99.1.0/24 return
                ip6 saddr fd99::2 drop
                meta nfproto ipv6 accept
            }
            chain input {
                type filter hook input priority filter; policy drop;
                ct state established accept
                tcp dport vmap @services
                tcp dport { 22, 443 } ip saddr 10.99.1.5 accept
                ip saddr . tcp dport @pairs accept
                tcp dport >= 2049 tcp dport < 8005 meta nfproto ipv6 accept
                meta l4proto { tcp, udp } th dport { 53, 514 } accept
                icmpv6 type != echo-request accept
            }
        }",
    ),
    (
        "without state, as routers are filtered",
        "table inet filter {
            chain input {
                type filter hook input priority filter; policy drop;
                meta l4proto icmpv6 accept
                tcp flags & (fin|syn|rst|ack) != syn accept
                tcp dport { 22, 80 } accept
                udp dport 53 accept
                udp sport 123 udp dport 1024-65535 accept
            }
            chain output {
                type filter hook output priority filter; policy drop;
                meta l4proto icmpv6 accept
                tcp sport { 22, 443 } tcp flags & (syn|ack) != syn accept
                tcp dport { 443, 80 } accept
                udp sport 53 udp dport 1024-65535 accept
                udp dport 123 accept
            }
        }",
    ),
    (
        "conditions without a word in policy",
        "table inet filter {
            set seen {
                type ipv4_addr
                flags dynamic,timeout
                timeout 1m
            }
            chain input {
                type filter hook input priority filter; policy drop;
                ct state established,related accept
                meta l4proto icmpv6 accept
                ip saddr @seen drop
                tcp dport 22 meta mark 0x7 drop
                tcp dport 22 accept
                tcp dport 80 limit rate 100/second accept
                tcp sport 1024-65535 tcp dport 443 accept
                meta length 1-9000 tcp dport 5432 jump more
                tcp dport 8005 add @seen { ip saddr timeout 1s } accept
                udp dport 53 accept
            }
            chain more {
                ip saddr 10.99.1.5 accept
                ip saddr 10.99.0.0/16 return
                drop
            }
            chain pre {
                type nat hook prerouting priority dstnat; policy accept;
                tcp dport 9000 redirect to :80
            }
        }",
    ),
];

/// Name, `iptables-restore`, `ip6tables-restore`, `ipset restore`.
pub(crate) const IPTABLES: &[(&str, &str, &str, &str)] = &[
    (
        "a server",
        r#"*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:web - [0:0]
:unused - [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -m conntrack --ctstate INVALID -j DROP
-A INPUT -p tcp -m tcp --tcp-flags FIN,SYN,RST,PSH,ACK,URG NONE -j DROP
-A INPUT -p tcp -m multiport --dports 80,443,8000:8010 -m comment --comment "the \"site\"" -j web
-A INPUT -p icmp -m icmp --icmp-type 8 ! -s 10.99.2.0/24 -j ACCEPT
-A INPUT ! -s 10.99.0.0/17 -p tcp -m tcp --dport 22 -j REJECT --reject-with tcp-reset
-A INPUT -i h0 -p tcp -m tcp --dport 22 -j ACCEPT
-A INPUT -d 10.99.0.1/32 -p udp -m udp --dport 53 -j ACCEPT
-A INPUT -d 10.99.0.9/32 -p udp -m udp --dport 123 -j ACCEPT
-A INPUT -m limit --limit 3/min -j LOG --log-prefix "drop: "
-A OUTPUT -d 10.99.200.0/24 -p tcp -m tcp ! --dport 443 -j DROP
-A OUTPUT -o h0 -p udp -m udp --dport 514 -j DROP
-A web -s 10.99.1.0/24 -p tcp -m tcp --dport 443 -j RETURN
-A web -m iprange --src-range 10.99.2.1-10.99.2.99 -j DROP
-A web -j ACCEPT
-A unused -j ACCEPT
COMMIT
"#,
        "*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 135 -j ACCEPT
-A INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 136 -j ACCEPT
-A INPUT -s fd99::5:0/112 -p tcp -m tcp --dport 5432 -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 --syn -j ACCEPT
COMMIT
",
        "",
    ),
    (
        "sets, gotos, several tables",
        "*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A PREROUTING -s 10.99.200.7/32 -p udp -m udp --dport 53 -j DROP
COMMIT
*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A PREROUTING -p tcp -m tcp --dport 9000 -m conntrack --ctstate NEW -j DROP
-A POSTROUTING -j MARK --set-xmark 0x1/0xffffffff
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A PREROUTING -p tcp -m tcp --dport 2049 -j REDIRECT --to-ports 80
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:guarded - [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -g guarded
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
-A INPUT -p tcp -m set --match-set pairs src,dst -j ACCEPT
-A INPUT -p tcp -m tcp --dport 5432 -m set ! --match-set admins src -j DROP
-A INPUT -p tcp -m tcp --dport 8005 -m recent --rcheck --seconds 60 --name x --mask 255.255.255.255 --rsource -j ACCEPT
-A INPUT -p tcp -m set --match-set closed dst -j DROP
-A INPUT -p tcp -m multiport ! --dports 443,5432,9000 -j DROP
-A guarded -m set --match-set all src -j ACCEPT
-A guarded -s 10.99.0.2/32 -j RETURN
-A guarded -j DROP
COMMIT
",
        "*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT DROP [0:0]
-A OUTPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT
-A OUTPUT -p ipv6-icmp -j ACCEPT
-A OUTPUT -d fd99::2/128 -p tcp -m owner --uid-owner 0 -j ACCEPT
-A OUTPUT -p udp -m udp --sport 1:65535 --dport 53 -j ACCEPT
COMMIT
",
        "create admins hash:net family inet
add admins 10.99.1.0/24
create more hash:ip family inet
add more 10.99.200.7
create all list:set size 8
add all admins
add all more
create pairs hash:ip,port family inet
add pairs 10.99.0.2,tcp:80
add pairs 10.99.2.9,tcp:8005
create closed bitmap:port range 1-9999
add closed 443
",
    ),
];
