//! Controllers that are not there, not ours, or silent.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use crate::command::run;
use crate::fake::{Behaviour, Fake};
use crate::pki::Ca;

#[test]
fn nobody_listens() {
    let home = tempfile::tempdir().unwrap();
    Ca::new().write_operator(home.path());
    // Bound and closed: nobody else gets this port in the meantime.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let url = format!("https://127.0.0.1:{port}");
    let start = Instant::now();
    let result = run(
        home.path(),
        &["status", "--controller", &url, "--operator-dir", "."],
    );
    let result = result.expect(1);
    assert!(start.elapsed() < Duration::from_secs(10));
    assert!(
        result.stderr.contains(&format!("cannot reach {url}: ")),
        "{result:?}"
    );
    assert!(result.stderr.contains("onnection refused"), "{result:?}");
    assert!(
        result.stderr.contains("next: check the address"),
        "{result:?}"
    );
}

#[test]
fn somebody_listens_but_never_answers() {
    let home = tempfile::tempdir().unwrap();
    Ca::new().write_operator(home.path());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let start = Instant::now();
    let args = [
        "status",
        "--controller",
        &url,
        "--operator-dir",
        ".",
        "--request-timeout",
        "1s",
    ];
    let result = run(home.path(), &args).expect(1);
    assert!(start.elapsed() < Duration::from_secs(8));
    assert!(result.stderr.contains("no answer within 1s"), "{result:?}");
}

#[test]
fn a_call_that_is_not_answered_ends() {
    let fake = Fake::start(Behaviour {
        hang: true,
        ..Behaviour::default()
    });
    let start = Instant::now();
    let result = fake.run(&["status", "--request-timeout", "1s"]).expect(1);
    assert!(start.elapsed() < Duration::from_secs(8));
    assert!(result.stderr.contains("no answer within 1s"), "{result:?}");
}

#[test]
fn a_controller_of_another_ca_is_not_trusted() {
    let fake = Fake::start(Behaviour::default());
    let other = fake.home().join("other");
    Ca::new().write_operator(&other);
    let result = fake.run(&["status", "--operator-dir", "other"]).expect(1);
    assert!(result.stderr.contains("certificate"), "{result:?}");
    assert!(
        result.stderr.contains("--ca is the CA of this controller"),
        "{result:?}"
    );
    assert!(fake.seen().is_empty());
}

#[test]
fn an_operator_of_another_ca_is_refused() {
    let fake = Fake::start(Behaviour::default());
    let other = fake.home().join("other");
    Ca::new().write_operator(&other);
    let args = [
        "status",
        "--cert",
        "other/cert.pem",
        "--key",
        "other/key.pem",
    ];
    let result = fake.run(&args).expect(1);
    assert!(result.stderr.contains("your certificate is"), "{result:?}");
    assert!(fake.seen().is_empty());
}

#[test]
fn a_name_that_the_certificate_does_not_have_is_not_trusted() {
    let fake = Fake::start(Behaviour::default());
    let url = fake.url().replace("127.0.0.1", "localhost");
    let result = fake.run(&["status", "--controller", &url]).expect(1);
    assert!(result.stderr.contains("certificate names"), "{result:?}");
}

#[test]
fn missing_certificates_are_named() {
    let home = tempfile::tempdir().unwrap();
    let args = ["status", "--controller", "https://127.0.0.1:1"];
    let result = run(home.path(), &args).expect(1);
    assert!(
        result
            .stderr
            .starts_with("error: no ca file is named\nnext: "),
        "{result:?}"
    );
    let args = [&args[..], &["--operator-dir", "nowhere"]].concat();
    let result = run(home.path(), &args).expect(1);
    assert!(
        result.stderr.contains("cannot read nowhere/ca.pem"),
        "{result:?}"
    );
    std::fs::write(home.path().join("junk.pem"), "junk").unwrap();
    let args = [
        "status",
        "--controller",
        "https://127.0.0.1:1",
        "--ca",
        "junk.pem",
        "--cert",
        "junk.pem",
        "--key",
        "junk.pem",
    ];
    let result = run(home.path(), &args).expect(1);
    assert!(result.stderr.contains("junk.pem"), "{result:?}");
    let result = run(home.path(), &["status"]).expect(1);
    assert!(
        result.stderr.contains("not known where the controller is"),
        "{result:?}"
    );
}
