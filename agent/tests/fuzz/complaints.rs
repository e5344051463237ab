//! What the kernel has complained about meanwhile.

/// Complaints in the kernel's log at a moment.
pub(crate) struct Complaints(Option<Vec<String>>);

impl Complaints {
    /// As of now.
    pub(crate) fn now() -> Self {
        Self(read())
    }

    /// Nothing was added.
    ///
    /// # Panics
    /// When something was.
    pub(crate) fn check(&self) {
        let (Some(before), Some(after)) = (&self.0, read()) else {
            crate::support::skip("the kernel's log cannot be read: its warnings are not looked at");
            return;
        };
        // The log is a ring: old lines may have gone.
        let new: Vec<&String> = after.iter().filter(|line| !before.contains(line)).collect();
        assert!(new.is_empty(), "the kernel complains: {new:#?}");
    }
}

fn read() -> Option<Vec<String>> {
    const READ_ALL: libc::c_int = 3;
    let mut buffer = vec![0u8; 1 << 20];
    let room = libc::c_int::try_from(buffer.len()).ok()?;
    // SAFETY: a live buffer and its length.
    let length = unsafe { libc::klogctl(READ_ALL, buffer.as_mut_ptr().cast(), room) };
    buffer.truncate(usize::try_from(length).ok()?);
    let text = String::from_utf8_lossy(&buffer);
    let bad = [
        "WARNING:",
        "BUG:",
        "Oops",
        "general protection",
        "UBSAN",
        "KASAN",
        "stall",
    ];
    Some(
        text.lines()
            .filter(|line| bad.iter().any(|word| line.contains(word)))
            .map(str::to_owned)
            .collect(),
    )
}
