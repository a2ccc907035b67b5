//! What the process has cost so far, as the kernel counts it: CPU time, context switches, resident
//! memory, bytes sent to the disk.

use std::fs;
use std::io;
use std::mem::MaybeUninit;

/// CPU time and context switches of all threads of the process.
#[derive(Clone, Copy, Debug)]
pub struct Cpu {
    /// User and system time, in microseconds.
    pub us: f64,
    /// Times a thread gave the CPU up to wait: about one for each wake-up.
    pub waits: f64,
}

impl Cpu {
    /// Since the process started.
    pub fn now() -> Self {
        let mut usage = MaybeUninit::<libc::rusage>::uninit();
        // SAFETY: the pointer is valid for a write of an rusage, and RUSAGE_SELF is always known.
        let done = unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) };
        assert_eq!(done, 0, "getrusage fails only for arguments it does not know");
        // SAFETY: the call succeeded, so all of it has been written.
        let usage = unsafe { usage.assume_init() };
        let us = |time: libc::timeval| time.tv_sec as f64 * 1e6 + time.tv_usec as f64;
        Self { us: us(usage.ru_utime) + us(usage.ru_stime), waits: usage.ru_nvcsw as f64 }
    }

    /// What came since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self { us: self.us - earlier.us, waits: self.waits - earlier.waits }
    }
}

/// Resident memory, in bytes.
pub fn resident_bytes() -> io::Result<u64> {
    resident_bytes_of(std::process::id())
}

/// That of another process.
pub fn resident_bytes_of(process: u32) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    Ok(number_after(&status, "VmRSS:")? * 1024)
}

/// Gives freed memory back to the kernel, so that growth of the resident set means allocation again.
pub fn give_memory_back() {
    // SAFETY: takes no pointer, and may be called at any time.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Bytes that the process has caused to be sent to the disk.
pub fn disk_bytes_written() -> io::Result<u64> {
    number_after(&fs::read_to_string("/proc/self/io")?, "\nwrite_bytes:")
}

/// The number behind a name, in one of the kernel's reports.
pub fn number_after(text: &str, name: &str) -> io::Result<u64> {
    text.split_once(name)
        .and_then(|(_, rest)| rest.split_whitespace().next())
        .and_then(|word| word.parse().ok())
        .ok_or_else(|| io::Error::other(format!("the kernel's report lacks {}", name.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_answers() {
        assert!(Cpu::now().us >= 0.0);
        assert!(resident_bytes().unwrap() > 0);
        disk_bytes_written().unwrap();
    }
}
