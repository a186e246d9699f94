//! The kernel's code in each process that tells the time without a system call (vdso(7)), and how it is bent.
//!
//! Every program has it mapped and asks it, whether it is linked statically or not. The pages are shared until a debugger
//! writes to them; then the process has a copy of its own, which `fork` passes on and `exec` drops.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use super::code;
use super::hold::Held;
use crate::error::{Attempt, LabError};

/// What this kernel gives to each 64-bit process, and where it is to be bent.
pub(super) struct Vdso {
    entries: Vec<Entry>,
    /// Behind the last byte in use: room for our code.
    room: u64,
}

/// A function of it that tells the time.
struct Entry {
    at: u64,
    /// How it begins.
    plain: [u8; 8],
    /// How it begins when it is bent.
    bent: [u8; 8],
}

/// How far a wall clock is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Offset {
    milliseconds: i64,
}

impl Offset {
    /// None: the clock is right.
    pub fn new(milliseconds: i64) -> Option<Self> {
        (milliseconds != 0).then_some(Self { milliseconds })
    }

    /// Seconds, and the nanoseconds and microseconds beyond them: what our code begins with.
    fn words(self) -> [u8; 24] {
        let (seconds, rest) = (self.milliseconds.div_euclid(1000), self.milliseconds.rem_euclid(1000));
        let mut bytes = [0; 24];
        for (place, word) in bytes.chunks_mut(8).zip([seconds, rest * 1_000_000, rest * 1000]) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

/// What a process' clock is like.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum State {
    True,
    Bent([u8; 24]),
}

impl State {
    /// Whether it is as it should be.
    pub fn is(&self, wanted: Option<Offset>) -> bool {
        match (self, wanted) {
            (State::True, None) => true,
            (State::Bent(words), Some(offset)) => *words == offset.words(),
            _ => false,
        }
    }
}

impl Vdso {
    /// Reads this process' own: all have the same.
    ///
    /// # Errors
    /// There is none, or it is not as expected: this kernel's clock cannot be bent.
    pub fn of_this_kernel() -> Result<Self, LabError> {
        let (begin, length) = own_mapping().ok_or_else(|| strange("it is not mapped"))?;
        let mut image = vec![0; length];
        let memory = File::open("/proc/self/mem").attempt(|| "open /proc/self/mem".into())?;
        memory.read_exact_at(&mut image, begin).attempt(|| "read the vDSO".into())?;
        Self::of_image(&image)
    }

    fn of_image(image: &[u8]) -> Result<Self, LabError> {
        let used = image.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let room = used.next_multiple_of(16);
        if room + code::bytes().len() > image.len() {
            return Err(strange("its last page has no room"));
        }
        let mut entries = Vec::new();
        for routine in code::routines() {
            let at = symbol(image, routine.name).ok_or_else(|| strange(&format!("it has no {}", routine.name)))?;
            let begins = image.get(at..at + 8).and_then(|bytes| <[u8; 8]>::try_from(bytes).ok());
            let plain = begins.ok_or_else(|| strange("a function is outside of it"))?;
            // A jump is relative to what follows it.
            let distance = (room + routine.at) as i64 - (at + JUMP) as i64;
            let mut bent = plain;
            bent[0] = 0xE9;
            bent[1..JUMP].copy_from_slice(&(distance as i32).to_le_bytes());
            entries.push(Entry { at: at as u64, plain, bent });
        }
        Ok(Self { entries, room: room as u64 })
    }

    /// Where a process has it, and what it is like there. None: the process is gone, or has another one.
    pub fn look(&self, pid: i32) -> Option<(u64, State)> {
        let base = mapped_at(pid)?;
        let memory = File::open(format!("/proc/{pid}/mem")).ok()?;
        let begins = |entry: &Entry| {
            let mut bytes = [0; 8];
            memory.read_exact_at(&mut bytes, base + entry.at).ok().map(|()| bytes)
        };
        let begun: Vec<[u8; 8]> = self.entries.iter().map(begins).collect::<Option<_>>()?;
        if begun.iter().zip(&self.entries).all(|(begun, entry)| *begun == entry.plain) {
            return Some((base, State::True));
        }
        if begun.iter().zip(&self.entries).all(|(begun, entry)| *begun == entry.bent) {
            let mut words = [0; 24];
            memory.read_exact_at(&mut words, base + self.room).ok()?;
            return Some((base, State::Bent(words)));
        }
        None
    }

    /// Gives a process that stands still another clock, or the true one back. False: a thread is just where code is to change.
    pub fn bend(&self, process: &Held, base: u64, wanted: Option<Offset>) -> nix::Result<bool> {
        let changing = self.entries.iter().map(|entry| base + entry.at + 1..base + entry.at + JUMP as u64);
        if process.is_in(changing)? {
            return Ok(false);
        }
        if let Some(offset) = wanted {
            let mut code = code::bytes().to_vec();
            code[..24].copy_from_slice(&offset.words());
            process.write(base + self.room, &code)?;
        }
        for entry in &self.entries {
            process.write(base + entry.at, if wanted.is_some() { &entry.bent } else { &entry.plain })?;
        }
        Ok(true)
    }
}

/// Bytes of a jump over 32 bits.
const JUMP: usize = 5;

fn strange(what: &str) -> LabError {
    LabError::new(format!("a server's clock cannot be set apart on this kernel: of its vDSO, {what}"))
        .hint("boot the host without vdso=0; 64-bit x86 only")
}

fn own_mapping() -> Option<(u64, usize)> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|line| line.ends_with("[vdso]"))?;
    let (begin, end) = line.split(' ').next()?.split_once('-')?;
    let (begin, end) = (u64::from_str_radix(begin, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    Some((begin, usize::try_from(end.checked_sub(begin)?).ok()?))
}

/// As the kernel told the process when it began (getauxval(3), AT_SYSINFO_EHDR).
fn mapped_at(pid: i32) -> Option<u64> {
    let told = fs::read(format!("/proc/{pid}/auxv")).ok()?;
    told.chunks_exact(16).find(|pair| number(pair, 0, 8) == Some(33)).and_then(|pair| number(pair, 8, 8))
}

/// Where a dynamic symbol is in an ELF file (elf(5)).
fn symbol(image: &[u8], name: &str) -> Option<usize> {
    let (sections, size) = (number(image, 0x28, 8)? as usize, number(image, 0x3A, 2)? as usize);
    let count = number(image, 0x3C, 2)? as usize;
    // Offset, size, and the section it is linked with.
    let section = |at: usize| {
        let header = image.get(at..at.checked_add(size)?)?;
        let (offset, size) = (number(header, 0x18, 8)? as usize, number(header, 0x20, 8)? as usize);
        Some((image.get(offset..offset.checked_add(size)?)?, number(header, 0x28, 4)? as usize))
    };
    let headers = (0..count).map(|n| sections + n * size);
    let mut dynamic = headers.filter(|at| number(image, at + 4, 4) == Some(11));
    let (symbols, strings) = section(dynamic.next()?)?;
    let (strings, _) = section(sections.checked_add(strings.checked_mul(size)?)?)?;
    let found = symbols.chunks_exact(24).find(|symbol| {
        let named = number(symbol, 0, 4).and_then(|at| strings.get(at as usize..)?.strip_prefix(name.as_bytes()));
        named.is_some_and(|rest| rest.first() == Some(&0))
    })?;
    number(found, 8, 8).and_then(|at| usize::try_from(at).ok())
}

fn number(bytes: &[u8], at: usize, length: usize) -> Option<u64> {
    let mut word = [0; 8];
    word[..length].copy_from_slice(bytes.get(at..at.checked_add(length)?)?);
    Some(u64::from_le_bytes(word))
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Command, Stdio};
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn an_offset_before_now_has_a_rest_that_is_not_negative() {
        let words = Offset::new(-1500).expect("an offset").words();
        assert_eq!(words[..8], (-2i64).to_le_bytes());
        assert_eq!(words[8..16], 500_000_000i64.to_le_bytes());
        assert_eq!(words[16..], 500_000i64.to_le_bytes());
    }

    #[test]
    fn what_is_no_elf_file_is_refused() {
        assert!(Vdso::of_image(&[0; 4096]).is_err());
        assert!(Vdso::of_image(&[0xff; 4096]).is_err());
        assert!(Vdso::of_image(&[]).is_err());
    }

    /// bash tells the time by itself, without a program that would begin with the true clock again.
    #[test]
    fn a_process_has_another_clock_and_gets_the_true_one_back() {
        let vdso = Vdso::of_this_kernel().expect("a vDSO");
        let mut bash = Command::new("bash");
        let script = "while read; do printf '%(%s)T\\n' -1; (printf '%(%s)T\\n' -1); done";
        bash.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut bash = bash.spawn().expect("bash starts");
        let (mut input, output) = (bash.stdin.take().expect("an input"), bash.stdout.take().expect("an output"));
        let mut output = BufReader::new(output).lines();
        let mut differs = |wanted: Option<Offset>| {
            let pid = bash.id() as i32;
            let held = Held::take(pid, Duration::from_secs(5)).expect("it stands still");
            let (base, state) = vdso.look(pid).expect("it has a vDSO");
            assert!(!state.is(wanted));
            assert!(vdso.bend(&held, base, wanted).expect("it can be written to"));
            drop(held);
            assert!(vdso.look(pid).expect("it has a vDSO").1.is(wanted));
            writeln!(input).expect("bash reads");
            let now = SystemTime::UNIX_EPOCH.elapsed().expect("a time").as_secs() as i64;
            [0, 1].map(|_| {
                let told = output.next().expect("a line").expect("text").parse::<i64>().expect("a number");
                // To the nearest 100 s: it may take a moment.
                (told - now + 50).div_euclid(100) * 100
            })
        };
        assert_eq!(differs(Offset::new(3_600_000)), [3600, 3600], "a child has its clock from its parent");
        assert_eq!(differs(Offset::new(-86_400_500)), [-86_400, -86_400]);
        assert_eq!(differs(None), [0, 0]);
        drop(input);
        assert!(bash.wait().expect("bash ends").success());
    }
}
