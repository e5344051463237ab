//! The intruder: a scan, a finding, a host cut off.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::super::report::Outcome;
use super::super::world::World;
use crate::estate::capture::Capture;
use crate::estate::probe::{self, Reach};
use crate::estate::process::{Process, Session};
use crate::estate::wait_for;

/// Microseconds since the epoch.
fn now_us() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_micros() as u64)
}

/// Scans from the foothold, waits for the finding, isolates, and measures until its last packet.
pub(in super::super) fn contain(world: &mut World) -> Result<Outcome<()>> {
    let quiet = world.controller.ask(&["findings"])?;
    let early: Vec<&str> = quiet["findings"]
        .as_array()
        .context("no list of findings")?
        .iter()
        .filter_map(|finding| finding["reason"].as_str())
        .collect();
    if !early.is_empty() {
        bail!(
            "there are findings before anybody scanned: {}",
            early.join("; ")
        );
    }
    let (kiosk, web) = (world.host("kiosk")?, world.host("web")?);
    let dir = world.estate.dir("contain")?;
    // The intruder's own live session over an allowed path: containment must end it too.
    let mut curl = kiosk.netns.command("curl");
    curl.args(["-s", "-o", "/dev/null", "--limit-rate", "20M"])
        .arg(format!("http://{}/large", web.v4()));
    let stolen = Process::start("curl", &mut curl, &dir.join("curl.log"))?;
    let capture = Capture::start(kiosk, &format!("tcp and host {}", web.v4()), &dir)?;
    let mut follow = world.controller.command(&["findings", "-f", "-o", "json"]);
    let mut findings = Session::start("findings", &mut follow)?;
    let mut nmap = kiosk.netns.command("nmap");
    nmap.args([
        "-n",
        "-Pn",
        "-sS",
        "-T4",
        "-p",
        "1-1000",
        "10.77.0.20",
        "10.77.0.30",
        "10.77.0.40",
    ]);
    let scan_started = now_us();
    let scan = Process::start("nmap", &mut nmap, &dir.join("nmap.log"))?;
    let finding = read_finding(&mut findings)?;
    let seen = now_us();
    let subject = finding["subject"]
        .as_str()
        .context("a finding without a subject")?
        .to_owned();
    if subject != "kiosk" {
        bail!("the finding blames {subject}");
    }
    let decided = now_us();
    let isolation = world
        .controller
        .ask(&["isolate", &subject, "--ttl", "10m", "--reason", "scan"])?;
    let answered = now_us();
    if isolation["complete"] != json!(true) {
        bail!("not every agent verified the isolation: {isolation}");
    }
    wait_for(
        "silence from the isolated host",
        Duration::from_secs(20),
        || {
            let targets = [(web.addresses()[0], 80), (web.addresses()[1], 80)];
            let reach = probe::from_host(kiosk, &targets, Duration::from_millis(400)).ok()?;
            (reach == [Reach::Blocked, Reach::Blocked]).then_some(())
        },
    )?;
    let counts = capture.finish()?;
    let last = counts
        .iter()
        .filter(|((from, _), _)| from.ip() == kiosk.addresses()[0])
        .map(|(_, count)| count.last_us)
        .max();
    let last = last.context("the intruder's session left no packet on the wire")?;
    drop((scan, stolen));
    let ms = |from: u64, to: u64| (to as f64 - from as f64) / 1000.0;
    let data = json!({
        "finding": {"detector": finding["detector"], "subject": subject, "technique": finding["technique"],
            "reason": finding["reason"], "confidence": finding["confidence"]},
        "timeline_ms": {"scan started": 0, "finding arrived": ms(scan_started, seen), "isolate typed": ms(scan_started, decided),
            "verified everywhere": ms(scan_started, answered), "last packet": ms(scan_started, last)},
        "isolation": isolation,
        "last_packet_after_isolate_ms": ms(decided, last),
    });
    let text = format!(
        "   {}\n   from the start of nmap: finding after {:.0} ms, `isolate` verified by {} agents after {:.0} ms,\n   the \
         intruder's last packet on the wire after {:.0} ms ({:.0} ms after `isolate` was typed)",
        finding["reason"].as_str().unwrap_or_default(),
        ms(scan_started, seen),
        isolation["agents_verified"],
        ms(scan_started, answered),
        ms(scan_started, last),
        ms(decided, last)
    );
    Ok(Outcome::new((), text, data))
}

/// Ends the isolation; what the policy allows works again.
pub(in super::super) fn restore(world: &mut World) -> Result<Outcome<()>> {
    let answer = world.controller.ask(&["restore", "kiosk"])?;
    if answer["complete"] != json!(true) {
        bail!("not every agent verified the restoration: {answer}");
    }
    let target = [(world.host("web")?.addresses()[0], 80)];
    wait_for("kiosk to reach web again", Duration::from_secs(10), || {
        let reach = probe::from_host(
            world.host("kiosk").ok()?,
            &target,
            Duration::from_millis(400),
        )
        .ok()?;
        (reach == [Reach::Open]).then_some(())
    })?;
    let text = format!(
        "   verified by {} agents; kiosk → web works again",
        answer["agents_verified"]
    );
    Ok(Outcome::new(
        (),
        text,
        json!({"agents_verified": answer["agents_verified"]}),
    ))
}

fn read_finding(findings: &mut Session) -> Result<Value> {
    let line = findings
        .next_line(Duration::from_secs(60))
        .context("no finding within a minute of the scan")?;
    serde_json::from_str(&line).with_context(|| format!("not a finding: {line}"))
}
