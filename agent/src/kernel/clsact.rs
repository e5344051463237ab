//! clsact filters over netlink: what kernels without TCX have instead of links.
//!
//! A filter has no descriptor and no pin: the kernel itself is asked where ours are, by their priority, handle
//! and name. So they are found whoever made them and whatever became of the agent since. The clsact qdisc stays
//! when the last filter goes: somebody else may be about to use it.
//!
//! What a link gives and a filter cannot: whoever may configure the network can take a filter away, and until the
//! agent hears of it and puts it back, nothing is enforced on that hook.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::rtnetlink::{Answer, Message, attributes, text, word};

/// Priority of our filter. It never changes: the next agent finds the filter by it.
pub(super) const PRIORITY: u16 = 7;
/// Handle of our filter, likewise.
pub(super) const HANDLE: u32 = 0xcf01;
/// How the names of our programs begin.
pub(super) const PREFIX: &str = "cofferdam_";

// include/uapi/linux/pkt_sched.h, pkt_cls.h, rtnetlink.h
const CLSACT: u32 = 0xffff_0000;
const CLSACT_PARENT: u32 = 0xffff_fff1;
const INGRESS_PARENT: u32 = 0xffff_fff2;
const EGRESS_PARENT: u32 = 0xffff_fff3;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_CHAIN: u16 = 11;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
const DIRECT_ACTION: u32 = 1;
const TCMSG: usize = 20;

/// A filter on a clsact hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    pub(super) ifindex: u32,
    pub(super) ingress: bool,
    pub(super) priority: u16,
    pub(super) handle: u32,
    pub(super) chain: u32,
    /// `bpf`, `u32`, `flower` and so on.
    pub(super) kind: String,
    /// Name and id of the program, where it is one.
    pub(super) name: String,
    pub(super) program: u32,
}

impl Filter {
    /// Whether it is where ours is.
    fn in_our_place(&self) -> bool {
        self.priority == PRIORITY && self.handle == HANDLE && self.chain == 0
    }

    /// Whether an agent made it.
    pub(super) fn is_ours(&self) -> bool {
        self.in_our_place() && self.kind == "bpf" && self.name.starts_with(PREFIX)
    }
}

fn parent(ingress: bool) -> u32 {
    if ingress {
        INGRESS_PARENT
    } else {
        EGRESS_PARENT
    }
}

/// `fields` are device, handle, parent and info of a `tcmsg`.
fn request(kind: u16, flags: libc::c_int, fields: [u32; 4]) -> Message {
    let mut head = [0; TCMSG];
    for (place, field) in head
        .iter_mut()
        .skip(4)
        .zip(fields.map(u32::to_ne_bytes).as_flattened())
    {
        *place = *field;
    }
    Message::new(kind, flags, &head)
}

fn priority_and_protocol() -> u32 {
    let every = u16::try_from(libc::ETH_P_ALL).unwrap_or(3);
    (u32::from(PRIORITY) << 16) | u32::from(every.to_be())
}

/// Puts a program into our place on a hook, in one step if there is one already; gives whether there was.
///
/// # Errors
/// When the kernel refuses, or somebody else's filter is in our place.
pub(super) fn set(
    prog: BorrowedFd<'_>,
    id: u32,
    name: &str,
    ifindex: u32,
    ingress: bool,
) -> io::Result<bool> {
    add_qdisc(ifindex)?;
    let before = on_hook(ifindex, ingress)?
        .into_iter()
        .find(Filter::in_our_place);
    match &before {
        Some(filter) if !filter.is_ours() => {
            return Err(io::Error::other(format!(
                "a {} filter {:?} of somebody else has priority {PRIORITY} and handle {HANDLE:#x}",
                filter.kind, filter.name
            )));
        }
        // It is there: touching it would only be announced to everybody, this agent included.
        Some(filter) if filter.program == id => return Ok(true),
        _ => {}
    }
    // CREATE without EXCL: one that is there gets the program under RCU, every packet sees one or the other.
    let mut message = request(
        libc::RTM_NEWTFILTER,
        libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_REPLACE,
        [ifindex, HANDLE, parent(ingress), priority_and_protocol()],
    );
    message.attribute(TCA_KIND, b"bpf\0");
    let options = message.open(TCA_OPTIONS);
    message.attribute(TCA_BPF_FD, &prog.as_raw_fd().to_ne_bytes());
    message.attribute(TCA_BPF_NAME, format!("{name}\0").as_bytes());
    message.attribute(TCA_BPF_FLAGS, &DIRECT_ACTION.to_ne_bytes());
    message.close(options);
    message.ask()?;
    Ok(before.is_some())
}

/// Takes our filter off a hook; gives whether there was one.
///
/// # Errors
/// When the kernel refuses and the filter is still there.
pub(super) fn remove(ifindex: u32, ingress: bool) -> io::Result<bool> {
    let ours =
        || -> io::Result<bool> { Ok(on_hook(ifindex, ingress)?.iter().any(Filter::is_ours)) };
    if !ours()? {
        return Ok(false);
    }
    let gone = request(
        libc::RTM_DELTFILTER,
        libc::NLM_F_ACK,
        [ifindex, HANDLE, parent(ingress), priority_and_protocol()],
    )
    .ask();
    match gone {
        Ok(_) => Ok(true),
        // Somebody was faster, or the device went.
        Err(_) if !ours().unwrap_or(true) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Our filters on every device of this network namespace.
///
/// # Errors
/// When the kernel does not list them.
pub(super) fn ours() -> io::Result<Vec<Filter>> {
    let mut found = Vec::new();
    for ifindex in devices()? {
        for ingress in [false, true] {
            found.extend(
                on_hook(ifindex, ingress)?
                    .into_iter()
                    .filter(Filter::is_ours),
            );
        }
    }
    Ok(found)
}

/// Every filter on a hook, in the order in which they run.
///
/// # Errors
/// When the kernel does not list them.
pub(super) fn on_hook(ifindex: u32, ingress: bool) -> io::Result<Vec<Filter>> {
    let answers = request(
        libc::RTM_GETTFILTER,
        libc::NLM_F_DUMP,
        [ifindex, 0, parent(ingress), 0],
    )
    .ask();
    match answers {
        Ok(answers) => Ok(answers
            .iter()
            .filter(|answer| answer.kind == libc::RTM_NEWTFILTER)
            .filter_map(|answer| filter(answer, ingress))
            .collect()),
        Err(error) if is_nothing_there(&error) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The device is gone, or this kernel has no traffic control.
fn is_nothing_there(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENODEV | libc::ENOENT | libc::EOPNOTSUPP)
    )
}

fn filter(answer: &Answer, ingress: bool) -> Option<Filter> {
    let handle = word(&answer.body, 8)?;
    // A classifier announces itself before its filters.
    if handle == 0 {
        return None;
    }
    let mut filter = Filter {
        ifindex: word(&answer.body, 4)?,
        ingress,
        priority: u16::try_from(word(&answer.body, 16)? >> 16).ok()?,
        handle,
        chain: 0,
        kind: String::new(),
        name: String::new(),
        program: 0,
    };
    for (kind, value) in attributes(answer.body.get(TCMSG..)?) {
        match kind {
            TCA_KIND => filter.kind = text(value),
            TCA_CHAIN => filter.chain = word(value, 0)?,
            TCA_OPTIONS => {
                for (kind, value) in attributes(value) {
                    match kind {
                        TCA_BPF_NAME => filter.name = text(value),
                        TCA_BPF_ID => filter.program = word(value, 0)?,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    // The options of other classifiers mean something else.
    if filter.kind != "bpf" {
        filter.name.clear();
        filter.program = 0;
    }
    Some(filter)
}

/// Devices that have a clsact qdisc.
fn devices() -> io::Result<Vec<u32>> {
    let answers = match request(libc::RTM_GETQDISC, libc::NLM_F_DUMP, [0; 4]).ask() {
        Ok(answers) => answers,
        Err(error) if is_nothing_there(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    Ok(answers
        .iter()
        .filter(|answer| answer.kind == libc::RTM_NEWQDISC)
        .filter(|answer| {
            attributes(answer.body.get(TCMSG..).unwrap_or_default())
                .any(|(kind, value)| kind == TCA_KIND && text(value) == "clsact")
        })
        .filter_map(|answer| word(&answer.body, 4))
        .collect())
}

fn add_qdisc(ifindex: u32) -> io::Result<()> {
    let mut message = request(
        libc::RTM_NEWQDISC,
        libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL,
        [ifindex, CLSACT, CLSACT_PARENT, 0],
    );
    message.attribute(TCA_KIND, b"clsact\0");
    match message.ask() {
        // Of the agent before, or of another tool.
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(name: &[u8], info: u32) -> Answer {
        let mut message = request(libc::RTM_NEWTFILTER, 0, [3, HANDLE, INGRESS_PARENT, info]);
        message.attribute(TCA_KIND, b"bpf\0");
        let options = message.open(TCA_OPTIONS);
        message.attribute(TCA_BPF_NAME, name);
        message.attribute(TCA_BPF_ID, &77u32.to_ne_bytes());
        message.close(options);
        message.into_answer()
    }

    #[test]
    fn ours_is_known_by_place_and_name() {
        let of = |name: &[u8], info| filter(&listed(name, info), true).expect("filter");
        let ours = of(b"cofferdam_ingress\0", priority_and_protocol());
        assert!(ours.is_ours());
        assert_eq!((ours.ifindex, ours.program), (3, 77));
        let other = of(b"somebody\0", priority_and_protocol());
        assert!(other.in_our_place() && !other.is_ours());
        assert!(!of(b"cofferdam_ingress\0", 8 << 16).is_ours());
    }

    #[test]
    fn malformed_answers_end_the_reading() {
        let whole = listed(b"cofferdam_ingress\0", 0).body;
        for cut in 0..whole.len() {
            let body = whole.get(..cut).expect("prefix").to_vec();
            let kind = libc::RTM_NEWTFILTER;
            if let Some(filter) = filter(&Answer { kind, body }, true) {
                assert!(!filter.is_ours());
            }
        }
    }
}
